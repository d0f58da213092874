"""What ``gdoictl`` and other clients can ask a member, and have it do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from gdoi_xfrm import KernelError, SaState

from ..protocol.actions import Action
from ..protocol.agent import Agent
from ..protocol.member import GroupMember
from ..protocol.policy import Tek
from .charon.channel import Channels
from .control import CommandFailed, Handler, Message, StreamHandler, to_message
from .errors import DaemonError
from .export import describe, reveal
from .kernel import GroupKernel
from .policy_facts import ack_name, kek_facts, tek_facts
from .reload import answer
from .reload_member import MemberProposal
from .requests import GROUP, Key, Keys, Kind, yes
from .shell import Shell
from .watch import Counters
from .whereabouts import Whereabouts

ACCEPTS: Mapping[str, Keys] = {
    "stats": {},
    "register": GROUP,
    "reload": {"dry-run": Key(Kind.YES_NO)},
    "get-policy": GROUP,
    "list-groups": GROUP,
    "list-sas": GROUP,
    "list-keys": {**GROUP, "secrets": Key(Kind.YES_NO)},
}


class Reload(Protocol):
    """Raises DaemonError where nothing was changed."""

    def __call__(self, *, dry_run: bool) -> MemberProposal: ...


class MemberCommands:
    """The commands by name."""

    def __init__(
        self,
        shell: Shell,
        agent: Callable[[], Agent],
        kernels: Mapping[str, GroupKernel],
        place: Whereabouts,
        counters: Callable[[], Counters],
        carry_out: Callable[[GroupMember, Sequence[Action]], None],
        reload: Reload,
        channels: Channels,
    ) -> None:
        """``agent``: the one of the address that the member has now."""
        self._shell = shell
        self._agent = agent
        self._kernels = kernels
        self._place = place
        self._counters = counters
        self._carry_out = carry_out
        self._reload = reload
        self._channels = channels
        self.plain: dict[str, Handler] = {
            "stats": self.stats,
            "register": self.register,
            "reload": self.reload,
            "get-policy": self.get_policy,
        }
        self.lists: dict[str, StreamHandler] = {
            "list-groups": ("list-group", self.list_groups),
            "list-sas": ("list-sa", self.list_sas),
            "list-keys": ("list-key", self.list_keys),
        }

    # -- commands --------------------------------------------------------------------------------

    def stats(self, _: Message) -> Message:
        kernel = self._counters()
        return to_message(
            {
                "drops": dict(self._shell.log.drops),
                "kernel": {
                    "repairs": kernel.repairs,
                    "last-repair": kernel.last_repair,
                    "overruns": kernel.overruns,
                },
            }
        )

    def register(self, request: Message) -> Message:
        place = self._place
        if not place.bound:
            raise CommandFailed(place.problem or "no address yet")
        chosen = self._groups(request)
        for _, group in chosen:
            self._carry_out(group, group.register(self._shell.clock.now()))
        return to_message({"success": True, "groups": [name for name, _ in chosen]})

    def reload(self, request: Message) -> Message:
        dry_run = yes(request, "dry-run")
        try:
            found = self._reload(dry_run=dry_run)
        except DaemonError as error:
            raise CommandFailed(f"nothing was changed: {error}") from error
        return answer(found.changes, found.steps, done=not dry_run)

    def get_policy(self, request: Message) -> Message:
        chosen = self._groups(request)
        if len(chosen) != 1:
            names = ", ".join(name for name, _ in chosen)
            raise CommandFailed(f"group is missing; this member has {names}")
        ((name, group),) = chosen
        now = self._shell.clock.now()
        current = group.kek
        return to_message(
            {
                "group": name,
                "id": str(group.config.group_id),
                "key-server": str(group.key_server) if group.key_server else None,
                "key-servers": [str(entry.remote) for entry in group.config.key_servers],
                "ack": None if current is None else ack_name(current.kek.ack_type),
                "ack-jitter": group.config.ack_jitter,
                "deactivation-delay": int(group.deactivation_delay),
                "key-management": _management(group),
                "rekey-sas": {
                    held.kek.name: kek_facts(held.kek, held.seq, held.expires - now)
                    | {"state": "current" if held is current else "retiring"}
                    for held in reversed(group.rekey_sas.held)
                },
                "data-sas": {
                    **{
                        held.tek.name: tek_facts(held.tek, held.expires - now)
                        | {"state": _state(group, spi)}
                        for spi, held in group.rollover.held.items()
                    },
                    **{
                        key.tek.name: tek_facts(key.tek, key.expires - now)
                        for key in group.applications.held.values()
                    },
                },
            }
        )

    # -- lists -----------------------------------------------------------------------------------

    def list_groups(self, request: Message) -> Iterator[Message]:
        place = self._place
        for name, group in self._groups(request):
            counters = group.counters
            yield to_message(
                {
                    "group": name,
                    "id": str(group.config.group_id),
                    "state": str(group.state),
                    "address": str(group.config.local.host) if place.bound else None,
                    "network": place.problem,
                    "key-server": str(group.key_server) if group.key_server else None,
                    "nat": str(group.registrar.nat),
                    "kek-spi": group.kek.kek.name if group.kek else None,
                    "seq": group.kek.seq if group.kek else None,
                    "sas": len(group.rollover.held),
                    "sender-ids": [str(sid) for sid in group.sids.values] if group.sids else None,
                    "sid-bits": group.sids.bits if group.sids else None,
                    "registrations": counters.registrations,
                    "rekeys-received": counters.rekeys_received,
                    "rekeys-installed": counters.rekeys_installed,
                    "rekeys-refused": counters.rekeys_refused,
                    "rekeys-acknowledged": counters.acknowledged,
                    "last-rekey": self._shell.time_of_day(group.last_rekey),
                    "last-failure": group.last_failure or None,
                    "channels": self._channels_of(group),
                }
            )

    def list_sas(self, request: Message) -> Iterator[Message]:
        now = self._shell.clock.now()
        for name, group in self._groups(request):
            for spi, held in list(group.rollover.held.items()):
                kernel = self._in_kernel(name, held.tek)
                yield to_message(
                    {
                        "group": name,
                        "spi": held.tek.name,
                        "source": str(held.tek.flow.source or "any"),
                        "destination": str(held.tek.flow.destination),
                        "mode": held.tek.mode.name.lower(),
                        "algorithm": held.tek.suite.keyword,
                        "direction": held.tek.direction.name.lower(),
                        "state": _state(group, spi),
                        "remaining": int(held.expires - now),
                        "in-kernel": kernel is not None,
                        "bytes": kernel.bytes if kernel else None,
                        "packets": kernel.packets if kernel else None,
                    }
                )

    def list_keys(self, request: Message) -> Iterator[Message]:
        """What applications have, or wait for; the keys themselves only if ``secrets`` is yes."""
        now = self._shell.clock.now()
        for name, group in self._groups(request):
            exported = group.applications.exported
            waiting = [key for key in group.applications.held.values() if key not in exported]
            for key in [*exported, *waiting]:
                fields: dict[str, object] = {"group": name, **describe(key)}
                fields["state"] = "exported" if key in exported else "waiting"
                fields["remaining"] = None if key.expires == math.inf else int(key.expires - now)
                if yes(request, "secrets") and key in exported:
                    fields |= reveal(key)
                yield to_message(fields)

    def _channels_of(self, group: GroupMember) -> Mapping[str, object] | None:
        if not group.config.channel:
            return None
        servers = {str(server.remote) for server in group.config.key_servers}
        return {name: fact for name, fact in self._channels.facts().items() if name in servers}

    # -- small things ----------------------------------------------------------------------------

    def _groups(self, request: Message) -> list[tuple[str, GroupMember]]:
        """The group that is asked for, by name or id; without one all of them."""
        groups = self._agent().groups
        wanted = request.get("group")
        if wanted is None:
            return list(groups.items())
        for name, group in groups.items():
            if wanted in (name, str(group.config.group_id)):
                return [(name, group)]
        raise CommandFailed(f"no group {wanted}; this member has {', '.join(groups)}")

    def _in_kernel(self, name: str, tek: Tek) -> SaState | None:
        try:
            return self._kernels[name].state(tek)
        except KernelError as error:
            raise CommandFailed(str(error)) from error


def _state(group: GroupMember, spi: bytes) -> str:
    held = group.rollover.held[spi]
    if group.rollover.pinned.get(held.tek.flow) == spi:
        return "sending"
    return "retiring" if held.retire_at is not None else "installed"


def _management(group: GroupMember) -> str | None:
    if group.kek is None:
        return None
    return "lkh" if group.kek.kek.path else "none"
