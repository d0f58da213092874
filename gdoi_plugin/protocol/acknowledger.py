"""The acknowledgements a member owes: made at once, sent when their delay is over."""

from __future__ import annotations

from dataclasses import dataclass, field

from .ack import MAX_JITTER, SUPPORTED, build_ack
from .actions import Action, Event, Peer, Random, Send
from .policy import Kek
from .retransmission import uniform


@dataclass(slots=True)
class Acknowledger:
    """``group`` is the name for events, ``local`` the address that the member registered from,
    ``jitter`` the longest delay in seconds of an ACK to a multicast PUSH."""

    group: str
    local: Peer
    jitter: float
    random: Random = field(repr=False)
    _waiting: list[tuple[float, Send]] = field(default_factory=list, init=False)

    @property
    def deadlines(self) -> list[float]:
        return [at for at, _ in self._waiting]

    def acknowledge(
        self, ack_type: int | None, under: Kek, seq: int, source: Peer, arrived: Peer, now: float
    ) -> list[Action]:
        """RFC 8263 section 7.2: as the most recently received SAK asks, keyed by ``under``, the KEK
        of the PUSH. ``source`` and ``arrived`` are the PUSH's source and destination."""
        if ack_type is None:
            return []
        if ack_type not in SUPPORTED:
            # RFC 8263 section 4: a member that cannot, takes part without.
            told = Event("ack-unsupported", {"group": self.group, "type": ack_type}, "warning")
            return [told]
        delay = 0.0
        if arrived.host.is_multicast:
            delay = uniform(self.random, min(self.jitter, MAX_JITTER))
        # RFC 8263 section 3: addresses and ports of the PUSH, the other way round.
        local = Peer(self.local.host, arrived.port)
        told = Event("rekey-acknowledged", {"group": self.group, "seq": seq, "kek-spi": under.name})
        ack = build_ack(under, seq, self.local.host)
        self._waiting.append((now + delay, Send(ack, source, local, told)))
        return self.due(now)

    def due(self, now: float) -> list[Action]:
        """The ACKs whose time has come."""
        due = [send for at, send in self._waiting if at <= now]
        self._waiting = [entry for entry in self._waiting if entry[0] > now]
        return [*due]
