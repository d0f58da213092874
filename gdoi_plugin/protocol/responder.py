"""The key server's phase-1 exchanges, half open and bounded, and the SAs that come of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..crypto.groups import BadPublicValue
from ..wire.buffer import DecodeError
from ..wire.header import NO_COOKIE
from ..wire.registry import NotifyType
from .actions import Action, Drop, IPAddress, KeyLog, Peer, Random
from .arrival import Arrival
from .errors import AuthError, ProtocolError
from .isakmp import IsakmpSa, clear_notify
from .main_mode import NONCE_LENGTH, Phase1Config, Responder, State
from .policy import GroupPolicy
from .pull import PullResponder

# Longer than an initiator keeps resending (31 s).
HALF_OPEN_LIFETIME = 40.0
# A half-open exchange holds about 2 KB: 8 MB at most, and no address may hold more than its share.
MAX_HALF_OPEN = 4096
MAX_HALF_OPEN_PER_HOST = 16
# Stored answers of a PULL are kept for repeated requests as long as a member resends.
PULL_LIFETIME = 40.0
MAX_PULLS_PER_SA = 16
# An established SA holds about 3 KB.
MAX_ESTABLISHED_PER_IDENTITY = 8


@dataclass(slots=True)
class Pull:
    """One GROUPKEY-PULL under way: what message 2 promised must still hold at message 4."""

    exchange: PullResponder
    group: int
    epoch: int
    policy: GroupPolicy


@dataclass(slots=True)
class Session:
    """An established phase-1 SA. ``responder`` still answers a repeated message 5."""

    sa: IsakmpSa
    responder: Responder
    pulls: dict[int, Pull] = field(default_factory=dict)

    def prune(self, now: float) -> None:
        self.pulls = {mid: p for mid, p in self.pulls.items() if p.exchange.expires > now}
        while len(self.pulls) > MAX_PULLS_PER_SA:
            del self.pulls[next(iter(self.pulls))]


@dataclass(slots=True)
class _HalfOpen:
    responder: Responder
    source: Peer
    first: bytes
    expires: float


@dataclass(slots=True)
class IsakmpResponder:
    """``phase1_for``: the policy towards an address; strangers (None) get no answer."""

    phase1_for: Callable[[Peer], Phase1Config | None]
    random: Random = field(repr=False)
    # By cookies, oldest first: all live equally long.
    half_open: dict[bytes, _HalfOpen] = field(default_factory=dict)
    sessions: dict[bytes, Session] = field(default_factory=dict)
    _by_host: dict[IPAddress, list[bytes]] = field(default_factory=dict)
    # Not later than the end of the established SA that ends first.
    _next_end: float | None = None
    _by_initiator: dict[tuple[bytes, Peer], bytes] = field(default_factory=dict)

    def main_mode(self, arrival: Arrival) -> list[Action]:
        try:
            if arrival.header.cky_r == NO_COOKIE:
                return self._first(arrival)
            return self._later(arrival)
        except DecodeError as error:
            return [arrival.drop(Drop.MALFORMED, str(error))]
        except BadPublicValue as error:
            return [arrival.drop(Drop.BAD_KEY_EXCHANGE, str(error))]
        except AuthError as error:
            return [arrival.drop(Drop.AUTHENTICATION, str(error))]
        except ProtocolError as error:
            if error.notify == NotifyType.NO_PROPOSAL_CHOSEN:
                answer = clear_notify(arrival.header, NotifyType.NO_PROPOSAL_CHOSEN)
                return [arrival.drop(Drop.NO_PROPOSAL, str(error)), arrival.reply(answer)]
            return [arrival.drop(Drop.UNEXPECTED, str(error))]

    def _first(self, arrival: Arrival) -> list[Action]:
        source, first = arrival.source, arrival.header.cky_i
        known = self._by_initiator.get((first, source))
        if known is not None:
            return _repeat(self.half_open[known].responder, arrival)
        config = self.phase1_for(source)
        if config is None:
            return [arrival.drop(Drop.UNKNOWN_PEER, "no pre-shared key for this address")]
        nonce = self.random(NONCE_LENGTH)
        responder = Responder(config, arrival.local, source, self._cookie(), nonce)
        reply = responder.receive(arrival.header, arrival.datagram, arrival.now)
        self._expire(arrival.now)
        if not self._make_room(source):
            return [arrival.drop(Drop.TOO_MANY, f"{MAX_HALF_OPEN} exchanges are half open")]
        self.half_open[responder.cookies] = _HalfOpen(
            responder, source, first, arrival.now + HALF_OPEN_LIFETIME
        )
        self._by_initiator[first, source] = responder.cookies
        self._by_host.setdefault(source.host, []).append(responder.cookies)
        return [arrival.reply(reply)]

    def _later(self, arrival: Arrival) -> list[Action]:
        spi = arrival.header.spi
        session = self.sessions.get(spi)
        if session is not None and session.sa.remote == arrival.source:
            return _repeat(session.responder, arrival)
        entry = self.half_open.get(spi)
        if entry is None or entry.source != arrival.source:
            return [arrival.drop(Drop.UNKNOWN_COOKIES, spi.hex())]
        responder = entry.responder
        if responder.replay(arrival.datagram) is not None:
            return _repeat(responder, arrival)
        actions: list[Action] = [
            arrival.reply(responder.receive(arrival.header, arrival.datagram, arrival.now))
        ]
        if responder.sa is not None:
            self._forget(spi)
            self._establish(Session(responder.sa, responder))
            actions += [
                KeyLog(responder.sa.cky_i, responder.sa.keys.encryption_key.reveal()),
                responder.sa.event("phase1-established"),
            ]
        return actions

    def _establish(self, session: Session) -> None:
        same = [
            cookies
            for cookies, other in self.sessions.items()
            if other.sa.remote_identity == session.sa.remote_identity
        ]
        for cookies in same[: max(0, len(same) + 1 - MAX_ESTABLISHED_PER_IDENTITY)]:
            del self.sessions[cookies]
        self.sessions[session.sa.cookies] = session
        end = session.sa.expires
        self._next_end = end if self._next_end is None else min(end, self._next_end)

    def _make_room(self, source: Peer) -> bool:
        """For one more: the oldest goes that has not shown to be at its address, first of the same
        host, then of all. False where every one of them has sent a message 3."""
        mine = self._by_host.get(source.host, [])
        if len(mine) >= MAX_HALF_OPEN_PER_HOST:
            self._forget(self._oldest_unproved(mine) or mine[0])
        if len(self.half_open) >= MAX_HALF_OPEN:
            victim = self._oldest_unproved(self.half_open)
            if victim is None:
                return False
            self._forget(victim)
        return True

    def _oldest_unproved(self, cookies: Iterable[bytes]) -> bytes | None:
        unproved = (c for c in cookies if self.half_open[c].responder.state is State.SENT_SA)
        return next(unproved, None)

    def _expire(self, now: float) -> None:
        while self.half_open:
            cookies, oldest = next(iter(self.half_open.items()))
            if oldest.expires > now:
                break
            self._forget(cookies)

    def _forget(self, cookies: bytes) -> None:
        entry = self.half_open.pop(cookies)
        del self._by_initiator[entry.first, entry.source]
        mine = self._by_host[entry.source.host]
        mine.remove(cookies)
        if not mine:
            del self._by_host[entry.source.host]

    def _cookie(self) -> bytes:
        while (cookie := self.random(8)) == NO_COOKIE:
            pass
        return cookie

    def tick(self, now: float) -> None:
        self._expire(now)
        if self._next_end is not None and self._next_end <= now:
            self.sessions = {c: s for c, s in self.sessions.items() if s.sa.expires > now}
            self._next_end = min((s.sa.expires for s in self.sessions.values()), default=None)

    @property
    def deadline(self) -> float | None:
        """Constant work, however many exchanges and SAs there are: it is asked at every wake-up."""
        oldest = next(iter(self.half_open.values()), None)
        if oldest is None or self._next_end is None:
            return self._next_end if oldest is None else oldest.expires
        return min(oldest.expires, self._next_end)


def _repeat(responder: Responder, arrival: Arrival) -> list[Action]:
    """The stored answer to a repeated request (RFC 2408 section 5.1)."""
    reply = responder.replay(arrival.datagram)
    if reply is None:
        return [arrival.drop(Drop.UNEXPECTED, "main mode message does not fit")]
    return [arrival.drop(Drop.DUPLICATE, "main mode message repeated"), arrival.reply(reply)]
