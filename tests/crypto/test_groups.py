"""Diffie-Hellman: RFC 5903 section 8 (ECP), RFC 3526 (MODP) and what must be refused."""

from __future__ import annotations

import warnings

import pytest
from cryptography.hazmat.primitives.asymmetric import dh, ec

from gdoi_plugin.crypto import groups
from gdoi_plugin.crypto.groups import BadPublicValue, EcpPrivate, PrivateValue, generate
from gdoi_plugin.wire.registry import Group
from tests.vectors import Record, load

MODP = dict(zip((Group.MODP_2048, Group.MODP_3072, Group.MODP_4096), load("rfc3526"), strict=True))
ECP = dict(zip((Group.ECP_256, Group.ECP_384), load("rfc5903"), strict=True))
CURVES = {Group.ECP_256: ec.SECP256R1, Group.ECP_384: ec.SECP384R1}
# SEC 2 version 2, sections 2.4.2 and 2.5.1: the primes p of P-256 and P-384.
P = {
    Group.ECP_256: 2**256 - 2**224 + 2**192 + 2**96 - 1,
    Group.ECP_384: 2**384 - 2**128 - 2**96 + 2**32 - 1,
}
ALL = [*MODP, *ECP]


def ecp(group: Group, private: bytes) -> EcpPrivate:
    return EcpPrivate(ec.derive_private_key(int.from_bytes(private, "big"), CURVES[group]()))


def prime(group: Group) -> int:
    return int.from_bytes(MODP[group]["prime"], "big")


@pytest.fixture(scope="module", params=ALL, ids=lambda g: g.name)
def pair(request: pytest.FixtureRequest) -> tuple[Group, PrivateValue, PrivateValue]:
    group: Group = request.param
    return group, generate(group), generate(group)


# -- ECP -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "record"), ECP.items(), ids=lambda v: getattr(v, "name", ""))
def test_rfc_5903_section_8(group: Group, record: Record) -> None:
    initiator, responder = ecp(group, record["i"]), ecp(group, record["r"])
    assert initiator.public == record["gix"] + record["giy"]
    assert responder.public == record["grx"] + record["gry"]
    assert initiator.shared(responder.public).reveal() == record["girx"]
    assert responder.shared(initiator.public).reveal() == record["girx"]


@pytest.mark.parametrize(("group", "record"), ECP.items(), ids=lambda v: getattr(v, "name", ""))
def test_public_value_is_the_ke_payload_of_the_rfc(group: Group, record: Record) -> None:
    # The RFC draws the IKEv2 payload: 4 octets of header, 2 of group number, 2 reserved.
    assert int.from_bytes(record["kei"][4:6], "big") == group
    assert ecp(group, record["i"]).public == record["kei"][8:]
    assert groups.public_length(group) == len(record["kei"]) - 8


def off_curve(record: Record) -> dict[str, bytes]:
    x, y = record["grx"], record["gry"]
    return {
        "bit of x flipped": x[:-1] + bytes([x[-1] ^ 1]) + y,
        "bit of y flipped": x + y[:-1] + bytes([y[-1] ^ 1]),
        "x and y exchanged": y + x,
        "infinity as zeros": bytes(len(x + y)),
        "all ones": b"\xff" * len(x + y),
    }


@pytest.mark.parametrize("case", off_curve(load("rfc5903")[0]))
@pytest.mark.parametrize("group", ECP, ids=lambda g: g.name)
def test_a_point_that_is_not_on_the_curve_is_refused(group: Group, case: str) -> None:
    with pytest.raises(BadPublicValue, match="not on the curve"):
        ecp(group, ECP[group]["i"]).shared(off_curve(ECP[group])[case])


@pytest.mark.parametrize("group", ECP, ids=lambda g: g.name)
def test_a_coordinate_that_is_not_reduced_is_refused(group: Group) -> None:
    """(0, sqrt(b)) is on both curves; written as (p, sqrt(b)) it would be a second encoding."""
    size = groups.public_length(group) // 2
    point = ec.EllipticCurvePublicKey.from_encoded_point(
        CURVES[group](), b"\x02" + bytes(size)
    ).public_numbers()
    y = point.y.to_bytes(size, "big")
    own = ecp(group, ECP[group]["i"])
    assert len(own.shared(bytes(size) + y)) == size
    with pytest.raises(BadPublicValue):
        own.shared(P[group].to_bytes(size, "big") + y)


@pytest.mark.parametrize("group", ECP, ids=lambda g: g.name)
def test_a_form_octet_or_a_compressed_point_is_refused(group: Group) -> None:
    own, peer = ecp(group, ECP[group]["i"]), ECP[group]["grx"] + ECP[group]["gry"]
    for value in (b"\x04" + peer, b"\x02" + ECP[group]["grx"]):
        with pytest.raises(BadPublicValue, match=f"{len(value)} octets"):
            own.shared(value)


# -- MODP ----------------------------------------------------------------------------------------


def numbers(group: Group) -> dh.DHParameterNumbers:
    """The parameters ``generate`` uses, taken from a key: nothing private is looked into."""
    key = generate(group)
    assert isinstance(key, groups.ModpPrivate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return key._key.parameters().parameter_numbers()


@pytest.mark.parametrize(("group", "bits"), [*zip(MODP, (2048, 3072, 4096), strict=True)])
def test_the_prime_is_that_of_rfc_3526_and_the_generator_is_2(group: Group, bits: int) -> None:
    assert prime(group).bit_length() == bits
    assert (numbers(group).p, numbers(group).g) == (prime(group), 2)
    assert groups.public_length(group) == bits // 8


@pytest.mark.parametrize("group", MODP, ids=lambda g: g.name)
def test_values_outside_2_to_p_minus_2_are_refused(group: Group) -> None:
    p, own, length = prime(group), generate(group), groups.public_length(group)
    for value in (0, 1, p - 1, p, p + 1, 2 ** (8 * length) - 1):
        with pytest.raises(BadPublicValue, match=group.name):
            own.shared(value.to_bytes(length, "big"))


@pytest.mark.parametrize("group", MODP, ids=lambda g: g.name)
def test_shared_value_is_the_power_padded_to_the_length_of_the_prime(group: Group) -> None:
    p, own, length = prime(group), generate(group), groups.public_length(group)
    two, minus_two = (value.to_bytes(length, "big") for value in (2, p - 2))
    # 2^x is our own public value, (p-2)^x is plus or minus it.
    public = int.from_bytes(own.public, "big")
    assert own.shared(two).reveal() == own.public
    assert int.from_bytes(own.shared(minus_two).reveal(), "big") in (public, p - public)


# -- both ----------------------------------------------------------------------------------------


def test_two_sides_agree(pair: tuple[Group, PrivateValue, PrivateValue]) -> None:
    group, one, other = pair
    shared = one.shared(other.public)
    assert shared == other.shared(one.public)
    assert len(one.public) == len(other.public) == groups.public_length(group)
    assert len(shared) == len(one.public) // (2 if group in ECP else 1)


def test_private_values_are_fresh(pair: tuple[Group, PrivateValue, PrivateValue]) -> None:
    assert pair[1].public != pair[2].public


def test_a_wrong_length_is_refused(pair: tuple[Group, PrivateValue, PrivateValue]) -> None:
    _, one, other = pair
    peer = other.public
    for value in (b"", peer[:1], peer[:-1], peer[1:], b"\x00" + peer, peer + b"\x00", peer * 2):
        with pytest.raises(BadPublicValue, match=f"public value of {len(value)} octets"):
            one.shared(value)


def test_repr_shows_no_private_value(pair: tuple[Group, PrivateValue, PrivateValue]) -> None:
    assert "0x" not in repr(pair[1]).split(" at ")[0]
