"""Multicast traffic with an exact account: who sent what, and what arrived, twice, late or never.

`Traffic` has a talker on each host: it sends numbered datagrams at a steady rate and receives
everybody else's. All talkers to a group are one process, with a socket in each host's namespace
(``gdoi_lab.talkers``): in the lab kernel a process is dear.

A datagram the kernel refused to send (EPERM, EAGAIN, ENOBUFS, ...) is not sent: its number goes to
the next, so numbers on the wire have no gaps but those of lost packets.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from gdoi_lab.checkout import PYTHON
from gdoi_lab.errors import LabError
from gdoi_lab.net import Host, Process
from gdoi_lab.waiting import wait_until

DEFAULT_RATE = 200.0
DEFAULT_SIZE = 200
QUIET = 0.5  # seconds without a datagram that end the drain
DRAIN_LIMIT = 30.0
READY_LIMIT = 120.0
_SOURCE_SPECIFIC = ip_network("232.0.0.0/8")


@dataclass(frozen=True, slots=True)
class Talker:
    """What one talker is told. With `sources` (IPv4) it hears these senders only."""

    name: str
    namespace: str
    id: int
    address: str
    interface: str
    group: str
    port: int
    rate: float
    size: int
    report: str
    sources: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Gap:
    """Numbers `first` to `last` missing, between what came before and after (receiver's clock)."""

    first: int
    last: int
    after: float | None
    before: float | None

    @property
    def count(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Received:
    """What one receiver had from one sender."""

    distinct: int
    duplicates: int
    reordered: int
    first: int
    last: int
    first_at: float
    last_at: float
    max_delay: float
    gaps: list[Gap]


@dataclass(frozen=True, slots=True)
class SendError:
    errno: str
    count: int
    first_at: float
    last_at: float


@dataclass(frozen=True, slots=True)
class Report:
    """One member's account. `sent_at` pairs a number with its time, about once a second."""

    id: int
    address: str
    group: str
    sent: int
    sent_at: list[tuple[int, float]]
    send_errors: list[SendError]
    received: dict[int, Received]
    foreign: int
    socket_drops: int

    @property
    def refused(self) -> int:
        """Datagrams the kernel did not take."""
        return sum(error.count for error in self.send_errors)

    @classmethod
    def load(cls, path: Path) -> "Report":
        raw: dict[str, Any] = json.loads(path.read_text())
        received = {
            int(sender): Received(**{**part, "gaps": [Gap(**gap) for gap in part["gaps"]]})
            for sender, part in raw["received"].items()
        }
        return cls(
            **{
                **raw,
                "sent_at": [(number, at) for number, at in raw["sent_at"]],
                "send_errors": [SendError(**error) for error in raw["send_errors"]],
                "received": received,
            }
        )


@dataclass(frozen=True, slots=True)
class Delivery:
    """One sender's packets at one receiver, judged with both accounts."""

    sender: str
    receiver: str
    sent: int
    received: int
    duplicates: int
    reordered: int
    gaps: list[Gap]

    @property
    def lost(self) -> int:
        return self.sent - self.received


class Traffic:
    """A talker on each host: `start`, `stop`, `finish`; sender ids count from 1."""

    def __init__(
        self,
        hosts: Sequence[Host],
        group: str,
        port: int,
        work: Path,
        *,
        rate: float = DEFAULT_RATE,
        size: int = DEFAULT_SIZE,
    ) -> None:
        self._hosts = list(hosts)
        self._group, self._port = group, port
        self._rate, self._size = rate, size
        self._work = work
        self._process: Process | None = None
        self.ids = {host.name: number for number, host in enumerate(hosts, start=1)}

    def open(self) -> None:
        """Start the process; returns when all have joined the group."""
        self._work.mkdir(parents=True, exist_ok=True)
        log, told = self._work / "talkers.log", self._work / "talkers.json"
        log.unlink(missing_ok=True)
        for host in self._hosts:
            self._report_path(host.name).unlink(missing_ok=True)
        told.write_text(json.dumps([asdict(self._talker(host)) for host in self._hosts]))
        argv = [PYTHON, "-m", "gdoi_lab.talkers", str(told)]
        self._process = self._hosts[0].popen(argv, log, stdin=True)
        self._await("ready", self._process)

    def start(self, *names: str) -> None:
        """Start sending at the named hosts, or at all."""
        self._tell("start", "started", names)

    def stop(self, *names: str) -> None:
        """Stop sending at the named hosts, or at all; receiving goes on."""
        self._tell("stop", "stopped", names)

    def finish(self) -> dict[str, Report]:
        """Stop all senders, then let all receivers drain and write; the reports by host name."""
        self.stop()
        process = self._opened()
        process.write_line("finish")
        status = process.wait(DRAIN_LIMIT + READY_LIMIT)
        if status != 0:
            raise LabError(f"traffic to {self._group} failed: {process.log_text().strip()[-500:]}")
        names = [host.name for host in self._hosts]
        return {name: Report.load(self._report_path(name)) for name in names}

    def _talker(self, host: Host) -> Talker:
        others: list[str] = []
        if ip_address(self._group) in _SOURCE_SPECIFIC:
            others = [other.address4 for other in self._hosts if other is not host]
        return Talker(
            name=host.name,
            namespace=host.namespace,
            id=self.ids[host.name],
            address=host.address6 if ip_address(self._group).version == 6 else host.address4,
            interface=host.interface,
            group=self._group,
            port=self._port,
            rate=self._rate,
            size=self._size,
            report=str(self._report_path(host.name)),
            sources=others,
        )

    def _report_path(self, name: str) -> Path:
        return self._work / f"{name}.json"

    def _opened(self) -> Process:
        if self._process is None:
            raise LabError("open() comes first")
        return self._process

    def _tell(self, word: str, said: str, names: Sequence[str]) -> None:
        process = self._opened()
        before = _lines(process, said)
        process.write_line(" ".join([word, *(names or self.ids)]))
        self._await(said, process, before)

    def _await(self, word: str, process: Process, before: int = 0) -> None:
        wait_until(
            lambda: _lines(process, word) > before or not process.running,
            READY_LIMIT,
            f"traffic to {self._group} to be {word}",
            interval=0.02,
        )
        if not process.running:
            raise LabError(f"traffic to {self._group} ended: {process.log_text().strip()[-500:]}")


def deliveries(reports: Mapping[str, Report]) -> list[Delivery]:
    """Every (sender, receiver) pair's account, with the losses before the first and after the
    last packet as gaps too; their open ends have no time."""
    pairs = []
    for sender_name, sender in reports.items():
        for receiver_name, receiver in reports.items():
            if sender_name == receiver_name:
                continue
            pairs.append(_delivery(sender_name, sender, receiver_name, receiver))
    return pairs


def _delivery(sender_name: str, sender: Report, receiver_name: str, receiver: Report) -> Delivery:
    got = receiver.received.get(sender.id)
    if got is None:
        gaps = [Gap(0, sender.sent - 1, None, None)] if sender.sent else []
        return Delivery(sender_name, receiver_name, sender.sent, 0, 0, 0, gaps)
    gaps = list(got.gaps)
    if got.first > 0:
        gaps.insert(0, Gap(0, got.first - 1, None, got.first_at))
    if got.last < sender.sent - 1:
        gaps.append(Gap(got.last + 1, sender.sent - 1, got.last_at, None))
    return Delivery(
        sender_name,
        receiver_name,
        sender.sent,
        got.distinct,
        got.duplicates,
        got.reordered,
        gaps,
    )


def _lines(process: Process, word: str) -> int:
    return process.log_text().splitlines().count(word)
