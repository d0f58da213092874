"""A look at all members of all groups, for metrics and the status page, a portion at a time:
between two portions the daemon's loop has its turn, so that 100,000 members hold up no datagram.

Nothing is counted where acknowledgements are taken: what the ledger has more than at the last look
is new.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from time import monotonic

from ..protocol.group import Group
from ..protocol.key_server import KeyServer
from ..protocol.member_set import MemberSet
from ..protocol.page import Rekey
from ..protocol.roster import Registrant
from .standing import Standing, State

# Members that are looked at in one turn of the loop, half a millisecond's.
PORTION = 1000
# Whoever asks again so soon (seconds) gets the same answer.
FRESH = 1.0
# Upper bounds of round trips (seconds): within a LAN, within the jitter of multicast groups, after
# retransmissions.
ROUND_TRIPS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

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


@dataclass(slots=True)
class _Seen:
    """A page at the last look."""

    attempts: int
    count: int
    members: MemberSet


class Surveyor:
    """Made when the engine has taken up what was saved: that is old, all later is new."""

    def __init__(self, engine: KeyServer) -> None:
        self._engine = engine
        self.views: Mapping[int, GroupView] = {}
        self._taken = float("-inf")
        self._taking = asyncio.Lock()
        self._seen: dict[tuple[int, int], _Seen] = {
            (key, page.epoch): _Seen(page.attempts, len(page.acknowledged), _heard(page))
            for key, group in engine.groups.items()
            for page in group.ledger.values()
        }
        self._totals: dict[int, Totals] = {}

    def totals(self, key: int) -> Totals:
        return self._totals.setdefault(key, Totals())

    async def look(self) -> Mapping[int, GroupView]:
        """One look at a time, and none where the last one is fresh."""
        async with self._taking:
            if monotonic() - self._taken >= FRESH:
                views = {}
                for key, group in list(self._engine.groups.items()):
                    views[key] = await _view(group)
                    await self._add_up(key, group)
                self.views, self._taken = views, monotonic()
        return self.views

    async def _add_up(self, key: int, group: Group) -> None:
        totals, seen = self.totals(key), self._seen
        for page in list(group.ledger.values()):
            before = seen.get((key, page.epoch))
            if before is None:
                before = _Seen(0, 0, MemberSet(group.roster))
                totals.rekeys += 1
            totals.said += max(0, page.attempts - before.attempts)
            heard, count = before.members, len(page.acknowledged)
            if count != before.count:
                heard = _heard(page)
                await self._note(totals, group, heard.without(before.members))
            seen[key, page.epoch] = _Seen(page.attempts, len(heard), heard)
        for gone in [at for at in seen if at[0] == key and at[1] not in group.ledger]:
            del seen[gone]

    async def _note(self, totals: Totals, group: Group, fresh: MemberSet) -> None:
        totals.acks += len(fresh)
        numbers = fresh.numbers
        while portion := list(islice(numbers, PORTION)):
            for number in portion:
                member = group.roster.numbered(number)
                if member is not None and member.rtt is not None:
                    totals.note(member.rtt)
            await asyncio.sleep(0)


def _heard(page: Rekey) -> MemberSet:
    return page.acknowledged.members


async def _view(group: Group) -> GroupView:
    standing, members = Standing(group), list(group.members.values())
    states = bytearray()
    for start in range(0, len(members), PORTION):
        states += bytes(_PLACES[standing.of(m)] for m in members[start : start + PORTION])
        await asyncio.sleep(0)
    return GroupView(members, bytes(states))
