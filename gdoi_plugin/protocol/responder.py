"""The key server's phase-1 exchanges, half open and bounded, and the SAs that come of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..crypto.groups import BadPublicValue
from ..wire.buffer import DecodeError
from ..wire.header import COOKIE_LENGTH, NO_COOKIE, pull_header
from ..wire.registry import VERSION_1_0, ExchangeType, NotifyType, PayloadType
from .actions import Action, Drop, Dropped, KeyLog, Peer, Random, Send
from .arrival import Arrival
from .cookies import Cookies
from .errors import AuthError, ProtocolError
from .identity import Identity
from .isakmp import IsakmpSa, clear_notify
from .limits import Budget, Budgets, Limits, source_of
from .main_mode import (
    NONCE_LENGTH,
    Answer,
    Responder,
    check_phase1_header,
)
from .offers import MAX_OFFER, OFFER_AT, Offer, Offers
from .phase1 import Phase1Config
from .policy import GroupPolicy
from .pull import PullResponder

# What every message 1 has after CKY-I.
_FIRST = NO_COOKIE + bytes((PayloadType.SA, VERSION_1_0, ExchangeType.MAIN_MODE))
# NO_PROPOSAL_CHOSEN in clear is for people who look for a mistake: so many in a second, to all.
REFUSALS = 10
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


def is_first(datagram: bytes) -> bool:
    """Message 1 of main mode: no responder's cookie, an SA payload, version 1.0."""
    return datagram[COOKIE_LENGTH : COOKIE_LENGTH + len(_FIRST)] == _FIRST


@dataclass(slots=True)
class _HalfOpen:
    """A peer at its address, message 4 sent to it: nothing before that is worth remembering."""

    responder: Responder
    source: Peer
    offer: Offer
    expires: float


@dataclass(slots=True)
class IsakmpResponder:
    """``phase1_for``: the policy towards an address; strangers (None) get no answer.

    What a datagram may cost rises with what its sender has shown. Message 1 shows nothing: a look
    into a table, one HMAC, an answer, and nothing kept. Message 3 with our cookie shows that the
    sender is at its address: Diffie-Hellman and a place in ``half_open``, both counted against the
    address. Only message 5 shows who it is.
    """

    phase1_for: Callable[[Peer], Phase1Config | None]
    random: Random = field(repr=False)
    limits: Limits = field(default_factory=Limits)
    # By cookies, oldest first: all live equally long.
    half_open: dict[bytes, _HalfOpen] = field(default_factory=dict)
    sessions: dict[bytes, Session] = field(default_factory=dict)
    offers: Offers = field(default_factory=Offers)
    # Half-open exchanges that had to go for a newer one, by the bound that was met.
    evicted: Counter[str] = field(default_factory=Counter)
    _by_source: dict[bytes, list[bytes]] = field(default_factory=dict)
    # Not later than the end of the established SA that ends first.
    _next_end: float | None = None
    _cookies: Cookies = field(init=False)
    _work: Budgets = field(init=False)
    _reading: Budget = field(init=False)
    _refusing: Budget = field(init=False)

    def __post_init__(self) -> None:
        self._cookies = Cookies(self.random)
        self._work = Budgets(self.limits.work_per_source)
        self._reading = Budget(self.limits.offers)
        self._refusing = Budget(REFUSALS)

    # -- message 1 -------------------------------------------------------------------------------

    def forget(self, identities: Iterable[Identity]) -> None:
        """Phase 1 with these is over; nobody is told."""
        named = set(identities)
        for cookies, session in list(self.sessions.items()):
            if session.sa.remote_identity in named:
                del self.sessions[cookies]

    def first(self, datagram: bytes, source: Peer, local: Peer, now: float) -> list[Action]:
        """Main mode without a responder's cookie, header and all still unchecked."""
        config = self.phase1_for(source)
        if config is None:
            return [Dropped(Drop.UNKNOWN_PEER, source, "no pre-shared key for this address")]
        cky_i = datagram[:COOKIE_LENGTH]
        try:
            offer = self.offers.known(datagram) or self._read(datagram, now)
            if offer is None:
                return [Dropped(Drop.OFFER_LIMIT, source, "too many new offers in a second")]
            answer = offer.answer(config)
            if isinstance(answer, ProtocolError):
                return self._refuse(datagram, answer, source, local, now)
            if isinstance(answer, DecodeError):
                raise answer
            if cky_i == NO_COOKIE:
                raise DecodeError("initiator cookie is zero", 0)
        except DecodeError as error:
            return [Dropped(Drop.MALFORMED, source, str(error))]
        cky_r = self._cookies.make(offer.number, offer.fingerprint, cky_i, source, local, now)
        return [Send(cky_i + cky_r + answer.octets, source, local)]

    def _read(self, datagram: bytes, now: float) -> Offer | None:
        """One that has not been seen before, None where there were too many. Raises DecodeError."""
        if len(datagram) > MAX_OFFER:
            raise DecodeError(f"message 1 of {len(datagram)} octets", 0)
        header = pull_header(datagram)
        check_phase1_header(header)
        return self.offers.remember(header, datagram) if self._reading.take(now) else None

    def _refuse(
        self, datagram: bytes, error: ProtocolError, source: Peer, local: Peer, now: float
    ) -> list[Action]:
        actions: list[Action] = [Dropped(Drop.NO_PROPOSAL, source, str(error))]
        if self._refusing.take(now):
            answer = clear_notify(pull_header(datagram), NotifyType.NO_PROPOSAL_CHOSEN)
            actions.append(Send(answer, source, local))
        return actions

    # -- messages 3 and 5 ------------------------------------------------------------------------

    def later(self, arrival: Arrival) -> list[Action]:
        """Every other main mode message."""
        try:
            if arrival.header.cky_r == NO_COOKIE:
                raise DecodeError("main mode 1: SA must come first", OFFER_AT)
            return self._later(arrival)
        except DecodeError as error:
            return [arrival.drop(Drop.MALFORMED, str(error))]
        except BadPublicValue as error:
            return [arrival.drop(Drop.BAD_KEY_EXCHANGE, str(error))]
        except AuthError as error:
            return [arrival.drop(Drop.AUTHENTICATION, str(error))]
        except ProtocolError as error:
            return [arrival.drop(Drop.UNEXPECTED, str(error))]

    def _later(self, arrival: Arrival) -> list[Action]:
        spi, host = arrival.header.spi, arrival.source.host
        session = self.sessions.get(spi)
        if session is not None and session.sa.remote.host == host:
            return _repeat(session.responder, arrival)
        entry = self.half_open.get(spi)
        if entry is None:
            return self._third(arrival)
        if entry.source.host != host:
            return [arrival.drop(Drop.UNKNOWN_COOKIES, spi.hex())]
        if entry.responder.replay(arrival.datagram) is not None:
            return _repeat(entry.responder, arrival)
        return self._fifth(entry, arrival)

    def _third(self, arrival: Arrival) -> list[Action]:
        """Message 3, if the cookie is one that message 2 brought to this very address."""
        header, source, now = arrival.header, arrival.source, arrival.now
        offer = self.offers.numbered(self._cookies.number(header.cky_r))
        parties = (header.cky_i, source, arrival.local, now)
        if offer is None or not self._cookies.check(header.cky_r, offer.fingerprint, *parties):
            return [arrival.drop(Drop.UNKNOWN_COOKIES, header.spi.hex())]
        config = self.phase1_for(source)
        answer = None if config is None else offer.answer(config)
        if config is None or not isinstance(answer, Answer):
            return [arrival.drop(Drop.UNKNOWN_PEER, "no phase 1 with this address any more")]
        if not self._work.take(source_of(source.host), now):
            return [arrival.drop(Drop.SOURCE_LIMIT, "too much work for this address in a second")]
        nonce = self.random(NONCE_LENGTH)
        responder = Responder(config, arrival.local, source, header.spi, answer, nonce)
        reply = responder.receive(header, arrival.datagram, now)
        self._open(_HalfOpen(responder, source, offer, now + self.limits.half_open_lifetime), now)
        return [arrival.reply(reply)]

    def _fifth(self, entry: _HalfOpen, arrival: Arrival) -> list[Action]:
        if not self._work.take(source_of(arrival.source.host), arrival.now):
            return [arrival.drop(Drop.SOURCE_LIMIT, "too much work for this address in a second")]
        responder = entry.responder
        reply = responder.receive(arrival.header, arrival.datagram, arrival.now)
        actions: list[Action] = [arrival.reply(reply)]
        if responder.sa is not None:
            self._forget(responder.cookies)
            self.offers.prove(entry.offer)
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

    # -- half-open exchanges ---------------------------------------------------------------------

    def _open(self, entry: _HalfOpen, now: float) -> None:
        """The oldest of the same source goes for it, or else the oldest of who holds the most."""
        self._expire(now)
        source = source_of(entry.source.host)
        mine = self._by_source.get(source, [])
        if len(mine) >= self.limits.half_open_per_source:
            self._evict(source, "source")
        elif len(self.half_open) >= self.limits.half_open:
            self._evict(max(self._by_source, key=lambda s: len(self._by_source[s])), "total")
        cookies = entry.responder.cookies
        self.half_open[cookies] = entry
        self._by_source.setdefault(source, []).append(cookies)

    def _evict(self, source: bytes, bound: str) -> None:
        self._forget(self._by_source[source][0])
        self.evicted[bound] += 1

    def _expire(self, now: float) -> None:
        while self.half_open:
            cookies, oldest = next(iter(self.half_open.items()))
            if oldest.expires > now:
                break
            self._forget(cookies)

    def _forget(self, cookies: bytes) -> None:
        source = source_of(self.half_open.pop(cookies).source.host)
        mine = self._by_source[source]
        mine.remove(cookies)
        if not mine:
            del self._by_source[source]

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
