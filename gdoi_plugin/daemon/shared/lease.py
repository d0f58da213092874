"""Who leads. The lease is one row: a holder, a fence that counts holders, and the holder's beats.

No clock is compared with another, the database's neither: a stepped one changes nothing. Whoever
holds the lease stops leading when its last beat lies a lease back by its own clock, counted from
before it asked; whoever wants it takes it when it has seen the same beat for a whole lease by its
own. The one is over before the other can begin. And whatever a holder that was paused does later,
it finds the fence, read under the lock of its step, higher than its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, func, select, update
from sqlalchemy.dialects.postgresql import insert

from .schema import head, lease, servers

NOBODY = ""
# Of a lease, after which its holder beats again; and after which it no longer leads, without.
BEAT_AFTER = 0.2
STOP_AFTER = 0.9


def since_boot() -> float:
    """Goes on while the machine sleeps, and is never set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Standing:
    """What the database says, and this host's clock then. ``time`` is the group's time."""

    holder: str
    fence: int
    beat: int
    revision: int
    time: float
    at: float


def prepare(connection: Connection) -> None:
    """The rows that there is one of."""
    connection.execute(insert(head).values(id=1, revision=0).on_conflict_do_nothing())
    nobody = {"holder": NOBODY, "fence": 0, "beat": 0, "ahead": 0.0}
    connection.execute(insert(lease).values(id=1, **nobody).on_conflict_do_nothing())


def look(connection: Connection, clock: Callable[[], float] = since_boot) -> Standing:
    before = clock()
    now = func.extract("epoch", func.clock_timestamp())
    asked = select(lease.c.holder, lease.c.fence, lease.c.beat, head.c.revision, lease.c.ahead, now)
    holder, fence, beat, revision, ahead, there = connection.execute(
        asked.where(lease.c.id == head.c.id)
    ).one()
    after = clock()
    # In the middle between question and answer the database's clock was read, within half of that.
    return Standing(holder, fence, beat, revision, float(there) + ahead, (before + after) / 2)


class Lease:
    """One server's part. ``length`` in seconds; ``clock`` is this host's, for tests another."""

    def __init__(self, name: str, length: float, clock: Callable[[], float] = since_boot) -> None:
        self.name, self.length = name, length
        self._clock = clock
        self.fence = 0  # ours, where we hold it
        self.willing = True  # whether it is taken where it is free
        self._until: float | None = None
        self._next_beat = 0.0
        self._seen: tuple[int, int] | None = None
        self._seen_at = 0.0
        self._held_before = True  # a lease of this name is of our former run, until we have looked

    def held(self) -> bool:
        """Whether we may act as the leader at this moment."""
        until = self._until  # the beats may come from a thread
        return until is not None and self._clock() < until

    def attend(self, connection: Connection, time_of_group: Callable[[], float]) -> Standing:
        """Beats, takes the lease where it is free, or looks; a transaction for each."""
        with connection.begin():
            standing = look(connection, self._clock)
        if self._until is not None:
            if (standing.holder, standing.fence) != (self.name, self.fence):
                self.lost()
            elif self._clock() >= self._next_beat:
                self._beat(connection, time_of_group)
        if self._until is None and self._free(standing) and self.willing:
            self._take(connection, standing)
        return standing

    def lost(self) -> None:
        """Somebody else has it, or soon may."""
        self._until, self._seen = None, None

    def check(self, holder: str, fence: int) -> None:
        """What a step has read under its lock."""
        if self._until is not None and (holder, fence) != (self.name, self.fence):
            self.lost()

    def release(self, connection: Connection) -> None:
        """The next one need not wait."""
        held, self._until = self._until is not None, None
        if held:
            mine = (lease.c.holder == self.name) & (lease.c.fence == self.fence)
            with connection.begin():
                connection.execute(update(lease).where(mine).values(holder=NOBODY))

    def _beat(self, connection: Connection, time_of_group: Callable[[], float]) -> None:
        """The lease runs from before the question: nobody can have seen this beat earlier."""
        before = self._clock()
        mine = (lease.c.holder == self.name) & (lease.c.fence == self.fence)
        ahead = time_of_group() - func.extract("epoch", func.clock_timestamp())
        with connection.begin():
            beats = update(lease).where(mine).values(beat=lease.c.beat + 1, ahead=ahead)
            matched = connection.execute(beats).rowcount
        if matched:
            self._run_from(before)
        else:
            self.lost()

    def _run_from(self, moment: float) -> None:
        self._until = moment + STOP_AFTER * self.length
        self._next_beat = moment + BEAT_AFTER * self.length

    def _free(self, standing: Standing) -> bool:
        now, beat = self._clock(), (standing.fence, standing.beat)
        former, self._held_before = self._held_before, False
        if standing.holder == NOBODY or (former and standing.holder == self.name):
            return True
        if beat != self._seen:
            # Seen no earlier than it was made, so whoever made it is over before our wait is.
            self._seen, self._seen_at = beat, now
        return now - self._seen_at >= self.length

    def _take(self, connection: Connection, standing: Standing) -> None:
        """Between two steps, of whatever server: they hold the lock of the head."""
        before = self._clock()
        same = (lease.c.fence == standing.fence) & (lease.c.beat == standing.beat)
        same &= lease.c.holder == standing.holder
        values = {"holder": self.name, "fence": standing.fence + 1, "beat": 0}
        with connection.begin():
            connection.execute(select(head.c.id).with_for_update())
            taken = connection.execute(update(lease).where(same).values(values)).rowcount
        if taken:
            self.fence = standing.fence + 1
            self._run_from(before)


def note_server(
    connection: Connection, name: str, address: str, policies: Mapping[str, str]
) -> None:
    values = {"address": address, "seen": func.clock_timestamp(), "policies": dict(policies)}
    with connection.begin():
        statement = insert(servers).values(name=name, **values)
        connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))
