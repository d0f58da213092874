"""When to say something: again until an answer comes (RFC 2408 section 5.1), or not all at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from .actions import Random

# Sends at 0, 1, 3, 7 and 15 s, given up at 31 s: enough for one lossy path and one slow key server,
# short enough that the next key server is tried within the minute.
FIRST_INTERVAL = 1.0
TRIES = 5


@dataclass(slots=True)
class Retransmission:
    """The message on the wire now and when to say it again."""

    datagram: bytes = field(repr=False)
    next_at: float
    limit: int = TRIES
    interval: float = FIRST_INTERVAL
    tries: int = 1

    @classmethod
    def start(cls, datagram: bytes, now: float, limit: int = TRIES) -> Retransmission:
        return cls(datagram, now + FIRST_INTERVAL, limit)

    def due(self, now: float) -> bool:
        return now >= self.next_at

    def again(self, now: float) -> bytes | None:
        """The datagram to resend, or None when the last try has gone unanswered."""
        if self.tries >= self.limit:
            return None
        self.tries += 1
        self.interval *= 2
        self.next_at = now + self.interval
        return self.datagram


def uniform(random: Random, limit: float) -> float:
    """0 to ``limit``, evenly."""
    return limit * int.from_bytes(random(4), "big") / 0xFFFFFFFF
