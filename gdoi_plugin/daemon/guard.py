"""Policies that belong to no TEK: what must not pass in clear, and what has to.

A TEK's policies lie between them; of all that match a packet the lowest number wins::

    368000   channel    UDP 848 in clear with a key server that is reached inside ESP
    370000   bypass     IGMP and MLD, without which no multicast arrives; the operator's exceptions
    380000   a TEK's    (``daemon.kernel``)
    390000   block      flows that have, or once had, a TEK; prefixes to be protected
    2**32-1  allow      all else, where the kernel's default is to block

What blocks a flow may have the selector of a TEK's policy, and the kernel holds one policy for a
selector and direction: then the TEK's takes its place in one step, and lets no more pass in clear
than it did, even when the TEK is gone. So blocks are a floor: they are put where nothing better is.

The default is for when somebody flushes every policy: whatever was allowed above is then blocked
too, and nothing passes until the policies are back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network

from gdoi_xfrm import (
    DefaultPolicy,
    DeletePolicy,
    DeleteSa,
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

from ..protocol.policy import Flow, Tek
from .kernel_options import ALL, Scope
from .memory import Memory
from .selectors import contains, everything, selector

# Behind the policies of charon's CHILD_SAs between two hosts, which are what is to carry it.
CHANNEL_PRIORITY = 368000
BYPASS_PRIORITY = 370000
BLOCK_PRIORITY = 390000
ALLOW_PRIORITY = 2**32 - 1
# The kernel looks for no ``fwd`` policy when it forwards multicast, but for an ``out`` one.
DIRECTIONS = (Direction.IN, Direction.OUT)

_IGMP = 2
_UDP = 17
_ICMPV6 = 58
# Queries, version-1 reports and dones go to the group they are about (RFC 2710), version-2 reports
# to ff02::16. Neighbour discovery goes to ff02::/16 only, which is never protected.
_MLD_TYPES = (130, 131, 132)
# In halves: a policy for everything is what IKE daemons have, and it would be the same one.
_HALVES: tuple[Network, ...] = (
    IPv4Network("0.0.0.0/1"),
    IPv4Network("128.0.0.0/1"),
    IPv6Network("::/1"),
    IPv6Network("8000::/1"),
)


# A flow of any source, and which of its packets.
Blocked = tuple[Flow, Scope]
# IP version and if_id.
Kind = tuple[int, int]


class OnStop(StrEnum):
    """What becomes of SAs and policies when the agent stops."""

    KEEP = "keep"  # traffic goes on until the SAs' time is up
    REMOVE = "remove"  # traffic goes on in clear
    BLOCK = "block"  # traffic ends


@dataclass(frozen=True, slots=True)
class Fence:
    """What an operator wants of the guard. ``bypass``: packets that pass before any block;
    ``channels``: those that are blocked before any of that."""

    protect: tuple[Network, ...] = ()
    bypass: tuple[tuple[Selector, Direction], ...] = ()
    block_by_default: bool = False
    on_stop: OnStop = OnStop.KEEP
    channels: tuple[tuple[Selector, Direction], ...] = ()


class Guard:
    """One network namespace's floor. ``scopes``: of the groups that are not for all packets."""

    def __init__(
        self,
        xfrm: Xfrm,
        fence: Fence | None = None,
        scopes: Mapping[str, Scope] | None = None,
    ) -> None:
        self._xfrm = xfrm
        self._fence = fence or Fence()
        self._scopes = scopes or {}
        # Flows of any source, in the order they came to be known; ``daemon.memory`` counts them.
        self._known: dict[Blocked, None] = {}
        # One of each kind that has exceptions of its own: what is new is compared with these alone.
        self._kinds: dict[Kind, Blocked] = {}

    # -- what the kernel is to hold --------------------------------------------------------------

    def know(self, flows: Iterable[Flow], scope: Scope = ALL) -> None:
        """From now on these are part of the floor, whatever becomes of their TEKs."""
        new = self._unprotected(flows, scope)
        self._known |= dict.fromkeys(new)
        for one in new:
            self._kinds.setdefault(_kind(one), one)

    def protects(self, flow: Flow, scope: Scope = ALL) -> bool:
        """Whether a prefix blocks it anyway, known or not."""
        return scope == ALL and any(flow.destination in wide for wide in self._fence.protect)

    def _unprotected(self, flows: Iterable[Flow], scope: Scope) -> list[Blocked]:
        flows = of_everybody(flows)
        return [(flow, scope) for flow in flows if not self.protects(flow, scope)]

    def policies(self) -> tuple[Policy, ...]:
        """What the kernel is to hold, but for keys that a TEK's policy has taken over."""
        return self._floor(self._known)

    def blocks(self) -> dict[PolicyKey, Policy]:
        """Where nothing passes in clear, by one of these or a TEK's policy in its place."""
        return {p.key: p for p in self.policies() if p.action is PolicyAction.BLOCK}

    def install(self) -> None:
        """Puts there what is missing, and leaves alone what is as good. Raises KernelError."""
        wanted = self.policies()
        found = {p.key: p for p in self._xfrm.dump_policies()} if wanted else {}
        if missing := _missing(wanted, found):
            self._xfrm.transaction(missing)

    def check(self, teks: Iterable[Tek]) -> None:
        """Raises ValueError where an exception would let a TEK's traffic pass in clear."""
        for tek in teks:
            for passing, direction in self._fence.bypass:
                if contains(passing, selector(tek.flow)):
                    raise ValueError(
                        f"SPI {tek.name}: member.bypass lets {direction.name.lower()} {passing}"
                        f" pass in clear, and with it all of {tek.flow}"
                    )

    def cover(
        self, flows: Iterable[Flow], taken: Iterable[PolicyKey], scope: Scope = ALL
    ) -> list[Operation]:
        """What a transaction has to add that makes policies for ``flows``.

        ``taken``: keys that it gives to TEKs itself. Afterwards the caller says :meth:`know`.
        """
        new = [one for one in self._unprotected(flows, scope) if one not in self._known]
        if not new:
            return []
        there = {policy.key for policy in self._floor(self._kinds.values())} | set(taken)
        wanted = [p for p in self._floor(new) if p.key not in there]
        return _missing(wanted, {p.key: self._xfrm.find_policy(p.key) for p in wanted})

    def yielded(self, keys: Collection[PolicyKey]) -> list[Operation]:
        """What takes the place of TEKs' policies whose packets others serve."""
        floor = self.blocks() if keys else {}
        return [UpdatePolicy(floor[k]) if k in floor else DeletePolicy(k) for k in keys]

    def _floor(self, known: Iterable[Blocked]) -> tuple[Policy, ...]:
        wide = [Selector(everything(prefix.version), prefix) for prefix in self._fence.protect]
        blocked = [(chosen, ALL) for chosen in wide]
        blocked += [(selector(flow), scope) for flow, scope in known]
        floor = [
            Policy(chosen, way, CHANNEL_PRIORITY, PolicyAction.BLOCK)
            for chosen, way in self._fence.channels
        ]
        floor += self._passing(blocked)
        floor += [
            Policy(
                chosen,
                way,
                BLOCK_PRIORITY,
                PolicyAction.BLOCK,
                mark=scope.mark(way),
                if_id=scope.if_id,
            )
            for chosen, scope in blocked
            for way in DIRECTIONS
        ]
        if self._fence.block_by_default:
            floor += _ALL_ELSE
        return tuple(floor)

    def _passing(self, blocked: Iterable[tuple[Selector, Scope]]) -> list[Policy]:
        """Whatever a packet's mark is; but to a policy without an if_id those with one are none."""
        places = {(chosen.destination.version, scope.if_id) for chosen, scope in blocked}
        passing = [
            Policy(chosen, way, BYPASS_PRIORITY, if_id=if_id)
            for version, if_id in sorted(places)
            for chosen, way in _both_ways(_membership(version))
        ]
        return passing + [
            Policy(chosen, way, BYPASS_PRIORITY, if_id=if_id)
            for if_id in sorted({0, *(if_id for _, if_id in places)})
            for chosen, way in self._fence.bypass
        ]

    # -- beginning and end -----------------------------------------------------------------------

    def begin(self, memory: Memory) -> None:
        """Before anything else of this agent. Raises KernelError, StoreError."""
        for group, flows in memory.groups.items():
            self.know(flows, self._scopes.get(group, ALL))
        self._install_exceptions(memory)
        former = memory.default
        if self._fence.block_by_default:
            if former is None:  # else a former run of ours has found it, and changed it
                memory.keep_default(self._xfrm.get_default())
            self.hold_default()
        elif former is not None:
            self._take_back_default(former, memory)

    def _install_exceptions(self, memory: Memory) -> None:
        """With all the rest; those of a former configuration go when what they let pass is blocked,
        and so do blocks of channels that are none any more.

        They are remembered before they are there, and forgotten only when they are gone.
        """
        wanted = frozenset(self._fence.bypass)
        channels = frozenset(self._fence.channels)
        former, closed = memory.bypass - wanted, memory.channels - channels
        memory.keep_bypass(memory.bypass | wanted)
        memory.keep_channels(memory.channels | channels)
        self.install()
        if former or closed:
            there = self._xfrm.dump_policies()
            gone = [p for p in there if _passes(p) and (p.selector, p.direction) in former]
            gone += [p for p in there if _closes(p) and (p.selector, p.direction) in closed]
            self._xfrm.transaction([DeletePolicy(policy.key) for policy in gone])
        memory.keep_bypass(wanted)
        memory.keep_channels(channels)

    def hold_default(self) -> bool:
        """Puts the default back where somebody has changed it; True if so. Raises KernelError."""
        if not self._fence.block_by_default:
            return False
        found, block = self._xfrm.get_default(), PolicyAction.BLOCK
        wanted = replace(found, inbound=block, outbound=block)
        if found == wanted:
            return False
        self._xfrm.set_default(wanted)
        return True

    def end(self, memory: Memory, reqids: Collection[int]) -> None:
        """As ``on_stop`` says. ``reqids`` are those of our SAs. Raises KernelError, StoreError."""
        if self._fence.on_stop is OnStop.KEEP:
            return
        ours = [state.sa for state in self._xfrm.dump_sas() if state.sa.reqid in reqids]
        operations: list[Operation] = [DeleteSa(sa.key) for sa in ours]
        if self._fence.on_stop is OnStop.REMOVE:
            operations += [DeletePolicy(policy.key) for policy in self._ours(reqids)]
            if memory.default is not None:
                self._take_back_default(memory.default, memory)
        self._xfrm.transaction(operations)

    def _ours(self, reqids: Collection[int]) -> list[Policy]:
        """Nobody else has our reqids; what has none is known by being the same in everything."""
        floor = set(self.policies()).difference(_ALL_ELSE)
        return [
            policy
            for policy in self._xfrm.dump_policies()
            if policy in floor or any(template.reqid in reqids for template in policy.templates)
        ]

    def _take_back_default(self, former: DefaultPolicy, memory: Memory) -> None:
        """What was allowed for the sake of a default that blocks goes with it, and only then.

        Before it is forgotten that there was such a default: else it would stay for ever, and let
        everything pass if the operator blocked by default one day.
        """
        self._xfrm.set_default(former)
        if PolicyAction.BLOCK not in (former.inbound, former.outbound):
            there = set(self._xfrm.dump_policies())
            self._xfrm.transaction([DeletePolicy(p.key) for p in _ALL_ELSE if p in there])
        memory.keep_default(None)


def _kind(blocked: Blocked) -> Kind:
    flow, scope = blocked
    return flow.destination.version, scope.if_id


def _both_ways(selectors: Iterable[Selector]) -> list[tuple[Selector, Direction]]:
    return [(chosen, direction) for chosen in selectors for direction in DIRECTIONS]


_ALL_ELSE = tuple(
    Policy(chosen, direction, ALLOW_PRIORITY)
    for chosen, direction in _both_ways(
        Selector(everything(half.version), half) for half in _HALVES
    )
)


def of_everybody(flows: Iterable[Flow]) -> list[Flow]:
    """What no TEK lets anybody send to a group must not pass in clear, whoever sends it.

    A TEK that names its sources has policies for those alone, a TEK that this member may only
    receive with has none for sending, one that it may only send with has none for receiving.
    """
    return list(
        dict.fromkeys(flow if flow.source is None else replace(flow, source=None) for flow in flows)
    )


def _membership(version: int) -> list[Selector]:
    """IGMPv2 reports and queries about one group go to that group (RFC 2236), MLDv1's too."""
    if version == 4:
        return [Selector(everything(4), IPv4Network("224.0.0.0/4"), _IGMP)]
    multicast = IPv6Network("ff00::/8")
    return [Selector(everything(6), multicast, _ICMPV6, kind) for kind in _MLD_TYPES]


def _passes(policy: Policy) -> bool:
    """Whether it is like those here that let packets pass in clear."""
    kind = policy.priority, policy.action, policy.templates
    return kind == (BYPASS_PRIORITY, PolicyAction.ALLOW, ())


def _closes(policy: Policy) -> bool:
    """Whether it is like those that block a channel's datagrams in clear."""
    kind = policy.priority, policy.action, policy.templates
    return kind == (CHANNEL_PRIORITY, PolicyAction.BLOCK, ())


def channel_selectors(
    peers: Network, own_ports: Sequence[int], port: int = 0
) -> list[tuple[Selector, Direction]]:
    """What peers send to ports of ours, and what is sent to theirs, or from ours where ``port``,
    theirs, is not known: whatever address this host has at the time.

    A connection of charon's has this host's address in its selectors, so that the policies of its
    CHILD_SA are others.
    """
    anybody = everything(peers.version)
    sent = [(0, port)] if port else [(own, 0) for own in own_ports]
    return [
        *((Selector(anybody, peers, _UDP, *ports), Direction.OUT) for ports in sent),
        *((Selector(peers, anybody, _UDP, 0, own), Direction.IN) for own in own_ports),
    ]


def _missing(wanted: Iterable[Policy], found: Mapping[PolicyKey, Policy | None]) -> list[Operation]:
    return [UpdatePolicy(p) for p in wanted if not _serves(p, found.get(p.key))]


def _serves(wanted: Policy, found: Policy | None) -> bool:
    """Whether what is there does what is wanted: a TEK's policy blocks clear packets as well."""
    if found is None or wanted.action is PolicyAction.ALLOW:
        return found is not None
    needs_sa = any(not template.optional for template in found.templates)
    return found.action is PolicyAction.BLOCK or needs_sa
