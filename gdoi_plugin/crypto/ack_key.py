"""The key of GROUPKEY-PUSH-ACK, RFC 8263 section 3.2."""

from __future__ import annotations

from dataclasses import dataclass

from ..wire.registry import AckType, Hash
from .prf import prf
from .secret import Secret

LABEL = b"GROUPKEY-PUSH ACK\x00"  # "a null-terminated ASCII string"


@dataclass(frozen=True, slots=True)
class AckPrf:
    """What a value of KEK_ACK_REQUESTED stands for, RFC 8263 section 2.

    ``leaf``: base_key is the LKH key that the member alone shares with the key server, not the KEK.
    ``octets`` is the length of HASH.
    """

    hash: Hash
    l_bits: int
    octets: int
    leaf: bool


# RFC 8263 section 3.2 calls L both the bits of ack_key and "the length of the base_key (i.e., 512
# bits for PRF-HMAC-SHA-256)", which is the prf's block. Its one stated number holds here, as in
# IEC 62351-9, and for SHA-512 what corresponds to it.
ACK_PRFS: dict[int, AckPrf] = {
    AckType.REKEY_ACK_KEK_SHA256: AckPrf(Hash.SHA2_256, 512, 32, leaf=False),
    AckType.REKEY_ACK_LKH_SHA256: AckPrf(Hash.SHA2_256, 512, 32, leaf=True),
    AckType.REKEY_ACK_KEK_SHA512: AckPrf(Hash.SHA2_512, 1024, 64, leaf=False),
    AckType.REKEY_ACK_LKH_SHA512: AckPrf(Hash.SHA2_512, 1024, 64, leaf=True),
}


def ack_key(kind: AckPrf, base_key: Secret, spi: bytes, l_bits: int | None = None) -> Secret:
    """``base_key`` without its IV, ``spi`` the 16 cookie octets of the PUSH; ``l_bits`` where the
    other side reads L differently."""
    # ack_key = prf(base_key, "GROUPKEY-PUSH ACK" | SPI | L)
    data = LABEL + spi + (l_bits or kind.l_bits).to_bytes(2, "big")
    return Secret(prf(kind.hash, base_key.reveal(), data))


def ack_hash(kind: AckPrf, key: Secret, seq: bytes, identification: bytes) -> bytes:
    """``seq`` and ``identification`` are the whole payloads, generic headers included."""
    # HASH = prf(ack_key, SEQ | ID)
    return prf(kind.hash, key.reveal(), seq + identification)
