"""A look at all members of all groups, for metrics and the status page, a portion at a time:
between two portions the daemon's loop has its turn, so that 100,000 members hold up no datagram.

Nothing is counted where acknowledgements are taken: what the ledger has more than at the last look
is new.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import isclose
from time import monotonic

from ..protocol.group import Group
from ..protocol.key_server import KeyServer
from ..protocol.member_set import MemberSet
from ..protocol.page import Rekey
from ..protocol.roster import Registrant
from ..protocol.silence import REMINDER
from .standing import Standing, State

# Members that are looked at in one turn of the loop, half a millisecond's.
PORTION = 1000
# Whoever asks again so soon (seconds) gets the same answer.
FRESH = 1.0
# Upper bounds of round trips (seconds): within a LAN, within the jitter of multicast groups, after
# retransmissions.
ROUND_TRIPS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

Departure = Callable[[int], float]
STATES = tuple(State)
_PLACES = {state: place for place, state in enumerate(STATES)}


@dataclass(slots=True)
class Totals:
    """Of one group, since the daemon's start. ``round_trips``: by place in ROUND_TRIPS, the last
    for those beyond."""

    rekeys: int = 0
    said: int = 0
    acks: int = 0
    round_trips: list[int] = field(default_factory=lambda: [0] * (len(ROUND_TRIPS) + 1))
    seconds: float = 0.0

    def note(self, round_trip: float) -> None:
        self.round_trips[bisect_left(ROUND_TRIPS, round_trip)] += 1
        self.seconds += round_trip


@dataclass(frozen=True, slots=True)
class GroupView:
    """``states`` has for each of ``members`` the place of its state in STATES."""

    members: Sequence[Registrant] = ()
    states: bytes = b""

    @property
    def counts(self) -> dict[State, int]:
        return {state: self.states.count(place) for place, state in enumerate(STATES)}


@dataclass(frozen=True, slots=True)
class _Seen:
    """A page at the last look."""

    attempts: int
    count: int
    members: MemberSet


class Surveyor:
    """What a group's ledger has when it is seen first is old, all later is new: at the start that
    is what was saved."""

    def __init__(self, engine: KeyServer) -> None:
        self._engine = engine
        self.views: Mapping[int, GroupView] = {}
        self._taken = float("-inf")
        self._taking = asyncio.Lock()
        # By group and epoch.
        self._seen = {key: _as_it_is(group, {}) for key, group in engine.groups.items()}
        self._totals: dict[int, Totals] = {}

    def totals(self, key: int) -> Totals:
        return self._totals.setdefault(key, Totals())

    async def look(self) -> Mapping[int, GroupView]:
        """One look at a time, and none where the last one is fresh."""
        async with self._taking:
            if monotonic() - self._taken >= FRESH:
                views, groups = {}, dict(self._engine.groups)
                for key, group in groups.items():
                    views[key] = await _view(group)
                    await self._add_up(key, group)
                for gone in self._seen.keys() - groups.keys():
                    del self._seen[gone]
                self.views, self._taken = views, monotonic()
        return self.views

    async def _add_up(self, key: int, group: Group) -> None:
        """ACKs and rounds come in meanwhile: all pages are looked at in one turn, and those are the
        next look's."""
        before, pages = self._seen.get(key), list(group.ledger.values())
        self._seen[key] = seen = _as_it_is(group, before or {})
        if before is None:  # reload has taken up a group that was saved
            return
        totals = self.totals(key)
        for page in pages:
            now, then = seen[page.epoch], before.get(page.epoch)
            if then is None:
                then = _Seen(0, 0, MemberSet(group.roster))
                totals.rekeys += page.reason != REMINDER
            totals.said += max(0, now.attempts - then.attempts)
            if now.count != then.count:
                await _note(totals, group, page, now.members.without(then.members))


def _as_it_is(group: Group, before: Mapping[int, _Seen]) -> dict[int, _Seen]:
    return {epoch: _seen(page, before.get(epoch)) for epoch, page in group.ledger.items()}


def _seen(page: Rekey, before: _Seen | None) -> _Seen:
    count = len(page.acknowledged)
    if before is not None and before.count == count:
        return _Seen(page.attempts, count, before.members)
    return _Seen(page.attempts, count, page.acknowledged.members)


async def _note(totals: Totals, group: Group, page: Rekey, fresh: MemberSet) -> None:
    totals.acks += len(fresh)
    numbers = fresh.numbers
    while portion := list(islice(numbers, PORTION)):
        departures = [page.departures(seq) for seq in page.seqs]
        for number in portion:
            member = group.roster.numbered(number)
            if member is not None:
                totals.note(_round_trip(page, member, departures))
        await asyncio.sleep(0)


def _round_trip(page: Rekey, member: Registrant, departures: Sequence[Departure]) -> float:
    """Members know theirs of the last rekey. To which SEQ of one before that the ACK was is no
    longer known: the last that had left by then."""
    number, since = member.number, page.acknowledged.since
    at, last = page.acknowledged.at(number), member.last_ack
    # Pages keep single precision.
    if last is not None and isclose(last - since, at - since, rel_tol=1e-6, abs_tol=1e-6):
        return member.rtt or 0.0
    left = [moment for moment in (departure(number) for departure in departures) if moment <= at]
    return at - max(left, default=at)


async def _view(group: Group) -> GroupView:
    standing, members = Standing(group), list(group.members.values())
    states = bytearray()
    for start in range(0, len(members), PORTION):
        states += bytes(_PLACES[standing.of(m)] for m in members[start : start + PORTION])
        await asyncio.sleep(0)
    return GroupView(members, bytes(states))
