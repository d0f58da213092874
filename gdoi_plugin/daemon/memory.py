"""What the guard must not forget over a restart or reboot, in a file beside those of the groups.

The flows that ever had a TEK outlive the TEKs: until the next registration nobody else says that
they are not to pass in clear. What passed all the same, by a configuration that may be another
one by now, nobody else can tell from policies of others; nor which chains a router had.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from ipaddress import ip_network
from typing import Any

from gdoi_xfrm import DefaultPolicy, Direction, PolicyAction, Selector

from ..protocol.policy import Flow
from ..protocol.record import flow_record, read_flow
from ..protocol.rollover import MAX_HELD
from .errors import StoreError
from .firewall import PROGRAMS
from .state_file import StateDirectory

# Packets that pass in clear, and which way.
Exceptional = tuple[Selector, Direction]
# A program that makes netfilter's chains, and the reqid of the group that has one.
Chain = tuple[str, int]
# No group can be called so.
NAME = "_guard"
# Of a group: twice what it can hold TEKs for at once. Each costs two policies in the kernel, and a
# place in this file, for good. Only a key server that changes flows over and over comes this far.
MAX_FLOWS = 2 * MAX_HELD


Needless = Callable[[Flow], bool]


def _needed(_: Flow) -> bool:
    return False


class Memory:
    """``<state>/_guard.json``. Of groups that are not configured any more nothing is kept."""

    def __init__(self, state: StateDirectory, groups: Iterable[str]) -> None:
        """Raises StoreError for a file that cannot be read: what it blocked is not known then."""
        self._state = state
        saved = state.load(NAME) or {}
        try:
            self._flows = {name: _read_flows(saved, name) for name in groups}
            self._default = _read_default(saved.get("default"))
            self._bypass = frozenset(map(read_exception, saved.get("bypass", ())))
            self._chains = frozenset(map(_read_chain, saved.get("chains", ())))
            self._channels = frozenset(map(read_exception, saved.get("channels", ())))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{NAME}.json: {error!r}; remove it, and flows of former runs pass in clear until"
                " the next registration"
            ) from error

    @property
    def groups(self) -> Mapping[str, Collection[Flow]]:
        return self._flows

    @property
    def default(self) -> DefaultPolicy | None:
        """What the kernel's default was before this agent changed it, None where it has not."""
        return self._default

    @property
    def bypass(self) -> frozenset[Exceptional]:
        """The operator's exceptions that the kernel may hold."""
        return self._bypass

    @property
    def chains(self) -> frozenset[Chain]:
        """Of netfilter, which may hold them."""
        return self._chains

    @property
    def channels(self) -> frozenset[Exceptional]:
        """What the kernel may block because it has to come inside ESP."""
        return self._channels

    def add(self, group: str, flows: Iterable[Flow], needless: Needless = _needed) -> None:
        """Durable when it returns. ``needless``: what is blocked in any case.

        None of the others is ever forgotten: where there is no room, what would bring more is
        refused. Raises StoreError, and ValueError where they are too many; nothing has changed.
        """
        before = self._flows[group]
        after = before | dict.fromkeys(flows)
        if len(after) == len(before):
            return
        if len(after) > MAX_FLOWS:
            after = {flow: None for flow in after if not needless(flow)}
        if len(after) > MAX_FLOWS:
            raise ValueError(
                f"group {group} has had {len(before)} flows that must not pass in clear, also after"
                f" a reboot, and with the new ones there would be more than {MAX_FLOWS}: put"
                " prefixes that they lie in into member.protect, and start the agent again"
            )
        self._save(flows={**self._flows, group: after})

    def keep_default(self, default: DefaultPolicy | None) -> None:
        """Durable when it returns. Raises StoreError, and nothing has changed."""
        self._save(default=(default,))

    def keep_bypass(self, bypass: frozenset[Exceptional]) -> None:
        """Durable when it returns. Raises StoreError, and nothing has changed."""
        if bypass != self._bypass:
            self._save(bypass=bypass)

    def keep_channels(self, channels: frozenset[Exceptional]) -> None:
        """Durable when it returns. Raises StoreError, and nothing has changed."""
        if channels != self._channels:
            self._save(channels=channels)

    def keep_chains(self, chains: frozenset[Chain]) -> None:
        """Durable when it returns. Raises StoreError, and nothing has changed."""
        if chains != self._chains:
            self._save(chains=chains)

    def _save(
        self,
        *,
        flows: dict[str, dict[Flow, None]] | None = None,
        default: tuple[DefaultPolicy | None] | None = None,
        bypass: frozenset[Exceptional] | None = None,
        chains: frozenset[Chain] | None = None,
        channels: frozenset[Exceptional] | None = None,
    ) -> None:
        """With what has changed; of the default None is a value, too."""
        flows = self._flows if flows is None else flows
        (kept,) = (self._default,) if default is None else default
        bypass = self._bypass if bypass is None else bypass
        chains = self._chains if chains is None else chains
        channels = self._channels if channels is None else channels
        record = {
            "groups": {name: [flow_record(flow) for flow in flows[name]] for name in flows},
            "default": None if kept is None else _default_record(kept),
            "bypass": [exception_record(*exception) for exception in bypass],
            "chains": [list(chain) for chain in sorted(chains)],
            "channels": [exception_record(*channel) for channel in channels],
        }
        self._state.save(NAME, record)
        self._flows, self._default, self._bypass = flows, kept, bypass
        self._chains, self._channels = chains, channels


def _read_flows(saved: Any, name: str) -> dict[Flow, None]:
    groups = saved.get("groups", {})
    return dict.fromkeys(read_flow(record) for record in groups.get(name, ()))


def exception_record(chosen: Selector, direction: Direction) -> dict[str, str | int]:
    return {
        "source": str(chosen.source),
        "destination": str(chosen.destination),
        "protocol": chosen.protocol,
        "source-port": chosen.source_port,
        "destination-port": chosen.destination_port,
        "direction": direction.name,
    }


def read_exception(saved: Any) -> Exceptional:
    numbers = (int(saved[name]) for name in ("protocol", "source-port", "destination-port"))
    networks = ip_network(saved["source"]), ip_network(saved["destination"])
    return Selector(*networks, *numbers), Direction[saved["direction"]]


def _read_chain(saved: Any) -> Chain:
    program, reqid = saved
    if program not in PROGRAMS:
        raise ValueError(f"no program for netfilter: {program}")
    return program, int(reqid)


def _default_record(default: DefaultPolicy) -> dict[str, str]:
    return {
        "inbound": default.inbound.name,
        "forwarded": default.forwarded.name,
        "outbound": default.outbound.name,
    }


def _read_default(saved: Any) -> DefaultPolicy | None:
    if saved is None:
        return None
    actions = (PolicyAction[saved[name]] for name in ("inbound", "forwarded", "outbound"))
    return DefaultPolicy(*actions)
