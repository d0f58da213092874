"""Data attributes, RFC 2408 section 3.3: TV (basic) and TLV (variable)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from struct import Struct

from .buffer import Buffer, DecodeError

AF_BASIC = 0x8000
_HEAD = Struct("!HH")  # type, and length or value
# No structure of RFC 2407, 2409 or 6407 has more than a dozen attributes.
MAX_ATTRIBUTES = 64


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute: an ``int`` value is basic (TV, 2 octets), ``bytes`` is variable (TLV).

    ::

         0                   1                   2                   3
         0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
        +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
        !A!       Attribute Type        !    AF=0  Attribute Length     !
        !F!                             !    AF=1  Attribute Value      !
        +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
        .                   AF=0  Attribute Value                       .
        +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    """

    type: int
    value: int | bytes = field(repr=False)  # may be a key (RFC 6407 section 5.6)

    @classmethod
    def pull(cls, buf: Buffer) -> Attribute:
        head = buf.pull_uint16("attribute type")
        low = buf.pull_uint16("attribute length or value")
        if head & AF_BASIC:
            return cls(head & ~AF_BASIC, low)
        return cls(head, buf.pull_bytes(low, f"value of attribute {head}"))

    def push(self, buf: Buffer) -> None:
        if isinstance(self.value, int):
            buf.push_bytes(_HEAD.pack(AF_BASIC | self.type, self.value))
        else:
            buf.push_bytes(_HEAD.pack(self.type, len(self.value)) + self.value)

    def number(self) -> int:
        """The value as an unsigned integer, in either encoding.

        Implementations differ on which of the two they use for lifetimes. Raises DecodeError for
        a variable value that is empty or longer than 8 octets.
        """
        if isinstance(self.value, int):
            return self.value
        if not 1 <= len(self.value) <= 8:
            raise DecodeError(f"attribute {self.type}: number of {len(self.value)} octets", 0)
        return int.from_bytes(self.value, "big")

    def octets(self) -> bytes:
        """The value of a variable attribute. Raises DecodeError where it is basic."""
        if isinstance(self.value, int):
            raise DecodeError(f"attribute {self.type} is basic, must be variable", 0)
        return self.value


def uint32(attribute_type: int, value: int) -> Attribute:
    """A variable attribute of 4 octets, the form RFC 6407 and RFC 2407 give to lifetimes."""
    return Attribute(attribute_type, value.to_bytes(4, "big"))


def pull_attributes(buf: Buffer, most: int = MAX_ATTRIBUTES) -> tuple[Attribute, ...]:
    """All attributes up to the end of ``buf``."""
    found: list[Attribute] = []
    while buf.remaining:
        if len(found) == most:
            raise buf.error(f"more than {most} attributes")
        found.append(Attribute.pull(buf))
    return tuple(found)


def push_attributes(buf: Buffer, attributes: Iterable[Attribute]) -> None:
    for attribute in attributes:
        attribute.push(buf)


def unique(attributes: Iterable[Attribute], what: str) -> dict[int, Attribute]:
    """By type; a type given twice is a DecodeError (which of the two would hold?)."""
    found: dict[int, Attribute] = {}
    for attribute in attributes:
        if attribute.type in found:
            raise DecodeError(f"{what}: attribute {attribute.type} twice", 0)
        found[attribute.type] = attribute
    return found
