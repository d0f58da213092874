"""The groups of one agent: none takes a policy that another's TEKs have.

The kernel holds one policy for a selector, direction, mark and if_id. If two groups had TEKs for
the same flow, each rekey of the one would put its policy in the other's place, whose packets would
then be dropped, or leave under keys of the wrong group. Of agents, ``daemon.claims`` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from gdoi_xfrm import Policy, PolicyKey


class _Tables(Protocol):
    """Of which :class:`.own_tables.OwnTables` is one."""

    @property
    def policies(self) -> Mapping[PolicyKey, Policy]: ...


@dataclass(frozen=True, slots=True)
class _Group:
    name: str
    serving: Callable[[], Collection[PolicyKey]]


@dataclass(slots=True)
class Neighbours:
    """``tables``: what the agent has put into the kernel."""

    tables: _Tables
    _groups: dict[int, _Group] = field(default_factory=dict)

    def add(self, reqid: int, name: str, serving: Callable[[], Collection[PolicyKey]]) -> None:
        """A group, and how to find the policies of the TEKs that it holds."""
        self._groups[reqid] = _Group(name, serving)

    def check(self, reqid: int, policies: Iterable[Policy]) -> None:
        """Raises ValueError where one of them is another group's, which holds a TEK for it.

        What another group has left behind is free to be taken: it serves nothing any more.
        """
        serving: dict[int, Collection[PolicyKey]] = {}
        for policy in policies:
            there = self.tables.policies.get(policy.key)
            for template in () if there is None else there.templates:
                other = self._groups.get(template.reqid)
                if other is None or template.reqid == reqid:
                    continue
                if template.reqid not in serving:
                    serving[template.reqid] = other.serving()
                if policy.key not in serving[template.reqid]:
                    continue
                mine = self._groups[reqid].name
                raise ValueError(
                    f"groups {mine} and {other.name} both have a TEK for {policy.key}, and the"
                    f" kernel holds one policy for the same packets, which is {other.name}'s: give"
                    " one of the groups other flows at its key server, mark_in and mark_out or an"
                    " if_id of its own, or an agent of its own in another netns"
                )
