"""The cursor: big-endian, checked, and a failed pull moves nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gdoi_plugin.wire.buffer import Buffer, DecodeError

FAILING: dict[str, Callable[[Buffer], object]] = {
    "bytes": lambda buf: buf.pull_bytes(4, "field"),
    "uint32": lambda buf: buf.pull_uint32("field"),
    "zero that is short": lambda buf: buf.pull_zero(4, "field"),
    "zero that is not": lambda buf: buf.pull_zero(3, "field"),
    "sub": lambda buf: buf.pull_sub(4, "field"),
    "end": lambda buf: buf.expect_end("field"),
}


def test_integers_are_big_endian() -> None:
    buf = Buffer(bytes.fromhex("01 0203 04050607 ff"))
    assert buf.pull_uint8("a") == 1
    assert buf.pull_uint16("b") == 0x0203
    assert buf.pull_uint32("c") == 0x04050607
    assert buf.pull_rest() == b"\xff"
    assert buf.remaining == 0


def test_pushes_are_the_pulls_reversed() -> None:
    buf = Buffer()
    buf.push_uint8(1)
    buf.push_uint16(0x0203)
    buf.push_uint32(0x04050607)
    buf.push_bytes(b"\xff")
    assert buf.data == bytes.fromhex("01020304050607ff")


@pytest.mark.parametrize("pull", FAILING.values(), ids=FAILING)
def test_a_failed_pull_moves_nothing_and_names_field_and_offset(
    pull: Callable[[Buffer], object],
) -> None:
    buf = Buffer(b"abc", base=100)
    with pytest.raises(DecodeError, match=r"^field.* at octet 100$") as caught:
        pull(buf)
    assert caught.value.offset == buf.offset == 100
    assert buf.remaining == 3


def test_an_error_after_a_good_pull_is_at_the_field_that_fails() -> None:
    buf = Buffer(b"abc", base=100)
    buf.pull_uint16("first")
    with pytest.raises(DecodeError, match=r"^second: 2 octets wanted, 1 left at octet 102$"):
        buf.pull_uint16("second")
    assert buf.pull_rest() == b"c"


def test_a_sub_buffer_counts_in_the_whole() -> None:
    outer = Buffer(bytes(10), base=28)
    outer.pull_bytes(3, "head")
    inner = outer.pull_sub(4, "inner")
    inner.pull_uint8("octet")
    assert (inner.offset, inner.remaining) == (32, 3)
    assert (outer.offset, outer.remaining) == (35, 3)


@pytest.mark.parametrize("value", [-1, 256])
def test_a_value_that_does_not_fit_is_not_cut(value: int) -> None:
    buf = Buffer()
    with pytest.raises(OverflowError):
        buf.push_uint8(value)
    assert buf.data == b""


def test_decode_error_shows_no_octets() -> None:
    with pytest.raises(DecodeError) as caught:
        Buffer(b"\xde\xad\xbe\xef").pull_zero(4, "RESERVED")
    assert str(caught.value) == "RESERVED is not zero at octet 0"
