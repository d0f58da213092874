"""Dead peer detection, RFC 3706: when to ask, with which number, and which answer counts."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..wire.notification import Notification
from ..wire.registry import Protocol
from .actions import Random

SEQ_OCTETS = 4
# A question is asked again after 1 s, then after twice as long each time.
FIRST_INTERVAL = 1.0


@dataclass(frozen=True, slots=True)
class DpdConfig:
    """In seconds. ``delay``: silence before the peer is asked, 0 for never; ``timeout``: from the
    first question to calling it dead."""

    delay: float = 0.0
    timeout: float = 30.0


OFF = DpdConfig()


@dataclass(slots=True)
class Dpd:
    """One SA's detection. ``peer_knows``: the peer has announced RFC 3706 (section 5.1).

    Questions of the peer are answered whatever ``config`` says (section 5.2).
    """

    config: DpdConfig
    peer_knows: bool
    heard_at: float
    seq: int
    _asked_at: float | None = field(default=None, init=False)
    _again_at: float = field(default=0.0, init=False)
    _interval: float = field(default=FIRST_INTERVAL, init=False)
    _peer_seq: int | None = field(default=None, init=False)

    @classmethod
    def start(cls, config: DpdConfig, random: Random, now: float, *, peer_knows: bool) -> Dpd:
        """RFC 3706 section 6.2: the first number is random, its high bit zero."""
        return cls(config, peer_knows, now, int.from_bytes(random(SEQ_OCTETS), "big") >> 1)

    @property
    def active(self) -> bool:
        return self.peer_knows and self.config.delay > 0

    @property
    def deadline(self) -> float | None:
        """When there is something to ask or to conclude."""
        if not self.active:
            return None
        if self._asked_at is None:
            return self.heard_at + self.config.delay
        return min(self._again_at, self._asked_at + self.config.timeout)

    def dead(self, now: float) -> bool:
        return self._asked_at is not None and now >= self._asked_at + self.config.timeout

    def heard(self, now: float) -> None:
        """The peer has just proved that it is alive: there is nothing to ask (section 5.4)."""
        self.heard_at = now
        self._asked_at = None

    def ask(self, now: float) -> bytes | None:
        """The data of the R-U-THERE that is due: the next number, or the last one again."""
        deadline = self.deadline
        if deadline is None or now < deadline or self.dead(now):
            return None
        if self._asked_at is None:
            self._asked_at = now
            self._interval = FIRST_INTERVAL
            self.seq += 1
        else:
            self._interval *= 2
        self._again_at = now + self._interval
        return self.seq.to_bytes(SEQ_OCTETS, "big")

    def answered(self, ack: Notification, now: float) -> bool:
        """Whether an R-U-THERE-ACK answers the last question (section 6.1)."""
        if self._asked_at is None or _seq(ack) != self.seq:
            return False
        self.heard(now)
        return True

    def question(self, asked: Notification, now: float) -> bytes | None:
        """The data of the R-U-THERE-ACK; None for a number that is not the next (section 6.2).

        The last one may come again: its ACK was lost. A greater one: others were lost on the way.
        """
        seq = _seq(asked)
        if seq is None or (self._peer_seq is not None and seq < self._peer_seq):
            return None
        if seq != self._peer_seq:
            self.heard(now)
        self._peer_seq = seq
        return asked.data


def _seq(notification: Notification) -> int | None:
    """The number, where the payload has section 5.3's form."""
    if notification.protocol_id != Protocol.PROTO_ISAKMP or len(notification.data) != SEQ_OCTETS:
        return None
    return int.from_bytes(notification.data, "big")
