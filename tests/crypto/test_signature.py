"""GROUPKEY-PUSH signatures: RSA PKCS#1 v1.5, ECDSA as r | s (RFC 4754), and keys to refuse."""

from __future__ import annotations

from functools import cache

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.crypto.signature import (
    SCHEMES,
    BadSignatureKey,
    SigningKey,
    VerifyKey,
    generate,
    load_private,
    load_public,
)
from gdoi_plugin.wire.registry import SigAlgorithm
from tests.vectors import load

DATA = b"rekey" + bytes(range(200))
NAMES = sorted(SCHEMES)
# The order n of P-256: SEC 2 version 2, section 2.4.2.
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
PublicKey = (
    rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | dsa.DSAPublicKey
)


@cache
def signer(name: str) -> SigningKey:
    return generate(SCHEMES[name])


@cache
def stranger(name: str) -> SigningKey:
    return generate(SCHEMES[name])


@cache
def signed(name: str) -> bytes:
    return signer(name).sign(DATA)


def verifier(key: SigningKey) -> VerifyKey:
    return load_public(key.scheme.algorithm, key.public_der)


def der(key: PublicKey) -> bytes:
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.DER, spki)


@cache
def rsa_public(bits: int) -> bytes:
    return der(rsa.generate_private_key(65537, bits).public_key())


def ec_public(curve: ec.EllipticCurve) -> bytes:
    return der(ec.generate_private_key(curve).public_key())


# -- sign and verify -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_signature_verifies_with_the_key_that_went_through_der(name: str) -> None:
    assert verifier(signer(name)).verify(signed(name), DATA)


@pytest.mark.parametrize(("name", "length"), [("rsa2048-sha256", 256), ("ecdsa256", 64)])
def test_a_signature_has_a_fixed_length(name: str, length: int) -> None:
    assert len(signed(name)) == length


@pytest.mark.parametrize("name", NAMES)
def test_another_key_does_not_verify(name: str) -> None:
    assert not verifier(stranger(name)).verify(signed(name), DATA)


@pytest.mark.parametrize("name", NAMES)
def test_every_bit_of_the_signature_matters(name: str) -> None:
    verify, signature = verifier(signer(name)).verify, signed(name)
    for bit in range(8 * len(signature)):
        flipped = bytearray(signature)
        flipped[bit // 8] ^= 1 << bit % 8
        assert not verify(bytes(flipped), DATA), bit


@pytest.mark.parametrize("name", NAMES)
def test_every_octet_of_the_data_matters(name: str) -> None:
    verify, signature = verifier(signer(name)).verify, signed(name)
    for at in range(len(DATA)):
        assert not verify(signature, DATA[:at] + bytes([DATA[at] ^ 0x80]) + DATA[at + 1 :])
    assert not verify(signature, DATA + b"\x00")
    assert not verify(signature, DATA[:-1])


@pytest.mark.parametrize("name", NAMES)
def test_a_longer_or_shorter_signature_does_not_verify(name: str) -> None:
    verify, good = verifier(signer(name)).verify, signed(name)
    for bad in (b"", good[:-1], good[1:], good + b"\x00", b"\x00" + good, good * 2):
        assert not verify(bad, DATA)


@settings(max_examples=200, deadline=None)
@given(signature=st.binary(max_size=600), name=st.sampled_from(NAMES))
def test_any_octets_are_no_signature(signature: bytes, name: str) -> None:
    assert not verifier(signer(name)).verify(signature, DATA)


@pytest.mark.parametrize(
    ("r", "s"), [(0, 0), (0, 1), (1, 0), (ORDER, 1), (1, ORDER), (2**256 - 1, 1)]
)
def test_ecdsa_components_outside_1_to_n_do_not_verify(r: int, s: int) -> None:
    signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    assert not verifier(signer("ecdsa256")).verify(signature, DATA)


def test_ecdsa_verifies_rfc_4754_section_8_1() -> None:
    (record,) = load("rfc4754")
    x, y = (int.from_bytes(record[name], "big") for name in ("gwx", "gwy"))
    public = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    verify = load_public(SigAlgorithm.SIG_ALG_ECDSA_256, der(public)).verify
    # The RFC draws the IKEv2 payload: header, authentication method 9, 3 reserved octets.
    assert record["payload"][8:] == record["r"] + record["s"]
    assert verify(record["payload"][8:], b"abc")
    assert not verify(record["payload"][8:], b"abd")


def test_ecdsa_in_der_is_not_the_rfc_s_form() -> None:
    key = serialization.load_der_private_key(signer("ecdsa256").private_der().reveal(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert not verifier(signer("ecdsa256")).verify(key.sign(DATA, ec.ECDSA(hashes.SHA256())), DATA)


def test_rsa_is_pkcs1_v1_5_with_sha_256_and_nothing_else() -> None:
    """RFC 6407 section 5.3.6.1: EMSA-PKCS1-v1_5."""
    key = serialization.load_der_private_key(signer("rsa2048-sha256").private_der().reveal(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    verify = verifier(signer("rsa2048-sha256")).verify
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    assert verify(key.sign(DATA, padding.PKCS1v15(), hashes.SHA256()), DATA)
    assert not verify(key.sign(DATA, padding.PKCS1v15(), hashes.SHA1()), DATA)  # noqa: S303
    assert not verify(key.sign(DATA, padding.PKCS1v15(), hashes.SHA512()), DATA)
    assert not verify(key.sign(DATA, pss, hashes.SHA256()), DATA)


# -- public keys ---------------------------------------------------------------------------------


def test_rsa_below_2048_bits_is_refused() -> None:
    with pytest.raises(BadSignatureKey, match="1024 bits"):
        load_public(SigAlgorithm.SIG_ALG_RSA, rsa_public(1024))


def test_rsa_of_3072_bits_is_taken() -> None:
    assert not load_public(SigAlgorithm.SIG_ALG_RSA, rsa_public(3072)).verify(bytes(384), DATA)


def test_rsa_above_4096_bits_is_refused() -> None:
    """A modulus made by hand: generating such a key would take seconds."""
    modulus = (1 << 4103) + 1
    public = rsa.RSAPublicNumbers(65537, modulus).public_key()
    with pytest.raises(BadSignatureKey, match="4104 bits"):
        load_public(SigAlgorithm.SIG_ALG_RSA, der(public))


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP256K1()], ids=lambda c: c.name)
def test_ecdsa_256_on_another_curve_is_refused(curve: ec.EllipticCurve) -> None:
    with pytest.raises(BadSignatureKey, match=curve.name):
        load_public(SigAlgorithm.SIG_ALG_ECDSA_256, ec_public(curve))


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [
        (SigAlgorithm.SIG_ALG_RSA, "ecdsa256"),
        (SigAlgorithm.SIG_ALG_ECDSA_256, "rsa2048-sha256"),
        (SigAlgorithm.SIG_ALG_DSS, "rsa2048-sha256"),
        (SigAlgorithm.SIG_ALG_ECDSA_384, "ecdsa256"),
        (0, "ecdsa256"),
        (65535, "rsa2048-sha256"),
    ],
)
def test_a_key_that_is_not_of_the_algorithm_is_refused(algorithm: int, name: str) -> None:
    with pytest.raises(BadSignatureKey, match=f"signature algorithm {int(algorithm)}"):
        load_public(algorithm, signer(name).public_der)


@pytest.mark.parametrize("algorithm", [SigAlgorithm.SIG_ALG_RSA, SigAlgorithm.SIG_ALG_ECDSA_256])
def test_keys_of_other_kinds_are_refused(algorithm: SigAlgorithm) -> None:
    with pytest.raises(BadSignatureKey):
        load_public(algorithm, der(ed25519.Ed25519PrivateKey.generate().public_key()))


@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_or_longer_public_key_is_refused(name: str) -> None:
    key = signer(name)
    good = key.public_der
    for bad in (*(good[:at] for at in range(len(good))), good + b"\x00"):
        with pytest.raises(BadSignatureKey):
            load_public(key.scheme.algorithm, bad)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), name=st.sampled_from(NAMES))
def test_a_changed_public_key_is_a_key_or_refused(data: st.DataObject, name: str) -> None:
    key = signer(name)
    octets = bytearray(key.public_der)
    at = data.draw(st.integers(0, len(octets) - 1))
    octets[at] ^= data.draw(st.integers(1, 255))
    try:
        loaded = load_public(key.scheme.algorithm, bytes(octets))
    except BadSignatureKey:
        return
    assert isinstance(loaded.verify(signed(name), DATA), bool)


@settings(max_examples=200, deadline=None)
@given(octets=st.binary(max_size=400))
def test_any_octets_are_no_public_key(octets: bytes) -> None:
    with pytest.raises(BadSignatureKey):
        load_public(SigAlgorithm.SIG_ALG_RSA, octets)


# -- private keys --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_key_signs_as_before(name: str) -> None:
    key = signer(name)
    stored = load_private(key.scheme, key.private_der())
    assert stored.scheme == key.scheme
    assert stored.public_der == key.public_der
    assert verifier(key).verify(stored.sign(DATA), DATA)


@pytest.mark.parametrize(("name", "other"), [NAMES, NAMES[::-1]])
def test_a_stored_key_of_another_scheme_is_refused(name: str, other: str) -> None:
    with pytest.raises(BadSignatureKey, match="kind"):
        load_private(SCHEMES[name], signer(other).private_der())


def test_a_stored_key_on_another_curve_or_of_another_length_is_refused() -> None:
    for name, key in (
        ("ecdsa256", ec.generate_private_key(ec.SECP384R1())),
        ("rsa2048-sha256", rsa.generate_private_key(65537, 3072)),
    ):
        pkcs8 = key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        with pytest.raises(BadSignatureKey, match="kind"):
            load_private(SCHEMES[name], Secret(pkcs8))


@pytest.mark.parametrize("octets", [b"", b"0", bytes(64)])
def test_octets_that_are_no_private_key_are_refused(octets: bytes) -> None:
    with pytest.raises(BadSignatureKey, match="cannot be read"):
        load_private(SCHEMES["ecdsa256"], Secret(octets))


@pytest.mark.parametrize("name", NAMES)
def test_repr_of_a_signing_key_shows_no_key(name: str) -> None:
    text = repr(signer(name))
    assert signer(name).private_der().reveal()[-32:].hex() not in text
    assert "private_numbers" not in text
