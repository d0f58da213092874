"""What holds for each payload: vectors both ways, truncations, round trips, any octets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdoi_plugin.wire.buffer import DecodeError
from gdoi_plugin.wire.header import HEADER_LENGTH
from gdoi_plugin.wire.payload import GENERIC_HEADER_LENGTH, Body, encode_body, encode_chain
from gdoi_plugin.wire.registry import PayloadType
from tests.wire import strategies
from tests.wire.octets import chain, parse
from tests.wire.vectors import ALL, Vector

BODY_OFFSET = HEADER_LENGTH + GENERIC_HEADER_LENGTH
CLASSES: list[type[Body]] = list(dict.fromkeys(type(vector.expected) for vector in ALL))

each_vector = pytest.mark.parametrize("vector", ALL, ids=lambda v: v.name)
each_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)


def test_the_vectors_cover_every_payload_there_is_a_strategy_for() -> None:
    assert len(CLASSES) == len(strategies.BODIES)


@each_vector
def test_the_octets_say_what_is_expected(vector: Vector) -> None:
    kind, following = vector.expected.TYPE, vector.octets[0]
    # Whatever Next Payload names stands behind it, as an unknown payload without a body.
    behind = bytes.fromhex("00000004") if following else b""
    first = chain(kind, vector.octets + behind)[0]
    assert first.octets == vector.octets
    assert first.parse(type(vector.expected)) == vector.expected


@each_vector
def test_what_is_expected_becomes_the_octets(vector: Vector) -> None:
    assert encode_body(vector.expected) == vector.body
    assert encode_chain([vector.expected], vector.octets[0]) == vector.octets


@each_vector
def test_every_truncation_of_the_payload_is_refused(vector: Vector) -> None:
    for length in range(len(vector.octets)):
        with pytest.raises(DecodeError):
            chain(vector.expected.TYPE, vector.octets[:length])


@each_vector
def test_every_truncation_of_the_body_is_refused_or_complete_in_itself(vector: Vector) -> None:
    """The generic header's Payload Length tells the truth here: the fields inside do not fit."""
    cls = type(vector.expected)
    for length in range(len(vector.body)):
        if length in vector.complete:
            assert encode_body(parse(cls, vector.body[:length])) == vector.body[:length]
        else:
            with pytest.raises(DecodeError):
                parse(cls, vector.body[:length])


@each_vector
@pytest.mark.parametrize("octet", [b"\x00", b"\x01", b"\xff"], ids=bytes.hex)
def test_one_octet_too_many_is_refused(vector: Vector, octet: bytes) -> None:
    cls = type(vector.expected)
    if vector.open_ended:
        assert parse(cls, vector.body + octet) != vector.expected
    else:
        with pytest.raises(DecodeError):
            parse(cls, vector.body + octet)


@pytest.mark.parametrize("name", strategies.BODIES)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_round_trip(name: str, data: st.DataObject) -> None:
    sent = data.draw(strategies.BODIES[name])
    assert parse(type(sent), encode_body(sent)) == sent


@settings(max_examples=100, deadline=None)
@given(sent=st.lists(strategies.body, max_size=6))
def test_round_trip_of_chains(sent: list[Body]) -> None:
    first = sent[0].TYPE if sent else PayloadType.NONE
    found = chain(first, encode_chain(sent))
    assert [p.parse(type(s)) for p, s in zip(found, sent, strict=True)] == sent


def decodes_to_itself(cls: type[Body], octets: bytes) -> None:
    """Either DecodeError, or a value that says all there was to say."""
    value: Body | DecodeError
    try:
        value = parse(cls, octets)
    except DecodeError as error:
        value = error
    if isinstance(value, DecodeError):
        assert 0 <= value.offset - BODY_OFFSET <= len(octets)
    else:
        assert encode_body(value) == octets


@each_class
@settings(max_examples=180, deadline=None)
@given(octets=st.binary(max_size=300))
def test_any_octets_give_a_value_or_decode_error(cls: type[Body], octets: bytes) -> None:
    decodes_to_itself(cls, octets)


@each_vector
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_change_gives_a_value_or_decode_error(vector: Vector, data: st.DataObject) -> None:
    changed = bytearray(vector.body)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(changed)))
        stop = data.draw(st.integers(start, min(start + 4, len(changed))))
        changed[start:stop] = data.draw(st.binary(max_size=4))
    decodes_to_itself(type(vector.expected), bytes(changed))


@each_vector
def test_every_octet_set_to_every_extreme_gives_a_value_or_decode_error(vector: Vector) -> None:
    for at, octet in enumerate(vector.body):
        for value in (0, 1, 0x7F, 0x80, 0xFF, octet ^ 1):
            changed = vector.body[:at] + bytes([value]) + vector.body[at + 1 :]
            decodes_to_itself(type(vector.expected), changed)
