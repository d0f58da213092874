"""Multicast traffic with an exact account: who sent what, and what arrived, twice, late or never.

One process per member sends numbered datagrams at a steady rate and receives everybody else's::

    python -m gdoi_lab.traffic --address 10.66.0.1 --group 239.192.1.1 --port 5000 \\
        --rate 200 --id 1 --report gm1.json

It reads lines: ``start`` and ``stop`` (sending; may be repeated), ``finish`` (stop sending, receive
until it has been quiet for a while, write the report, end; so do SIGTERM and the end of input). It
says ``ready``, ``started``, ``stopped``, ``done``. `Traffic` drives one such process per host.

A datagram the kernel refused to send (EPERM, EAGAIN, ENOBUFS, ...) is not sent: its number goes to
the next, so numbers on the wire have no gaps but those of lost packets.
"""

import argparse
import errno
import json
import os
import selectors
import signal
import socket
import struct
import sys
import time
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address, ip_network
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

from gdoi_lab.batches import BATCH, Incoming, Outgoing
from gdoi_lab.checkout import PYTHON
from gdoi_lab.errors import LabError
from gdoi_lab.net import Host, Process
from gdoi_lab.waiting import wait_until

# magic, sender, number, time sent (ns since 1970); then padding
_DATAGRAM = struct.Struct("!4sHIQ")
_MAGIC = b"gdtf"

DEFAULT_RATE = 200.0
DEFAULT_SIZE = 200
QUIET = 0.5  # seconds without a datagram that end the drain
DRAIN_LIMIT = 30.0
READY_LIMIT = 120.0
# Sending and receiving wait so long for each other, and for more to do at once. Seconds.
_TICK = 0.01
_IDLE = 0.05
_RECEIVE_BATCHES = 64  # before it is time to send again
_TTL = 8
# Some 100,000 datagrams: a receiver may have to wait long for the lab kernel's one processor.
_RECEIVE_BUFFER = 128 << 20
# Packets stay in it until the receiving kernel looks at them.
_SEND_BUFFER = 16 << 20
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_IP_ADD_SOURCE_MEMBERSHIP = 39
_IP_MULTICAST_ALL = 49
_IPV6_MULTICAST_ALL = 29
_SOURCE_SPECIFIC = ip_network("232.0.0.0/8")
_MILESTONE = 1.0  # seconds between the times a sender notes


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


class _Inbox:
    """Everything received from one sender."""

    def __init__(self) -> None:
        self.numbers = array("I")
        self.times = array("d")
        self.max_delay = 0.0

    def add(self, number: int, sent_ns: int, now: float) -> None:
        self.numbers.append(number)
        self.times.append(now)
        self.max_delay = max(self.max_delay, now - sent_ns / 1e9)

    def account(self) -> Received:
        at: dict[int, float] = {}
        duplicates = reordered = 0
        highest = -1
        for number, time_received in zip(self.numbers, self.times, strict=True):
            if number in at:
                duplicates += 1
                continue
            at[number] = time_received
            reordered += number < highest
            highest = max(highest, number)
        numbers = sorted(at)
        gaps = [
            Gap(one + 1, two - 1, at[one], at[two])
            for one, two in pairwise(numbers)
            if two != one + 1
        ]
        return Received(
            distinct=len(numbers),
            duplicates=duplicates,
            reordered=reordered,
            first=numbers[0],
            last=numbers[-1],
            first_at=at[numbers[0]],
            last_at=at[numbers[-1]],
            max_delay=self.max_delay,
            gaps=gaps,
        )


@dataclass(slots=True)
class _Refusal:
    count: int = 0
    first_at: float = 0.0
    last_at: float = 0.0


@dataclass(slots=True)
class _Sender:
    """Sends by absolute deadlines: being late once does not lower the rate."""

    out: Outgoing
    id: int
    rate: float
    sending: bool = False
    sent: int = 0
    milestones: list[tuple[int, float]] = field(default_factory=list)
    refusals: dict[str, _Refusal] = field(default_factory=dict)
    _began: float = 0.0
    _turns: int = 0

    def start(self) -> None:
        self.sending, self._began, self._turns = True, time.monotonic(), 0

    def wait(self) -> float:
        """Seconds until the next datagram is due."""
        return max(0.0, self._began + self._turns / self.rate - time.monotonic())

    def send_due(self) -> None:
        passed = time.monotonic() - self._began
        due = min(BATCH, int(passed * self.rate) + 1 - self._turns)
        self._turns += max(0, due)
        while due > 0:
            due -= self._send(due)

    def _send(self, count: int) -> int:
        """How many of them are done with: taken by the kernel, or the first one refused."""
        now_ns = time.time_ns()
        now = now_ns / 1e9
        numbers = range(self.sent, self.sent + count)
        try:
            taken = self.out.send([_DATAGRAM.pack(_MAGIC, self.id, n, now_ns) for n in numbers])
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, str(error.errno))
            refusal = self.refusals.setdefault(name, _Refusal(first_at=now))
            refusal.count += 1
            refusal.last_at = now
            return 1
        if not self.milestones or now - self.milestones[-1][1] >= _MILESTONE:
            self.milestones.append((self.sent, now))
        self.sent += taken
        return taken


class _Member:
    """The program: one socket that sends and receives, commands from standard input."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._sock = open_socket(
            options.address, options.group, options.port, options.interface, options.source
        )
        size = max(options.size, _DATAGRAM.size)
        out = Outgoing(self._sock, (options.group, options.port), size)
        self._sender = _Sender(out, options.id, options.rate)
        self._in = Incoming(self._sock)
        self._inboxes: dict[int, _Inbox] = {}
        self._foreign: Counter[str] = Counter()
        self._finishing: float | None = None
        self._last_received = time.monotonic()
        self._lines = b""

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ)
            _say("ready")
            while not self._over():
                if self._finishing is not None and selector.get_map():
                    selector.unregister(0)
                sender = self._sender
                timeout = max(_TICK, sender.wait()) if sender.sending else _IDLE
                if selector.select(timeout):
                    self._command()
                self._receive()
                if sender.sending:
                    sender.send_due()
        self._write()
        _say("done")

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._finish()

    def _over(self) -> bool:
        if self._finishing is None:
            return False
        now = time.monotonic()
        quiet = now - max(self._last_received, self._finishing)
        return quiet >= QUIET or now - self._finishing >= DRAIN_LIMIT

    def _command(self) -> None:
        data = os.read(0, 4096)
        if not data:
            self._finish()
            return
        *lines, self._lines = (self._lines + data).split(b"\n")
        for line in lines:
            if line == b"start":
                self._sender.start()
                _say("started")
            elif line == b"stop":
                self._sender.sending = False
                _say("stopped")
            elif line == b"finish":
                self._finish()

    def _finish(self) -> None:
        self._sender.sending = False
        if self._finishing is None:
            self._finishing = time.monotonic()

    def _receive(self) -> None:
        """All that is there, by the clock of now, where that is not without end."""
        for _ in range(_RECEIVE_BATCHES):
            now, received = time.time(), 0
            for data, origin in self._in.receive():
                received += 1
                self._take(data, origin, now)
            if received:
                self._last_received = time.monotonic()
            if received < BATCH:
                return

    def _take(self, data: memoryview, origin: str, now: float) -> None:
        if len(data) < _DATAGRAM.size or data[:4] != _MAGIC:
            self._foreign[origin] += 1
            return
        _, sender, number, sent_ns = _DATAGRAM.unpack_from(data)
        inbox = self._inboxes.get(sender)
        if inbox is None:
            inbox = self._inboxes[sender] = _Inbox()
        inbox.add(number, sent_ns, now)

    def _write(self) -> None:
        report = Report(
            id=self._options.id,
            address=self._options.address,
            group=self._options.group,
            sent=self._sender.sent,
            sent_at=self._sender.milestones,
            send_errors=[
                SendError(name, refusal.count, refusal.first_at, refusal.last_at)
                for name, refusal in sorted(self._sender.refusals.items())
            ],
            received={sender: box.account() for sender, box in sorted(self._inboxes.items())},
            foreign=self._foreign.total(),
            socket_drops=socket_drops(self._sock),
        )
        path: Path = self._options.report
        written = path.with_name(f"{path.name}.new")
        written.write_text(json.dumps(asdict(report)))
        written.replace(path)


def open_socket(
    address: str, group: str, port: int, interface: str, sources: Sequence[str] = ()
) -> socket.socket:
    """A socket that has joined `group` on `interface` and sends to it from `address`, no loop.

    With `sources` (IPv4) it hears these senders only: source-specific multicast.
    """
    index = socket.if_nametoindex(interface)
    six = ip_address(group).version == 6
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)
    sock.bind((group, port))
    if six:
        request = socket.inet_pton(socket.AF_INET6, group) + struct.pack("@I", index)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, _TTL)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL, 0)
    else:
        # struct ip_mreqn: group, our address, interface
        request = socket.inet_aton(group) + socket.inet_aton(address) + struct.pack("@i", index)
        for source in sources:
            # struct ip_mreq_source: group, our address, the sender's
            pinned = b"".join(map(socket.inet_aton, (group, address, source)))
            sock.setsockopt(socket.IPPROTO_IP, _IP_ADD_SOURCE_MEMBERSHIP, pinned)
        if not sources:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, request)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, _TTL)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
        sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
    sock.setblocking(False)
    return sock


def socket_drops(sock: socket.socket) -> int:
    """Datagrams the kernel threw away because this socket's buffer was full."""
    inode = str(os.fstat(sock.fileno()).st_ino)
    table = "udp6" if sock.family == socket.AF_INET6 else "udp"
    for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[9] == inode:
            return int(fields[-1])
    return 0


class Traffic:
    """One traffic process per host: `start`, `stop`, `finish`; sender ids count from 1."""

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
        self._processes: dict[str, Process] = {}
        self.ids = {host.name: number for number, host in enumerate(hosts, start=1)}

    def open(self) -> None:
        """Start the processes; returns when all have joined the group."""
        six = ip_address(self._group).version == 6
        self._work.mkdir(parents=True, exist_ok=True)
        for host in self._hosts:
            log = self._work / f"{host.name}.log"
            log.unlink(missing_ok=True)
            self._report_path(host.name).unlink(missing_ok=True)
            argv = [PYTHON, "-m", "gdoi_lab.traffic", "--id", str(self.ids[host.name])]
            argv += ["--address", host.address6 if six else host.address4]
            argv += ["--interface", host.interface, "--group", self._group]
            argv += ["--port", str(self._port), "--rate", str(self._rate)]
            argv += ["--size", str(self._size), "--report", str(self._report_path(host.name))]
            if ip_address(self._group) in _SOURCE_SPECIFIC:
                others = [other for other in self._hosts if other is not host]
                argv += [word for other in others for word in ("--source", other.address4)]
            self._processes[host.name] = host.popen(argv, log, stdin=True)
        self._await("ready", self._processes)

    def start(self, *names: str) -> None:
        """Start sending at the named hosts, or at all."""
        self._tell("start", names)

    def stop(self, *names: str) -> None:
        """Stop sending at the named hosts, or at all; receiving goes on."""
        self._tell("stop", names)

    def finish(self) -> dict[str, Report]:
        """Stop all senders, then let all receivers drain and write; the reports by host name."""
        self.stop()
        for process in self._processes.values():
            process.write_line("finish")
        for name, process in self._processes.items():
            status = process.wait(DRAIN_LIMIT + READY_LIMIT)
            if status != 0:
                raise LabError(f"traffic at {name} failed: {process.log_text().strip()[-500:]}")
        return {name: Report.load(self._report_path(name)) for name in self._processes}

    def _report_path(self, name: str) -> Path:
        return self._work / f"{name}.json"

    def _tell(self, word: str, names: Sequence[str]) -> None:
        chosen = {name: self._processes[name] for name in names or self._processes}
        said = {"start": "started", "stop": "stopped"}[word]
        before = {name: _lines(process, said) for name, process in chosen.items()}
        for process in chosen.values():
            process.write_line(word)
        self._await(said, chosen, before)

    def _await(
        self, word: str, chosen: Mapping[str, Process], before: Mapping[str, int] | None = None
    ) -> None:
        for name, process in chosen.items():
            seen = (before or {}).get(name, 0)

            def heard(process: Process = process, seen: int = seen) -> bool:
                return _lines(process, word) > seen or not process.running

            wait_until(heard, READY_LIMIT, f"traffic at {name} to be {word}", interval=0.02)
            if not process.running:
                raise LabError(f"traffic at {name} ended: {process.log_text().strip()[-500:]}")


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


def _say(word: str) -> None:
    print(word, flush=True)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m gdoi_lab.traffic", description=__doc__)
    parser.add_argument("--id", type=int, required=True, help="our number, 0 to 65535")
    parser.add_argument("--address", required=True, help="our address")
    parser.add_argument("--interface", default="eth0")
    parser.add_argument("--group", required=True, help="multicast address, IPv4 or IPv6")
    parser.add_argument("--source", action="append", default=[], help="hear only these (IPv4)")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rate", type=float, default=DEFAULT_RATE, help="datagrams a second")
    parser.add_argument("--size", type=int, default=DEFAULT_SIZE, help="octets of a datagram")
    parser.add_argument("--report", type=Path, required=True, help="the JSON file to write")
    _Member(parser.parse_args(argv)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
