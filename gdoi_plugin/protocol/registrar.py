"""When a group registers and with which of its key servers, and the phase-1 SA in between.

Key servers are tried in the order of the configuration, from a random one on; one attempt at a
time. The SA of the last successful one is kept: the next PULL goes under it, and DPD, where it is
asked for, notices a dead key server before the group's keys run out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..wire.buffer import DecodeError
from ..wire.header import Header
from ..wire.registry import ExchangeType
from .actions import Action, Drop, Dropped, Event, Peer, Random
from .association import Association
from .errors import AuthError, ProtocolError
from .group_id import GroupId
from .nat import KEEPALIVE_INTERVAL, NO_NAT, Keepalive, Nat, Path, keepalive
from .registration import KeyServerEntry, Registration
from .retransmission import uniform

FIRST_BACKOFF, MAX_BACKOFF = 1.0, 60.0


@dataclass(slots=True)
class Registrar:
    """``sender_ids``: how many to ask for. ``contacted``: key servers that this agent has had a
    phase-1 SA with since it started; its groups share the set. ``at``: when the next attempt
    begins."""

    group: str
    group_id: GroupId
    local: Peer
    key_servers: Sequence[KeyServerEntry]
    random: Random = field(repr=False)
    sender_ids: int = 0
    contacted: set[Peer] = field(default_factory=set)
    nat_local: Peer | None = None
    keep_alive: float = KEEPALIVE_INTERVAL
    attempt: Registration | None = field(default=None, init=False)
    at: float | None = field(default=None, init=False)
    association: Association | None = field(default=None, init=False)
    nat: Nat = field(default=NO_NAT, init=False)  # what the last PULL found in between
    path: Path | None = field(default=None, init=False)  # to the key server, where there is a NAT
    _keepalive: Keepalive | None = field(default=None, init=False)
    _server: KeyServerEntry | None = field(default=None, init=False)  # of the association
    _index: int = field(init=False)
    _tried: int = field(default=0, init=False)  # key servers since the last pause
    _backoff: float = field(default=FIRST_BACKOFF, init=False)

    def __post_init__(self) -> None:
        self._index = self._any_of_them()

    def _any_of_them(self) -> int:
        """A random start: members that begin together are spread over the key servers."""
        many = len(self.key_servers)
        return int.from_bytes(self.random(4), "big") % many if many > 1 else 0

    # -- when ------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float | None:
        times: list[float] = []
        if self.attempt is not None and self.attempt.deadline is not None:
            times.append(self.attempt.deadline)
        elif self.at is not None:
            times.append(self.at)
        if self.association is not None:
            times.append(self.association.deadline)
        if self._keepalive is not None:
            times.append(self._keepalive.next_at)
        return min(times, default=None)

    def plan(self, at: float) -> None:
        self.at = at

    def soon(self, now: float, limit: float) -> None:
        """Within ``limit`` seconds: not all members at the same moment."""
        at = now + uniform(self.random, limit)
        self.at = at if self.at is None else min(at, self.at)

    def tick(self, now: float) -> list[Action]:
        actions = [] if self._keepalive is None else self._keepalive.tick(now)
        actions += self._keep(now)
        if self.attempt is not None:
            return actions + self.attempt.tick(now)
        if self.at is not None and self.at <= now:
            actions += self.begin(now)
        return actions

    # -- attempts --------------------------------------------------------------------------------

    def begin(self, now: float) -> list[Action]:
        """Under the SA at hand where it is this key server's and lives long enough."""
        server = self.key_servers[self._index]
        self.at = None
        reused = None
        if self.association is not None and self._server is server and self.association.usable(now):
            # The attempt owns it now, and gives it back in the end or has ended it.
            reused, self.association = self.association, None
        first = server.initial_contact and server.remote not in self.contacted
        self.contacted.add(server.remote)
        self.attempt = Registration(
            server,
            self.group_id,
            self.local,
            self.random,
            reused,
            initial_contact=first,
            nat_local=self.nat_local,
            sender_ids=self.sender_ids,
        )
        fields = {"group": self.group, "key-server": str(server.remote)}
        return [Event("registering", fields), *self.attempt.start(now)]

    def succeeded(self, now: float) -> list[Action]:
        """The kernel has what the attempt brought: its SA is kept, one before it is deleted."""
        attempt, before = self._end(), self.association
        self._keep_mapping(attempt, now)
        self.association, self._server = attempt.association, attempt.server
        self._backoff, self._tried = FIRST_BACKOFF, 0
        return [] if before is None else [before.delete()]

    def _keep_mapping(self, attempt: Registration, now: float) -> None:
        """From now on the key server sends to what a NAT has made of this endpoint."""
        if attempt.sa is None:
            raise AssertionError("registered without phase 1")
        self.nat, path = attempt.sa.nat, attempt.sa.path
        self.path = path if self.nat.found else None
        self._keepalive = keepalive(path, self.nat, self.keep_alive, now)

    def keep(self, interval: float, now: float) -> None:
        """Keepalives so often from now on."""
        if interval == self.keep_alive:
            return
        self.keep_alive = interval
        if self.path is not None:
            self._keepalive = keepalive(self.path, self.nat, interval, now)

    def failed(self, why: str, now: float) -> list[Action]:
        """The next key server at once; after the last one a pause that grows."""
        attempt = self._end()
        if not attempt.contacted:
            self.contacted.discard(attempt.server.remote)
        ended = attempt.abandon()
        delay = self._next_server()
        self.at = now + delay
        told = Event(
            "registration-failed",
            {"group": self.group, "error": why, "retry": round(delay, 1)},
            "warning",
        )
        return [*ended, told]

    def _next_server(self) -> float:
        """Seconds to wait before it."""
        self._index = (self._index + 1) % len(self.key_servers)
        self._tried = (self._tried + 1) % len(self.key_servers)
        if self._tried:
            return 0.0
        delay = self._backoff * (0.75 + uniform(self.random, 0.5))
        self._backoff = min(2 * self._backoff, MAX_BACKOFF)
        return delay

    def _end(self) -> Registration:
        attempt, self.attempt = self.attempt, None
        if attempt is None:
            raise AssertionError("no attempt has ended")
        return attempt

    def reconfigure(
        self, key_servers: Sequence[KeyServerEntry], now: float, limit: float
    ) -> list[Action]:
        """Other key servers, or other ways to authenticate: phase 1 with the former ones ends, and
        within ``limit`` seconds the group registers anew."""
        ended = self.stop()
        if self.attempt is not None and not self.attempt.contacted:
            self.contacted.discard(self.attempt.server.remote)
        self.attempt = self.association = self._server = None
        self.key_servers = key_servers
        self._index, self._tried, self._backoff = self._any_of_them(), 0, FIRST_BACKOFF
        self.soon(now, limit)
        return ended

    def stop(self) -> list[Action]:
        """Ends phase 1 politely."""
        actions = [] if self.attempt is None else self.attempt.abandon()
        return actions if self.association is None else [*actions, self.association.delete()]

    # -- the SA in between -----------------------------------------------------------------------

    def _keep(self, now: float) -> list[Action]:
        """DPD and the end of the SA that waits for the next PULL."""
        association = self.association
        if association is None:
            return []
        if association.expired(now):
            self.association = None
            return []
        if not association.dpd.dead(now):
            return association.tick(now)
        gone = self._gone(association, "dead", "warning")
        if self.attempt is None:
            # Found out early: the next one takes over before any key has run out.
            self._next_server()
            self.at = now
        return [gone]

    def _gone(self, association: Association, reason: str, level: str = "info") -> Event:
        self.association = None
        fields = {"group": self.group, "reason": reason}
        return association.sa.event("phase1-deleted", level, **fields)

    # -- datagrams -------------------------------------------------------------------------------

    def owns(self, header: Header) -> bool:
        if self.attempt is not None and self.attempt.owns(header):
            return True
        return self.association is not None and header.cky_i == self.association.sa.cky_i

    def receive(self, header: Header, datagram: bytes, source: Peer, now: float) -> list[Action]:
        if self.attempt is not None and self.attempt.owns(header):
            return self.attempt.receive(header, datagram, source, now)
        association = self.association
        if association is None or header.cky_i != association.sa.cky_i:
            return [Dropped(Drop.UNKNOWN_COOKIES, source, header.spi.hex())]
        if source.host != association.sa.remote.host:
            return [Dropped(Drop.UNKNOWN_PEER, source, "not the key server of this SA")]
        if header.exchange_type != ExchangeType.INFORMATIONAL:
            return [Dropped(Drop.DUPLICATE, source, "registration is complete")]
        return self._informational(association, header, datagram, source, now)

    def _informational(
        self, association: Association, header: Header, datagram: bytes, source: Peer, now: float
    ) -> list[Action]:
        """A delete ends the SA and nothing else: rekeys go on. Error notifies come too late."""
        if not header.encrypted:
            return [Dropped(Drop.CLEAR_NOTIFY, source, "about an SA that is established")]
        try:
            heard = association.hear(header, datagram, source, now)
        except DecodeError as error:
            return [Dropped(Drop.MALFORMED, source, str(error))]
        except AuthError as error:
            return [Dropped(Drop.AUTHENTICATION, source, str(error))]
        except ProtocolError as error:
            return [Dropped(Drop.UNEXPECTED, source, str(error))]
        if heard.deleted:
            heard.actions.append(self._gone(association, "peer"))
        return heard.actions
