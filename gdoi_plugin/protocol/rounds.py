"""Who was told a rekey when: by unicast not all at once, and each member's window is its own."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

# Members that are told at one moment are those of a tenth of a second: the uplink has a rest after
# each, and the loop has one too.
TURN = 0.1
# Who has been told is saved for so many turns ahead: once a second. What a crash leaves untold of
# them is silent, and told again.
TURNS_SAVED = 10
# The number of nobody, beyond all numbers: a wave for everybody.
_LAST = 0xFFFFFFFF
_EVERYBODY = array("I", [_LAST])


@dataclass(slots=True)
class Wave:
    """Members, by rising numbers, that are told at one moment; None: everybody, by multicast.

    ``at``: when that was; of a wave still to come, not before that.
    """

    numbers: Sequence[int] | None
    at: float

    @property
    def last(self) -> int:
        return _LAST if self.numbers is None else self.numbers[-1]


def waves(numbers: Iterable[int], pace: int, at: float) -> Iterator[Wave]:
    """``pace``: members in a second."""
    chosen = array("I", sorted(numbers))
    size = wave_size(pace)
    for first in range(0, len(chosen), size):
        yield Wave(chosen[first : first + size], at)


def wave_size(pace: int) -> int:
    return max(1, int(pace * TURN))


def spread(members: int, pace: int) -> float:
    """Seconds from the first wave to the last."""
    return (members - 1) // wave_size(pace) * TURN if members else 0.0


@dataclass(slots=True)
class Round:
    """One saying of a rekey: when the members up to a number were told. ``first``: the place of its
    first SEQ among those of the rekey."""

    first: int
    _lasts: array[int] = field(default_factory=lambda: array("I"))
    _times: array[float] = field(default_factory=lambda: array("d"))

    def __bool__(self) -> bool:
        """Whether it has been said to anybody."""
        return bool(self._times)

    def note(self, wave: Wave) -> int:
        """Its place, for :meth:`left`."""
        self._lasts.append(wave.last)
        self._times.append(wave.at)
        return len(self._times) - 1

    def left(self, place: int, at: float) -> None:
        """The datagrams of this wave have left only now."""
        self._times[place] = at

    @property
    def told_all_at(self) -> float | None:
        """When everybody was told at one moment."""
        return self._times[0] if self._lasts[:1] == _EVERYBODY else None

    def told_at(self, number: int) -> float | None:
        place = bisect_left(self._lasts, number)
        return self._times[place] if place < len(self._times) else None
