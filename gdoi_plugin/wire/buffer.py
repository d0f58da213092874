"""The one cursor over octets: big-endian pulls that check, pushes that append."""

from __future__ import annotations


class DecodeError(ValueError):
    """Octets that are not what the RFC draws.

    ``what`` names the field, ``offset`` is the octet offset in the datagram (or decrypted body)
    at which decoding stopped.
    """

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(f"{what} at octet {offset}")
        self.what = what
        self.offset = offset


class EncodeError(Exception):
    """What is to be said does not fit; the text says what it is, its octets and the limit."""


class Buffer:
    """Octets with a read position. A pull that fails moves nothing.

    ``base`` is the offset of the first octet in the enclosing message, so that a DecodeError from
    a nested structure still names a place in the whole.
    """

    __slots__ = ("_base", "_data", "_pos")

    def __init__(self, data: bytes = b"", base: int = 0) -> None:
        self._data: bytes | bytearray = data or bytearray()
        self._pos = 0
        self._base = base

    @property
    def data(self) -> bytes:
        """All octets, whether pulled or not."""
        return bytes(self._data)

    @property
    def offset(self) -> int:
        """The read position, counted in the enclosing message."""
        return self._base + self._pos

    @property
    def remaining(self) -> int:
        return len(self._data) - self._pos

    def error(self, what: str) -> DecodeError:
        return DecodeError(what, self.offset)

    # -- pulls -----------------------------------------------------------------------------------

    def pull_bytes(self, length: int, what: str) -> bytes:
        start, end = self._pos, self._pos + length
        if end > len(self._data):
            raise self.error(f"{what}: {length} octets wanted, {self.remaining} left")
        self._pos = end
        return bytes(self._data[start:end])

    def _pull_uint(self, length: int, what: str) -> int:
        start, end = self._pos, self._pos + length
        if end > len(self._data):
            raise self.error(f"{what}: {length} octets wanted, {self.remaining} left")
        self._pos = end
        return int.from_bytes(self._data[start:end], "big")

    def pull_uint8(self, what: str) -> int:
        return self._pull_uint(1, what)

    def pull_uint16(self, what: str) -> int:
        return self._pull_uint(2, what)

    def pull_uint32(self, what: str) -> int:
        return self._pull_uint(4, what)

    def pull_rest(self) -> bytes:
        return self.pull_bytes(self.remaining, "rest")

    def pull_zero(self, length: int, what: str) -> None:
        """A field that MUST be zero."""
        start = self._pos
        if self._pull_uint(length, what):
            self._pos = start
            raise self.error(f"{what} is not zero")

    def pull_sub(self, length: int, what: str) -> Buffer:
        """The next ``length`` octets as a Buffer of their own."""
        base = self.offset
        return Buffer(self.pull_bytes(length, what), base)

    def expect_end(self, what: str) -> None:
        if self.remaining:
            raise self.error(f"{what}: {self.remaining} octets too many")

    # -- pushes ----------------------------------------------------------------------------------

    def push_bytes(self, value: bytes) -> None:
        self._data += value

    def push_uint8(self, value: int) -> None:
        self._data += value.to_bytes(1, "big")

    def push_uint16(self, value: int) -> None:
        self._data += value.to_bytes(2, "big")

    def push_uint32(self, value: int) -> None:
        self._data += value.to_bytes(4, "big")
