"""Which members of a group, and when each acknowledged: by number, a bit and four octets each.

A ledger has 256 pages, and a page of a large group 100,000 members: as sets of identities that
would be gigabytes.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Set
from struct import Struct
from typing import Protocol, TypeVar

from .identity import Identity

# A number beyond is none that was ever given: more registrations than a group sees in its life.
MAX_NUMBER = (1 << 26) - 1

_NEVER = float("nan")
_HEAD = Struct(">dI")  # of packed times: since, octets of the set
_BITS = tuple(tuple(bit for bit in range(8) if octet >> bit & 1) for octet in range(256))
T = TypeVar("T")


class Names(Protocol):
    """Tells members by number from those by identity: the roster."""

    def number_of(self, identity: object) -> int:
        """Also of a member that has left; 0 where there never was one."""

    def name_of(self, number: int) -> Identity:
        """Also of a member that has left."""


class MemberSet(Set[Identity]):
    """Immutable. To others it is a set of identities."""

    __slots__ = ("_count", "_names", "_octets")

    def __init__(self, names: Names, octets: bytes = b"") -> None:
        """``octets``: what ``pack`` gave. Raises ValueError for more than any set can have."""
        if len(octets) > (MAX_NUMBER >> 3) + 1:
            raise ValueError(f"a set of members of {len(octets)} octets")
        self._names = names
        self._octets = octets
        self._count = int.from_bytes(octets, "little").bit_count()

    @classmethod
    def of(cls, names: Names, numbers: Iterable[int]) -> MemberSet:
        chosen = list(numbers)
        octets = bytearray((max(chosen, default=-1) >> 3) + 1)
        for number in chosen:
            octets[number >> 3] |= 1 << (number & 7)
        return cls(names, bytes(octets))

    def pack(self) -> bytes:
        """Number 8 i + j is bit j, the lowest first, of octet i."""
        return self._octets

    @property
    def numbers(self) -> Iterator[int]:
        for place, octet in enumerate(self._octets):
            if octet:
                for bit in _BITS[octet]:
                    yield 8 * place + bit

    def has(self, number: int) -> bool:
        place = number >> 3
        return place < len(self._octets) and bool(self._octets[place] >> (number & 7) & 1)

    def without(self, others: MemberSet) -> MemberSet:
        left = int.from_bytes(self._octets, "little") & ~int.from_bytes(others._octets, "little")
        return MemberSet(self._names, left.to_bytes((left.bit_length() + 7) // 8, "little"))

    def __contains__(self, identity: object) -> bool:
        number = self._names.number_of(identity)
        return number > 0 and self.has(number)

    def __iter__(self) -> Iterator[Identity]:
        return map(self._names.name_of, self.numbers)

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        if isinstance(other, MemberSet):
            return self._octets.rstrip(b"\0") == other._octets.rstrip(b"\0")
        return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"MemberSet({', '.join(str(identity) for identity in self)})"

    @classmethod
    def _from_iterable(cls, it: Iterable[T]) -> frozenset[T]:
        return frozenset(it)


class AckTimes(Mapping[Identity, float]):
    """To others a mapping of identities. Times are kept as seconds after ``since``, to some
    microseconds, which is nearer than any datagram's arrival is known."""

    __slots__ = ("_after", "_count", "_heard", "_names", "since")

    def __init__(self, names: Names, since: float) -> None:
        self.since = since
        self._names = names
        self._heard = bytearray()
        self._after = array("f")
        self._count = 0

    def note(self, number: int, at: float) -> bool:
        """Whether it is the first time, which is the one that counts."""
        place, bit = number >> 3, 1 << (number & 7)
        heard = self._heard
        if place >= len(heard):
            self._grow(place + 1)
        if heard[place] & bit:
            return False
        heard[place] |= bit
        self._after[number] = at - self.since
        self._count += 1
        return True

    def _grow(self, octets: int) -> None:
        """Room for the next ones too: members acknowledge in any order."""
        octets = max(octets, 2 * len(self._heard))
        self._heard.extend(bytes(octets - len(self._heard)))
        self._after.extend(array("f", [_NEVER]) * (8 * octets - len(self._after)))

    def has(self, number: int) -> bool:
        place = number >> 3
        return place < len(self._heard) and bool(self._heard[place] >> (number & 7) & 1)

    def at(self, number: int) -> float:
        """Of a member that has acknowledged."""
        return self.since + self._after[number]

    @property
    def members(self) -> MemberSet:
        return MemberSet(self._names, bytes(self._heard))

    def pack(self) -> bytes:
        heard = self._heard.rstrip(b"\0")
        after = self._after[: 8 * len(heard)]
        if sys.byteorder == "big":
            after.byteswap()
        return _HEAD.pack(self.since, len(heard)) + heard + after.tobytes()

    @classmethod
    def unpack(cls, names: Names, octets: bytes) -> AckTimes:
        """Raises ValueError for anything but what ``pack`` gave."""
        if len(octets) < _HEAD.size:
            raise ValueError(f"times of {len(octets)} octets")
        since, length = _HEAD.unpack_from(octets)
        # A bit of the set stands for four octets.
        if length > (MAX_NUMBER >> 3) + 1 or len(octets) != _HEAD.size + 33 * length:
            raise ValueError(f"times of {len(octets)} octets for a set of {length}")
        times = cls(names, since)
        view = memoryview(octets)[_HEAD.size :]
        times._heard = bytearray(view[:length])
        times._after.frombytes(view[length:])
        if sys.byteorder == "big":
            times._after.byteswap()
        times._count = int.from_bytes(times._heard, "little").bit_count()
        return times

    def __getitem__(self, identity: Identity) -> float:
        number = self._names.number_of(identity)
        if not number or not self.has(number):
            raise KeyError(identity)
        return self.at(number)

    def __iter__(self) -> Iterator[Identity]:
        return iter(self.members)

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"AckTimes({len(self)} members)"
