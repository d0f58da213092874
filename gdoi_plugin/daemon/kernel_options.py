"""What an operator wants of the kernel for one group: packets, priorities, replay windows."""

from __future__ import annotations

from dataclasses import dataclass

from gdoi_xfrm import Direction, Mark

from ..protocol.policy import Flow

# Lower wins: behind charon's CHILD_SAs (up to 366848), before its traps for everything (400000).
PRIORITY = 380000
# Packets; only where one sender counts the sequence numbers (several senders count separately).
REPLAY_WINDOW = 32
# By how much a policy may come before those of its group that are for more.
MOST_SPECIFIC = 4 * 128 + 3


@dataclass(frozen=True, slots=True)
class Scope:
    """Which packets policies are for besides their selectors: those with a mark, those of an XFRM
    interface. None and 0 are all that have none."""

    mark_in: Mark | None = None
    mark_out: Mark | None = None
    if_id: int = 0

    def mark(self, direction: Direction) -> Mark | None:
        return self.mark_out if direction is Direction.OUT else self.mark_in


ALL = Scope()


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """Names are swanctl's. ``mark_in_sa``: SAs are found by the mark as well."""

    priority: int = PRIORITY
    replay_window: int = REPLAY_WINDOW
    scope: Scope = ALL
    mark_in_sa: bool = False

    @property
    def mark_of_sas(self) -> Mark | None:
        return self.scope.mark_in if self.mark_in_sa else None

    def priority_of(self, flow: Flow) -> int:
        """What is for fewer packets wins, as a more specific route does."""
        length = 0 if flow.source is None else flow.source.prefixlen
        ports = bool(flow.protocol) + bool(flow.source_port) + bool(flow.destination_port)
        return self.priority - (4 * length + ports)
