"""tcpdump on the bridge, known to be capturing when it starts and to have lost nothing at the end.

Known by markers: a frame with a local experimental ethertype and a random body, sent on the bridge
itself. When the marker is in the file, so is everything before it.
"""

import re
import secrets
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from gdoi_lab.errors import LabError
from gdoi_lab.waiting import wait_until

MARKER_ETHERTYPE = 0x88B5  # IEEE 802: local experimental
BUFFER_KB = 32768
MARKER_LIMIT = 90.0  # seconds until a marker is in the file

_DROPPED = re.compile(r"^(\d+) packets? dropped by kernel$", re.MULTILINE)
_CAPTURED = re.compile(r"^(\d+) packets? captured$", re.MULTILINE)


class _Process(Protocol):
    @property
    def running(self) -> bool: ...
    def signal(self, number: int) -> None: ...
    def wait(self, timeout: float) -> int: ...
    def log_text(self) -> str: ...


class _Place(Protocol):
    """What a capture needs of a namespace."""

    def popen(self, argv: Sequence[str], log: Path) -> _Process: ...
    def socket(self, family: int, kind: int) -> socket.socket: ...


class Capture:
    """One tcpdump; `start` and `stop`, or a context manager."""

    def __init__(self, place: _Place, interface: str, path: Path, work: Path) -> None:
        self.path = path
        self.packets = 0
        self._place = place
        self._interface = interface
        self._log = work / f"{path.stem}.tcpdump.log"
        self._process: _Process | None = None

    def __enter__(self) -> "Capture":
        if self._process is None:
            self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.stop()

    def start(self) -> None:
        """Start tcpdump and wait until it captures."""
        argv = ["tcpdump", "-i", self._interface, "-n", "-U", "-s", "0", "-B", str(BUFFER_KB)]
        # -Z root: the file's folder is root's, and Debian's tcpdump would become another user.
        argv += ["-Z", "root", "-w", str(self.path)]
        self._log.unlink(missing_ok=True)
        self._process = self._place.popen(argv, self._log)
        process = self._process
        wait_until(
            lambda: "listening on" in process.log_text() or not process.running,
            MARKER_LIMIT,
            "tcpdump to listen",
        )
        if not process.running:
            raise LabError(f"tcpdump did not start: {process.log_text().strip()}")
        self._mark()

    def stop(self) -> int:
        """End the capture; return the packets in it. LabError if the kernel dropped any."""
        process = self._process
        if process is None:
            return self.packets
        self._process = None
        if not process.running:
            raise LabError(f"tcpdump ended by itself: {process.log_text().strip()}")
        self._process = process
        self._mark()
        self._process = None
        process.signal(signal.SIGINT)
        process.wait(MARKER_LIMIT)
        said = process.log_text()
        captured, dropped = _CAPTURED.search(said), _DROPPED.search(said)
        if captured is None or dropped is None:
            raise LabError(f"tcpdump did not say what it captured: {said.strip()}")
        if int(dropped[1]):
            raise LabError(f"the capture {self.path} lacks {dropped[1]} packets: dropped by kernel")
        self.packets = int(captured[1])
        return self.packets

    def _mark(self) -> None:
        body = secrets.token_bytes(46)
        frame = b"\xff" * 6 + b"\x02" + b"\0" * 5 + MARKER_ETHERTYPE.to_bytes(2, "big") + body
        seen = self.path.stat().st_size if self.path.exists() else 0
        with self._place.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind((self._interface, 0))
            sock.send(frame)

        def marked() -> bool:
            with self.path.open("rb") as file:
                file.seek(max(0, seen - len(frame)))
                return body in file.read()

        wait_until(marked, MARKER_LIMIT, "the capture to show its marker")
