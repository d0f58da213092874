"""The key server's phase-1 exchanges, half open and bounded, and the SAs that come of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..crypto.groups import BadPublicValue
from ..wire.buffer import DecodeError
from ..wire.header import NO_COOKIE, Header
from ..wire.registry import NotifyType
from .actions import Action, Drop, Dropped, KeyLog, Peer, Random, Send
from .errors import AuthError, ProtocolError
from .isakmp import IsakmpSa, clear_notify
from .main_mode import NONCE_LENGTH, Phase1Config, Responder
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
    group_id: int
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
    half_open: dict[bytes, _HalfOpen] = field(default_factory=dict)
    sessions: dict[bytes, Session] = field(default_factory=dict)
    _by_initiator: dict[tuple[bytes, Peer], bytes] = field(default_factory=dict)

    def main_mode(
        self, header: Header, datagram: bytes, source: Peer, local: Peer, now: float
    ) -> list[Action]:
        try:
            if header.cky_r == NO_COOKIE:
                return self._first(header, datagram, source, local, now)
            return self._later(header, datagram, source, local, now)
        except DecodeError as error:
            return [Dropped(Drop.MALFORMED, source, str(error))]
        except BadPublicValue as error:
            return [Dropped(Drop.BAD_KEY_EXCHANGE, source, str(error))]
        except AuthError as error:
            return [Dropped(Drop.AUTHENTICATION, source, str(error))]
        except ProtocolError as error:
            if error.notify == NotifyType.NO_PROPOSAL_CHOSEN:
                answer = clear_notify(header, NotifyType.NO_PROPOSAL_CHOSEN)
                drop = Dropped(Drop.NO_PROPOSAL, source, str(error))
                return [drop, Send(answer, source, local)]
            return [Dropped(Drop.UNEXPECTED, source, str(error))]

    def _first(
        self, header: Header, datagram: bytes, source: Peer, local: Peer, now: float
    ) -> list[Action]:
        known = self._by_initiator.get((header.cky_i, source))
        if known is not None:
            return self._repeat(self.half_open[known].responder, datagram, source, local)
        config = self.phase1_for(source)
        if config is None:
            return [Dropped(Drop.UNKNOWN_PEER, source, "no pre-shared key for this address")]
        responder = Responder(config, local, source, self._cookie(), self.random(NONCE_LENGTH))
        reply = responder.receive(header, datagram, now)
        self._make_room(source, now)
        if len(self.half_open) >= MAX_HALF_OPEN:
            return [Dropped(Drop.TOO_MANY, source, f"{MAX_HALF_OPEN} exchanges are half open")]
        self.half_open[responder.cookies] = _HalfOpen(
            responder, source, header.cky_i, now + HALF_OPEN_LIFETIME
        )
        self._by_initiator[header.cky_i, source] = responder.cookies
        return [Send(reply, source, local)]

    def _later(
        self, header: Header, datagram: bytes, source: Peer, local: Peer, now: float
    ) -> list[Action]:
        session = self.sessions.get(header.spi)
        if session is not None and session.sa.remote == source:
            return self._repeat(session.responder, datagram, source, local)
        entry = self.half_open.get(header.spi)
        if entry is None or entry.source != source:
            return [Dropped(Drop.UNKNOWN_COOKIES, source, header.spi.hex())]
        responder = entry.responder
        if responder.replay(datagram) is not None:
            return self._repeat(responder, datagram, source, local)
        reply = responder.receive(header, datagram, now)
        actions: list[Action] = [Send(reply, source, local)]
        if responder.sa is not None:
            self._forget(header.spi)
            self._establish(Session(responder.sa, responder))
            actions.append(KeyLog(responder.sa.cky_i, responder.sa.keys.encryption_key.reveal()))
        return actions

    def _repeat(
        self, responder: Responder, datagram: bytes, source: Peer, local: Peer
    ) -> list[Action]:
        reply = responder.replay(datagram)
        drop = Dropped(Drop.DUPLICATE, source, "main mode message repeated")
        if reply is None:
            return [Dropped(Drop.UNEXPECTED, source, "main mode message does not fit")]
        return [drop, Send(reply, source, local)]

    def _establish(self, session: Session) -> None:
        same = [
            cookies
            for cookies, other in self.sessions.items()
            if other.sa.remote_identity == session.sa.remote_identity
        ]
        for cookies in same[: max(0, len(same) + 1 - MAX_ESTABLISHED_PER_IDENTITY)]:
            del self.sessions[cookies]
        self.sessions[session.sa.cookies] = session

    def _make_room(self, source: Peer, now: float) -> None:
        """Expired exchanges go, then the oldest of an address that has more than its share."""
        for cookies in [c for c, entry in self.half_open.items() if entry.expires <= now]:
            self._forget(cookies)
        mine = [c for c, entry in self.half_open.items() if entry.source.host == source.host]
        for cookies in mine[: max(0, len(mine) + 1 - MAX_HALF_OPEN_PER_HOST)]:
            self._forget(cookies)

    def _forget(self, cookies: bytes) -> None:
        entry = self.half_open.pop(cookies)
        del self._by_initiator[entry.first, entry.source]

    def _cookie(self) -> bytes:
        while (cookie := self.random(8)) == NO_COOKIE:
            pass
        return cookie

    def tick(self, now: float) -> None:
        for cookies in [c for c, entry in self.half_open.items() if entry.expires <= now]:
            self._forget(cookies)
        self.sessions = {c: s for c, s in self.sessions.items() if s.sa.expires > now}
        for session in self.sessions.values():
            session.prune(now)

    @property
    def deadline(self) -> float | None:
        times = [entry.expires for entry in self.half_open.values()]
        times += [session.sa.expires for session in self.sessions.values()]
        return min(times, default=None)
