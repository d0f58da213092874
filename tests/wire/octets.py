"""Octets written as an RFC draws them, and the checks that every payload goes through."""

from __future__ import annotations

from typing import TypeVar

import pytest

from gdoi_plugin.wire.buffer import Buffer, DecodeError
from gdoi_plugin.wire.header import HEADER_LENGTH
from gdoi_plugin.wire.payload import GENERIC_HEADER_LENGTH, Body, Payload, pull_chain

B = TypeVar("B", bound=Body)


def octets(drawing: str) -> bytes:
    """Hex digits line by line, ``#`` to the end of a line is comment."""
    return bytes.fromhex(" ".join(line.split("#")[0] for line in drawing.splitlines()))


def payload(kind: int, body: bytes, offset: int = HEADER_LENGTH) -> Payload:
    """A payload of this body as it would be found right behind an ISAKMP header."""
    head = bytes(2) + (GENERIC_HEADER_LENGTH + len(body)).to_bytes(2, "big")
    return Payload(kind, head + body, offset)


def parse(cls: type[B], body: bytes) -> B:
    return payload(cls.TYPE, body).parse(cls)


def chain(first: int, data: bytes) -> tuple[Payload, ...]:
    """The chain in ``data`` behind an ISAKMP header; it must use ``data`` up."""
    buf = Buffer(data, HEADER_LENGTH)
    found = pull_chain(first, buf)
    buf.expect_end("chain")
    return found


def refused(cls: type[Body], body: bytes, why: str) -> DecodeError:
    """``body`` must be refused, and the message must say why."""
    with pytest.raises(DecodeError, match=why) as caught:
        parse(cls, body)
    return caught.value


def with_octet(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes([value]) + data[at + 1 :]
