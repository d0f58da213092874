"""The signature of GROUPKEY-PUSH: RSA (RFC 6407 section 5.3.6.1) and ECDSA (RFC 4754)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from ..wire.registry import SigAlgorithm, SigHash
from .secret import Secret

RSA_MIN_BITS, RSA_MAX_BITS = 2048, 4096
# The exponent that everybody uses is the least one taken; what is longer than 64 bits makes each
# verification slower for no gain, and a key server may be hostile.
RSA_MIN_EXPONENT, RSA_MAX_EXPONENT = 65537, 2**64 - 1


class BadSignatureKey(ValueError):
    """A public key that is not what the SAK says, or too weak, or not a key."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """SIG_ALGORITHM, SIG_HASH_ALGORITHM and SIG_KEY_LENGTH (bits, 0 where an SAK has none)."""

    algorithm: SigAlgorithm
    hash: SigHash
    key_length: int

    @property
    def signature_octets(self) -> int:
        """RSA: as long as the modulus. ECDSA: r | s, each as long as the curve's order."""
        if self.algorithm == SigAlgorithm.SIG_ALG_RSA:
            return self.key_length // 8
        return 2 * _half(self.key_length)


_HASHES: dict[SigHash, hashes.HashAlgorithm] = {
    SigHash.SIG_HASH_SHA256: hashes.SHA256(),
    SigHash.SIG_HASH_SHA384: hashes.SHA384(),
    SigHash.SIG_HASH_SHA512: hashes.SHA512(),
}
# RFC 4754 section 3: a curve, and the one hash that goes with it.
_CURVES: dict[SigAlgorithm, tuple[ec.EllipticCurve, SigHash]] = {
    SigAlgorithm.SIG_ALG_ECDSA_256: (ec.SECP256R1(), SigHash.SIG_HASH_SHA256),
    SigAlgorithm.SIG_ALG_ECDSA_384: (ec.SECP384R1(), SigHash.SIG_HASH_SHA384),
    SigAlgorithm.SIG_ALG_ECDSA_521: (ec.SECP521R1(), SigHash.SIG_HASH_SHA512),
}
SCHEMES = {
    f"rsa{bits}-sha{digest.name.removeprefix('SIG_HASH_SHA')}": Scheme(
        SigAlgorithm.SIG_ALG_RSA, digest, bits
    )
    for bits in (2048, 3072, 4096)
    for digest in _HASHES
} | {
    f"ecdsa{curve.key_size}": Scheme(algorithm, digest, curve.key_size)
    for algorithm, (curve, digest) in _CURVES.items()
}


def find_scheme(algorithm: int, digest: int | None, key_length: int) -> Scheme | None:
    """What the three attributes of an SAK say together, absent ones None and 0; None where that is
    not supported, or they contradict each other."""
    if algorithm == SigAlgorithm.SIG_ALG_RSA:
        fits = not key_length or RSA_MIN_BITS <= key_length <= RSA_MAX_BITS
        if digest not in set(_HASHES) or not fits:
            return None
        return Scheme(SigAlgorithm.SIG_ALG_RSA, SigHash(digest), key_length)
    if algorithm not in set(_CURVES):
        return None
    curve, implied = _CURVES[SigAlgorithm(algorithm)]
    # RFC 6407 section 5.3.5: "the hash algorithm is implicit", SIG_HASH_ALGORITHM optional.
    if digest not in (None, implied) or key_length not in (0, curve.key_size):
        return None
    return Scheme(SigAlgorithm(algorithm), implied, curve.key_size)


class SigningKey(Protocol):
    """What a key server signs its rekeys with."""

    @property
    def scheme(self) -> Scheme: ...

    @property
    def public_der(self) -> bytes:
        """SIG_ALGORITHM_KEY: DER SubjectPublicKeyInfo."""
        ...

    def sign(self, data: bytes) -> bytes: ...

    def private_der(self) -> Secret:
        """PKCS #8, unencrypted: for storage that seals it."""
        ...


class VerifyKey(Protocol):
    def verify(self, signature: bytes, data: bytes) -> bool: ...


def generate(scheme: Scheme) -> SigningKey:
    """A new key. RSA takes from a tenth of a second to several: see what calls this."""
    if scheme.algorithm == SigAlgorithm.SIG_ALG_RSA:
        return _RsaSigner(scheme, rsa.generate_private_key(65537, scheme.key_length))
    curve, _ = _CURVES[scheme.algorithm]
    return _EcdsaSigner(scheme, ec.generate_private_key(curve))


def load_private(scheme: Scheme, der: Secret) -> SigningKey:
    """What ``private_der`` gave. Raises BadSignatureKey."""
    try:
        # A second for each RSA-4096 key of a key server that restarts, if it had to be shown again
        # that p and q are primes; whoever can write the store needs no bad key to read the group.
        key = serialization.load_der_private_key(
            der.reveal(), None, unsafe_skip_rsa_key_validation=True
        )
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadSignatureKey("the stored signing key cannot be read") from None
    if scheme.algorithm == SigAlgorithm.SIG_ALG_RSA:
        if isinstance(key, rsa.RSAPrivateKey) and key.key_size == scheme.key_length:
            return _RsaSigner(scheme, key)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        curve, _ = _CURVES[scheme.algorithm]
        if key.curve.name == curve.name:
            return _EcdsaSigner(scheme, key)
    raise BadSignatureKey("the stored signing key is not of the scheme's kind")


def load_public(scheme: Scheme, der: bytes) -> VerifyKey:
    """SIG_ALGORITHM_KEY of a KD payload, as the SAK's ``scheme`` wants it. Raises
    BadSignatureKey."""
    try:
        key = serialization.load_der_public_key(der)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadSignatureKey("SIG_ALGORITHM_KEY is not a DER SubjectPublicKeyInfo") from None
    if scheme.algorithm == SigAlgorithm.SIG_ALG_RSA and isinstance(key, rsa.RSAPublicKey):
        _check_rsa(key, scheme.key_length)
        return _RsaVerifier(scheme, key)
    if scheme.algorithm in _CURVES and isinstance(key, ec.EllipticCurvePublicKey):
        curve, _ = _CURVES[scheme.algorithm]
        if key.curve.name != curve.name:
            raise BadSignatureKey(f"ECDSA-{curve.key_size} key on curve {key.curve.name}")
        return _EcdsaVerifier(scheme, key)
    raise BadSignatureKey(
        f"SIG_ALGORITHM_KEY is no key for signature algorithm {int(scheme.algorithm)}"
    )


def _check_rsa(key: rsa.RSAPublicKey, key_length: int) -> None:
    if not RSA_MIN_BITS <= key.key_size <= RSA_MAX_BITS:
        raise BadSignatureKey(
            f"RSA key of {key.key_size} bits, must be {RSA_MIN_BITS} to {RSA_MAX_BITS}"
        )
    if key_length not in (0, key.key_size):
        raise BadSignatureKey(f"RSA key of {key.key_size} bits, SIG_KEY_LENGTH {key_length}")
    exponent = key.public_numbers().e
    if not RSA_MIN_EXPONENT <= exponent <= RSA_MAX_EXPONENT or not exponent % 2:
        raise BadSignatureKey(
            f"RSA exponent of {exponent.bit_length()} bits, must be odd, {RSA_MIN_EXPONENT} or"
            " more, and of 64 bits at most"
        )


@dataclass(frozen=True, slots=True)
class _RsaSigner:
    scheme: Scheme
    key: rsa.RSAPrivateKey

    @property
    def public_der(self) -> bytes:
        return _spki(self.key.public_key())

    def sign(self, data: bytes) -> bytes:
        return self.key.sign(data, padding.PKCS1v15(), _HASHES[self.scheme.hash])

    def private_der(self) -> Secret:
        return _pkcs8(self.key)


@dataclass(frozen=True, slots=True)
class _RsaVerifier:
    scheme: Scheme
    key: rsa.RSAPublicKey

    def verify(self, signature: bytes, data: bytes) -> bool:
        try:
            self.key.verify(signature, data, padding.PKCS1v15(), _HASHES[self.scheme.hash])
        except InvalidSignature:
            return False
        return True


def _half(bits: int) -> int:
    """Octets of r, and of s: RFC 4754 section 7, for P-521 66 with seven zero bits in front."""
    return (bits + 7) // 8


@dataclass(frozen=True, slots=True)
class _EcdsaSigner:
    scheme: Scheme
    key: ec.EllipticCurvePrivateKey

    @property
    def public_der(self) -> bytes:
        return _spki(self.key.public_key())

    def sign(self, data: bytes) -> bytes:
        der = self.key.sign(data, ec.ECDSA(_HASHES[self.scheme.hash]))
        half = _half(self.key.key_size)
        return b"".join(number.to_bytes(half, "big") for number in decode_dss_signature(der))

    def private_der(self) -> Secret:
        return _pkcs8(self.key)


@dataclass(frozen=True, slots=True)
class _EcdsaVerifier:
    scheme: Scheme
    key: ec.EllipticCurvePublicKey

    def verify(self, signature: bytes, data: bytes) -> bool:
        half = _half(self.key.key_size)
        if len(signature) != 2 * half:
            return False
        der = encode_dss_signature(
            int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
        )
        try:
            self.key.verify(der, data, ec.ECDSA(_HASHES[self.scheme.hash]))
        except InvalidSignature:
            return False
        return True


def _spki(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _pkcs8(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> Secret:
    return Secret(
        key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
