"""Phase-1 key derivation, RFC 2409 section 5 and appendix B."""

from __future__ import annotations

from dataclasses import dataclass

from ..wire.registry import Hash
from .cipher import BLOCK
from .prf import digest, prf
from .secret import Secret


@dataclass(frozen=True, slots=True)
class KeyMaterial:
    """SKEYID and what is derived from it, and the encryption key."""

    skeyid: Secret
    skeyid_d: Secret
    skeyid_a: Secret
    skeyid_e: Secret
    encryption_key: Secret


def skeyid_pre_shared(algorithm: Hash, psk: Secret, ni_b: bytes, nr_b: bytes) -> Secret:
    # RFC 2409 section 5.4: SKEYID = prf(pre-shared-key, Ni_b | Nr_b)
    return Secret(prf(algorithm, psk.reveal(), ni_b + nr_b))


def skeyid_signature(algorithm: Hash, ni_b: bytes, nr_b: bytes, g_xy: Secret) -> Secret:
    # RFC 2409 section 5.1: SKEYID = prf(Ni_b | Nr_b, g^xy)
    return Secret(prf(algorithm, ni_b + nr_b, g_xy.reveal()))


def derive(
    algorithm: Hash, skeyid: Secret, g_xy: bytes, cky_i: bytes, cky_r: bytes, key_length: int
) -> KeyMaterial:
    """``key_length`` of the cipher in octets."""
    key, cookies = skeyid.reveal(), cky_i + cky_r
    # SKEYID_d = prf(SKEYID, g^xy | CKY-I | CKY-R | 0)
    d = prf(algorithm, key, g_xy + cookies + b"\x00")
    # SKEYID_a = prf(SKEYID, SKEYID_d | g^xy | CKY-I | CKY-R | 1)
    a = prf(algorithm, key, d + g_xy + cookies + b"\x01")
    # SKEYID_e = prf(SKEYID, SKEYID_a | g^xy | CKY-I | CKY-R | 2)
    e = prf(algorithm, key, a + g_xy + cookies + b"\x02")
    encryption = Secret(expand(algorithm, e, key_length))
    return KeyMaterial(skeyid, Secret(d), Secret(a), Secret(e), encryption)


def expand(algorithm: Hash, skeyid_e: bytes, length: int) -> bytes:
    """RFC 2409 appendix B: the first octets of SKEYID_e, or of Ka where that is too short."""
    if len(skeyid_e) >= length:
        return skeyid_e[:length]
    # K1 = prf(SKEYID_e, 0); Kn = prf(SKEYID_e, Kn-1); Ka = K1 | K2 | ...
    key, block = b"", b"\x00"
    while len(key) < length:
        block = prf(algorithm, skeyid_e, block)
        key += block
    return key[:length]


def phase1_iv(algorithm: Hash, g_xi: bytes, g_xr: bytes) -> bytes:
    # RFC 2409 appendix B: IV = hash(g^xi | g^xr)
    return digest(algorithm, g_xi + g_xr)[:BLOCK]


def phase2_iv(algorithm: Hash, last_block: bytes, message_id: int) -> bytes:
    # RFC 2409 appendix B: IV = hash(last phase 1 CBC output block | M-ID)
    return digest(algorithm, last_block + message_id.to_bytes(4, "big"))[:BLOCK]
