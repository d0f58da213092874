"""What the key server spends on peers that have not authenticated yet: bounds and budgets."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

from .actions import IPAddress

# A budget is saved up for as many seconds: a member resends, a site comes up all at once.
BURST_SECONDS = 2.0
# An entry has some 200 octets. Who is forgotten has a full budget again: with so many sources that
# have each shown to be at their address, one more share hardly counts.
MAX_SOURCES = 8192


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds on phase 1 under attack. A source is an IPv4 address or an IPv6 /64.

    ``offers``: messages 1 not seen before that are parsed in a second, of all sources together.
    ``work_per_source``: Diffie-Hellman computations and checks of a proof in a second.
    """

    # An exchange that waits for message 5 holds about 3 KB: 12 MB at most.
    half_open: int = 4096
    half_open_per_source: int = 32
    # Seconds; longer than an initiator keeps resending (31 s).
    half_open_lifetime: float = 40.0
    work_per_source: int = 20
    offers: int = 100


def source_of(host: IPAddress) -> bytes:
    """Whom a bound counts: an IPv4 address, or the 64 bits of IPv6 that one site has of its own."""
    return host.packed[:8]


@dataclass(slots=True)
class Budget:
    """A token bucket: ``per_second`` of something, saved up for two seconds."""

    per_second: float
    _saved: float = field(init=False)
    _at: float = field(default=float("-inf"), init=False)

    def __post_init__(self) -> None:
        self._saved = self.most

    @property
    def most(self) -> float:
        return max(1.0, self.per_second * BURST_SECONDS)

    def take(self, now: float) -> bool:
        """True, and one less, where there is one."""
        if now > self._at:
            self._saved = min(self.most, self._saved + (now - self._at) * self.per_second)
        self._at = now
        if self._saved < 1:
            return False
        self._saved -= 1
        return True


@dataclass(slots=True)
class Budgets:
    """A budget for each source, those of the sources heard last."""

    per_second: float
    _of: OrderedDict[Hashable, Budget] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._of)

    def take(self, source: Hashable, now: float) -> bool:
        budget = self._of.get(source)
        if budget is None:
            budget = self._of[source] = Budget(self.per_second)
            if len(self._of) > MAX_SOURCES:
                self._of.popitem(last=False)
        else:
            self._of.move_to_end(source)
        return budget.take(now)
