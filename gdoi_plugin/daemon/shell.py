"""What both daemons share: actions become I/O, timers become ticks, signals become a clean stop.

No protocol decision is taken here.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

from .. import __version__
from ..protocol.actions import Action, Dropped, Event, KeyLog, Peer, Persist, Send
from .clock import SteadyClock
from .control import ControlServer, to_message
from .errors import DaemonError, StartError, StoreError
from .keylog import KeyLogFile
from .log import LEVELS, Log
from .udp import UdpSockets


class Shell(ABC):
    """A running daemon. Subclasses own the engine."""

    def __init__(self, log: Log, keylog: KeyLogFile | None) -> None:
        self.log = log
        self.clock = SteadyClock()
        self.sockets = UdpSockets(self._received)
        self._keylog = keylog
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()
        self._failure: DaemonError | None = None

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
    def deadline(self) -> float | None: ...

    @abstractmethod
    def tick(self, now: float) -> None: ...

    @abstractmethod
    def receive(self, datagram: bytes, source: Peer, arrived: Peer) -> None: ...

    @abstractmethod
    def persist(self, records: Sequence[Persist]) -> None:
        """Durable when it returns. Raises StoreError."""

    # -- actions ---------------------------------------------------------------------------------

    def perform(self, actions: Sequence[Action]) -> list[Action]:
        """Persists first, all in one; then the rest in order. Returns what only the daemon can do.

        Where the store fails nothing of the step leaves the host.
        """
        records = [action for action in actions if isinstance(action, Persist)]
        if records:
            try:
                self.persist(records)
            except StoreError as error:
                self.log.event("error", "store-failed", {"error": str(error)})
                return []
        remaining: list[Action] = []
        for action in actions:
            if isinstance(action, Send):
                self._send(action)
            elif isinstance(action, Event):
                self._tell(action)
            elif isinstance(action, Dropped):
                peer, now = str(action.peer), self.clock.now()
                self.log.dropped(action.reason, peer, action.detail, now)
            elif isinstance(action, KeyLog):
                if self._keylog is not None:
                    self._keylog.write(action.cky_i, action.encryption_key)
            elif not isinstance(action, Persist):
                remaining.append(action)
        self._wake.set()
        return remaining

    def _send(self, action: Send) -> None:
        try:
            self.sockets.send(action.datagram, action.destination, action.source)
        except OSError as error:
            fields = {"to": str(action.destination), "error": error.strerror or str(error)}
            self.log.event("warning", "send-failed", fields)

    def _tell(self, action: Event) -> None:
        self.log.event(action.level, action.name, action.fields)
        self.control.emit(action.name, to_message(dict(action.fields)))

    def _received(self, datagram: bytes, source: Peer, arrived: Peer) -> None:
        self.receive(datagram, source, arrived)

    # -- life ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises DaemonError where it cannot start.

        The order of a stop: timers, the engine's last datagrams, control socket, UDP sockets.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        try:
            warning = await self.control.start()
            if warning is not None:
                self.log.event("warning", "control-group", {"error": warning})
            self.begin()
            self.log.event("info", "started", {"version": __version__, "pid": os.getpid()})
            await self._timers()
            self.end()
        finally:
            await self.control.close()
            self.sockets.close()
        self.log.event("info", "stopped", {})

    async def _timers(self) -> None:
        """Ticks at every deadline until told to stop."""
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            while not stopped.done():
                self._wake.clear()
                woken = asyncio.ensure_future(self._wake.wait())
                deadline = self.deadline()
                delay = None if deadline is None else max(0.0, deadline - self.clock.now())
                await asyncio.wait(
                    (stopped, woken), timeout=delay, return_when=asyncio.FIRST_COMPLETED
                )
                woken.cancel()
                if not stopped.done() and delay is not None:
                    now = self.clock.now()
                    if deadline is not None and deadline <= now:
                        self.tick(now)
        finally:
            stopped.cancel()


def run_daemon(
    program: str, default_config: Path, make: Callable[[argparse.Namespace], Shell | None]
) -> int:
    """The main function of both daemons: arguments, one sentence on failure, exit code."""
    parser = argparse.ArgumentParser(prog=program)
    parser.add_argument("--config", type=Path, default=default_config, help="TOML file")
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    parser.add_argument(
        "--keylog",
        type=Path,
        help="append phase-1 keys for Wireshark (ikev1_decryption_table); for laboratories only",
    )
    parser.add_argument("--log-level", choices=list(LEVELS), default="info")
    parser.add_argument("--version", action="version", version=f"{program} {__version__}")
    arguments = parser.parse_args()
    try:
        shell = make(arguments)
        if shell is None:
            return 0
        asyncio.run(shell.run())
    except DaemonError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def open_log(path: Path | None, level: str) -> Log:
    try:
        return Log.open(path, level)
    except OSError as error:
        raise StartError(f"log {path}: {error.strerror}") from error
