"""How far SAs have counted, for when neither the kernel nor this process knows it any more.

A TEK may outlive both: after a reboot, or when SAs were taken out while no agent ran, the member
has it again by its state file or from the key server. A sender that began at 1 again would be
dropped by every receiver with a replay window, and a receiver would take old packets once more.

Numbers are reserved in blocks: none is used that is not below what the file says, so the file is
written seldom::

    used ......... count ............ reserved
                     |-- >= MARGIN ------|        else the next block is reserved

What was received cannot be reserved: it is as of the last time the file was written. New SAs are
appended to the file: it is written as a whole where nobody waits for an acknowledgement.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gdoi_xfrm import Sa

from .errors import StoreError
from .state_file import StateDirectory

# No group can be called so.
NAME = "_numbers"
# The regular look at the SAs, and a flush before it, each leave 2 seconds of 2^24 packets unseen.
MARGIN = 1 << 26
# A crash with which the SAs go, too, costs one: the 32nd part of all 32-bit numbers.
BLOCK = 2 * MARGIN
# While no agent runs the kernel sends on: at most so many until the SA's time is up, evenly spread.
# With 64-bit numbers a leap of 2^32 would not be seen by receivers (RFC 4303 appendix A2.2).
UNATTENDED = 1 << 31
# Seconds after which counts are written that are no reason to write at once.
INTERVAL = 60.0
# Twice what an agent holds and remembers in an honest rollover. Of those that run no more the
# oldest go first; those that run, never.
MAX_KEPT = 4096
# SAs that are appended to the file before it is written anew.
MAX_APPENDED = MAX_KEPT
# Of an SA without a limit of seconds, which no TEK is.
_FOREVER = 1 << 32


@dataclass(frozen=True, slots=True)
class Kept:
    """An SA's numbers. ``sent``: none above it was used by ``at``; None: nor ever since.

    key: tells it from another SA with its SPI; until: when its time is up.
    """

    key: str
    sent: int
    received: int
    until: float
    at: float | None

    def __post_init__(self) -> None:
        numbers = (self.sent, self.received)
        if not all(isinstance(n, int) and 0 <= n < 1 << 64 for n in numbers):
            raise ValueError(f"no sequence numbers: {numbers}")
        if not isinstance(self.until, (int, float)) or not isinstance(self.at, float | None):
            raise ValueError(f"no times: {self.until}, {self.at}")

    @property
    def record(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__slots__}

    def sent_by(self, now: float, last: int) -> int:
        """The highest number that can have been used."""
        if self.at is None:
            return min(self.sent, last)
        left = max(1.0, self.until - self.at)
        share = min(1.0, max(0.0, now - self.at) / left)
        return min(last, self.sent + int(share * min(UNATTENDED, last - min(self.sent, last))))


class Numbers:
    """``<state>/_numbers.json``. An SA is in it until its time is up, in the kernel or not.

    ``state`` None: for this process only.
    """

    def __init__(self, state: StateDirectory | None = None) -> None:
        self._state = state
        self.kept: Mapping[str, Kept] = {}
        self._write_at = 0.0
        self._failed = False
        # SAs that may still be appended.
        self._room = 0

    def load(self) -> None:
        """Raises StoreError for a file that cannot be read: numbers would be used twice."""
        lines: list[Any] = [] if self._state is None else [*self._state.load_lines(NAME)]
        entries = [line.get("sas", {}) for line in lines]
        try:
            self.kept = {sa: Kept(**entry) for sas in entries for sa, entry in sas.items()}
        except (TypeError, ValueError, AttributeError) as error:
            raise StoreError(
                f"{NAME}.json: {error!r}; remove it, and receivers with a replay window may drop"
                " this member's packets until the next rekey"
            ) from error

    def continued(self, sa: Sa, now: float) -> Sa:
        """To be installed where the kernel has it no more."""
        known = self._of(sa)
        if known is None:
            return sa
        received = min(known.received, sa.last_number)
        sent = known.sent_by(now, sa.last_number)
        return replace(sa, output_sequence=sent, input_sequence=received)

    def reserved(self, sa: Sa) -> bool:
        """Whether it may send for a while before this is written again."""
        known = self._of(sa)
        wanted = min(sa.output_sequence + MARGIN, sa.last_number)
        return known is not None and known.at is not None and known.sent >= wanted

    def due(self, running: Collection[Sa], now: float) -> bool:
        """Whether it is time to write: ahead of what may be used, or to be no older than that."""
        if now < self._write_at:
            return not self._failed and not all(self.reserved(sa) for sa in running)
        return any(self._behind(sa) for sa in running)

    def add(self, new: Collection[Sa], now: float) -> bool:
        """Reserves for these as well, durable when it returns. False where that takes
        :meth:`keep`: nothing has changed."""
        left, self._room = self._room - len(new), 0
        if left < 0:
            return False
        entries = {str(sa.key): self._entry(sa, _ahead(sa), now, now) for sa in new}
        try:
            if self._state is not None:
                self._state.append(NAME, _line(entries))
        except StoreError:
            return False
        self.kept, self._room = {**self.kept, **entries}, left
        return True

    def keep(self, running: Iterable[Sa], ended: Iterable[Sa], now: float) -> None:
        """Writes all of it anew; durable when it returns. ``ended`` send no more.

        Raises StoreError: nothing has changed, and it is not due again for a while.
        """
        # Even a file that was renamed is not to be appended to until its folder is flushed.
        self._write_at, self._failed, self._room = now + INTERVAL, True, 0
        kept = {sa: known for sa, known in self.kept.items() if now < known.until}
        for sa in ended:
            if self._of(sa) is not None and str(sa.key) in kept:
                kept[str(sa.key)] = self._entry(sa, sa.output_sequence, now, None)
        runs = {str(sa.key): self._entry(sa, _ahead(sa), now, now) for sa in running}
        others = [(sa, known) for sa, known in kept.items() if sa not in runs]
        kept = dict(others[max(0, len(others) + len(runs) - MAX_KEPT) :]) | runs
        if self._state is not None:
            self._state.save(NAME, _line(kept))
        self.kept, self._failed, self._room = kept, False, MAX_APPENDED

    def _entry(self, sa: Sa, sent: int, now: float, at: float | None) -> Kept:
        known = self._of(sa)
        until = now + (sa.lifetime.hard_seconds or _FOREVER) if known is None else known.until
        return Kept(_key(sa), sent, sa.input_sequence, until, at)

    def _of(self, sa: Sa) -> Kept | None:
        known = self.kept.get(str(sa.key))
        return known if known is not None and known.key == _key(sa) else None

    def _behind(self, sa: Sa) -> bool:
        known = self._of(sa)
        return known is None or (known.sent, known.received) != (_ahead(sa), sa.input_sequence)


def _line(entries: Mapping[str, Kept]) -> dict[str, object]:
    return {"sas": {sa: known.record for sa, known in entries.items()}}


def _ahead(sa: Sa) -> int:
    return min(sa.output_sequence + BLOCK, sa.last_number)


def _key(sa: Sa) -> str:
    """A short hash of keys that are random: it tells them apart, and nothing about them."""
    digest = hashlib.blake2b(digest_size=8, person=b"gdoi numbers")
    for attribute in sa.algorithm.attributes:
        digest.update(attribute.key)
    return digest.hexdigest()
