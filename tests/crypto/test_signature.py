"""GROUPKEY-PUSH signatures: RSA PKCS#1 v1.5, ECDSA as r | s (RFC 4754), and keys to refuse."""

from __future__ import annotations

from dataclasses import replace
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
    Scheme,
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
# One of each kind of key, where the hash makes no difference.
KINDS = ("rsa2048-sha256", "ecdsa256", "ecdsa384", "ecdsa521")
RSA_2048, ECDSA_256 = SCHEMES["rsa2048-sha256"], SCHEMES["ecdsa256"]
# The orders of the curves: RFC 4754 section 8, "q".
ORDERS = {
    "ecdsa256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "ecdsa384": 2**384 - 0x389CB27E0BC8D220A7E5F24DB74F58851313E695333AD68D,
    "ecdsa521": (0x1FF << 512)
    + (0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFA << 256)
    + 0x51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E91386409,
}
# RFC 8017 and RFC 4754: the modulus; r | s of the curve's order. In octets.
LENGTHS = {"rsa2048": 256, "rsa3072": 384, "rsa4096": 512} | {
    "ecdsa256": 64,
    "ecdsa384": 96,
    "ecdsa521": 132,
}
PublicKey = (
    rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | dsa.DSAPublicKey
)


@cache
def made(kind: str, number: int) -> SigningKey:  # noqa: ARG001 -- a key for each number
    """One key for all hashes of an RSA length: they take long."""
    return generate(SCHEMES[kind if kind in SCHEMES else f"{kind}-sha256"])


@cache
def signer(name: str, number: int = 0) -> SigningKey:
    return load_private(SCHEMES[name], made(name.partition("-")[0], number).private_der())


def stranger(name: str) -> SigningKey:
    return signer(name, 1)


@cache
def signed(name: str) -> bytes:
    return signer(name).sign(DATA)


def verifier(key: SigningKey) -> VerifyKey:
    return load_public(key.scheme, key.public_der)


def der(key: PublicKey) -> bytes:
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.DER, spki)


@cache
def rsa_public(bits: int) -> bytes:
    return der(rsa.generate_private_key(65537, bits).public_key())


def ec_public(curve: ec.EllipticCurve) -> bytes:
    return der(ec.generate_private_key(curve).public_key())


def rsa_modulus(name: str) -> int:
    key = serialization.load_der_public_key(signer(name).public_der)
    assert isinstance(key, rsa.RSAPublicKey)
    return key.public_numbers().n


def with_exponent(spki: bytes, exponent: bytes) -> bytes:
    """A SubjectPublicKeyInfo of RSA-2048 with another exponent: the last of its octets, with a
    length in front, and three lengths around it that grow by the difference."""
    assert spki.endswith(b"\x02\x03\x01\x00\x01")
    octets = bytearray(spki[:-5] + b"\x02" + bytes([len(exponent)]) + exponent)
    for at in (2, 22, 27):  # SEQUENCE, BIT STRING, SEQUENCE; each 82 and two octets
        length = int.from_bytes(octets[at : at + 2], "big") + len(exponent) - 3
        octets[at : at + 2] = length.to_bytes(2, "big")
    return bytes(octets)


# -- sign and verify -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_signature_verifies_with_the_key_that_went_through_der(name: str) -> None:
    assert verifier(signer(name)).verify(signed(name), DATA)


@pytest.mark.parametrize("name", NAMES)
def test_a_signature_has_a_fixed_length(name: str) -> None:
    length = LENGTHS[name.partition("-")[0]]
    assert len(signed(name)) == length == SCHEMES[name].signature_octets


def test_every_scheme_of_the_rfc_is_there() -> None:
    rsa_schemes = {f"rsa{bits}-sha{n}" for bits in (2048, 3072, 4096) for n in (256, 384, 512)}
    assert set(SCHEMES) == rsa_schemes | {"ecdsa256", "ecdsa384", "ecdsa521"}


@pytest.mark.parametrize("name", KINDS)
def test_another_key_does_not_verify(name: str) -> None:
    assert not verifier(stranger(name)).verify(signed(name), DATA)


@pytest.mark.parametrize("name", KINDS)
def test_every_bit_of_the_signature_matters(name: str) -> None:
    verify, signature = verifier(signer(name)).verify, signed(name)
    for bit in range(8 * len(signature)):
        flipped = bytearray(signature)
        flipped[bit // 8] ^= 1 << bit % 8
        assert not verify(bytes(flipped), DATA), bit


@pytest.mark.parametrize("name", KINDS)
def test_every_octet_of_the_data_matters(name: str) -> None:
    verify, signature = verifier(signer(name)).verify, signed(name)
    for at in range(len(DATA)):
        assert not verify(signature, DATA[:at] + bytes([DATA[at] ^ 0x80]) + DATA[at + 1 :])
    assert not verify(signature, DATA + b"\x00")
    assert not verify(signature, DATA[:-1])


@pytest.mark.parametrize("name", KINDS)
def test_a_longer_or_shorter_signature_does_not_verify(name: str) -> None:
    verify, good = verifier(signer(name)).verify, signed(name)
    for bad in (b"", good[:-1], good[1:], good + b"\x00", b"\x00" + good, good * 2):
        assert not verify(bad, DATA)


@settings(max_examples=200, deadline=None)
@given(signature=st.binary(max_size=600), name=st.sampled_from(KINDS))
def test_any_octets_are_no_signature(signature: bytes, name: str) -> None:
    assert not verifier(signer(name)).verify(signature, DATA)


@pytest.mark.parametrize("name", ORDERS)
def test_ecdsa_components_outside_1_to_n_do_not_verify(name: str) -> None:
    n, half = ORDERS[name], LENGTHS[name] // 2
    for r, s in ((0, 0), (0, 1), (1, 0), (n, 1), (1, n), (256**half - 1, 1)):
        signature = r.to_bytes(half, "big") + s.to_bytes(half, "big")
        assert not verifier(signer(name)).verify(signature, DATA)


@pytest.mark.parametrize(
    ("index", "curve"), [(0, ec.SECP256R1()), (1, ec.SECP384R1()), (2, ec.SECP521R1())]
)
def test_ecdsa_verifies_rfc_4754_section_8(index: int, curve: ec.EllipticCurve) -> None:
    record = load("rfc4754")[index]
    x, y = (int.from_bytes(record[name], "big") for name in ("gwx", "gwy"))
    public = ec.EllipticCurvePublicNumbers(x, y, curve).public_key()
    verify = load_public(SCHEMES[f"ecdsa{curve.key_size}"], der(public)).verify
    # The RFC draws the IKEv2 payload: header, authentication method 9, 3 reserved octets.
    assert record["payload"][8:] == record["r"] + record["s"]
    assert verify(record["payload"][8:], b"abc")
    assert not verify(record["payload"][8:], b"abd")


@pytest.mark.parametrize("hashed", ["sha384", "sha512"])
def test_another_hash_of_the_same_key_does_not_verify(hashed: str) -> None:
    other = signer(f"rsa2048-{hashed}")
    assert other.public_der == signer("rsa2048-sha256").public_der
    assert not verifier(signer("rsa2048-sha256")).verify(other.sign(DATA), DATA)


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
        load_public(replace(RSA_2048, key_length=0), rsa_public(1024))


@pytest.mark.parametrize("length", [0, 3072])
def test_rsa_of_any_length_between_is_taken(length: int) -> None:
    """Where the SAK has no SIG_KEY_LENGTH, or that one."""
    scheme = replace(RSA_2048, key_length=length)
    assert not load_public(scheme, signer("rsa3072-sha256").public_der).verify(bytes(384), DATA)


def test_rsa_of_another_length_than_the_sak_says_is_refused() -> None:
    with pytest.raises(BadSignatureKey, match="SIG_KEY_LENGTH 2048"):
        load_public(RSA_2048, signer("rsa3072-sha256").public_der)


@pytest.mark.parametrize("exponent", [3, 17, 65535, 2**64 + 1], ids=str)
def test_rsa_exponents_that_are_weak_or_slow_are_refused(exponent: int) -> None:
    modulus = rsa_modulus("rsa2048-sha256")
    with pytest.raises(BadSignatureKey, match="exponent"):
        load_public(RSA_2048, der(rsa.RSAPublicNumbers(exponent, modulus).public_key()))


@pytest.mark.parametrize("exponent", [65538, 2**32])
def test_even_rsa_exponents_are_refused(exponent: int) -> None:
    """The library refuses some of them itself: DER by hand then."""
    good = signer("rsa2048-sha256").public_der
    octets = exponent.to_bytes((exponent.bit_length() + 8) // 8, "big")
    with pytest.raises(BadSignatureKey):
        load_public(RSA_2048, with_exponent(good, octets))


def test_an_exponent_of_64_bits_is_taken() -> None:
    public = rsa.RSAPublicNumbers(2**64 - 1, rsa_modulus("rsa2048-sha256")).public_key()
    assert not load_public(RSA_2048, der(public)).verify(signed("rsa2048-sha256"), DATA)


def test_rsa_above_4096_bits_is_refused() -> None:
    """A modulus made by hand: generating such a key would take seconds."""
    modulus = (1 << 4103) + 1
    public = rsa.RSAPublicNumbers(65537, modulus).public_key()
    with pytest.raises(BadSignatureKey, match="4104 bits"):
        load_public(replace(RSA_2048, key_length=0), der(public))


@pytest.mark.parametrize(
    "curve",
    [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1(), ec.SECP256K1(), ec.SECP224R1()],
    ids=lambda c: c.name,
)
@pytest.mark.parametrize("name", ORDERS)
def test_ecdsa_on_another_curve_is_refused(name: str, curve: ec.EllipticCurve) -> None:
    if name == f"ecdsa{curve.key_size}" and curve.name.endswith("r1"):
        assert not load_public(SCHEMES[name], ec_public(curve)).verify(signed(name), DATA)
        return
    with pytest.raises(BadSignatureKey, match=curve.name):
        load_public(SCHEMES[name], ec_public(curve))


@pytest.mark.parametrize(
    ("scheme", "name"),
    [
        (RSA_2048, "ecdsa256"),
        (ECDSA_256, "rsa2048-sha256"),
        (replace(RSA_2048, algorithm=SigAlgorithm.SIG_ALG_DSS), "rsa2048-sha256"),
        (replace(ECDSA_256, algorithm=SigAlgorithm.SIG_ALG_ECDSS), "ecdsa256"),
    ],
)
def test_a_key_that_is_not_of_the_algorithm_is_refused(scheme: Scheme, name: str) -> None:
    with pytest.raises(BadSignatureKey, match=f"signature algorithm {int(scheme.algorithm)}"):
        load_public(scheme, signer(name).public_der)


@pytest.mark.parametrize("scheme", [RSA_2048, ECDSA_256])
def test_keys_of_other_kinds_are_refused(scheme: Scheme) -> None:
    with pytest.raises(BadSignatureKey):
        load_public(scheme, der(ed25519.Ed25519PrivateKey.generate().public_key()))


@pytest.mark.parametrize("name", KINDS)
def test_a_truncated_or_longer_public_key_is_refused(name: str) -> None:
    key = signer(name)
    good = key.public_der
    for bad in (*(good[:at] for at in range(len(good))), good + b"\x00"):
        with pytest.raises(BadSignatureKey):
            load_public(key.scheme, bad)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), name=st.sampled_from(KINDS))
def test_a_changed_public_key_is_a_key_or_refused(data: st.DataObject, name: str) -> None:
    key = signer(name)
    octets = bytearray(key.public_der)
    at = data.draw(st.integers(0, len(octets) - 1))
    octets[at] ^= data.draw(st.integers(1, 255))
    try:
        loaded = load_public(key.scheme, bytes(octets))
    except BadSignatureKey:
        return
    assert isinstance(loaded.verify(signed(name), DATA), bool)


@settings(max_examples=200, deadline=None)
@given(octets=st.binary(max_size=400))
def test_any_octets_are_no_public_key(octets: bytes) -> None:
    with pytest.raises(BadSignatureKey):
        load_public(RSA_2048, octets)


# -- private keys --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_key_signs_as_before(name: str) -> None:
    key = signer(name)
    stored = load_private(key.scheme, key.private_der())
    assert stored.scheme == key.scheme
    assert stored.public_der == key.public_der
    assert verifier(key).verify(stored.sign(DATA), DATA)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("ecdsa256", "rsa2048-sha256"),
        ("rsa2048-sha256", "ecdsa256"),
        ("ecdsa521", "ecdsa384"),
        ("rsa3072-sha512", "rsa2048-sha512"),
    ],
)
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
