"""Changes octets the way protocols break: lengths, counts, extremes, pieces of other inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from tests.fuzz.target import MAX_INPUT

# Numbers at the borders of 1, 2 and 4 octets, and of what the decoders allow.
EXTREMES = tuple(
    number.to_bytes(size, "big")
    for size, numbers in (
        (1, (0, 1, 3, 4, 5, 8, 16, 17, 64, 127, 128, 255)),
        (2, (0, 1, 4, 255, 256, 1024, 0x7FFF, 0x8000, 0x8001, 0xFFFF)),
        (4, (0, 1, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)),
    )
    for number in numbers
)
MAX_CHANGES = 4
LONGEST_PIECE = 48


class Mutator:
    """Endless inputs made from ``pool``; the same for the same seed."""

    def __init__(self, pool: Sequence[bytes], seed: str) -> None:
        self._pool = [octets[:MAX_INPUT] for octets in pool] or [b""]
        self._rng = Random(seed)
        self._changes: tuple[Callable[[bytearray], None], ...] = (
            self._flip,
            self._octet,
            self._extreme,
            self._extreme,
            self._delete,
            self._insert,
            self._copy,
            self._splice,
            self._truncate,
        )

    def next(self) -> bytes:
        rng = self._rng
        octets = bytearray(self._pool[int(rng.random() * len(self._pool))])
        for _ in range(1 + int(rng.random() * MAX_CHANGES)):
            self._changes[int(rng.random() * len(self._changes))](octets)
        return bytes(octets[:MAX_INPUT])

    # -- changes ---------------------------------------------------------------------------------

    def _at(self, octets: bytearray) -> int:
        return int(self._rng.random() * len(octets))

    def _length(self) -> int:
        """Short pieces more often than long ones."""
        return 1 + int(LONGEST_PIECE * self._rng.random() ** 3)

    def _flip(self, octets: bytearray) -> None:
        if octets:
            octets[self._at(octets)] ^= 1 << int(self._rng.random() * 8)

    def _octet(self, octets: bytearray) -> None:
        if octets:
            octets[self._at(octets)] = int(self._rng.random() * 256)

    def _extreme(self, octets: bytearray) -> None:
        value = EXTREMES[int(self._rng.random() * len(EXTREMES))]
        at = self._at(octets)
        octets[at : at + len(value)] = value

    def _delete(self, octets: bytearray) -> None:
        at = self._at(octets)
        del octets[at : at + self._length()]

    def _insert(self, octets: bytearray) -> None:
        at = self._at(octets)
        octets[at:at] = self._rng.randbytes(self._length())

    def _copy(self, octets: bytearray) -> None:
        """A piece of the input again, somewhere else: payloads and attributes that come twice."""
        source, at = self._at(octets), self._at(octets)
        octets[at:at] = octets[source : source + self._length()]

    def _splice(self, octets: bytearray) -> None:
        """The rest of another input in place of the rest of this one."""
        other = self._pool[int(self._rng.random() * len(self._pool))]
        at = self._at(octets)
        octets[at:] = other[min(at, int(self._rng.random() * (len(other) + 1))) :]

    def _truncate(self, octets: bytearray) -> None:
        del octets[self._at(octets) :]
