"""The transforms a TEK can use, named by swanctl's keywords."""

from __future__ import annotations

from dataclasses import dataclass

from ..wire.registry import AuthAlgorithm, EspTransform

GCM_SALT = 4  # RFC 4106 section 8.1: KEYMAT is key | salt


@dataclass(frozen=True, slots=True)
class TekSuite:
    """An ESP transform, named by swanctl's keyword. Lengths of keys in octets."""

    keyword: str
    transform_id: EspTransform
    key_bits: int
    encryption_octets: int
    authentication: AuthAlgorithm | None = None
    integrity_octets: int = 0
    counter_mode: bool = False


TEK_SUITES = {
    suite.keyword: suite
    for suite in (
        TekSuite(
            f"aes{bits}-sha256",
            EspTransform.ESP_AES_CBC,
            bits,
            bits // 8,
            AuthAlgorithm.HMAC_SHA2_256,
            32,
        )
        for bits in (128, 256)
    )
} | {
    f"aes{bits}gcm16": TekSuite(
        f"aes{bits}gcm16",
        EspTransform.ESP_AES_GCM_16,
        bits,
        bits // 8 + GCM_SALT,
        counter_mode=True,
    )
    for bits in (128, 256)
}
