"""``gdoi-gcks``: the key server."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from .. import __version__
from ..protocol.ack_check import Claim
from ..protocol.actions import Action, AskIke, EndIke, Event, KeepIke, Peer, Persist
from ..protocol.key_server import KeyServer, SavedGroup
from ..protocol.phase1 import Phase1Config
from .acks import Acks
from .charon.authorising import IkeWatch
from .clock import SteadyClock
from .config_gcks import KeyServerDaemonConfig
from .control import ControlServer, Handler
from .errors import DaemonError, StoreError
from .gcks_commands import ACCEPTS, KeyServerCommands
from .keylog import KeyLogFile
from .links import LinkWatch, watch_links
from .log import Log
from .netns import enter
from .reload import Proposal, propose
from .shell import Shell, open_log, run_daemon, undisturbed
from .signers import SignerPool
from .state_file import StateDirectory
from .store import Store
from .store.mark import Mark
from .store.sealing import read_master_key

if TYPE_CHECKING:
    from .charon.blocks import Blocks
    from .web import WebServer

DEFAULT_CONFIG = Path("/etc/gdoi/gcks.toml")
EVENTS = (
    "phase1-established",
    "phase1-deleted",
    "group-created",
    "group-restored",
    "group-removed",
    "member-registered",
    "member-refused",
    "member-moved",
    "member-removed",
    "member-removed-more",
    "member-evicted",
    "member-readmitted",
    "ike-up",
    "ike-up-more",
    "ike-lost",
    "ike-lost-more",
    "ike-terminated",
    "ike-not-terminated",
    "charon-lost",
    "charon-found",
    "member-revoked",
    "rekey-sent",
    "rekey-acked",
    "rekey-acks",
    "acks-dropped",
    "ack-buffer-small",
    "rekey-part-acked",
    "ack-missing",
    "ack-missing-more",
    "member-silent",
    "member-silent-more",
    "rekey-closed",
    "data-sa-transformed",
    "message-too-large",
    "sender-ids-limited",
    "sender-ids-exhausted",
    "config-reloaded",
    "config-refused",
    "blocks-restored",
    "blocks-not-restored",
    "leading",
    "following",
    "policy-differs",
    "store-failed",
    "store-recovered",
)


class KeyServerDaemon(Shell):
    """The key server's sockets and store around its engine."""

    # A commit takes as long as several registrations: those that come in one turn share it.
    SAVES_TURNS: ClassVar[bool] = True

    def __init__(self, config: KeyServerDaemonConfig, log: Log, keylog: KeyLogFile | None) -> None:
        super().__init__(log, keylog)
        self._config = config
        self._report_crls()
        self._key = config.settings.key(config.path, os.environ)
        self._open_state()
        self._signers = SignerPool(group.scheme for group in config.groups)
        self.engine = KeyServer(
            config.groups,
            self._phase1_for,
            os.urandom,
            self._signers.take,
            dpd=config.dpd,
            limits=config.settings.limits,
        )
        self.acks = Acks(self, self.engine, self.persist, self._carry_out)
        self._links: LinkWatch | None = None
        self._ike: IkeWatch | None = None
        self._blocks: Blocks | None = None
        # What the datagrams of this turn have led to so far.
        self._turn: list[Action] = []
        self.commands = KeyServerCommands(
            self, self.engine, self._carry_out, self.reload, self.acks.facts
        )
        self._control = ControlServer(
            config.settings.control,
            self._handlers(),
            self.commands.lists,
            EVENTS,
            accepts=ACCEPTS,
            group=config.settings.control_group,
            about={"daemon": "gdoi-gcks", "version": __version__},
            trace=self.trace_control,
        )

    @property
    def control(self) -> ControlServer:
        return self._control

    def _phase1_for(self, peer: Peer) -> Phase1Config | None:
        return self._config.phase1_for(peer)

    def _report_crls(self) -> None:
        if self._config.credentials is not None:
            self._config.credentials.trust.report = self.crl_unreadable

    def _open_state(self) -> None:
        """Raises StoreError."""
        state = self._config.settings.state
        self._store = Store(self._config.settings.place(self._config.path), self._key)
        self.clock = SteadyClock.kept(StateDirectory(state.parent), f"{state.stem}-clock")
        self._mark = Mark(StateDirectory(state.parent), f"{state.stem}-reached")

    def _load(self) -> Mapping[int, SavedGroup]:
        saved = self._store.load()
        self._mark.check(saved)
        self._mark.forget_others(saved)
        return saved

    def _close_state(self) -> None:
        self._store.close()

    def _handlers(self) -> dict[str, Handler]:
        return {**self.commands.plain, **self.commands.reading}

    def begin(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hung_up)
        self._hold_blocks(self._config)
        self._links = watch_links(self._link_changed)
        self.sockets.bind(self._config.local, self._config.interface)
        if not self.bind_nat(self._config.nat_local):
            self._config.give_up_nat_traversal()
        for endpoint in self.sockets.open:
            # Behind a NAT are few: what comes there is read here.
            spread = self._config.settings.ack_processes if endpoint == self._config.local else 0
            warning = self.sockets.separate(endpoint, self.first, self.take_acks, spread)
            if warning is not None:
                self.log.event("warning", "lanes", {"error": warning})
        self._spread_acks()
        if self._key is None:
            hint = "keys are not sealed: set master_key, or give gdoi-master-key as a credential"
            self.log.event("warning", "unsealed", {"hint": hint})
        self._start_engine()
        self._watch_charon()

    def _watch_charon(self) -> None:
        """Where groups ask it who their members are, or phase 1 whom to trust."""
        if self._config.credentials is not None:
            self.watch_trust(self._config.credentials.charon)
        settings = self._config.settings
        if self._ike is not None:
            self._ike.believe(settings.ike_connections)
        elif any(group.ike is not None for group in self._config.groups):
            self._ike = IkeWatch(
                settings.charon,
                settings.ike_connections,
                self.engine.ike,
                self.clock.now,
                self._carry_out,
            )
            self._ike.start()

    def _hold_blocks(self, *configs: KeyServerDaemonConfig) -> None:
        """Of them all, before any socket is open. Raises DaemonError."""
        wanted, state = [config.blocks() for config in configs], configs[0].settings.state
        name = f"{state.stem}-channels"
        if self._blocks is None:
            if not any(wanted) and not state.with_name(f"{name}.json").exists():
                return
            from .charon.blocks import Blocks  # whom it does not concern starts sooner

            self._blocks = Blocks(StateDirectory(state.parent), name, self.perform)
        self._blocks.hold(*wanted)

    @contextmanager
    def _changing_blocks(self, config: KeyServerDaemonConfig) -> Iterator[None]:
        """Those of before and after are there while it is taken up, and those of before if it is
        not. Raises DaemonError."""
        before = self._config
        try:
            self._hold_blocks(before, config)
            yield
        except BaseException:
            self._hold_blocks(before)
            raise
        self._hold_blocks(config)

    def _spread_acks(self) -> None:
        local = self._config.local
        sockets = self.sockets.spread_over(local)
        if sockets:
            from .ack_workers import AckWorkers

            self.acks.workers = AckWorkers(self, sockets, local, self.take_acks)

    def _start_engine(self) -> None:
        """From what was saved. Raises StoreError."""
        with undisturbed():
            saved = self._load()
            try:
                actions = self.engine.start(self.clock.now(), saved)
            except (KeyError, ValueError, TypeError) as error:
                raise self._unreadable(error) from error
        self._carry_out(actions)

    @property
    def trouble(self) -> str | None:
        """Why the state cannot be saved, while that is so."""
        return self.store_failure or self.acks.failure

    @property
    def role(self) -> tuple[bool, int]:
        """Whether this one rekeys, and the fence it leads under."""
        return True, 0

    def pages(self) -> Sequence[WebServer]:
        """Not needed by others: h11 and the metrics' library are loaded only where they are."""
        settings, pages = self._config.settings, []
        if settings.metrics is None and settings.status_page is None:
            return ()
        from .survey import Surveyor
        from .web import WebServer

        surveyor = Surveyor(self.engine)
        if settings.metrics is not None:
            from .metrics_gcks import metrics

            answer = metrics(self, EVENTS, surveyor)
            place, group = settings.metrics, settings.scrapers
            pages.append(WebServer("metrics", place, answer, self.trace_page, group=group))
        if settings.status_page is not None:
            from .status_page import StatusPage

            shown = StatusPage(self, surveyor).answer
            pages.append(WebServer("status page", settings.status_page, shown, self.trace_page))
        return pages

    def reload(self, *, dry_run: bool = False, replace_old: bool = False) -> Proposal:
        """Reads the file again and does what it says, or only says so. Raises DaemonError, and
        then nothing has changed."""
        proposal = propose(self._config, self.engine, self.clock.now())
        if not dry_run:
            self._change(proposal, replace_old=replace_old)
        return proposal

    def _change(self, proposal: Proposal, *, replace_old: bool) -> None:
        now = self.clock.now()
        if self.store_failure is not None:
            raise StoreError(f"the state cannot be saved: {self.store_failure}")
        saved = self._load() if proposal.adds_groups else {}
        with self._changing_blocks(proposal.config):
            try:
                actions = self.engine.reconfigure(
                    proposal.config.groups, saved, now, replace_old=replace_old
                )
            except (KeyError, ValueError, TypeError) as error:
                raise self._unreadable(error) from error
            self._take(proposal)
        self._carry_out([proposal.told(), *actions])

    def _take(self, proposal: Proposal) -> None:
        self._config = proposal.config
        self._report_crls()
        self.engine.isakmp.sessions.dpd = proposal.config.dpd
        self._watch_charon()

    def _hung_up(self) -> None:
        """SIGHUP. Nobody waits for an answer, so the log has it."""
        with self.reloading():
            try:
                self.reload()
            except DaemonError as error:
                self.perform([Event("config-refused", {"error": str(error)}, "error")])

    def _unreadable(self, error: Exception) -> StoreError:
        where = self._config.settings.state
        return StoreError(f"{where}: a saved group cannot be read: {error!r}")

    def end(self) -> None:
        """Phase 1 ends: no SA survives in the store. Members keep what they have."""
        self.acks.flush()
        self.perform(self.engine.stop())

    def close(self) -> None:
        if self._links is not None:
            self._links.close()
        if self._ike is not None:
            self._ike.close()
        if self._blocks is not None:
            self._blocks.close()
        self._signers.close()
        self.acks.close()
        self._close_state()

    def _link_changed(self, _: frozenset[int]) -> None:
        """Rekeys go on over an interface that was made again."""
        local = self._config.local
        # Without its address the next change is waited for, and what cannot be sent is told.
        with suppress(OSError):
            self.sockets.aim(local, self._config.interface)

    def deadline(self) -> float | None:
        return self.engine.deadline

    def tick(self, now: float) -> None:
        self.acks.flush()
        self._carry_out(self.engine.tick(now))

    def receive(self, datagram: bytes, source: Peer, arrived: Peer) -> None:
        actions = self.engine.receive(datagram, source, arrived, self.clock.now())
        if self.SAVES_TURNS and self.sockets.in_turn:
            self._turn += actions
        else:
            self._carry_out(actions)

    def turn_over(self) -> None:
        if not self._turn:
            return
        try:
            self._carry_out(())
        except Exception as error:  # noqa: BLE001  (as with every datagram)
            self.met_bug(self._config.local, error)

    def first(self, datagram: bytes, source: Peer, arrived: Peer) -> bytes | None:
        """Message 2, or None. It has left no trace and promises nothing: no store is asked."""
        try:
            answer = self.engine.first(datagram, source, arrived, self.clock.now())
        except Exception as error:  # noqa: BLE001  (as with every datagram)
            self.met_bug(source, error)
            return None
        if isinstance(answer, bytes):
            return answer
        self._carry_out(answer)
        return None

    def take_acks(
        self,
        datagrams: Sequence[bytes],
        endpoints: Sequence[bytes],
        arrived: Peer,
        claims: Sequence[Claim] = (),
    ) -> None:
        """Many at a time; ``endpoints``: where each comes from, ``claims``: what other processes
        have found out about them."""
        self.acks.take(datagrams, endpoints, arrived, claims)

    def _carry_out(self, actions: Sequence[Action]) -> None:
        """After what the datagrams before have led to."""
        actions, self._turn = [*self._turn, *actions], []
        self.acks.expect(actions)
        for action in self.perform(actions):
            if self._ike is not None and isinstance(action, AskIke):
                self._ike.ask()
            elif self._ike is not None and isinstance(action, EndIke):
                self._ike.end(action.identities)
            elif self._ike is not None and isinstance(action, KeepIke):
                self._ike.keep(action.identities)
        self.engine.sent(self.clock.now())
        self.acks.save_soon()

    def status(self) -> str:
        groups = self.engine.groups.values()
        members = sum(len(group.members) for group in groups)
        return f"{len(groups)} groups, {members} members"

    def persist(self, records: Sequence[Persist]) -> None:
        self._store.save(records)
        self._mark.note(records)


def _make(arguments: argparse.Namespace) -> Shell | None:
    config = KeyServerDaemonConfig(arguments.config)
    if config.settings.netns is not None:
        enter(config.path, "key_server.netns", config.settings.netns)
    if arguments.rotate_master_key is not None:
        print(rotated(config, arguments.rotate_master_key))
        return None
    if arguments.seal:
        print(sealed(config))
        return None
    if arguments.check:
        config.settings.key(config.path, os.environ)
        print(f"{arguments.config}: {len(config.groups)} groups, address {config.local}")
        return None
    log = open_log(config.settings.log, arguments.log_level, "gdoi-gcks")
    keylog = None if arguments.keylog is None else KeyLogFile(arguments.keylog)
    if config.settings.database is not None:
        # Not needed by others, and not installed for them.
        from .gcks_shared import SharedKeyServerDaemon

        return SharedKeyServerDaemon(config, log, keylog)
    return KeyServerDaemon(config, log, keylog)


def rotated(config: KeyServerDaemonConfig, file: Path) -> str:
    """Every key in the database under another master key. What to do next.

    Raises StoreError, also where a key server is using the file.
    """
    new = read_master_key(file)
    old = config.settings.key(config.path, os.environ)
    with closing(Store(config.settings.place(config.path), old)) as store:
        count = store.rotate(new)
        name = store.database.name
    now = f"{name}: {count} rows sealed with master key {new.name}"
    return f"{now}; it is to be in place of the former one before gdoi-gcks starts"


def sealed(config: KeyServerDaemonConfig) -> str:
    """Every key in a database that was not sealed, under the master key. What was done.

    Raises StoreError.
    """
    key = config.settings.key(config.path, os.environ)
    if key is None:
        raise StoreError("there is no master key to seal with: set key_server.master_key")
    with closing(Store(config.settings.place(config.path), key, clear=True)) as store:
        return f"{store.database.name}: {store.sealed} rows sealed with master key {key.name}"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rotate-master-key",
        type=Path,
        metavar="FILE",
        help="seal the keys in the database with the master key in FILE, and exit",
    )
    parser.add_argument(
        "--seal",
        action="store_true",
        help="seal the keys in a database that is not sealed yet with the master key, and exit",
    )


def main() -> int:
    return run_daemon("gdoi-gcks", DEFAULT_CONFIG, _make, options)
