"""What nobody wants any more: SAs and policies of former runs, and policies of flows that are gone.

Whose they are the reqid says, which is a group's and nobody else's. An SA that the member does not
hold goes a while after it has registered: others may send with it until DTD is over. A policy goes
only where the policy of a TEK takes all its packets instead, or a block does, so at no moment do
any pass in clear; every other one stays, and blocks what it once protected. So of a key server that
changes sources again and again no more stays than the floor, which has a maximum (``.memory``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from gdoi_xfrm import DeletePolicy, DeleteSa, Network, Operation, Policy, PolicyKey

from ..protocol.actions import Event
from .errors import StoreError
from .guard import Guard
from .own_tables import OwnTables
from .reqid import reqid_of_key
from .selectors import contains
from .state_file import StateDirectory

# Seconds after DTD: the clocks of those who still send.
GRACE = 5.0


@dataclass(slots=True)
class Leftovers:
    """``guard``: what blocks beneath the TEKs' policies; ``at``: when to look next, None until
    something has changed."""

    tables: OwnTables
    guard: Guard
    at: float | None = None

    def expect(self, now: float, deactivation_delay: float) -> None:
        """The kernel has been told something: what it replaces has this long."""
        if self.at is None:
            self.at = now + deactivation_delay + GRACE

    def sweep(self, reqids: Collection[int], current: Collection[PolicyKey]) -> list[Event]:
        """``reqids`` of the groups that have registered; ``current``: their TEKs' policies.

        Raises KernelError.
        """
        self.at, ours, floor = None, set(reqids), self.guard.blocks()
        taking, idle = _Taking(), list[Policy]()
        for policy in self.tables.dump_policies():
            if policy.key in current or policy.key in floor:
                taking.add(policy)
            if policy.key not in current and _reqids(policy) & ours:
                idle.append(policy)
        covered = {policy.key for policy in idle if taking.takes(policy)}
        self.tables.own(policy for policy in idle if policy.key not in covered)
        sas: list[Operation] = [
            DeleteSa(state.sa.key)
            for state in self.tables.dump_sas()
            if state.sa.reqid in ours and state.sa.key not in self.tables.sas
        ]
        return self._remove([*sas, *self.guard.yielded(covered)])

    def of_former_groups(
        self, state: StateDirectory, configured: Mapping[str, int], *, unblock: bool
    ) -> list[Event]:
        """Groups that this member once had: their SAs go, and with ``unblock`` their policies.

        ``configured``: the keys of those that it has, by name. Only once: should the group get an
        agent of its own, it will not be disturbed. Raises KernelError, StoreError.
        """
        names = state.names() - configured.keys()
        former = {name: key for name in names if (key := _key(state, name)) is not None}
        reqids = {reqid_of_key(key) for key in former.values()}
        reqids -= {reqid_of_key(key) for key in configured.values()}
        if not reqids:
            return []
        sas: list[Operation] = [
            DeleteSa(found.sa.key) for found in self.tables.dump_sas() if found.sa.reqid in reqids
        ]
        ours = [p for p in self.tables.dump_policies() if unblock and _reqids(p) & reqids]
        told = self._remove([*sas, *(DeletePolicy(policy.key) for policy in ours)])
        for name in former:
            state.remove(name)
        return told

    def _remove(self, operations: list[Operation]) -> list[Event]:
        if not operations:
            return []
        self.tables.transaction(operations)
        sas = sum(isinstance(operation, DeleteSa) for operation in operations)
        return [Event("leftovers-removed", {"sas": sas, "policies": len(operations) - sas})]


def _key(state: StateDirectory, name: str) -> int | None:
    """The group of a state file; None where it is no group's, or cannot be read."""
    try:
        key = (state.load(name) or {}).get("group")
    except StoreError:
        return None
    return key if isinstance(key, int) else None


def _reqids(policy: Policy) -> set[int]:
    return {template.reqid for template in policy.templates}


@dataclass(slots=True)
class _Taking:
    """Policies that stay, by what all those have in common that may take another's packets."""

    _of: dict[object, list[Policy]] = field(default_factory=dict)
    _lengths: set[int] = field(default_factory=set)

    def add(self, policy: Policy) -> None:
        self._lengths.add(policy.selector.destination.prefixlen)
        self._of.setdefault(_place(policy, policy.selector.destination), []).append(policy)

    def takes(self, idle: Policy) -> bool:
        """Whether all packets of the one meet another once the one is gone."""
        own = idle.selector.destination
        for length in self._lengths:
            if length > own.prefixlen:
                continue
            there = self._of.get(_place(idle, own.supernet(new_prefix=length)), ())
            if any(p.key != idle.key and contains(p.selector, idle.selector) for p in there):
                return True
        return False


def _place(policy: Policy, destination: Network) -> object:
    return policy.direction, policy.mark, policy.if_id, destination
