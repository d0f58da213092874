"""Packets and messages of strongSwan's vici protocol, as pure functions on bytes.

Source: "The Versatile IKE Control Interface (VICI) protocol", README.md of strongSwan's vici
plugin (transport, packet and message layer).  The `vici` package has the same two layers, but
its decoder takes a value that is cut short for a whole one and raises whatever `struct` raises:
good for a client that trusts its daemon, not for a server.  Here any bytes give a message or
`MessageError`.

    segment   length (4 octets, network order) | packet
    packet    type (1) | [length of name (1) | name]   requests, events | [message]
    message   a row of elements, each starting with its type (1):
              SECTION_START length (1) name    LIST_START length (1) name
              SECTION_END                      LIST_ITEM length (2) value
              KEY_VALUE length (1) name        LIST_END
                        length (2) value

vici's values are octets; those of this project's commands and events are text in UTF-8, and
anything else is refused here, so that no handler has to think about it.  Only what is exchanged
with charon, certificates and secrets among it, is read and written with `octets=True`: an octet
that is no UTF-8 is then a surrogate escape (PEP 383), see `text_of` and `octets_of`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

Value: TypeAlias = str | list[str] | dict[str, "Value"]
Message: TypeAlias = dict[str, Value]

MAX_PACKET = 512 * 1024
"""Octets in one packet: the limit that vici's README states for a segment."""

MAX_NAME = 0xFF
"""Octets in a name: its length field is one octet."""

MAX_VALUE = 0xFFFF
"""Octets in a value: its length field is two octets."""

MAX_DEPTH = 16
"""Sections inside sections.  Commands need one or two; the limit keeps recursion harmless."""

MAX_ELEMENTS = 4_000
"""Elements that a received message may have: the decoder runs in the daemon's loop, and this
many take some 10 ms.  A packet full of empty list items would otherwise take half a second."""


class MessageError(ValueError):
    """The bytes are no vici packet or message, or the message cannot be put into bytes."""

    def __init__(self, what: str, offset: int = 0) -> None:
        super().__init__(f"{what} (at octet {offset})")
        self.what = what
        self.offset = offset


class PacketType(IntEnum):
    """vici README, section "Packet layer"."""

    CMD_REQUEST = 0
    CMD_RESPONSE = 1
    CMD_UNKNOWN = 2
    EVENT_REGISTER = 3
    EVENT_UNREGISTER = 4
    EVENT_CONFIRM = 5
    EVENT_UNKNOWN = 6
    EVENT = 7


class Element(IntEnum):
    """vici README, section "Message format"."""

    SECTION_START = 1
    SECTION_END = 2
    KEY_VALUE = 3
    LIST_START = 4
    LIST_ITEM = 5
    LIST_END = 6


NAMED = frozenset(
    {
        PacketType.CMD_REQUEST,
        PacketType.EVENT_REGISTER,
        PacketType.EVENT_UNREGISTER,
        PacketType.EVENT,
    }
)
WITH_MESSAGE = frozenset({PacketType.CMD_REQUEST, PacketType.CMD_RESPONSE, PacketType.EVENT})


@dataclass(frozen=True, slots=True)
class Packet:
    """One vici packet; `name` is empty and `message` None where the type has none."""

    type: PacketType
    name: str = ""
    message: Message | None = None


def text_of(octets: bytes) -> str:
    """Any octets as a value for a message that is written with `octets=True`."""
    return octets.decode(errors="surrogateescape")


def octets_of(value: str) -> bytes:
    """The octets of a value that was read with `octets=True`."""
    return value.encode(errors="surrogateescape")


# ---------------------------------------------------------------- to bytes


def encode_segment(packet: Packet, *, octets: bool = False) -> bytes:
    """`packet` with its length in front, ready for the socket."""
    data = encode_packet(packet, octets=octets)
    return len(data).to_bytes(4, "big") + data


def encode_packet(packet: Packet, *, octets: bool = False) -> bytes:
    """The octets of `packet`; MessageError if it would be larger than vici allows."""
    out = bytearray([packet.type])
    if packet.type in NAMED:
        out += _name(packet.name)
    if packet.message is not None:
        if packet.type not in WITH_MESSAGE:
            raise MessageError(f"{packet.type.name} carries no message")
        _push_section(out, packet.message, 0, _errors(octets))
    if len(out) > MAX_PACKET:
        raise MessageError(f"packet of {len(out)} octets, at most {MAX_PACKET} are allowed")
    return bytes(out)


def _errors(octets: bool) -> str:
    """What becomes of octets that are no UTF-8, as `str.encode` and `bytes.decode` name it."""
    return "surrogateescape" if octets else "strict"


def _push_section(out: bytearray, section: Message, depth: int, errors: str) -> None:
    if depth > MAX_DEPTH:
        raise MessageError(f"sections nested deeper than {MAX_DEPTH}")
    for key, value in section.items():
        if isinstance(value, dict):
            out.append(Element.SECTION_START)
            out += _name(key)
            _push_section(out, value, depth + 1, errors)
            out.append(Element.SECTION_END)
        elif isinstance(value, list):
            out.append(Element.LIST_START)
            out += _name(key)
            for item in value:
                out.append(Element.LIST_ITEM)
                out += _value(item, errors)
            out.append(Element.LIST_END)
        else:
            out.append(Element.KEY_VALUE)
            out += _name(key)
            out += _value(value, errors)


def _name(name: str) -> bytes:
    data = _utf8(name)
    if len(data) > MAX_NAME:
        raise MessageError(f"name {name[:32]!r}... of {len(data)} octets, at most {MAX_NAME}")
    return len(data).to_bytes(1, "big") + data


def _value(value: str, errors: str) -> bytes:
    data = _utf8(value, errors)
    if len(data) > MAX_VALUE:
        raise MessageError(f"value {value[:32]!r}... of {len(data)} octets, at most {MAX_VALUE}")
    return len(data).to_bytes(2, "big") + data


def _utf8(text: str, errors: str = "strict") -> bytes:
    if not isinstance(text, str):
        raise MessageError(f"{type(text).__name__} where text is needed (see to_message)")
    try:
        return text.encode(errors=errors)
    except UnicodeEncodeError as exc:
        raise MessageError(f"{text[:32]!r} cannot be written as UTF-8") from exc


def to_message(fields: Mapping[str, object]) -> Message:
    """A message from plain Python values, so that handlers need no str() at every key.

    None is left out, a bool becomes yes or no, bytes become hex digits, mappings sections, other
    sequences and sets lists, anything else its str().
    """
    return {key: _to_value(value) for key, value in fields.items() if value is not None}


def _to_value(value: object) -> Value:
    if isinstance(value, Mapping):
        return to_message(value)
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (str, bytes)):
        return [_to_text(item) for item in value]
    return _to_text(value)


def _to_text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


# ---------------------------------------------------------------- from bytes


@dataclass(slots=True)
class _Reader:
    """Pulls from `data`; a pull beyond the end raises MessageError and moves nothing."""

    data: bytes
    errors: str
    max_elements: int
    offset: int = 0

    def pull(self, count: int) -> bytes:
        end = self.offset + count
        if end > len(self.data):
            raise MessageError(f"{count} octets expected, {len(self.data) - self.offset} left", end)
        part = self.data[self.offset : end]
        self.offset = end
        return part

    def pull_text(self, length_octets: int) -> str:
        start = self.offset
        length = int.from_bytes(self.pull(length_octets), "big")
        try:
            return self.pull(length).decode(errors=self.errors)
        except UnicodeDecodeError as exc:
            raise MessageError("text is not UTF-8", start) from exc

    @property
    def at_end(self) -> bool:
        return self.offset == len(self.data)


def decode_packet(data: bytes, *, octets: bool = False, max_elements: int = MAX_ELEMENTS) -> Packet:
    """The packet in `data`, strictly: all octets used, names and values whole and in UTF-8."""
    reader = _Reader(data, _errors(octets), max_elements)
    number = reader.pull(1)[0]
    try:
        kind = PacketType(number)
    except ValueError as exc:
        raise MessageError(f"unknown packet type {number}") from exc
    name = reader.pull_text(1) if kind in NAMED else ""
    if kind in WITH_MESSAGE:
        return Packet(kind, name, _pull_message(reader))
    if not reader.at_end:
        raise MessageError(f"octets after {kind.name}", reader.offset)
    return Packet(kind, name)


@dataclass(slots=True)
class _Open:
    """The sections and the list that are open while a message is read."""

    sections: list[Message] = field(default_factory=lambda: [{}])
    items: list[str] | None = None

    def add(self, key: str, value: Value, offset: int) -> None:
        section = self.sections[-1]
        if key in section:
            raise MessageError(f"{key!r} comes twice in one section", offset)
        section[key] = value


def _pull_message(reader: _Reader) -> Message:
    state = _Open()
    for offset, element in _elements(reader):
        if state.items is not None:
            if element is Element.LIST_ITEM:
                state.items.append(reader.pull_text(2))
            elif element is Element.LIST_END:
                state.items = None
            else:
                raise MessageError(f"{element.name} in a list", offset)
        else:
            _pull_element(reader, state, element, offset)
    if state.items is not None or len(state.sections) > 1:
        raise MessageError("message ends inside a section or list", reader.offset)
    return state.sections[0]


def _pull_element(reader: _Reader, state: _Open, element: Element, offset: int) -> None:
    """One element outside of lists."""
    if element is Element.KEY_VALUE:
        state.add(reader.pull_text(1), reader.pull_text(2), offset)
    elif element is Element.LIST_START:
        items: list[str] = []
        state.add(reader.pull_text(1), items, offset)
        state.items = items
    elif element is Element.SECTION_START:
        if len(state.sections) > MAX_DEPTH:
            raise MessageError(f"sections nested deeper than {MAX_DEPTH}", offset)
        section: Message = {}
        state.add(reader.pull_text(1), section, offset)
        state.sections.append(section)
    elif element is Element.SECTION_END and len(state.sections) > 1:
        state.sections.pop()
    else:
        raise MessageError(f"{element.name} where nothing of the kind is open", offset)


def _elements(reader: _Reader) -> Iterator[tuple[int, Element]]:
    count = 0
    while not reader.at_end:
        offset = reader.offset
        number = reader.pull(1)[0]
        count += 1
        if count > reader.max_elements:
            raise MessageError(f"more than {reader.max_elements} elements", offset)
        try:
            element = Element(number)
        except ValueError as exc:
            raise MessageError(f"unknown element type {number}", offset) from exc
        yield offset, element
