"""One rekey of a very large group, member by member: a discrete-event simulation.

At time 0 a key server has decided on a new epoch. It makes and signs the PUSHes of every Rekey SA,
sends them, waits ``ack_wait`` for ACKs and says them again, to the Rekey SAs (or, by unicast, the
members) that are not complete; so often as ``retransmissions`` allow. ACKs wait in a receive buffer
and are lost where it is full. Members restart and register again all the while. Who has missed
every repetition registers before its old TEK ends.

By unicast an attempt ends with the window of who was told last, and then the next begins; the key
server itself begins with who was told first.

Each member's losses, delays, ACKs and restarts are drawn one by one. Only ACKs of members that the
key server has heard already, which cost it time and tell it nothing, are drawn as numbers.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf
from random import Random

from gdoi_bench.messages import NOBODY, Page, RekeySaSaid, compose
from gdoi_bench.population import Curve, Network, Paths, Population, binomial, registering
from gdoi_plugin.protocol.ack import MIN_WAIT
from gdoi_plugin.protocol.renewal import margin

# How finely the load of the ACK receiver is looked at, in seconds.
BIN = 0.01
KEK = 1  # bit of a member's ``lacks``


@dataclass(frozen=True, slots=True)
class KeyServers:
    """``number`` cores, of one key server or several, count ACKs and register members; one rekeys.
    Rates in a second, each; ``pace``: members that are sent to in a second, by unicast."""

    number: int = 1
    pushes: float = inf
    datagrams: float = inf
    pace: float = inf
    acks: float = inf
    ack_buffer: float = inf
    registrations: float = inf


@dataclass(frozen=True, slots=True)
class Scenario:
    """Times in seconds. ``churn``: members that restart in an hour, for ``away`` in the mean.

    ``tek_left``: how long the old TEKs, of ``tek_lifetime``, would still have lasted.
    """

    members: int
    rekey_sas: int
    unicast: bool = False
    evicted: int = 0
    teks: int = 1
    scheme: str = "ecdsa256"
    network: Network = field(default_factory=Network)
    servers: KeyServers = field(default_factory=KeyServers)
    retransmissions: int = 2
    ack_wait: float = MIN_WAIT
    ack_jitter: float = 2.0
    churn: float = 0.0
    away: float = 60.0
    tek_lifetime: float = 3600.0
    tek_left: float = 1800.0


@dataclass(slots=True)
class Outcome:
    """``silent``: members that the key server has not heard, at the end of each attempt.
    ``missed``: who had to register again because it missed every attempt."""

    curve: Curve
    silent: list[int]
    pushes: int = 0
    octets: int = 0
    acks: int = 0
    acks_lost: int = 0
    backlog: float = 0.0
    missed: int = 0
    restarted: int = 0


class AckQueue:
    """The receive buffers of all key servers and the rate at which they are read."""

    def __init__(self, servers: KeyServers, rng: Random) -> None:
        self._rate = servers.acks * servers.number
        self._room = servers.ack_buffer * servers.number
        self._rng = rng
        # When, and of whom, with the number of the bit that it answers.
        self._at, self._whose = array("d"), array("Q")
        self._others: list[tuple[int, float, float]] = []
        self._backlog = 0.0
        self.peak = 0.0
        self.arrived = self.lost = 0

    def add(self, at: float, member: int, bit: int) -> None:
        self._at.append(at)
        self._whose.append(member << 6 | bit)

    def add_others(self, number: int, begin: float, end: float) -> None:
        """ACKs that tell nothing new, evenly over a time."""
        self._others.append((number, begin, end))

    def read(self, begin: float, end: float, hear: Callable[[int, int], None]) -> None:
        """What arrives in this time; whom the key server hears of until its end."""
        arrivals = self._arrivals(begin, end)
        before, losses = self._serve(arrivals)
        last, random = len(arrivals) - 1, self._rng.random
        late = array("Q")
        for at, whose in zip(self._at, self._whose, strict=True):
            place = int((at - begin) / BIN)
            if place > last:
                place = last
            if losses[place] and random() < losses[place]:
                continue
            ahead = before[place] + arrivals[place] * random()
            if at + ahead / self._rate <= end:
                hear(whose >> 6, 1 << (whose & 63))
            else:
                late.append(whose)
        self._at, self._whose = array("d", [end]) * len(late), late
        self._others.clear()

    def _arrivals(self, begin: float, end: float) -> list[float]:
        bins = [0.0] * (int((end - begin) / BIN) + 1)
        last = len(bins) - 1
        for at in self._at:
            bins[min(int((at - begin) / BIN), last)] += 1
        for number, first, until in self._others:
            low = min(int((first - begin) / BIN), last)
            high = min(max(int((until - begin) / BIN), low), last)
            for place in range(low, high + 1):
                bins[place] += number / (high + 1 - low)
        return bins

    def _serve(self, arrivals: Iterable[float]) -> tuple[list[float], list[float]]:
        """For each bin: how many wait when it begins, which share of its own finds no room."""
        before, losses = [], []
        for number in arrivals:
            before.append(self._backlog)
            left = max(0.0, self._backlog + number - self._rate * BIN)
            over = min(max(0.0, left - self._room), number)
            losses.append(over / number if number else 0.0)
            self._backlog = left - over
            self.peak = max(self.peak, self._backlog)
            self.arrived += round(number)
            self.lost += round(over)
        return before, losses


@dataclass(slots=True)
class _Attempt:
    """When the PUSHes of one attempt leave, by Rekey SA."""

    update: dict[int, float] = field(default_factory=dict)
    keys: dict[int, float] = field(default_factory=dict)
    gap: float = 0.0  # from one datagram to the next
    pause: float = 0.0  # from one member to the next, by unicast, where that is longer
    end: float = 0.0


class Rollout:
    """A run of a scenario. The same seed, the same run."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self._rng = rng = Random(seed)
        members = scenario.members
        evicted = rng.sample(range(members), scenario.evicted)
        self._said = compose(
            members, scenario.rekey_sas, evicted, scenario.teks, scenario.scheme, rng
        )
        self._begins = _running([said.members for said in self._said])
        self._people = Population(members)
        self._people.gone = frozenset(evicted)
        self._paths = Paths(scenario.network, members, rng)
        self._acks = AckQueue(scenario.servers, rng)
        # Kept at hand: they are wanted for every ACK.
        network = scenario.network
        self._lost, self._delay, self._jitter = network.lost, network.delay, network.jitter
        self._ack_jitter = 0.0 if scenario.unicast else scenario.ack_jitter
        self._registrar_free = 0.0
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = 0
        self.outcome = Outcome(Curve([], []), [])

    def run(self) -> Outcome:
        for n, said in enumerate(self._said):
            everything = (KEK if said.update else 0) | _all_of(said.keys)
            for member in range(self._begins[n], self._begins[n + 1]):
                self._people.lacks[member] = self._people.unheard[member] = everything
        for member in self._people.gone:
            self._people.lacks[member] = self._people.unheard[member] = 0
        self._begin_churn()
        self._at(0.0, lambda now: self._attempt(1, now))
        while self._events and self._events[0][0] <= self.scenario.tek_left:
            now, _, happens = heapq.heappop(self._events)
            happens(now)
        outcome = self.outcome
        outcome.curve = self._people.curve()
        outcome.acks, outcome.acks_lost = self._acks.arrived, self._acks.lost
        outcome.backlog = self._acks.peak
        return outcome

    def _at(self, when: float, happens: Callable[[float], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (when, self._order, happens))

    # -- attempts --------------------------------------------------------------------------------

    def _attempt(self, number: int, now: float) -> None:
        """Says every page that is not complete, and looks at the ACKs when their time is over."""
        attempt = self._leaves(now, number)
        for n, said in enumerate(self._said):
            if n in attempt.update or n in attempt.keys:
                self._hear(n, said, attempt)
        deadline = attempt.end + self.scenario.ack_wait
        self._at(deadline, lambda end: self._window_over(number, now, end))

    def _window_over(self, number: int, begin: float, now: float) -> None:
        unheard = self._people.unheard

        def hear(member: int, bits: int) -> None:
            unheard[member] &= ~bits

        self._acks.read(begin, now, hear)
        silent = sum(1 for bits in unheard if bits)
        self.outcome.silent.append(silent)
        if silent and number <= self.scenario.retransmissions:
            self._attempt(number + 1, now)
            return
        for member, lacks in enumerate(self._people.lacks):
            if lacks and member not in self._people.away:
                self.outcome.missed += 1
                early = margin(self.scenario.tek_lifetime, self._rng.random())
                at = max(now, self.scenario.tek_left - early)
                self._at(at, lambda now, m=member: self._register(m, now))  # type: ignore[misc]

    def _leaves(self, now: float, number: int) -> _Attempt:
        """Everything is made first; then it leaves, the updates of all Rekey SAs before the rest.

        By unicast each page takes as long as its Rekey SA has members to be told.
        """
        servers, unheard = self.scenario.servers, self._people.unheard
        pages: list[tuple[int, bool, Page, int]] = []
        for is_update in (True, False):
            for n, said in enumerate(self._said):
                page = said.update if is_update else said.keys
                if page is None:
                    continue
                waited = KEK if is_update else _all_of(page)
                those = unheard[self._begins[n] : self._begins[n + 1]]
                silent = len(those) if number == 1 else sum(1 for bits in those if bits & waited)
                if silent:
                    pages.append((n, is_update, page, silent))
        at = now + sum(len(page.octets) for _, _, page, _ in pages) / servers.pushes
        pause = max(1 / servers.pace, 1 / servers.datagrams) if self.scenario.unicast else 0.0
        attempt = _Attempt(gap=1 / servers.datagrams, pause=pause)
        for n, is_update, page, silent in pages:
            (attempt.update if is_update else attempt.keys)[n] = at
            copies = silent if self.scenario.unicast else 1
            each = 1 if is_update and self.scenario.unicast else len(page.octets)
            at += copies * max(each * attempt.gap, attempt.pause)
            self.outcome.pushes += copies * each
            self.outcome.octets += copies * each * sum(page.octets) // len(page.octets)
        attempt.end = at
        return attempt

    def _hear(self, n: int, said: RekeySaSaid, attempt: _Attempt) -> None:
        """What one Rekey SA's members make of it."""
        people, unicast = self._people, self.scenario.unicast
        begin, end = self._begins[n], self._begins[n + 1]
        waiting = [m for m in range(begin, end) if people.unheard[m]]
        for place, member in enumerate(waiting):
            if member in people.away or self._paths.is_cut(member, attempt.end):
                continue
            self._hears(member, member - begin, place if unicast else 0, n, said, attempt)
        if unicast:
            return
        others = end - begin - len(waiting)
        for page, at in ((said.update, attempt.update.get(n)), (said.keys, attempt.keys.get(n))):
            if page is not None and at is not None and others:
                pushes = len(page.octets) if page.own is None else 1
                number = binomial(self._rng, others * pushes, (1 - self._lost) ** 2)
                first = at + self.scenario.network.round_trip / 2
                self._acks.add_others(number, first, first + self._ack_jitter)

    def _hears(
        self, member: int, place: int, turn: int, n: int, said: RekeySaSaid, attempt: _Attempt
    ) -> None:
        """``place`` among the members of its Rekey SA; ``turn`` among those that are told."""
        random, network, people = self._rng.random, self.scenario.network, self._people
        had = lacks = people.lacks[member]
        ready, way = 0.0, network.delay + network.jitter * random()
        update, got = said.update, attempt.update.get(n)
        if got is not None and update is not None and update.own is not None:
            own = update.own[place]
            if own != NOBODY and random() >= network.loss:
                ready = got + way + (turn * attempt.pause or own * attempt.gap)
                if random() < network.reorder:
                    ready += network.jitter * random()
                lacks &= ~KEK
                self._acknowledge(member, 0, ready)
        if n in attempt.keys and not lacks & KEK:
            begin, parts = attempt.keys[n] + way, len(said.keys.octets)
            if turn:
                begin += turn * max(parts * attempt.gap, attempt.pause)
            for number in range(parts):
                if random() < network.loss:
                    continue
                at = begin + number * attempt.gap
                if random() < network.reorder:
                    at += network.jitter * random()
                # Overtaken by the KEK that it is under, it cannot be read.
                if at >= ready:
                    lacks &= ~(2 << number)
                    self._acknowledge(member, 1 + number, at)
                    if had and not lacks:
                        people.held_at[member] = min(people.held_at[member], at)
        people.lacks[member] = lacks

    def _acknowledge(self, member: int, bit: int, at: float) -> None:
        random = self._rng.random
        if random() >= self._lost:
            at += self._ack_jitter * random() + self._delay + self._jitter * random()
            self._acks.add(at, member, bit)

    # -- churn -----------------------------------------------------------------------------------

    def _begin_churn(self) -> None:
        """Some are away when it begins."""
        if not self.scenario.churn:
            return
        share = self.scenario.churn / 3600 * self.scenario.away / self.scenario.members
        for _ in range(binomial(self._rng, self.scenario.members, min(1.0, share))):
            member = self._somebody()
            self._people.begin_away(member)
            self._at(self._rng.expovariate(1 / self.scenario.away), self._back_at(member))
        self._next_restart(0.0)

    def _next_restart(self, now: float) -> None:
        self._at(now + self._rng.expovariate(self.scenario.churn / 3600), self._restart)

    def _restart(self, now: float) -> None:
        self.outcome.restarted += 1
        member = self._somebody()
        self._people.leave(member, now)
        self._at(now + self._rng.expovariate(1 / self.scenario.away), self._back_at(member))
        self._next_restart(now)

    def _somebody(self) -> int:
        """Who is a member, and up."""
        while True:
            member = self._rng.randrange(self.scenario.members)
            if member not in self._people.gone and member not in self._people.away:
                return member

    def _back_at(self, member: int) -> Callable[[float], None]:
        def back(now: float) -> None:
            self._people.come_back(member, now)
            self._register(member, now)

        return back

    def _register(self, member: int, now: float) -> None:
        """The key servers take them one after the other."""
        servers = self.scenario.servers
        ready = now + registering(self.scenario.network, self._rng)
        work = 1 / (servers.registrations * servers.number)
        self._registrar_free = max(self._registrar_free, ready) + work
        self._at(self._registrar_free, lambda at: self._people.register(member, at))


def _all_of(page: Page) -> int:
    """The bits of its PUSHes."""
    return ((1 << len(page.octets)) - 1) << 1


def _running(sizes: Iterable[int]) -> list[int]:
    sums = [0]
    for size in sizes:
        sums.append(sums[-1] + size)
    return sums
