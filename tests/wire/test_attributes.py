"""Data attributes, RFC 2408 section 3.3."""

from __future__ import annotations

import pytest

from gdoi_plugin.wire.attributes import (
    MAX_ATTRIBUTES,
    Attribute,
    pull_attributes,
    push_attributes,
    uint32,
    unique,
)
from gdoi_plugin.wire.buffer import Buffer, DecodeError
from tests.wire.octets import octets

BOTH = octets("""
    8003 0080           # AF=1: type 3, value 128
    0004 0004 00015180  # AF=0: type 4, 4 octets
    7fff 0000           # AF=0: the highest type, no octets
    ffff ffff           # AF=1: the highest type and value
""")
EXPECTED = (
    Attribute(3, 128),
    Attribute(4, b"\x00\x01\x51\x80"),
    Attribute(0x7FFF, b""),
    Attribute(0x7FFF, 0xFFFF),
)


def pull(data: bytes) -> tuple[Attribute, ...]:
    return pull_attributes(Buffer(data, 50))


def test_basic_and_variable_decode_and_encode() -> None:
    assert pull(BOTH) == EXPECTED
    buf = Buffer()
    push_attributes(buf, EXPECTED)
    assert buf.data == BOTH


def test_truncations_are_refused_but_between_two_attributes() -> None:
    for length in range(len(BOTH)):
        if length in (0, 4, 12, 16):
            assert len(pull(BOTH[:length])) == (0, 4, 12, 16).index(length)
        else:
            with pytest.raises(DecodeError):
                pull(BOTH[:length])


@pytest.mark.parametrize(
    ("data", "why", "offset"),
    [
        ("80", "attribute type: 2 octets wanted, 1 left", 50),
        ("8001 00", "attribute length or value: 2 octets wanted, 1 left", 52),
        ("8001 0001 0002 0004 000000", "value of attribute 2: 4 octets wanted, 3 left", 58),
        ("0002 ffff", "value of attribute 2: 65535 octets wanted, 0 left", 54),
    ],
)
def test_an_error_names_attribute_and_offset(data: str, why: str, offset: int) -> None:
    with pytest.raises(DecodeError, match=why) as caught:
        pull(bytes.fromhex(data))
    assert caught.value.offset == offset


def test_the_number_of_attributes_is_bounded() -> None:
    one = octets("8001 0001")
    assert len(pull(one * MAX_ATTRIBUTES)) == MAX_ATTRIBUTES
    with pytest.raises(DecodeError, match=f"more than {MAX_ATTRIBUTES} attributes"):
        pull(one * (MAX_ATTRIBUTES + 1))


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3600, 3600),
        (b"\x0e\x10", 3600),
        (b"\x00\x00\x0e\x10", 3600),
        (b"\x07", 7),
        (b"\xff" * 8, 2**64 - 1),
    ],
)
def test_a_number_may_be_basic_or_variable(value: int | bytes, number: int) -> None:
    """RFC 2407 section 4.5; some implementations send lifetimes as basic attributes."""
    assert Attribute(2, value).number() == number


@pytest.mark.parametrize("length", [0, 9])
def test_no_octets_or_more_than_8_are_no_number(length: int) -> None:
    with pytest.raises(DecodeError, match=f"attribute 2: number of {length} octets"):
        Attribute(2, bytes(length)).number()


def test_a_basic_attribute_has_no_octets() -> None:
    assert Attribute(1, b"key").octets() == b"key"
    with pytest.raises(DecodeError, match="attribute 1 is basic, must be variable"):
        Attribute(1, 5).octets()


def test_uint32_is_a_variable_attribute_of_4_octets() -> None:
    assert uint32(4, 86400) == Attribute(4, b"\x00\x01\x51\x80")


def test_unique_finds_by_type() -> None:
    assert unique(EXPECTED[:2], "SAK") == {3: EXPECTED[0], 4: EXPECTED[1]}


def test_unique_refuses_a_type_given_twice() -> None:
    with pytest.raises(DecodeError, match="SAK: attribute 32767 twice"):
        unique(EXPECTED, "SAK")
