"""The transforms a TEK can use, named by swanctl's keywords."""

from __future__ import annotations

from dataclasses import dataclass

from ..wire.registry import AhTransform, AuthAlgorithm, EspTransform, TekProtocol

# RFC 4106 section 8.1, RFC 4543 section 5.1, RFC 7634 section 2: KEYMAT is key | salt, and travels
# as one.
SALT = 4
# RFC 2407 section 4.4.4: from here on "for private use amongst cooperating systems".
FIRST_PRIVATE = 249


@dataclass(frozen=True, slots=True)
class TekSuite:
    """An ESP or AH transform with what goes with it. Lengths of keys and ICV in octets.

    ``key_bits`` None where the transform has one length only and KEY_LENGTH is not sent. A suite
    that encrypts with a counter, or authenticates with one, must not be shared by senders.
    """

    keyword: str
    transform_id: EspTransform | AhTransform
    key_bits: int | None
    encryption_octets: int
    icv_octets: int
    authentication: AuthAlgorithm | None = None
    integrity_octets: int = 0
    counter_mode: bool = False
    protocol: TekProtocol = TekProtocol.GDOI_PROTO_IPSEC_ESP

    @property
    def encrypts(self) -> bool:
        """False for AH and for GMAC, which authenticate alone."""
        return self.encryption_octets > 0 and (
            self.transform_id is not EspTransform.ESP_NULL_AUTH_AES_GMAC
        )

    @property
    def private(self) -> bool:
        """Whether others may mean something else by the transform's number."""
        return self.transform_id >= FIRST_PRIVATE


_KEY_BITS = (128, 192, 256)
# RFC 4868 section 2.1: keys as long as the hash, ICVs half of it
_HASHES = (
    ("sha256", AuthAlgorithm.HMAC_SHA2_256, AhTransform.AH_SHA2_256, 32),
    ("sha384", AuthAlgorithm.HMAC_SHA2_384, AhTransform.AH_SHA2_384, 48),
    ("sha512", AuthAlgorithm.HMAC_SHA2_512, AhTransform.AH_SHA2_512, 64),
)
_GCM = (
    (8, EspTransform.ESP_AES_GCM_8),
    (12, EspTransform.ESP_AES_GCM_12),
    (16, EspTransform.ESP_AES_GCM_16),
)


def _cbc_suites() -> list[TekSuite]:
    """RFC 3602 with RFC 4868."""
    return [
        TekSuite(
            keyword=f"aes{bits}-{name}",
            transform_id=EspTransform.ESP_AES_CBC,
            key_bits=bits,
            encryption_octets=bits // 8,
            icv_octets=octets // 2,
            authentication=algorithm,
            integrity_octets=octets,
        )
        for bits in _KEY_BITS
        for name, algorithm, _, octets in _HASHES
    ]


def _gcm_suites() -> list[TekSuite]:
    """RFC 4106; the number in the keyword is the ICV's."""
    return [
        TekSuite(
            keyword=f"aes{bits}gcm{icv}",
            transform_id=transform,
            key_bits=bits,
            encryption_octets=bits // 8 + SALT,
            icv_octets=icv,
            counter_mode=True,
        )
        for bits in _KEY_BITS
        for icv, transform in _GCM
    ]


def _gmac_suites() -> list[TekSuite]:
    """RFC 4543: ESP that authenticates and does not encrypt, with the counters of GCM."""
    return [
        TekSuite(
            keyword=f"aes{bits}gmac",
            transform_id=EspTransform.ESP_NULL_AUTH_AES_GMAC,
            key_bits=bits,
            encryption_octets=bits // 8 + SALT,
            icv_octets=16,
            counter_mode=True,
        )
        for bits in _KEY_BITS
    ]


def _chacha_suites() -> list[TekSuite]:
    """RFC 7634, with a key of one length."""
    return [
        TekSuite(
            keyword="chacha20poly1305",
            transform_id=EspTransform.PRIVATE_CHACHA20_POLY1305,
            key_bits=None,
            encryption_octets=32 + SALT,
            icv_octets=16,
            counter_mode=True,
        )
    ]


def _ah_suites() -> list[TekSuite]:
    return [
        TekSuite(
            keyword=name,
            transform_id=transform,
            key_bits=None,
            encryption_octets=0,
            icv_octets=octets // 2,
            authentication=algorithm,
            integrity_octets=octets,
            protocol=TekProtocol.GDOI_PROTO_IPSEC_AH,
        )
        for name, algorithm, transform, octets in _HASHES
    ]


ESP_SUITES = {
    suite.keyword: suite
    for suite in _cbc_suites() + _gcm_suites() + _gmac_suites() + _chacha_suites()
}
AH_SUITES = {suite.keyword: suite for suite in _ah_suites()}
TEK_SUITES = ESP_SUITES | AH_SUITES
