"""Phase 1 signatures: what a valid one with an octet too few or too many is."""

from __future__ import annotations

from itertools import count

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gdoi_plugin.crypto.phase1_signature import Digest, PrivateKey, load_private, verify

DIGEST = 32


def loaded(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> PrivateKey:
    return load_private(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))


def always(hashed: bytes) -> Digest:
    return lambda _: hashed


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_octets_too_few_or_too_many(kind: str) -> None:
    """RFC 8017 section 8.2.2, RFC 4754 section 7; a first octet that is zero counts, too."""
    key = loaded(
        rsa.generate_private_key(65537, 2048)
        if kind == "rsa"
        else ec.generate_private_key(ec.SECP256R1())
    )
    for number in count():
        digest = always(number.to_bytes(DIGEST, "big"))
        signature = key.sign(digest)
        if not signature[0]:
            break
    for spoiled, valid in (
        (signature, True),
        (signature[1:], False),
        (signature[:-1], False),
        (b"\0" + signature, False),
        (signature + b"\0", False),
        (b"", False),
    ):
        assert verify(key.method, key.public_key, spoiled, digest) is valid, spoiled.hex()
