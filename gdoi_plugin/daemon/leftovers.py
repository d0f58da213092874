"""What nobody wants any more: SAs and policies of former runs, and policies of flows that are gone.

Whose they are the reqid says, which is a group's and nobody else's. An SA that the member does not
hold goes a while after it has registered: others may send with it until DTD is over. A policy goes
only where the policy of a TEK takes all its packets instead, so at no moment do any pass in clear;
every other one stays, and blocks what it once protected.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from gdoi_xfrm import DeletePolicy, DeleteSa, Operation, Policy, PolicyKey

from ..protocol.actions import Event
from .errors import StoreError
from .own_tables import OwnTables
from .reqid import reqid_of_key
from .selectors import contains
from .state_file import StateDirectory

# Seconds after DTD: the clocks of those who still send.
GRACE = 5.0


@dataclass(slots=True)
class Leftovers:
    """``at``: when to look next; None until something has changed."""

    tables: OwnTables
    at: float | None = None

    def expect(self, now: float, deactivation_delay: float) -> None:
        """The kernel has been told something: what it replaces has this long."""
        if self.at is None:
            self.at = now + deactivation_delay + GRACE

    def sweep(self, reqids: Collection[int], current: Collection[PolicyKey]) -> list[Event]:
        """``reqids`` of the groups that have registered; ``current``: their TEKs' policies.

        Raises KernelError.
        """
        self.at = None
        policies = [p for p in self.tables.dump_policies() if _reqids(p) & set(reqids)]
        serving = [policy for policy in policies if policy.key in current]
        idle = [policy for policy in policies if policy.key not in current]
        covered = [policy for policy in idle if any(_takes(p, policy) for p in serving)]
        self.tables.own(policy for policy in idle if policy not in covered)
        sas: list[Operation] = [
            DeleteSa(state.sa.key)
            for state in self.tables.dump_sas()
            if state.sa.reqid in reqids and state.sa.key not in self.tables.sas
        ]
        return self._remove([*sas, *(DeletePolicy(policy.key) for policy in covered)])

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


def _takes(serving: Policy, idle: Policy) -> bool:
    """Whether all packets of the one meet the other once the one is gone."""
    alike = (serving.direction, serving.mark, serving.if_id) == (
        idle.direction,
        idle.mark,
        idle.if_id,
    )
    return alike and contains(serving.selector, idle.selector)
