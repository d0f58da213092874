"""The key of GROUPKEY-PUSH-ACK, RFC 8263 section 3.2."""

from __future__ import annotations

from ..wire.registry import Hash
from .prf import prf
from .secret import Secret

LABEL = b"GROUPKEY-PUSH ACK\x00"  # "a null-terminated ASCII string"
# RFC 8263 section 3.2 calls L both the bits of ack_key (256) and "the length of the base_key (i.e.,
# 512 bits for PRF-HMAC-SHA-256)". Its one stated number holds here, as it does in IEC 62351-9.
L_SHA256 = 512


def ack_key(base_key: Secret, spi: bytes, l_bits: int = L_SHA256) -> Secret:
    """``base_key`` without its IV, ``spi`` the 16 cookie octets of the PUSH."""
    # ack_key = prf(base_key, "GROUPKEY-PUSH ACK" | SPI | L)
    data = LABEL + spi + l_bits.to_bytes(2, "big")
    return Secret(prf(Hash.SHA2_256, base_key.reveal(), data))


def ack_hash(key: Secret, seq: bytes, identification: bytes) -> bytes:
    """``seq`` and ``identification`` are the whole payloads, generic headers included."""
    # HASH = prf(ack_key, SEQ | ID)
    return prf(Hash.SHA2_256, key.reveal(), seq + identification)
