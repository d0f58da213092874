"""A key server's policies against UDP 848 in clear with members that are to come inside ESP.

They outlive the key server, as a member's do (``daemon.guard``), and are remembered in a file
before they are there, so that a later start takes away what is not configured any more. What
somebody else has taken out of the kernel is put back within seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from gdoi_xfrm import (
    DeletePolicy,
    KernelError,
    Network,
    Policy,
    PolicyAction,
    UpdatePolicy,
    Xfrm,
    policy_differences,
)

from gdoi_plugin.daemon.errors import StartError, StoreError
from gdoi_plugin.daemon.guard import CHANNEL_PRIORITY, channel_selectors
from gdoi_plugin.daemon.memory import Exceptional, exception_record, read_exception
from gdoi_plugin.daemon.selectors import lies_in
from gdoi_plugin.daemon.state_file import StateDirectory
from gdoi_plugin.daemon.tasks import ended
from gdoi_plugin.protocol.actions import Event

LOOK = 2.0
"""Seconds between two looks at whether all is there."""

MAX_LENGTH = 128


def blocks_for(peers: Mapping[Network, bool], own_ports: Sequence[int]) -> tuple[Policy, ...]:
    """``peers``: whether those of a network come inside ESP.

    As in the configuration the most specific network counts: those that may come in clear are let
    through where they lie in one that may not.
    """
    closed = [network for network, inside in peers.items() if inside]
    made: list[Policy] = []
    for network, inside in peers.items():
        if inside or any(lies_in(network, wide) for wide in closed):
            action = PolicyAction.BLOCK if inside else PolicyAction.ALLOW
            priority = CHANNEL_PRIORITY + MAX_LENGTH - network.prefixlen
            made += [
                Policy(chosen, way, priority, action)
                for chosen, way in channel_selectors(network, own_ports)
            ]
    return tuple(made)


class Blocks:
    """In one network namespace."""

    def __init__(
        self, state: StateDirectory, name: str, tell: Callable[[list[Event]], object]
    ) -> None:
        self._state, self._name, self._tell = state, name, tell
        self._wanted: tuple[Policy, ...] = ()
        self._xfrm: Xfrm | None = None
        self._task: asyncio.Task[None] | None = None

    def hold(self, *sets: Sequence[Policy]) -> None:
        """These from now on, and none of former ones; of several sets that differ about the same
        datagrams the one that blocks them counts. Raises StartError, StoreError."""
        several = sorted(chain(*sets), key=lambda policy: policy.action is PolicyAction.BLOCK)
        wanted = tuple({(one.selector, one.direction): one for one in several}.values())
        former = self._former()
        if not wanted and not former:
            return  # no kernel is asked
        chosen = frozenset((policy.selector, policy.direction) for policy in wanted)
        self._keep(former | chosen)
        try:
            self._put(wanted, former - chosen)
        except KernelError as error:
            raise StartError(f"no policies against UDP 848 in clear: {error}") from error
        self._keep(chosen)
        self._wanted = wanted
        if wanted and self._task is None:
            self._task = asyncio.create_task(self._watch())
            self._task.add_done_callback(ended)

    def close(self) -> None:
        """The policies stay."""
        if self._task is not None:
            self._task.cancel()
        if self._xfrm is not None:
            self._xfrm.close()
            self._xfrm = None

    def _put(self, wanted: Iterable[Policy], gone: Collection[Exceptional]) -> None:
        if self._xfrm is None:
            self._xfrm = Xfrm()
        xfrm = self._xfrm
        missing = [p for p in wanted if _missing(p, xfrm.find_policy(p.key))]
        if missing:
            xfrm.transaction([UpdatePolicy(policy) for policy in missing])
        if gone:
            there = [p for p in xfrm.dump_policies() if (p.selector, p.direction) in gone]
            ours = [p for p in there if not p.templates and _ours(p.priority)]
            xfrm.transaction([DeletePolicy(policy.key) for policy in ours])

    async def _watch(self) -> None:
        told = ""
        while True:
            await asyncio.sleep(LOOK)
            xfrm = self._xfrm
            if xfrm is None:
                return
            try:
                lost = [p for p in self._wanted if _missing(p, xfrm.find_policy(p.key))]
                if lost:
                    xfrm.transaction([UpdatePolicy(policy) for policy in lost])
                    self._tell([Event("blocks-restored", {"policies": len(lost)}, "warning")])
                told = ""
            except KernelError as error:
                if str(error) != told:
                    told = str(error)
                    self._tell([Event("blocks-not-restored", {"error": told}, "error")])

    def _former(self) -> frozenset[Exceptional]:
        """Raises StoreError."""
        saved: Any = self._state.load(self._name) or {}
        try:
            return frozenset(map(read_exception, saved.get("channels", ())))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise StoreError(f"{self._name}.json: {error!r}") from error

    def _keep(self, chosen: frozenset[Exceptional]) -> None:
        """Durable when it returns. Raises StoreError."""
        self._state.save(self._name, {"channels": [exception_record(*one) for one in chosen]})


def _missing(wanted: Policy, found: Policy | None) -> bool:
    return found is None or bool(policy_differences(wanted, found))


def _ours(priority: int) -> bool:
    return CHANNEL_PRIORITY <= priority <= CHANNEL_PRIORITY + MAX_LENGTH
