"""Policies that belong to no TEK: what must not pass in clear, and what has to.

A TEK's policies lie between the two; of all that match a packet the lowest number wins::

    370000   what has to pass    IGMP and MLD, without which no multicast arrives
    380000   a TEK's policy      (``daemon.kernel``)
    390000   block               flows that have, or once had, a TEK; prefixes to be protected

What blocks a flow may have the selector of a TEK's policy, and the kernel holds one policy for a
selector and direction: then the TEK's takes its place in one step, and lets no more pass in clear
than it did, even when the TEK is gone. So blocks are a floor: they are put where nothing better is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv6Network, ip_network

from gdoi_xfrm import (
    Direction,
    Network,
    Operation,
    Policy,
    PolicyAction,
    PolicyKey,
    Selector,
    UpdatePolicy,
    Xfrm,
)

from ..protocol.policy import Flow
from .selectors import everything, selector

PASS_PRIORITY = 370000
BLOCK_PRIORITY = 390000
# The kernel looks for no ``fwd`` policy when it forwards multicast, but for an ``out`` one.
DIRECTIONS = (Direction.IN, Direction.OUT)

_IGMP = 2
_ICMPV6 = 58
# Queries, version-1 reports and dones go to the group they are about (RFC 2710), version-2 reports
# to ff02::16. Neighbour discovery goes to ff02::/16 only, which is never protected.
_MLD_TYPES = (130, 131, 132)


class Guard:
    """One network namespace's floor. ``protect``: multicast prefixes that never pass in clear."""

    def __init__(self, xfrm: Xfrm, protect: Iterable[Network] = ()) -> None:
        self._xfrm = xfrm
        self._protect = tuple(protect)
        # Flows of any source, in the order they came to be known.
        self._known: dict[Flow, None] = {}

    def know(self, flows: Iterable[Flow]) -> None:
        """From now on these are part of the floor, whatever becomes of their TEKs."""
        self._known |= dict.fromkeys(_of_everybody(flows))

    def policies(self) -> tuple[Policy, ...]:
        """What the kernel is to hold, but for keys that a TEK's policy has taken over."""
        return self._floor(self._known)

    def install(self) -> None:
        """Puts there what is missing, and leaves alone what is as good. Raises KernelError."""
        found = {policy.key: policy for policy in self._xfrm.dump_policies()}
        missing = _missing(self.policies(), found)
        if missing:
            self._xfrm.transaction(missing)

    def cover(self, flows: Iterable[Flow], taken: Collection[PolicyKey]) -> list[Operation]:
        """What a transaction has to add that makes policies for ``flows``.

        ``taken``: keys that it gives to TEKs itself. Afterwards the caller says :meth:`know`.
        """
        new = [flow for flow in _of_everybody(flows) if flow not in self._known]
        if not new:
            return []
        there = {policy.key for policy in self.policies()} | set(taken)
        wanted = [p for p in self._floor([*self._known, *new]) if p.key not in there]
        found = {p.key: self._xfrm.get_policy(p.selector, p.direction) for p in wanted}
        return _missing(wanted, found)

    def _floor(self, flows: Iterable[Flow]) -> tuple[Policy, ...]:
        blocked = [Selector(everything(prefix.version), prefix) for prefix in self._protect]
        blocked += [selector(flow) for flow in flows]
        versions = sorted({chosen.destination.version for chosen in blocked})
        passing = [chosen for version in versions for chosen in _membership(version)]
        return tuple(
            Policy(chosen, direction, priority, action)
            for selectors, priority, action in (
                (passing, PASS_PRIORITY, PolicyAction.ALLOW),
                (blocked, BLOCK_PRIORITY, PolicyAction.BLOCK),
            )
            for chosen in selectors
            for direction in DIRECTIONS
        )


def _of_everybody(flows: Iterable[Flow]) -> list[Flow]:
    """What no TEK lets anybody send to a group must not pass in clear, whoever sends it.

    A TEK that names its sources has policies for those alone, a TEK that this member may only
    receive with has none for sending, one that it may only send with has none for receiving.
    """
    return list(dict.fromkeys(replace(flow, source=None) for flow in flows))


def _membership(version: int) -> list[Selector]:
    """IGMPv2 reports and queries about one group go to that group (RFC 2236), MLDv1's too."""
    if version == 4:
        return [Selector(everything(4), ip_network("224.0.0.0/4"), _IGMP)]
    multicast = IPv6Network("ff00::/8")
    return [Selector(everything(6), multicast, _ICMPV6, kind) for kind in _MLD_TYPES]


def _missing(wanted: Iterable[Policy], found: Mapping[PolicyKey, Policy | None]) -> list[Operation]:
    return [UpdatePolicy(policy) for policy in wanted if not _serves(policy, found.get(policy.key))]


def _serves(wanted: Policy, found: Policy | None) -> bool:
    """Whether what is there does what is wanted: a TEK's policy blocks clear packets as well."""
    if found is None or wanted.action is PolicyAction.ALLOW:
        return found is not None
    needs_sa = any(not template.optional for template in found.templates)
    return found.action is PolicyAction.BLOCK or needs_sa
