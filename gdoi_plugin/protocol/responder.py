"""The key server's phase-1 exchanges, half open and bounded, and the SAs that come of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..crypto.groups import BadPublicValue
from ..wire.buffer import DecodeError
from ..wire.header import COOKIE_LENGTH, NO_COOKIE, pull_header
from ..wire.registry import VERSION_1_0, ExchangeType, NotifyType, PayloadType
from .actions import Action, Drop, Dropped, KeyLog, Peer, Random
from .arrival import Arrival
from .cookies import Cookies
from .dpd import OFF, DpdConfig
from .errors import AuthError, ProtocolError
from .identity import Identity
from .isakmp import clear_notify
from .limits import Budget, Budgets, Limits, source_of
from .main_mode import (
    NONCE_LENGTH,
    Answer,
    Responder,
    check_phase1_header,
)
from .offers import MAX_OFFER, OFFER_AT, Offer, Offers
from .phase1 import Phase1Config
from .sessions import Sessions

# What every message 1 has after CKY-I.
_FIRST = NO_COOKIE + bytes((PayloadType.SA, VERSION_1_0, ExchangeType.MAIN_MODE))
# Notifies in clear are for people who look for a mistake: so many in a second, to all.
REFUSALS = 10


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
    dpd: DpdConfig = OFF
    # By cookies, oldest first: all live equally long.
    half_open: dict[bytes, _HalfOpen] = field(default_factory=dict)
    offers: Offers = field(default_factory=Offers)
    # Half-open exchanges that had to go for a newer one, by the bound that was met.
    evicted: Counter[str] = field(default_factory=Counter)
    _by_source: dict[bytes, list[bytes]] = field(default_factory=dict)
    sessions: Sessions = field(init=False)
    _cookies: Cookies = field(init=False)
    _work: Budgets = field(init=False)
    _reading: Budget = field(init=False)
    _refusing: Budget = field(init=False)

    def __post_init__(self) -> None:
        self.sessions = Sessions(self.random, self.dpd)
        self._cookies = Cookies(self.random)
        self._work = Budgets(self.limits.work_per_source)
        self._reading = Budget(self.limits.offers)
        self._refusing = Budget(REFUSALS)

    # -- message 1 -------------------------------------------------------------------------------

    def forget(self, identities: Iterable[Identity]) -> list[Action]:
        """Phase 1 with these is over; they are not told."""
        found = (session for identity in identities for session in self.sessions.of(identity))
        sessions = {session.sa.cookies: session for session in found}
        return [self.sessions.end(session, "evicted") for session in sessions.values()]

    def first(self, datagram: bytes, source: Peer, local: Peer, now: float) -> bytes | list[Action]:
        """Main mode without a responder's cookie, header and all still unchecked.

        Message 2 for the same way back, or what else there is to do. A flood brings a hundred
        thousand of these a second: nothing here that could be done later, or only once.
        """
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
        return cky_i + cky_r + answer.octets

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
        drop = Dropped(Drop.NO_PROPOSAL, source, str(error))
        arrival = Arrival(pull_header(datagram), datagram, source, local, now)
        return [drop, *self.tell(arrival, NotifyType.NO_PROPOSAL_CHOSEN)]

    def tell(self, arrival: Arrival, notify: NotifyType) -> list[Action]:
        """A notify in clear: only to whom phase 1 is allowed, not often, and never more octets than
        came, so that nobody gains by sending in another's name."""
        answer = clear_notify(arrival.header, notify)
        if (
            len(answer) > len(arrival.datagram)
            or self.phase1_for(arrival.source) is None
            or not self._refusing.take(arrival.now)
        ):
            return []
        return [arrival.reply(answer)]

    # -- messages 3 and 5 ------------------------------------------------------------------------

    def later(self, arrival: Arrival) -> list[Action]:
        """Every other main mode message."""
        try:
            if arrival.header.cky_r == NO_COOKIE:
                raise DecodeError("main mode 1: SA must come first", OFFER_AT)
            return self._later(arrival)
        except DecodeError as error:
            drop, notify = arrival.drop(Drop.MALFORMED, str(error)), NotifyType.PAYLOAD_MALFORMED
        except BadPublicValue as error:
            drop = arrival.drop(Drop.BAD_KEY_EXCHANGE, str(error))
            notify = NotifyType.INVALID_KEY_INFORMATION
        except AuthError as error:
            drop, notify = arrival.drop(Drop.AUTHENTICATION, str(error)), error.notify
        except ProtocolError as error:
            return [arrival.drop(Drop.UNEXPECTED, str(error))]
        # Whoever sent message 3 or 5 is at its address: no other comes this far.
        return [drop, *self.tell(arrival, notify)]

    def _later(self, arrival: Arrival) -> list[Action]:
        spi, host = arrival.header.spi, arrival.source.host
        session = self.sessions.get(spi)
        if session is not None and session.may_be_at(host):
            return _repeat(session.responder, arrival)
        entry = self.half_open.get(spi)
        if entry is None:
            return self._third(arrival)
        if entry.source.host != host and not entry.responder.moves:
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
        responder = Responder(config, arrival.path, header.spi, answer, nonce)
        reply = responder.receive(header, arrival.datagram, arrival.path, now)
        self._open(_HalfOpen(responder, source, offer, now + self.limits.half_open_lifetime), now)
        return [arrival.reply(reply)]

    def _fifth(self, entry: _HalfOpen, arrival: Arrival) -> list[Action]:
        if not self._work.take(source_of(arrival.source.host), arrival.now):
            return [arrival.drop(Drop.SOURCE_LIMIT, "too much work for this address in a second")]
        responder = entry.responder
        reply = responder.receive(arrival.header, arrival.datagram, arrival.path, arrival.now)
        actions: list[Action] = [arrival.reply(reply)]
        if responder.sa is not None:
            self._forget(responder.cookies)
            self.offers.prove(entry.offer)
            actions.append(KeyLog(responder.sa.cky_i, responder.sa.keys.encryption_key.reveal()))
            actions += self.sessions.add(responder.sa, responder, arrival.now)
        return actions

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
        """Half-open exchanges only: ``sessions`` has a tick of its own."""
        self._expire(now)

    @property
    def deadline(self) -> float | None:
        """Constant work, however many exchanges there are: it is asked at every wake-up."""
        oldest = next(iter(self.half_open.values()), None)
        return None if oldest is None else oldest.expires


def _repeat(responder: Responder, arrival: Arrival) -> list[Action]:
    """The stored answer to a repeated request (RFC 2408 section 5.1)."""
    reply = responder.replay(arrival.datagram)
    if reply is None:
        return [arrival.drop(Drop.UNEXPECTED, "main mode message does not fit")]
    return [arrival.drop(Drop.DUPLICATE, "main mode message repeated"), arrival.reply(reply)]
