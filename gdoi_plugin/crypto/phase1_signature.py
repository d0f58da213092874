"""SIG_I and SIG_R of main mode: RFC 2409 section 5.1 (RSA), RFC 4754 (ECDSA)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import (
    NoDigestInfo,
    Prehashed,
    decode_dss_signature,
    encode_dss_signature,
)

from ..wire.registry import AuthMethod, Hash

RSA_MIN_BITS, RSA_MAX_BITS = 2048, 8192

# HASH_I or HASH_R with the prf of a hash: of the negotiated one, or another (RFC 2409 section 5).
Digest = Callable[[Hash | None], bytes]


class BadKey(ValueError):
    """A key that phase 1 cannot use; the text says why."""


# RFC 4754 section 4: the curve and the hash go together.
_ECDSA: dict[AuthMethod, tuple[type[ec.EllipticCurve], Hash, hashes.HashAlgorithm]] = {
    AuthMethod.ECDSA_256: (ec.SECP256R1, Hash.SHA2_256, hashes.SHA256()),
    AuthMethod.ECDSA_384: (ec.SECP384R1, Hash.SHA2_384, hashes.SHA384()),
    AuthMethod.ECDSA_521: (ec.SECP521R1, Hash.SHA2_512, hashes.SHA512()),
}


def method_of(key: PublicKeyTypes) -> AuthMethod:
    """The authentication method that a public key serves. Raises BadKey."""
    if isinstance(key, rsa.RSAPublicKey):
        if not RSA_MIN_BITS <= key.key_size <= RSA_MAX_BITS:
            raise BadKey(f"RSA key of {key.key_size} bits, must be {RSA_MIN_BITS} to 8192")
        return AuthMethod.RSA_SIG
    if isinstance(key, ec.EllipticCurvePublicKey):
        for method, (curve, _, _) in _ECDSA.items():
            if isinstance(key.curve, curve):
                return method
        raise BadKey(f"key on curve {key.curve.name}, must be P-256, P-384 or P-521")
    raise BadKey("neither an RSA nor an ECDSA key")


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """Signs phase 1; ``method`` is what it offers."""

    method: AuthMethod
    _key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def public_key(self) -> PublicKeyTypes:
        return self._key.public_key()

    def sign(self, digest: Digest) -> bytes:
        if isinstance(self._key, rsa.RSAPrivateKey):
            # RFC 2409 section 5.1: "RSA signatures MUST be encoded as a private key encryption in
            # PKCS #1 format and not as a signature [...] (which includes the OID of the hash
            # algorithm)": block type 1 around the bare HASH.
            return self._key.sign(digest(None), padding.PKCS1v15(), NoDigestInfo())
        _, prf, hashed = _ECDSA[self.method]
        # The HASH, by the prf of the method's own hash, is what ECDSA signs; not hashed once more.
        r, s = decode_dss_signature(self._key.sign(digest(prf), ec.ECDSA(Prehashed(hashed))))
        length = _half(self._key.curve)
        return r.to_bytes(length, "big") + s.to_bytes(length, "big")


def load_private(octets: bytes) -> PrivateKey:
    """PEM or DER, not encrypted. Raises BadKey."""
    load = (
        serialization.load_pem_private_key
        if octets.lstrip().startswith(b"-----")
        else serialization.load_der_private_key
    )
    try:
        key: PrivateKeyTypes = load(octets, None)
    except TypeError:
        raise BadKey("the private key is encrypted; there is nobody to ask for its password") from (
            None
        )
    except (ValueError, UnsupportedAlgorithm):
        raise BadKey("no private key in PEM or DER") from None
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise BadKey("neither an RSA nor an ECDSA key")
    return PrivateKey(method_of(key.public_key()), key)


def verify(method: AuthMethod, key: PublicKeyTypes, signature: bytes, digest: Digest) -> bool:
    """False also for a key that is not the method's. Raises BadKey for one that serves none."""
    if method_of(key) is not method:
        return False
    if isinstance(key, rsa.RSAPublicKey):
        # RFC 8017 section 8.2.2: as long as the modulus. The library takes one in 256 that lacks
        # its first octet, a zero.
        if len(signature) != (key.key_size + 7) // 8:
            return False
        try:
            signed = key.recover_data_from_signature(signature, padding.PKCS1v15(), None)
        except InvalidSignature:
            return False
        return signed == digest(None)
    return isinstance(key, ec.EllipticCurvePublicKey) and _verify_ecdsa(
        method, key, signature, digest
    )


def _verify_ecdsa(
    method: AuthMethod, key: ec.EllipticCurvePublicKey, signature: bytes, digest: Digest
) -> bool:
    """RFC 4754 section 7: r | s, each as long as the curve's order.

    It does not say which prf makes the HASH, nor whether ECDSA's own hash is taken of it.
    Implementations differ, and any of the readings proves the same.
    """
    length = _half(key.curve)
    if len(signature) != 2 * length:
        return False
    r, s = (int.from_bytes(half, "big") for half in (signature[:length], signature[length:]))
    der = encode_dss_signature(r, s)
    _, prf, hashed = _ECDSA[method]
    own = digest(prf)
    # As we sign ourselves, before the others: most peers of a GDOI key server are our members.
    if _ecdsa_fits(key, der, own, ec.ECDSA(Prehashed(hashed))):
        return True
    return any(
        _ecdsa_fits(key, der, data, ec.ECDSA(hashed)) for data in dict.fromkeys((own, digest(None)))
    )


def _ecdsa_fits(
    key: ec.EllipticCurvePublicKey, der: bytes, data: bytes, algorithm: ec.ECDSA
) -> bool:
    try:
        key.verify(der, data, algorithm)
    except InvalidSignature:
        return False
    return True


def _half(curve: ec.EllipticCurve) -> int:
    return (curve.key_size + 7) // 8
