"""vici packets and messages: both ways against the `vici` package, and any bytes."""

from __future__ import annotations

import pytest
import vici.protocol
from hypothesis import given, settings
from hypothesis import strategies as st

from gdoi_plugin.daemon.vici_message import (
    MAX_DEPTH,
    MAX_ELEMENTS,
    MAX_PACKET,
    Message,
    MessageError,
    Packet,
    PacketType,
    decode_packet,
    encode_packet,
    encode_segment,
    to_message,
)

SAMPLE: Message = {
    "group": "1234",
    "empty": "",
    "missing": ["10.0.0.3", "münchen"],
    "none": [],
    "section": {"a": "1", "deeper": {"b": ["2"]}},
}

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
MESSAGES = st.recursive(
    st.dictionaries(TEXT, TEXT | st.lists(TEXT, max_size=4), max_size=4),
    lambda inner: st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def as_vici_gives_it(value: object) -> object:
    """Values of the vici package are octets."""
    if isinstance(value, dict):
        return {key: as_vici_gives_it(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_vici_gives_it(item) for item in value]
    assert isinstance(value, str)
    return value.encode()


RESPONSE = bytes([PacketType.CMD_RESPONSE])


def encoded(message: Message) -> bytes:
    """As the octets of a packet that is nothing but its type and the message."""
    return encode_packet(Packet(PacketType.CMD_RESPONSE, message=message)).removeprefix(RESPONSE)


def decoded(data: bytes) -> Message:
    message = decode_packet(RESPONSE + data).message
    assert message is not None
    return message


@settings(deadline=None)
@given(MESSAGES)
def test_message_is_what_the_vici_package_reads_and_writes(message: Message) -> None:
    data = encoded(message)
    assert data == vici.protocol.Message.serialize(message)
    stream = vici.protocol.FiniteStream(data)
    assert vici.protocol.Message.deserialize(stream) == as_vici_gives_it(message)
    assert decoded(data) == message


def test_packets_are_those_of_the_vici_package() -> None:
    body = vici.protocol.Message.serialize(SAMPLE)
    theirs = vici.protocol.Packet.request("rekey", body)
    ours = Packet(PacketType.CMD_REQUEST, "rekey", SAMPLE)
    assert encode_packet(ours) == theirs
    assert decode_packet(theirs) == ours
    assert decode_packet(vici.protocol.Packet.request("version")).message == {}
    for kind, theirs in (
        (PacketType.EVENT_REGISTER, vici.protocol.Packet.register_event("e")),
        (PacketType.EVENT_UNREGISTER, vici.protocol.Packet.unregister_event("e")),
    ):
        assert decode_packet(theirs) == Packet(kind, "e")


def test_every_truncation_of_a_message_is_refused_or_ends_between_top_level_elements() -> None:
    data = encoded(SAMPLE)
    whole = {len(encoded(dict(list(SAMPLE.items())[:n]))) for n in range(len(SAMPLE) + 1)}
    for end in range(len(data)):
        if end in whole:
            decoded(data[:end])
        else:
            with pytest.raises(MessageError):
                decoded(data[:end])


@given(st.binary(max_size=300))
def test_any_bytes_give_a_packet_or_message_error(data: bytes) -> None:
    try:
        packet = decode_packet(data)
    except MessageError:
        return
    assert encode_packet(packet) == data


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "1 octets expected"),
        (b"\x08", "unknown packet type"),
        (b"\x05x", "octets after EVENT_CONFIRM"),
        (b"\x03\x01ex", "octets after EVENT_REGISTER"),
        (b"\x00\x01\xff", "not UTF-8"),
        (b"\x01\x09", "unknown element type"),
        (b"\x01\x02", "SECTION_END where nothing"),
        (b"\x01\x06", "LIST_END where nothing"),
        (b"\x01\x05\x00\x00", "LIST_ITEM where nothing"),
        (b"\x01\x01\x01a", "ends inside"),
        (b"\x01\x04\x01a", "ends inside"),
        (b"\x01\x04\x01a\x03\x01b\x00\x00", "KEY_VALUE in a list"),
        (b"\x01\x03\x01a\x00\x01\xff", "not UTF-8"),
        (b"\x01\x03\x01a\x00\x05x", "5 octets expected, 1 left"),
        (b"\x01" + b"\x03\x01a\x00\x00" * 2, "comes twice"),
        (b"\x01" + b"\x01\x01a" * (MAX_DEPTH + 1) + b"\x02" * (MAX_DEPTH + 1), "deeper"),
        (b"\x01\x04\x01a" + b"\x05\x00\x00" * MAX_ELEMENTS + b"\x06", "more than"),
    ],
)
def test_malformed_packets(data: bytes, what: str) -> None:
    with pytest.raises(MessageError, match=what):
        decode_packet(data)


def test_what_does_not_fit_is_not_encoded() -> None:
    deep: Message = {}
    for _ in range(MAX_DEPTH + 1):
        deep = {"a": deep}
    bad: list[Message] = [{"k" * 256: ""}, {"k": "v" * 65536}, {"k": "\ud800"}, deep]
    for message in bad:
        with pytest.raises(MessageError):
            encoded(message)
    with pytest.raises(MessageError, match="where text is needed"):
        encoded({"k": 5})  # type: ignore[dict-item]
    large: Message = {str(n): "v" * 65535 for n in range(MAX_PACKET // 65535 + 1)}
    with pytest.raises(MessageError, match="at most"):
        encode_segment(Packet(PacketType.EVENT, "e", large))
    with pytest.raises(MessageError, match="carries no message"):
        encode_packet(Packet(PacketType.EVENT_CONFIRM, message={}))


def test_to_message() -> None:
    fields = {"a": 1, "b": True, "c": None, "d": b"\x0a", "e": (1, 2), "f": {"g": 1.5}, "h": "x"}
    expected = {"a": "1", "b": "yes", "d": "0a", "e": ["1", "2"], "f": {"g": "1.5"}, "h": "x"}
    assert to_message(fields) == expected
