"""The layouts of `_messages` compiled: C structs and attributes, packed and unpacked at once.

pyroute2 packs and unpacks field by field, which takes some 300 microseconds for an SA. A Layout is
one struct.Struct made of a message class's fields, and takes two. What the octets mean stays
written down once, in the classes; the tests compare both ways of encoding.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from gdoi_xfrm._errors import KernelError

NLMSGHDR: Final = struct.Struct("IHHII")
_NLATTR: Final = struct.Struct("HH")
# NLA_F_NESTED and NLA_F_NET_BYTEORDER share the field with the type.
_NLA_TYPE_MASK: Final = 0x3FFF

# A message taken apart: the struct's fields by their names (tuples for structs within it), and
# the octets of the attributes by theirs.
Message = dict[str, Any]


class Request(NamedTuple):
    """A message to the kernel, but for its header. The body may hold keys: never show it."""

    kind: int
    body: bytes

    def __repr__(self) -> str:
        return f"Request(kind={self.kind:#x}, body=<{len(self.body)} octets>)"


class Layout:
    """The C struct of a message class, and the names of the attributes that may follow it."""

    def __init__(self, kind: Any) -> None:
        self.struct = compiled(kind.fields)
        self._places: list[tuple[str, int | slice]] = []
        self._attributes = {number: name for number, name, _ in kind.nla_map}
        # Where each field's octets are.
        self.offsets: dict[str, slice] = {}
        first, before = 0, ""
        for name, fmt in kind.fields:
            end = struct.calcsize(before + fmt)
            self.offsets[name] = slice(end - struct.calcsize(fmt), end)
            before += fmt
            count = len(struct.unpack(fmt, bytes(struct.calcsize(fmt))))
            if count:  # not padding
                place = first if count == 1 else slice(first, first + count)
                self._places.append((name, place))
            first += count

    @property
    def size(self) -> int:
        return self.struct.size

    def unpack(self, octets: bytes) -> Message:
        """A message, from its netlink header on. KernelError where it is none of this kind."""
        start = NLMSGHDR.size
        if len(octets) < start + self.struct.size:
            raise KernelError(errno.EBADMSG, "reading an XFRM message: shorter than its struct")
        values = self.struct.unpack_from(octets, start)
        message: Message = {name: values[place] for name, place in self._places}
        for number, value in read_attributes(octets, start + self.struct.size):
            name = self._attributes.get(number)
            if name is not None:  # newer kernels' others are passed over
                message[name] = value
        return message


def compiled(fields: Sequence[tuple[str, str]]) -> struct.Struct:
    return struct.Struct("".join(fmt for _, fmt in fields))


def whole_attributes(octets: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    """Number of each attribute, and its octets from its header on, padded."""
    end = len(octets)
    while offset + _NLATTR.size <= end:
        length, kind = _NLATTR.unpack_from(octets, offset)
        if length < _NLATTR.size or offset + length > end:
            raise KernelError(errno.EBADMSG, "reading an XFRM message: a cut attribute")
        after = offset + ((length + 3) & ~3)
        yield kind & _NLA_TYPE_MASK, octets[offset:after]
        offset = after


def read_attributes(octets: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    """Number and value of each attribute."""
    for number, whole in whole_attributes(octets, offset):
        (length, _) = _NLATTR.unpack_from(whole)
        yield number, whole[_NLATTR.size : length]


def attribute(number: int, value: bytes) -> bytes:
    """struct nlattr and its value, padded."""
    return _NLATTR.pack(_NLATTR.size + len(value), number) + value + bytes(-len(value) % 4)


def with_header(body: bytes, kind: int = 0) -> bytes:
    """A body as `Layout.unpack` wants it."""
    return NLMSGHDR.pack(NLMSGHDR.size + len(body), kind, 0, 0, 0) + body
