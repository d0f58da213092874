"""The acknowledgements a member owes: made at once, sent when their delay is over."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..wire.identification import Identification
from .ack import MAX_JITTER, base_key, build_ack
from .actions import Action, Event, Peer, Random, Send
from .nat import Path
from .policy import Kek
from .push import Push
from .retransmission import uniform

# The same PUSH heard again is acknowledged again at most this often, in seconds.
REPEAT_INTERVAL = 1.0


@dataclass(slots=True)
class _Said:
    """The last PUSH that was acknowledged, and its ACK."""

    spi: bytes
    push: bytes = field(repr=False)
    ack: Send
    at: float


# ACKs wait 5 seconds at most; a large rekey comes in some tens of parts.
MAX_WAITING = 256


@dataclass(slots=True)
class Acknowledger:
    """``group`` is the name for events, ``local`` the address that the member registered from,
    ``who`` what its ACKs call it, ``jitter`` the longest delay of one to a multicast PUSH."""

    group: str
    local: Peer
    who: Identification
    jitter: float
    random: Random = field(repr=False)
    # Set where there is a NAT: whatever goes to the key server goes this way (RFC 3947 section 4).
    path: Path | None = None
    _waiting: list[tuple[float, Send]] = field(default_factory=list, init=False)
    _unsupported: set[int] = field(default_factory=set, init=False)
    _said: _Said | None = field(default=None, init=False)

    @property
    def deadlines(self) -> list[float]:
        return [at for at, _ in self._waiting]

    def acknowledge(
        self,
        ack_type: int | None,
        under: Kek,
        push: Push,
        source: Peer,
        arrived: Peer,
        now: float,
    ) -> list[Action]:
        """RFC 8263 section 7.2: as the most recently received SAK asks. ``under`` is the KEK of the
        PUSH, ``source`` and ``arrived`` are the PUSH's source and destination."""
        if ack_type is None:
            return []
        base = base_key(ack_type, under, under.leaf)
        if base is None:
            return self._cannot(ack_type)
        delay = 0.0
        if arrived.host.is_multicast:
            delay = uniform(self.random, min(self.jitter, MAX_JITTER))
        # RFC 8263 section 3: addresses and ports of the PUSH, the other way round.
        local = Peer(self.local.host, arrived.port)
        if arrived.host.is_multicast and self.path is not None:
            local, source = self.path
        told = Event(
            "rekey-acknowledged", {"group": self.group, "seq": push.seq, "kek-spi": under.name}
        )
        ack = Send(build_ack(ack_type, base, under, push.seq, self.who), source, local, told)
        # The newest rekeys count: a member that is flooded with them owes no more than these.
        self._waiting = [*self._waiting[1 - MAX_WAITING :], (now + delay, ack)]
        self._said = _Said(under.spi, push.datagram, ack, now + delay)
        return self.due(now)

    def _cannot(self, ack_type: int) -> list[Action]:
        """RFC 8263 section 4: a member that cannot, takes part without. Said once."""
        if ack_type in self._unsupported:
            return []
        self._unsupported.add(ack_type)
        return [Event("ack-unsupported", {"group": self.group, "type": ack_type}, "warning")]

    def due(self, now: float) -> list[Action]:
        """The ACKs whose time has come."""
        due = [send for at, send in self._waiting if at <= now]
        self._waiting = [entry for entry in self._waiting if entry[0] > now]
        return [*due]

    # -- a PUSH that comes twice -----------------------------------------------------------------

    def owns(self, spi: bytes) -> bool:
        """Whether a PUSH with this SPI may be the last one again, though it deleted its KEK."""
        return self._said is not None and self._said.spi == spi

    def again(self, datagram: bytes, now: float) -> list[Action] | None:
        """The same ACK for the same octets, or nothing so soon after; None for another PUSH.

        That PUSH was authentic, so its copy is; whoever sends copies gets one ACK a second.
        """
        said = self._said
        if said is None or said.push != datagram:
            return None
        if now < said.at + REPEAT_INTERVAL:
            return []
        said.at = now
        return [said.ack]
