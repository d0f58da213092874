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


class BadSignatureKey(ValueError):
    """A public key that is not what the SAK says, or too weak, or not a key."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """SIG_ALGORITHM, SIG_HASH_ALGORITHM and SIG_KEY_LENGTH (bits) of an SAK."""

    algorithm: SigAlgorithm
    hash: SigHash
    key_length: int


SCHEMES = {
    "rsa2048-sha256": Scheme(SigAlgorithm.SIG_ALG_RSA, SigHash.SIG_HASH_SHA256, 2048),
    "ecdsa256": Scheme(SigAlgorithm.SIG_ALG_ECDSA_256, SigHash.SIG_HASH_SHA256, 256),
}


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
    if scheme.algorithm == SigAlgorithm.SIG_ALG_RSA:
        return _RsaSigner(scheme, rsa.generate_private_key(65537, scheme.key_length))
    return _EcdsaSigner(scheme, ec.generate_private_key(ec.SECP256R1()))


def load_private(scheme: Scheme, der: Secret) -> SigningKey:
    """What ``private_der`` gave. Raises BadSignatureKey."""
    try:
        key = serialization.load_der_private_key(der.reveal(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadSignatureKey("the stored signing key cannot be read") from None
    if isinstance(key, rsa.RSAPrivateKey) and scheme.algorithm == SigAlgorithm.SIG_ALG_RSA:
        if key.key_size == scheme.key_length:
            return _RsaSigner(scheme, key)
    elif (
        isinstance(key, ec.EllipticCurvePrivateKey)
        and isinstance(key.curve, ec.SECP256R1)
        and scheme.algorithm == SigAlgorithm.SIG_ALG_ECDSA_256
    ):
        return _EcdsaSigner(scheme, key)
    raise BadSignatureKey("the stored signing key is not of the scheme's kind")


def load_public(algorithm: int, der: bytes, key_length: int = 0) -> VerifyKey:
    """SIG_ALGORITHM_KEY of a KD payload; ``key_length`` is SIG_KEY_LENGTH in bits, 0 where the SAK
    has none. Raises BadSignatureKey."""
    try:
        key = serialization.load_der_public_key(der)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadSignatureKey("SIG_ALGORITHM_KEY is not a DER SubjectPublicKeyInfo") from None
    if algorithm == SigAlgorithm.SIG_ALG_RSA and isinstance(key, rsa.RSAPublicKey):
        if not RSA_MIN_BITS <= key.key_size <= RSA_MAX_BITS:
            raise BadSignatureKey(
                f"RSA key of {key.key_size} bits, must be {RSA_MIN_BITS} to {RSA_MAX_BITS}"
            )
        if key_length not in (0, key.key_size):
            raise BadSignatureKey(f"RSA key of {key.key_size} bits, SIG_KEY_LENGTH {key_length}")
        return _RsaVerifier(key)
    if algorithm == SigAlgorithm.SIG_ALG_ECDSA_256 and isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, ec.SECP256R1):
            raise BadSignatureKey(f"ECDSA-256 key on curve {key.curve.name}")
        return _EcdsaVerifier(key)
    raise BadSignatureKey(f"SIG_ALGORITHM_KEY is no key for signature algorithm {algorithm}")


@dataclass(frozen=True, slots=True)
class _RsaSigner:
    scheme: Scheme
    key: rsa.RSAPrivateKey

    @property
    def public_der(self) -> bytes:
        return _spki(self.key.public_key())

    def sign(self, data: bytes) -> bytes:
        return self.key.sign(data, padding.PKCS1v15(), hashes.SHA256())

    def private_der(self) -> Secret:
        return _pkcs8(self.key)


@dataclass(frozen=True, slots=True)
class _RsaVerifier:
    key: rsa.RSAPublicKey

    def verify(self, signature: bytes, data: bytes) -> bool:
        try:
            self.key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            return False
        return True


P256_HALF = 32  # RFC 4754 section 7: r and s are as long as the curve's order


@dataclass(frozen=True, slots=True)
class _EcdsaSigner:
    scheme: Scheme
    key: ec.EllipticCurvePrivateKey

    @property
    def public_der(self) -> bytes:
        return _spki(self.key.public_key())

    def sign(self, data: bytes) -> bytes:
        r, s = decode_dss_signature(self.key.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(P256_HALF, "big") + s.to_bytes(P256_HALF, "big")

    def private_der(self) -> Secret:
        return _pkcs8(self.key)


@dataclass(frozen=True, slots=True)
class _EcdsaVerifier:
    key: ec.EllipticCurvePublicKey

    def verify(self, signature: bytes, data: bytes) -> bool:
        if len(signature) != 2 * P256_HALF:
            return False
        r = int.from_bytes(signature[:P256_HALF], "big")
        s = int.from_bytes(signature[P256_HALF:], "big")
        try:
            self.key.verify(encode_dss_signature(r, s), data, ec.ECDSA(hashes.SHA256()))
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
