"""``gdoi-gm``: the group member agent."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdoi_xfrm import KernelError, PolicyKey, SaKey, probe

from .. import __version__
from ..protocol.actions import Action, ApplyKernel, Event, Peer, Persist, Send
from ..protocol.agent import Agent
from ..protocol.member import GroupMember, MemberState
from .charon.channel import Channel, Channels
from .claims import Claims
from .clock import SteadyClock
from .config_member import MemberDaemonConfig
from .control import ControlServer
from .errors import DaemonError, FirewallError, StartError, StoreError
from .export import document
from .firewall import Firewall
from .forwarding import Forwarding, chain_of
from .gm_commands import ACCEPTS, MemberCommands
from .guard import Guard, OnStop, of_everybody
from .kernel import GroupKernel
from .keylog import KeyLogFile
from .leftovers import Leftovers
from .links import LinkWatch, watch_links
from .listening import Listening
from .log import Log
from .memory import Memory
from .neighbours import Neighbours
from .netns import enter
from .notices import Exhausted, Expired, Notice, NotRestored
from .numbers import Numbers
from .own_tables import OwnTables
from .reload_member import MemberProposal, propose
from .reqid import reqid_of
from .shell import Shell, open_log, run_daemon
from .state_file import StateDirectory
from .watch import KernelWatch
from .whereabouts import Whereabouts

if TYPE_CHECKING:
    from .web import WebServer

# Seconds until what could not be found, bound or joined is tried again, if nothing else happens.
LOOK_AGAIN = 5.0
DEFAULT_CONFIG = Path("/etc/gdoi/gm.toml")
# Beside the groups' state; no group can be called so.
CLOCK = "_clock"
EVENTS = (
    "phase1-established",
    "phase1-deleted",
    "registering",
    "registered",
    "registration-failed",
    "rekey-received",
    "rekey-installed",
    "rekey-refused",
    "rekey-for-others",
    "rekey-acknowledged",
    "ack-unsupported",
    "sa-installed",
    "sa-sending",
    "sa-removed",
    "sa-expiring",
    "sa-expired",
    "keys-changed",
    "install-failed",
    "kek-replaced",
    "kek-expired",
    "group-deleted",
    "state-unreadable",
    "joined",
    "join-failed",
    "kernel-restored",
    "kernel-not-restored",
    "kernel-contested",
    "leftovers-removed",
    "leftovers-stay",
    "sequence-exhausted",
    "numbers-not-saved",
    "ike-up",
    "ike-lost",
    "network-lost",
    "network-found",
    "config-reloaded",
    "config-refused",
)


class MemberDaemon(Shell):
    """The agent's sockets, kernel and state around the engines of its groups."""

    def __init__(self, config: MemberDaemonConfig, log: Log, keylog: KeyLogFile | None) -> None:
        super().__init__(log, keylog)
        self._config = config
        self._report_crls()
        self._state = StateDirectory(config.settings.state)
        self.clock = SteadyClock.kept(self._state, CLOCK)
        export = config.settings.export
        self._export = None if export is None else StateDirectory(export)
        self._numbers = Numbers(self._state)
        try:
            self._xfrm = OwnTables(self.clock.now, self._numbers)
        except KernelError as error:
            raise StartError(str(error)) from error
        scopes = {name: options.scope for name, options in config.kernel_options.items()}
        self._guard = Guard(self._xfrm, config.fence, scopes)
        self._memory = Memory(self._state, [group.name for group in config.groups])
        self._watch = KernelWatch(self._xfrm, self.clock.now, self._kernel_told, self._guard)
        self._leftovers = Leftovers(self._xfrm, self._guard)
        self._kernels: dict[str, GroupKernel] = {}
        self._claims = Claims()
        self._links: LinkWatch | None = None
        self._whereabouts = Whereabouts(config, self.sockets)
        self._listening = Listening(self.sockets, self._tell)
        self._look_again: float | None = None
        self._lans_followed = True
        self._nat_bound = False
        # Of a former run, until there is an address to go on from.
        self._saved: dict[str, Mapping[str, Any] | None] = {}
        self.member = _agent(config)
        self._neighbours = Neighbours(self._xfrm)
        self._checks: dict[str, asyncio.Future[None]] = {}
        program = config.settings.firewall
        firewall = None if program == "none" else Firewall(program)
        for group in config.groups:
            name, reqid = group.name, reqid_of(group.group_id)
            self._kernels[name] = GroupKernel(
                self._xfrm,
                group.group_id,
                group.local.host,
                self._guard,
                config.kernel_options[name],
                int.from_bytes(os.urandom(4), "big") / 2**32,
                Forwarding(self._xfrm, reqid, config.lans[name], firewall),
                self._neighbours,
            )
            self._neighbours.add(reqid, name, partial(self._serving, name))
        self._channels = Channels(
            config.settings.charon, config.channels, self.perform, self._channel_came
        )
        self.commands = MemberCommands(
            self,
            lambda: self.member,
            self._kernels,
            self._whereabouts,
            lambda: self._watch.counters,
            self._perform,
            self.reload,
            self._channels,
        )
        self._control = ControlServer(
            config.settings.control,
            self.commands.plain,
            self.commands.lists,
            EVENTS,
            accepts=ACCEPTS,
            group=config.settings.control_group,
            about={"daemon": "gdoi-gm", "version": __version__},
            trace=self.trace_control,
        )

    @property
    def control(self) -> ControlServer:
        return self._control

    def _report_crls(self) -> None:
        if self._config.credentials is not None:
            self._config.credentials.trust.report = self.crl_unreadable

    def _watch_trust(self) -> None:
        if self._config.credentials is not None:
            self.watch_trust(self._config.credentials.charon)

    def begin(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hung_up)
        self._state.claim()
        self._numbers.load()
        for name, kernel in self._kernels.items():
            self._claims.take(kernel.reqid, name)
        try:
            self._guard.begin(self._memory)
        except KernelError as error:
            raise StartError(
                f"no policies that keep groups from passing in clear: {error}"
            ) from error
        self._forget_former_groups()
        problem = probe(families=(self._config.local.host.version,))
        if problem is not None:
            raise StartError(f"this kernel cannot hold the group's ESP SAs: {problem}")
        self._watch_trust()
        self._begin_forwarding()
        self._saved = {name: self._state.load(name) for name in self.member.groups}
        self._links = watch_links(self._look)
        self._look()
        try:
            self._watch.start()
        except KernelError as error:
            raise StartError(str(error)) from error

    def _begin_forwarding(self) -> None:
        """A router's chains are remembered before they are there, and until they are gone."""
        made = {(k.forwarding.program, k.reqid) for k in self._kernels.values()}
        wanted = frozenset((program, reqid) for program, reqid in made if program is not None)
        former = self._memory.chains - wanted
        self._memory.keep_chains(former | wanted)
        try:
            for name, kernel in self._kernels.items():
                kernel.forwarding.begin(flow.destination for flow in self._memory.groups[name])
        except KernelError as error:
            raise StartError(f"no policies for a router's LANs: {error}") from error
        own, stay = {kernel.reqid for kernel in self._kernels.values()}, set()
        for program, reqid in former:
            try:
                if reqid in own or self._claims.free(reqid):
                    Firewall(program).remove(chain_of(program, reqid))
            except FirewallError as error:
                stay.add((program, reqid))
                self.perform([Event("leftovers-stay", {"error": str(error)}, "warning")])
        self._memory.keep_chains(wanted | stay)

    def _forget_former_groups(self) -> None:
        configured = {group.name: group.group_id.key for group in self._config.groups}
        unblock = self._config.fence.on_stop is OnStop.REMOVE
        try:
            told = self._leftovers.of_former_groups(self._state, configured, unblock=unblock)
        except (KernelError, StoreError) as error:
            told = [Event("leftovers-stay", {"error": str(error)}, "warning")]
        self.perform(told)

    def end(self) -> None:
        if self._links is not None:
            self._links.close()  # nothing is bound again
            self._links = None
        for group in self.member.groups.values():
            self._perform(group, group.stop())
        reqids = {kernel.reqid for kernel in self._kernels.values()}
        last: list[Callable[[], object]] = [
            self._xfrm.look_at_sas,
            partial(self._guard.end, self._memory, reqids),
            partial(self._xfrm.save_numbers, at_once=True),
        ]
        if self._config.fence.on_stop is OnStop.REMOVE:
            last += [kernel.forwarding.end for kernel in self._kernels.values()]
        for step in last:  # none waits for another's success, least of all the numbers
            try:
                step()
            except (KernelError, FirewallError, StoreError) as error:
                self.log.event("error", "stop-failed", {"error": str(error)})

    def close(self) -> None:
        for check in self._checks.values():
            check.cancel()
        if self._links is not None:
            self._links.close()
        self._listening.close()
        self._channels.close()
        self._watch.close()
        self._xfrm.close()
        self._claims.close()
        self._state.close()

    def deadline(self) -> float | None:
        times = [group.deadline for group in self.member.groups.values()]
        times += [self._look_again, self._watch.deadline, self._leftovers.at]
        return min((time for time in times if time is not None), default=None)

    def tick(self, now: float) -> None:
        for group in self.member.groups.values():
            self._perform(group, group.tick(now))
        if self._look_again is not None and self._look_again <= now:
            self._look()
        self._watch.tick(now)
        if self._leftovers.at is not None and self._leftovers.at <= now:
            self._sweep()

    def pages(self) -> Sequence[WebServer]:
        settings = self._config.settings
        if settings.metrics is None:
            return ()
        from .metrics_gm import metrics
        from .web import WebServer

        answer = metrics(self, EVENTS, lambda: self.member.groups, self._watch, self._whereabouts)
        place, group = settings.metrics, settings.scrapers
        return [WebServer("metrics", place, answer, self.trace_page, group=group)]

    def receive(self, datagram: bytes, source: Peer, arrived: Peer) -> None:
        group, actions = self.member.receive(datagram, source, arrived, self.clock.now())
        if group is None:
            self.perform(actions)
        else:
            self._perform(group, actions)

    def _channel_came(self, channel: Channel) -> None:
        """Rekeys may have been missed while there was none."""
        for group in self.member.groups.values():
            if any(server.remote == channel.options.remote for server in group.config.key_servers):
                group.catch_up(self.clock.now())
        self._wake.set()

    def _send(self, sends: list[Send]) -> None:
        """What the kernel would block anyway, since there is no CHILD_SA, is not tried."""
        super()._send(self._channels.passing(sends))

    def left(self, send: Send) -> None:
        if send.told is not None:
            self.member.groups[str(send.told.fields["group"])].left(send)

    def status(self) -> str:
        if self._whereabouts.problem is not None:
            return f"waiting for the network: {self._whereabouts.problem}"
        groups = self.member.groups.values()
        registered = sum(group.state is MemberState.REGISTERED for group in groups)
        sas = sum(len(group.rollover.held) for group in groups)
        return f"{registered} of {len(groups)} groups registered, {sas} SAs"

    def persist(self, records: Sequence[Persist]) -> None:
        for record in records:
            self._state.save(record.kind, record.record)

    # -- kernel and multicast --------------------------------------------------------------------

    def _perform(self, group: GroupMember, actions: Sequence[Action]) -> None:
        """Actions, and what the kernel's answers lead to, until nothing is left to do."""
        pending = self.perform(actions)
        while pending:
            answers: list[Action] = []
            for action in pending:
                if isinstance(action, ApplyKernel):
                    answers += self._apply(group, action)
            pending = self.perform(answers)
        self._listen()

    def _apply(self, group: GroupMember, action: ApplyKernel) -> list[Action]:
        """Kernel and export file in one; where one of them cannot be, both are as they were.

        The file comes first: the kernel undoes its own, and a file is easily put back.
        """
        name = group.config.name
        scope = self._config.kernel_options[name].scope
        exported: AbstractContextManager[None] = nullcontext()
        if action.keys is not None and self._export is not None:
            exported = self._export.replaced(name, document(group, action.keys))
        try:
            flows = of_everybody(tek.flow for tek in action.add)
            self._memory.add(name, flows, lambda flow: self._guard.protects(flow, scope))
            with exported:
                self._kernels[name].apply(action)
        except (KernelError, FirewallError, StoreError, ValueError) as error:
            return group.kernel_refused(action.transaction, str(error), self.clock.now())
        now = self.clock.now()
        done = group.kernel_done(action.transaction, now)
        self._leftovers.expect(now, group.deactivation_delay)
        if action.remove and not action.add:
            self._check_rules(name)
        return done

    def _check_rules(self, name: str) -> None:
        """At the end of a rollover, when nobody waits for anything; one check at a time."""
        running = self._checks.get(name)
        if self._kernels[name].forwarding.program and (running is None or running.done()):
            self._checks[name] = asyncio.ensure_future(self._rules_checked(name))

    async def _rules_checked(self, name: str) -> None:
        """Until it is: what has been taken away lets packets in that are in clear."""
        while True:
            try:
                return await self._kernels[name].forwarding.check()
            except FirewallError as error:
                fields = {"group": name, "error": str(error)}
                self.log.limited("error", "firewall-failed", name, fields, self.clock.now())
            await asyncio.sleep(LOOK_AGAIN)

    def _kernel_told(self, notices: Sequence[Notice]) -> None:
        """What others have done to this member's SAs and policies, and what became of it."""
        self.perform([notice.told for notice in notices if not isinstance(notice, Expired)])
        now = self.clock.now()
        for notice in notices:
            if isinstance(notice, Expired):
                group = self._group_of(notice.sa)
                if group is not None:
                    spi = notice.sa.spi.to_bytes(4, "big")
                    expired = group.hard_expired if notice.hard else group.soft_expired
                    self._perform(group, expired(spi, now))
            elif isinstance(notice, Exhausted) or (
                isinstance(notice, NotRestored) and notice.give_up
            ):
                lost = [self._group_of(key) for key in notice.sas]
                for group in lost or self.member.groups.values():
                    if group is not None:
                        group.catch_up(now)

    def _sweep(self) -> None:
        """What nobody wants any more, of groups whose key server has said what there is."""
        reqids, current = [], set[PolicyKey]()
        for name, group in self.member.groups.items():
            current |= self._serving(name)
            if group.counters.registrations:
                reqids.append(self._kernels[name].reqid)
        try:
            self.perform(self._leftovers.sweep(reqids, current))
        except KernelError as error:
            self.perform([Event("leftovers-stay", {"error": str(error)}, "warning")])

    def _serving(self, name: str) -> set[PolicyKey]:
        """The policies of the TEKs that a group holds."""
        return self._kernels[name].serving(self.member.groups[name].rollover)

    def _group_of(self, key: SaKey) -> GroupMember | None:
        """Whose SA that is; None where it has let go of it meanwhile."""
        for name, group in self.member.groups.items():
            held = group.rollover.held.get(key.spi.to_bytes(4, "big"))
            if held is not None and self._kernels[name].key(held.tek) == key:
                return group
        return None

    # -- where the member is ---------------------------------------------------------------------

    def _look(self, gone: frozenset[int] = frozenset()) -> None:
        """At every change of interfaces (``gone`` were deleted), and a while after a failure.

        At another address the groups register again, and after a time without network as well:
        they may have missed rekeys.
        """
        self._look_again = None
        for ifindex in gone:
            self._listening.interface_gone(ifindex)
        self._follow_lans()
        before, was_away = self._config, self._whereabouts.problem is not None
        started = self._whereabouts.bound
        self.perform(self._whereabouts.look(strict=not self._begun))
        self._config = self._whereabouts.config
        if self._whereabouts.bound and (not started or self._config.local != before.local):
            self._move()
        elif was_away and self._whereabouts.problem is None:
            for group in self.member.groups.values():
                group.catch_up(self.clock.now())
        self._listen()

    def _move(self) -> None:
        """The groups go on from the address that has just been found, with what they hold."""
        config, former = self._config, self.member.groups
        self._nat_bound = self.bind_nat(config.nat_local)
        self._channels.follow(config.channels)
        if any(group.config.local != config.local for group in former.values()):
            self.member = _agent(config)
        begun: dict[str, list[Action]] = {}
        for name, group in self.member.groups.items():
            if not self._nat_bound:
                group.registrar.nat_local = None
            self._move_policies(former[name])
            now = self.clock.now()
            if name in self._saved:
                begun[name] = group.start(now, self._saved.pop(name))
            else:
                begun[name] = group.follow(former[name], now)
        for name, actions in begun.items():
            self._perform(self.member.groups[name], actions)

    def _follow_lans(self) -> None:
        self._lans_followed = True
        for name, kernel in self._kernels.items():
            try:
                kernel.forwarding.follow_links()
            except (KernelError, FirewallError) as error:
                self._lans_followed = False
                self.log.event("error", "move-failed", {"group": name, "error": str(error)})

    def _move_policies(self, former: GroupMember) -> None:
        name, held = former.config.name, former.rollover.held.values()
        try:
            self._kernels[name].move(self._config.local.host, [h.tek for h in held])
        except KernelError as error:
            self.log.event("error", "move-failed", {"group": name, "error": str(error)})

    def _listen(self) -> None:
        """Whatever fails is tried again at every step, and a while later."""
        config = self._config
        again, self._look_again = self._look_again, None
        if self._whereabouts.bound:
            own = [config.local]
            if self._nat_bound and config.nat_local is not None:
                own.append(config.nat_local)
            self._listening.update(config.interface, own, config.joins, self.member.groups.values())
        there = self._whereabouts.problem is None
        if not (there and self._lans_followed and self._listening.complete):
            # Not later because something has come in meanwhile: then it might never be.
            self._look_again = again or self.clock.now() + LOOK_AGAIN

    # -- another configuration -------------------------------------------------------------------

    def reload(self, *, dry_run: bool = False) -> MemberProposal:
        """Reads the file again and takes up what can be, or only says so. Raises DaemonError, and
        then nothing has changed."""
        proposal = propose(self._config)
        if dry_run:
            return proposal
        self._config = self._whereabouts.config = proposal.config
        self._report_crls()
        self._watch_trust()
        now = self.clock.now()
        self.perform([proposal.told()])
        if self._saved:  # nothing has begun yet: there is no address to begin from
            self.member = _agent(proposal.config)
            return proposal
        for config in proposal.config.groups:
            group = self.member.groups[config.name]
            anew = config.name in proposal.anew
            self._perform(group, group.reconfigure(config, now, anew=anew))
        return proposal

    def _hung_up(self) -> None:
        """SIGHUP. Nobody waits for an answer, so the log has it."""
        with self.reloading():
            try:
                self.reload()
            except DaemonError as error:
                self.perform([Event("config-refused", {"error": str(error)}, "error")])


def _agent(config: MemberDaemonConfig) -> Agent:
    return Agent({group.name: GroupMember(group, os.urandom) for group in config.groups})


def _make(arguments: argparse.Namespace) -> Shell | None:
    config = MemberDaemonConfig(arguments.config)
    if config.settings.netns is not None:
        enter(config.path, "member.netns", config.settings.netns)
    if arguments.check:
        config = config.here()
        print(f"{arguments.config}: {len(config.groups)} groups, local address {config.local}")
        return None
    log = open_log(config.settings.log, arguments.log_level, "gdoi-gm")
    keylog = None if arguments.keylog is None else KeyLogFile(arguments.keylog)
    return MemberDaemon(config, log, keylog)


def main() -> int:
    return run_daemon("gdoi-gm", DEFAULT_CONFIG, _make)
