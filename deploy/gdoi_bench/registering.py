"""Many members that register at once, each with its own phase 1 and GROUPKEY-PULL."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from gdoi_bench.endpoint import Endpoint
from gdoi_plugin.protocol.actions import Action, Peer, Send
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.phase1 import Phase1Config
from gdoi_plugin.protocol.pull import PullResult
from gdoi_plugin.protocol.registration import KeyServerEntry, Registration
from gdoi_plugin.wire.buffer import DecodeError
from gdoi_plugin.wire.header import pull_header

# Exchanges under way at once: the other end is never idle, and its lanes do not overflow.
WINDOW = 64
TICK = 0.2


class Unregistered(Exception):
    """A member was refused, or not heard."""


@dataclass(frozen=True, slots=True)
class Applicant:
    """A member that wants to register from ``host``, or with ``group`` None phase 1 alone."""

    host: IPv4Address
    phase1: Phase1Config
    group: GroupId | None


@dataclass(slots=True)
class Registrations:
    """The exchanges under way at one endpoint with one key server.

    ``done`` is told of each that has ended well; of one that has not, ``failed`` with the reason.
    """

    endpoint: Endpoint
    server: Peer
    done: Callable[[Applicant, PullResult | None], None]
    failed: Callable[[Applicant, str], None]
    window: int = WINDOW
    # Whether a datagram is lost on its way, either way.
    lost: Callable[[], bool] = lambda: False
    ended: int = 0
    retransmitted: int = 0
    _under_way: dict[bytes, tuple[Applicant, Registration]] = field(default_factory=dict)
    _next_tick: float = 0.0

    @property
    def under_way(self) -> int:
        return len(self._under_way)

    def fill(self, applicants: Iterator[Applicant]) -> bool:
        """Begins as many more as there is room for; False where there are no more."""
        while len(self._under_way) < self.window:
            applicant = next(applicants, None)
            if applicant is None:
                return False
            self._begin(applicant)
        return True

    def _begin(self, applicant: Applicant) -> None:
        entry = KeyServerEntry(self.server, applicant.phase1)
        local = Peer(applicant.host, self.endpoint.port)
        group = applicant.group or GroupId.of_number(0)
        attempt = Registration(entry, group, local, os.urandom)
        self._under_way[applicant.host.packed] = applicant, attempt
        self._send(attempt.start(time.time()), applicant.host.packed)

    def receive(self, datagram: bytes, source: Peer, own: bytes) -> None:
        """What has come to one of the applicants' addresses."""
        entry = self._under_way.get(own)
        if entry is None or self.lost():
            return
        applicant, attempt = entry
        try:
            header = pull_header(datagram)
        except DecodeError:
            return
        if not attempt.owns(header):
            return  # about a phase 1 of an earlier registration
        actions = attempt.receive(header, datagram, source, time.time())
        if applicant.group is None and attempt.sa is not None:
            self._end(own)
            self.done(applicant, None)
            return
        self._send(actions, own)
        self._look(own)

    def tick(self) -> None:
        """Says again what was not answered."""
        now = time.time()
        if now < self._next_tick:
            return
        self._next_tick = now + TICK
        for own, (_, attempt) in list(self._under_way.items()):
            actions = attempt.tick(now)
            self.retransmitted += any(isinstance(action, Send) for action in actions)
            self._send(actions, own)
            self._look(own)

    def _look(self, own: bytes) -> None:
        applicant, attempt = self._under_way[own]
        if attempt.result is not None:
            self._end(own)
            self.done(applicant, attempt.result)
        elif attempt.failure is not None:
            self._end(own)
            self.failed(applicant, attempt.failure)

    def _end(self, own: bytes) -> None:
        del self._under_way[own]
        self.ended += 1

    def _send(self, actions: list[Action], own: bytes) -> None:
        for action in actions:
            if isinstance(action, Send) and not self.lost():
                to = (str(action.destination.host), action.destination.port)
                self.endpoint.send(action.datagram, to, own)

    def run(self, applicants: Iterator[Applicant], limit: float) -> None:
        """All of them. Raises Unregistered where nothing more comes of it within ``limit``."""
        deadline, ended = time.monotonic() + limit, self.ended
        more = True
        while more or self._under_way:
            more = more and self.fill(applicants)
            select.select([self.endpoint.socket], [], [], TICK)
            while (came := self.endpoint.receive()) is not None:
                self.receive(*came)
            self.tick()
            if self.ended > ended:
                deadline, ended = time.monotonic() + limit, self.ended
            if time.monotonic() > deadline:
                raise Unregistered(f"{self.under_way} members were not answered for {limit:g} s")
