"""What both daemons share: actions become I/O, timers become ticks, signals become a clean stop.

No protocol decision is taken here.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, cast

from .. import __version__
from ..protocol.actions import Action, Drop, Dropped, Event, KeyLog, Peer, Persist, Send
from .charon.trust import CharonTrust, follow_trust
from .clock import SteadyClock
from .control import ControlServer, Trigger, to_message
from .errors import BugError, DaemonError, StartError, StoreError
from .journal import Journal, is_stderr
from .keylog import KeyLogFile
from .log import LEVELS, Log
from .notify import Notifier
from .tasks import ended
from .udp import UdpSockets

if TYPE_CHECKING:
    from .web import WebServer

# The loop's own timers stand still while the machine sleeps, lifetimes do not: seconds until that
# is noticed.
LONGEST_WAIT = 5.0
# Seconds after which a store that fails is left alone for as long as it took: a database that is
# locked, or does not answer, would hold up whatever else there is to do, with each datagram anew.
SLOW_FAILURE = 1.0
# Seconds between two looks at what the service manager shows of the daemon.
STATUS_EVERY = 5.0
# So many datagrams of one step are worth a table, and one system call for all of them.
FEW = 8

_told = attrgetter("told")


class Shell(ABC):
    """A running daemon. Subclasses own the engine."""

    def __init__(self, log: Log, keylog: KeyLogFile | None) -> None:
        self.log = log
        self.clock = SteadyClock()
        self.sockets = UdpSockets(self.received, self._refused, self.turn_over)
        # Why the store cannot be written, while that is so.
        self.store_failure: str | None = None
        self.notifier = Notifier.of(os.environ)
        self._status_at = 0.0
        self._keylog = keylog
        self._unsaved: dict[Hashable, Persist] = {}
        # Datagrams that nobody says again, until their step is saved.
        self._held: list[Send] = []
        self._store_rests_until = 0.0
        self._begun = False
        self._trusted: dict[Path, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()
        self._failure: DaemonError | None = None
        self._pages: list[WebServer] = []

    # -- what a daemon supplies ------------------------------------------------------------------

    @property
    @abstractmethod
    def control(self) -> ControlServer: ...

    @abstractmethod
    def begin(self) -> None:
        """Binds sockets and starts the engine. Raises DaemonError."""

    @abstractmethod
    def end(self) -> None:
        """The engine's last words, before the sockets close."""

    @abstractmethod
    def close(self) -> None:
        """Store and kernel; also where ``begin`` failed."""

    @abstractmethod
    def deadline(self) -> float | None: ...

    @abstractmethod
    def tick(self, now: float) -> None: ...

    @abstractmethod
    def receive(self, datagram: bytes, source: Peer, arrived: Peer) -> None: ...

    def turn_over(self) -> None:  # noqa: B027 -- not every daemon waits for it
        """All datagrams that have waited at one socket are received."""

    @abstractmethod
    def persist(self, records: Sequence[Persist]) -> None:
        """Durable when it returns. Raises StoreError."""

    def pages(self) -> Sequence[WebServer]:
        """What is there to be read, once the engine has begun."""
        return ()

    def status(self) -> str:
        """How it is, in one line; asked for every few seconds."""
        return "running"

    def time_of_day(self, moment: float | None) -> float | None:
        """For people, who see the daemon's times beside their own clock."""
        return None if moment is None else self.clock.time_of_day(moment)

    def left(self, send: Send) -> None:  # noqa: B027 -- not every daemon counts
        """This datagram, which has something to tell, has left; for engines that count them."""

    # -- actions ---------------------------------------------------------------------------------

    def perform(self, actions: Sequence[Action]) -> list[Action]:
        """Persists first, all in one; then the rest in order. Returns what only the daemon can do.

        Where the store fails, nothing is sent and nobody is told of anything, in this step and in
        later ones, until it holds all that it was ever given: a delayed ACK or a repeated answer
        must not promise what an earlier step failed to save. What is said only once waits until
        then; peers ask again for the rest. Raises StoreError in ``begin``.
        """
        self._wake.set()
        runs = [(kind, list(run)) for kind, run in groupby(actions, type)]
        kinds = {kind for kind, _ in runs}
        saved = True
        if Persist in kinds or (self._unsaved and Send in kinds):
            saved = self._save([action for action in actions if isinstance(action, Persist)])
        remaining: list[Action] = []
        for kind, run in runs:
            if kind is Send:
                sends = cast(list[Send], run)
                if saved:
                    self._send(sends)
                else:
                    self._held += [send for send in sends if send.once]
            elif kind is not Persist:
                remaining += [
                    action for action in run if not self._carried_out(action, saved=saved)
                ]
        return remaining

    def _carried_out(self, action: Action, *, saved: bool) -> bool:
        """False for what is the daemon's."""
        if isinstance(action, Dropped):
            self.log.dropped(action.reason, action.peer, action.detail, self.clock.now())
        elif isinstance(action, Event):
            if saved:
                self._tell(action)
        elif isinstance(action, KeyLog):
            self._log_key(action)
        else:
            return False
        return True

    def _save(self, records: Sequence[Persist]) -> bool:
        """With what could not be saved before; True when nothing is left unsaved."""
        for persist in records:
            slot = persist.slot
            self._unsaved.pop(slot, None)  # the newest last: it is to win in the store
            self._unsaved[slot] = persist
        if not self._unsaved:
            return True
        begun = monotonic()
        if begun < self._store_rests_until:
            return False
        try:
            self.persist(list(self._unsaved.values()))
        except StoreError as error:
            if not self._begun:
                raise
            took = monotonic() - begun
            if took > SLOW_FAILURE:
                self._store_rests_until = begun + 2 * took
            if self.store_failure is None:
                self.log.event("error", "store-failed", {"error": str(error)})
            self.store_failure = str(error)
            return False
        self._unsaved.clear()
        if self.store_failure is not None:
            self.store_failure = None
            self.log.event("info", "store-recovered", {})
        if self._held:
            held, self._held = self._held, []
            self._send(held)
        return True

    def _send(self, sends: list[Send]) -> None:
        if len(sends) < FEW:
            refused = [failure for send in sends if (failure := self._send_one(send))]
        else:
            refused = self.sockets.send_many(sends)
        for send, error in refused:
            # A forged source address can make this happen at will.
            fields = {"to": str(send.destination), "error": error.strerror or str(error)}
            self.log.limited("warning", "send-failed", "send-failed", fields, self.clock.now())
        if any(map(_told, sends)):
            lost = {id(send) for send, _ in refused}
            for send in sends:
                if send.told is not None and id(send) not in lost:
                    self.left(send)
                    self._tell(send.told)

    def _send_one(self, send: Send) -> tuple[Send, OSError] | None:
        try:
            self.sockets.send(send.datagram, send.destination, send.source)
        except OSError as error:
            return send, error
        return None

    def _log_key(self, action: KeyLog) -> None:
        if self._keylog is None:
            return
        try:
            self._keylog.write(action.cky_i, action.encryption_key)
        except OSError as error:
            fields = {"error": error.strerror or str(error)}
            self.log.limited("error", "keylog-failed", "keylog", fields, self.clock.now())

    def _tell(self, action: Event) -> None:
        self.log.event(action.level, action.name, action.fields)
        if self.control.listened(action.name):
            self.control.emit(action.name, to_message(dict(action.fields)))

    def bind_nat(self, local: Peer | None) -> bool:
        """The endpoint of NAT traversal; without it (an IKE daemon may have the port) all but that
        works."""
        if local is None:
            return False
        try:
            self.sockets.bind_encapsulated(local)
        except StartError as error:
            hint = "no NAT traversal: set nat_port to another port, or nat_traversal = false"
            fields = {"error": str(error), "hint": hint}
            self.log.event("warning", "nat-traversal-off", fields)
            return False
        return True

    def trace_control(self, trigger: Trigger, detail: str) -> None:
        """For the control server: a bug in a command is no detail for debugging."""
        level = "error" if trigger is Trigger.HANDLER_FAILED else "debug"
        self.log.event(level, "control", {"trigger": str(trigger), "detail": detail})

    def trace_page(self, trigger: Trigger, detail: str) -> None:
        """For web servers: of their clients nobody need hear, of a bug everybody."""
        if trigger is Trigger.HANDLER_FAILED:
            fields = {"detail": detail}
            self.log.limited("error", "page-failed", "page", fields, self.clock.now())

    def watch_trust(self, trust: CharonTrust | None) -> None:
        """While the daemon runs: what charon has of CRLs. Also at a reload."""
        if trust is None or trust.path in self._trusted:
            return
        task = asyncio.get_running_loop().create_task(follow_trust(trust, self._tell_trust))
        task.add_done_callback(ended)
        self._trusted[trust.path] = task

    def _tell_trust(self, fields: dict[str, object]) -> None:
        if "error" in fields:
            self.log.event("error", "charon-trust-lost", fields)
        else:
            self.log.event("info", "charon-trust", fields)

    def crl_unreadable(self, problem: str) -> None:
        """What it held before stays in force."""
        self.log.event("error", "crl-unreadable", {"error": problem})

    # -- bugs ------------------------------------------------------------------------------------

    def received(self, datagram: bytes, source: Peer, arrived: Peer) -> None:
        """A datagram that meets a bug is logged and counted, and the daemon goes on.

        Engines decode and check before they change anything, so what raised has most likely changed
        nothing; and anybody may send datagrams: if one could end the daemon, whoever found it
        could keep a whole group from ever being rekeyed again. Everywhere else a bug ends the
        daemon (:meth:`run`): nobody outside chooses when, and a restart begins from saved state.
        """
        try:
            self.receive(datagram, source, arrived)
        except Exception as error:  # noqa: BLE001  (see above)
            self.met_bug(source, error)

    def met_bug(self, source: Peer, error: Exception) -> None:
        self.log.drops["bug"] += 1
        fields = {"peer": str(source), **_bug_fields(error)}
        self.log.limited("error", "bug", "bug", fields, self.clock.now())

    def _refused(self, source: Peer, detail: str) -> None:
        self.perform([Dropped(Drop.NOT_ISAKMP, source, detail)])

    def _unexpected(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What a callback or task of the loop raised, and asyncio alone would only print."""
        error = context.get("exception")
        message = str(context.get("message"))
        if error is None or (isinstance(error, OSError) and "task" not in context):
            # The host lacks something, file descriptors say; asyncio tries again.
            fields = {"message": message, "error": str(error)}
            self.log.limited("error", "loop", "loop", fields, self.clock.now())
            return
        self._failure = self._bug(error)
        self._stop.set()

    def _bug(self, error: BaseException) -> BugError:
        self.log.event("error", "bug", _bug_fields(error))
        return BugError(f"stopped by a bug, {type(error).__name__}; the log says where")

    # -- life ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises DaemonError where it cannot start, or not go on.

        The order of a stop: timers, the engine's last datagrams, UDP sockets, control socket, and
        when nothing can come in any more, store and kernel.
        """
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._unexpected)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        try:
            warning = await self.control.start()
            if warning is not None:
                self.log.event("warning", "control-group", {"error": warning})
            self.begin()
            await self._open_pages()
            self._begun = True
            self.log.event("info", "started", {"version": __version__, "pid": os.getpid()})
            self.notifier.ready(self._line_of_status())
            await self._timers()
            self.notifier.stopping()
            if self._failure is None:
                self._store_rests_until = 0.0  # the last chance
                self.end()
        except DaemonError:
            raise
        except Exception as error:  # noqa: BLE001  (logged, and the end of the daemon)
            self._failure = self._bug(error)
        finally:
            for task in self._trusted.values():
                task.cancel()
            self.sockets.close()
            for page in self._pages:
                await page.close()
            await self.control.close()
            self.close()
            if self._keylog is not None:
                self._keylog.close()
            if self._begun:
                self.log.event("info", "stopped", {})
            self.log.close()
        if self._failure is not None:
            raise self._failure

    async def _open_pages(self) -> None:
        """A group goes on without: the log says that nobody can read them."""
        for page in self.pages():
            try:
                warning = await page.start()
            except StartError as error:
                self.log.event("error", "not-served", {"error": str(error)})
                continue
            self._pages.append(page)
            if warning is not None:
                self.log.event("warning", "control-group", {"error": warning})

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """SIGHUP. Also a reload that is refused is over after it, and the daemon as ready as
        before."""
        self.notifier.reloading()
        try:
            self._reopen_log()
            yield
        finally:
            self.notifier.ready(self._line_of_status())

    def _reopen_log(self) -> None:
        try:
            self.log.reopen()
        except OSError as error:
            self.log.event("error", "log-not-reopened", {"error": error.strerror or str(error)})

    def _line_of_status(self) -> str:
        if self.store_failure is not None:
            return f"nothing can be saved: {self.store_failure}"
        return self.status()

    def _signs_of_life(self) -> float:
        """To the service manager; seconds until the next. Where timers or the loop hang there are
        none."""
        now = monotonic()
        if self._status_at <= now:
            self._status_at = now + STATUS_EVERY
            self.notifier.status(self._line_of_status())
        return min(self._status_at - now, self.notifier.alive() or STATUS_EVERY)

    async def _timers(self) -> None:
        """Ticks at every deadline until told to stop."""
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            while not stopped.done():
                self._wake.clear()
                self.log.report(self.clock.now())
                woken = asyncio.ensure_future(self._wake.wait())
                deadline = self.deadline()
                delay = self._signs_of_life() if self.notifier.listened else None
                if deadline is not None:
                    left = max(0.0, deadline - self.clock.now())
                    delay = min(left, LONGEST_WAIT, delay or LONGEST_WAIT)
                await asyncio.wait(
                    (stopped, woken), timeout=delay, return_when=asyncio.FIRST_COMPLETED
                )
                woken.cancel()
                # What waits in the sockets comes first: after a pause of the whole process an ACK
                # lies there that the tick would call missing. One turn polls, the next one reads.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                if not stopped.done() and deadline is not None:
                    now = self.clock.now()
                    if deadline <= now:
                        self.tick(now)
        finally:
            stopped.cancel()


def _bug_fields(error: BaseException) -> dict[str, object]:
    """Type, text and places: no lines with values, no chain of causes, they may quote keys."""
    places = [
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    return {"error": f"{type(error).__name__}: {error}", "where": places}


def run_daemon(
    program: str,
    default_config: Path,
    make: Callable[[argparse.Namespace], Shell | None],
    more: Callable[[argparse.ArgumentParser], None] = lambda _: None,
) -> int:
    """The main function of both daemons: arguments, one sentence on failure, exit code."""
    arguments = argument_parser(program, default_config, more).parse_args()
    try:
        shell = make(arguments)
        if shell is None:
            return 0
        settle()
        asyncio.run(shell.run())
    except KeyboardInterrupt:  # before the loop has its own handler
        return 130
    except DaemonError as error:
        Notifier.of(os.environ).failed(str(error))
        print(f"{program}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def argument_parser(
    program: str, default_config: Path, more: Callable[[argparse.ArgumentParser], None]
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program)
    parser.add_argument(
        "--config", type=Path, default=default_config, help=f"TOML file ({default_config})"
    )
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    parser.add_argument(
        "--keylog",
        type=Path,
        help="append phase-1 keys for Wireshark (ikev1_decryption_table); for laboratories only",
    )
    parser.add_argument(
        "--log-level",
        choices=list(LEVELS),
        default="info",
        help="what is less severe is not written (info)",
    )
    parser.add_argument("--version", action="version", version=f"{program} {__version__}")
    more(parser)
    return parser


def settle() -> None:
    """Modules and configuration are there to stay: to look at all of them again, as collections of
    garbage do now and then, would hold up a datagram for tens of milliseconds."""
    gc.collect()
    gc.freeze()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Much is made that is there to stay: looking for garbage in it would take as long again."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def open_log(path: Path | Literal["journal"] | None, level: str, program: str = "gdoi") -> Log:
    """Without a path: to the journal where systemd has started us so, else to standard error."""
    if path == "journal" or (path is None and is_stderr()):
        return Log(sys.stderr, level, Journal(program))
    try:
        return Log.open(path, level)
    except OSError as error:
        raise StartError(f"log {path}: {error.strerror}") from error
