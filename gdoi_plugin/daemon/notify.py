"""What a service tells systemd about itself: sd_notify(3), its protocol alone.

Without NOTIFY_SOCKET all of it is silent, and nothing that fails here fails the daemon. While the
service manager's queue is full words are lost: what it waits for is said again, a status when it is
looked at next, and a lost watchdog's is the service manager's matter.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress

# Of WatchdogSec=, as sd_watchdog_enabled(3) advises: one that is late is not yet missed.
WATCHDOG_SHARE = 0.5
# Octets; what is shown of a unit is one line.
MAX_STATUS = 512


class Notifier:
    """``address``: a path, or ``@name`` of an abstract socket; None where nobody listens.
    ``watchdog``: seconds between two signs of life, None where nobody waits for them."""

    def __init__(self, address: str | None = None, watchdog: float | None = None) -> None:
        self.watchdog = watchdog
        self._address = address
        self._status = ""
        self._alive_at = 0.0
        # What has not been taken yet, the oldest first.
        self._owed: list[str] = []

    @property
    def listened(self) -> bool:
        return self._address is not None

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Notifier:
        address = environment.get("NOTIFY_SOCKET", "")
        if address[:1] not in ("/", "@") or len(address) < 2:
            return cls()
        return cls(address, _watchdog(environment))

    def ready(self, status: str) -> None:
        """It serves: after the start, and after each reload."""
        self._owe("READY=1")
        self._status = ""
        self.status(status)

    def reloading(self) -> None:
        self._owe(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        self._pay()

    def stopping(self) -> None:
        self._say("STOPPING=1\nSTATUS=stopping")

    def failed(self, error: str) -> None:
        """Why it ends; shown until it is started again."""
        self._say(f"STATUS={_line(error)}")

    def status(self, status: str) -> None:
        """Said only when it has changed, after what is owed. Call it every now and then."""
        line = _line(status)
        if self._pay() and line != self._status and self._say(f"STATUS={line}"):
            self._status = line

    def alive(self) -> float | None:
        """Call at least as often as it says: seconds until the next time, None for never."""
        if self.watchdog is None:
            return None
        now = time.monotonic()
        if now >= self._alive_at:
            self._alive_at = now + self.watchdog
            self._say("WATCHDOG=1")
        return self._alive_at - now

    def _owe(self, assignments: str) -> None:
        """Without READY a start or a reload would time out, and the daemon be killed. Of reloads
        that nobody has heard of the last is enough."""
        self._owed = [*self._owed, assignments][-2:]

    def _pay(self) -> bool:
        while self._owed and self._say(self._owed[0]):
            del self._owed[0]
        return not self._owed

    def _say(self, assignments: str) -> bool:
        if self._address is None:
            return True
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)  # a service manager that is stuck must not hold us up
                sock.sendto(assignments.encode(), address)
        except OSError:
            return False
        return True


def _watchdog(environment: Mapping[str, str]) -> float | None:
    """WATCHDOG_PID says whose signs of life are counted: not those of a program around us."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    with suppress(ValueError):
        microseconds = int(environment.get("WATCHDOG_USEC", ""))
        if microseconds > 0:
            return microseconds / 1e6 * WATCHDOG_SHARE
    return None


def _line(status: str) -> str:
    """Errors quote whatever a file holds; a line's end would begin another assignment."""
    printable = "".join(c if c.isprintable() else " " for c in status)
    return printable.encode(errors="replace")[:MAX_STATUS].decode(errors="ignore")
