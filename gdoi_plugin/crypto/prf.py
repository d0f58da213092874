"""The negotiated hash and its HMAC, which is the prf (RFC 2409 section 4, RFC 4868)."""

from __future__ import annotations

import hashlib
import hmac

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.hmac import HMAC

from ..wire.registry import Hash

_NAMES = {Hash.SHA2_256: "sha256", Hash.SHA2_384: "sha384", Hash.SHA2_512: "sha512"}

_HASHES: dict[Hash, hashes.HashAlgorithm] = {
    Hash.SHA2_256: hashes.SHA256(),
    Hash.SHA2_384: hashes.SHA384(),
    Hash.SHA2_512: hashes.SHA512(),
}
# A prf whose key is set. A copy takes the data (``update``) and gives the value (``finalize``), in
# a third of the time that setting the key takes.
KeyedPrf = HMAC


def keyed_prf(algorithm: Hash, key: bytes) -> KeyedPrf:
    return HMAC(key, _HASHES[algorithm])


def digest(algorithm: Hash, data: bytes) -> bytes:
    """hash(data)."""
    return hashlib.new(_NAMES[algorithm], data).digest()


def prf(algorithm: Hash, key: bytes, data: bytes) -> bytes:
    """prf(key, data) = HMAC-hash(key, data); HMAC itself fills a short key with zeros."""
    return hmac.digest(key, data, _NAMES[algorithm])


# Comparison of authenticators in constant time.
equal = hmac.compare_digest
