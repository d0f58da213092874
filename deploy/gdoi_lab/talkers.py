"""The program behind `gdoi_lab.traffic`: talkers on many hosts, each with a socket of its own.

::

    python -m gdoi_lab.talkers TALKERS.json

TALKERS.json is a list of `Talker`. It reads lines: ``start NAME ...``, ``stop NAME ...`` (sending;
may be repeated), ``finish`` (stop sending, receive until it has been quiet for a while, write the
reports, end; so do SIGTERM and the end of input). It says ``ready``, ``started``, ``stopped``,
``done``.
"""

import argparse
import ctypes
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from types import FrameType

from gdoi_lab.batches import BATCH, Incoming, Outgoing
from gdoi_lab.errors import LabError
from gdoi_lab.traffic import DRAIN_LIMIT, QUIET, Gap, Received, Report, SendError, Talker

# magic, sender, number, time sent (ns since 1970); then padding
_DATAGRAM = struct.Struct("!4sHIQ")
_MAGIC = b"gdtf"

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
_SO_MEMINFO = 55
_MEMINFO = struct.Struct("=9I")  # the last one, SK_MEMINFO_DROPS, counts what was thrown away
_IP_ADD_SOURCE_MEMBERSHIP = 39
_IP_MULTICAST_ALL = 49
_IPV6_MULTICAST_ALL = 29
_CLONE_NEWNET = 0x40000000
_MILESTONE = 1.0  # seconds between the times a sender notes


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
    """One talker: a socket that sends and receives."""

    def __init__(self, told: Talker) -> None:
        self._told = told
        _enter(told.namespace)
        self._sock = open_socket(told.address, told.group, told.port, told.interface, told.sources)
        out = Outgoing(self._sock, (told.group, told.port), max(told.size, _DATAGRAM.size))
        self.sender = _Sender(out, told.id, told.rate)
        self._in = Incoming(self._sock)
        self._inboxes: dict[int, _Inbox] = {}
        self._foreign: Counter[str] = Counter()

    def receive(self) -> bool:
        """All that is there, where that is not without end; whether there was something."""
        now = time.time()
        for number in range(_RECEIVE_BATCHES):
            received = 0
            for data, origin in self._in.receive():
                received += 1
                self._take(data, origin, now)
            if received < BATCH:
                return bool(number or received)
        return True

    def _take(self, data: memoryview, origin: str, now: float) -> None:
        if len(data) < _DATAGRAM.size or data[:4] != _MAGIC:
            self._foreign[origin] += 1
            return
        _, sender, number, sent_ns = _DATAGRAM.unpack_from(data)
        inbox = self._inboxes.get(sender)
        if inbox is None:
            inbox = self._inboxes[sender] = _Inbox()
        inbox.add(number, sent_ns, now)

    def write(self) -> None:
        report = Report(
            id=self._told.id,
            address=self._told.address,
            group=self._told.group,
            sent=self.sender.sent,
            sent_at=self.sender.milestones,
            send_errors=[
                SendError(name, refusal.count, refusal.first_at, refusal.last_at)
                for name, refusal in sorted(self.sender.refusals.items())
            ],
            received={sender: box.account() for sender, box in sorted(self._inboxes.items())},
            foreign=self._foreign.total(),
            socket_drops=socket_drops(self._sock),
        )
        path = Path(self._told.report)
        written = path.with_name(f"{path.name}.new")
        written.write_text(json.dumps(asdict(report)))
        written.replace(path)


class _Talkers:
    """The program: all of them in turn, commands from standard input."""

    def __init__(self, told: Sequence[Talker]) -> None:
        self._members = {one.name: _Member(one) for one in told}
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
                if selector.select(self._pause()):
                    self._command()
                self._turn()
        for member in self._members.values():
            member.write()
        _say("done")

    def _pause(self) -> float:
        """Seconds until a datagram is due."""
        senders = [member.sender for member in self._members.values()]
        waits = [sender.wait() for sender in senders if sender.sending]
        return max(_TICK, min(waits)) if waits else _IDLE

    def _turn(self) -> None:
        for member in self._members.values():
            if member.receive():
                self._last_received = time.monotonic()
            if member.sender.sending:
                member.sender.send_due()

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
            word, *names = line.decode().split()
            senders = [self._members[name].sender for name in names]
            if word == "start":
                for sender in senders:
                    sender.start()
                _say("started")
            elif word == "stop":
                for sender in senders:
                    sender.sending = False
                _say("stopped")
            elif word == "finish":
                self._finish()

    def _finish(self) -> None:
        for member in self._members.values():
            member.sender.sending = False
        if self._finishing is None:
            self._finishing = time.monotonic()


def _enter(namespace: str) -> None:
    """From now on sockets are opened there."""
    with (Path("/run/netns") / namespace).open("rb") as file:
        if ctypes.CDLL(None).setns(file.fileno(), _CLONE_NEWNET) != 0:
            raise LabError(f"setns to {namespace} failed")


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
    told = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
    return int(_MEMINFO.unpack(told)[-1])


def _say(word: str) -> None:
    print(word, flush=True)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m gdoi_lab.talkers", description=__doc__)
    parser.add_argument("talkers", type=Path, metavar="TALKERS.json")
    told = json.loads(parser.parse_args(argv).talkers.read_text())
    _Talkers([Talker(**one) for one in told]).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
