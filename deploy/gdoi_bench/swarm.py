"""A swarm of members on one gdoi-gcks: real registrations, real acknowledgements, no kernel.

The key server is a process of its own; the members are all in this one, each at an address of its
own on a loopback interface in a network namespace of their own. So many of them as --registrations
says register, each with its main mode and GROUPKEY-PULL; the others are on the roster from the
beginning, in a state that is made through the key server's own store, their keys known here. Then
the group is rekeyed, and every member acknowledges with its own key, over its own address. Loss,
delay and silence happen at the members, in both directions.

With --lkh the ACKs are keyed by each member's leaf, and every other rekey brings a new KEK.
"""

from __future__ import annotations

import argparse
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from operator import itemgetter
from pathlib import Path
from random import Random

from gdoi_bench.endpoint import Endpoint
from gdoi_bench.figure import Figure
from gdoi_bench.gcks import RunningKeyServer, key_server
from gdoi_bench.mirror import new_namespace
from gdoi_bench.registering import Applicant, Registrations
from gdoi_bench.roster import fill
from gdoi_bench.swarm_keys import Heard, SwarmKeys, SwarmMember
from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.protocol.actions import Drop, Peer
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.isakmp import SUITES
from gdoi_plugin.protocol.nat import Traversal
from gdoi_plugin.protocol.phase1 import Phase1Config, PreSharedKey
from gdoi_plugin.protocol.pull import PullResult
from gdoi_plugin.wire.registry import ExchangeType

SERVER, FIRST = IPv4Address("127.0.0.1"), IPv4Address("127.1.0.0")
PORT, MEMBER_PORT = 848, 5848
REKEYS_TO = IPv4Address("239.192.0.1")
PSK = Secret(b"the key of the swarm")
SUITE = "aes128-sha256-ecp256"
GROUP = GroupId.of_number(1)
SHARES = (0.5, 0.99, 0.9999)
PATIENCE = 120.0  # seconds without progress
REPORT = 2.0  # a line on standard error so often
ASK = 0.2  # the key server is asked so often how many it has counted
MOST_MEMBERS = 1_000_000
DRAINED = 2048  # datagrams taken between two looks at what is due
BUSY = 512  # ACKs sent between two looks at what came
EXCHANGE_AT = 18  # octet of the ISAKMP header
CONFIG = """
[key_server]
address = "{server}"
state = "{folder}/gcks.sqlite"
control = "{folder}/control"
nat_traversal = false
proposals = ["{suite}"]
[[peer]]
address = "127.0.0.0/8"
psk = "{psk}"
[[group]]
name = "swarm"
id = 1
members = ["127.0.0.0/8"]
[group.rekey]
{transport}
signature = "ecdsa256"
{management}
[[group.tek]]
destination = "239.192.1.1"
"""
LKH = """kek_management = "lkh"
ack = "lkh-sha256"
lkh_members = 32768"""


def options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--members", type=int, default=100_000)
    add("--registrations", type=int, default=10_000, help="how many of them register for real")
    add("--rekeys", type=int, default=4, help="by command, each when the one before is over")
    add("--loss", type=float, default=0.0, help="share of datagrams lost, each way")
    add("--delay", type=float, default=0.0, help="seconds before every ACK")
    add("--jitter", type=float, default=2.0, help="and up to so many more")
    add("--silence", type=float, default=0.0, help="share of members that never acknowledge")
    add("--churn", type=float, default=0.0, help="members a minute that lose all and register anew")
    add("--seed", type=int, default=1)
    add("--lkh", action="store_true", help="key trees, ACKs keyed by leaves")
    add("--unicast", action="store_true", help="rekeys to each member's own address")


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """As root: this process and the key server are in a network namespace of their own."""
    if not 0 < arguments.registrations <= arguments.members <= MOST_MEMBERS:
        raise SystemExit(f"members must be 1 to {MOST_MEMBERS:,}, registrations at most as many")
    new_namespace()
    for command in ("link set lo up multicast on", "route add 224.0.0.0/4 dev lo"):
        subprocess.run(["ip", *command.split()], check=True)
    with tempfile.TemporaryDirectory(prefix="gdoi-bench-") as folder:
        config = _configuration(Path(folder), arguments)
        swarm = Swarm(arguments)
        try:
            swarm.take(config)
            control, log = Path(folder) / "control", Path(folder) / "log"
            with key_server(config, control, log) as server:
                swarm.register(server)
                for number in range(arguments.rekeys):
                    swarm.rekey(server, kek=bool(number % 2))
                return swarm.figures(server)
        finally:
            swarm.endpoint.close()


def _configuration(folder: Path, arguments: argparse.Namespace) -> Path:
    path = folder / "gcks.toml"
    multicast = f'address = "{REKEYS_TO}"\nport = {MEMBER_PORT}'
    path.write_text(
        CONFIG.format(
            server=SERVER,
            folder=folder,
            suite=SUITE,
            psk=PSK.reveal().decode(),
            transport="" if arguments.unicast else multicast,
            management=LKH if arguments.lkh else "",
        )
    )
    return path


def socket_drops(port: int) -> int:
    """Datagrams that found no room at this port's sockets, as the kernel counts them."""
    rows = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    return sum(int(row[-1]) for row in rows if int(row[1].partition(":")[2], 16) == port)


def _late(server: RunningKeyServer) -> int:
    return int(server.ask("stats")["drops"].get(Drop.ACK_KEK_RETIRED, 0))


@dataclass(slots=True)
class _Owed:
    """ACKs of one PUSH that wait for their time, the next one last."""

    heard: Heard
    waiting: list[tuple[float, SwarmMember]]


@dataclass(slots=True)
class _Rekey:
    """One command, and what has become of it. ``acked``: who has acknowledged what part of it."""

    epoch: int
    began: float
    drops: int
    expected: int
    processor: float
    acked: set[tuple[bytes, int, int, int | None]] = field(default_factory=set)
    counted: int = 0
    at_once: int = 0  # of them, before any PUSH was said again
    late: int = 0  # ACKs that came when the key server had given up the KEK they are made with
    reached: dict[float, float] = field(default_factory=dict)


class Swarm:
    """All members, and what is under way between them and the key server."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._random = Random(arguments.seed)
        self.endpoint = Endpoint(MEMBER_PORT)
        self.endpoint.join(REKEYS_TO, SERVER)
        self._keys = SwarmKeys()
        self._members: dict[bytes, SwarmMember] = {}
        self._applicants: deque[IPv4Address] = deque()
        server = Peer(SERVER, PORT)
        self._registering = Registrations(
            self.endpoint, server, self._registered, self._failed, lost=self._lost
        )
        self._owed: list[_Owed] = []
        self._rekey: _Rekey | None = None
        self._over: list[_Rekey] = []
        self._values: dict[str, float] = {}
        self._failures: list[str] = []
        self.sent = self.lagging = self.unreadable = 0
        self._churned = self._reported = time.monotonic()
        self._silent: float = arguments.silence
        self._loss: float = arguments.loss

    # -- members ---------------------------------------------------------------------------------

    def take(self, config: Path) -> None:
        """Those that need not register."""
        arguments = self._arguments
        count = arguments.members - arguments.registrations
        began = time.monotonic()
        for host, kek in fill(config, (FIRST + n for n in range(count)), MEMBER_PORT):
            self._add(self._keys.holds(host.packed, kek))
        self._applicants += (FIRST + n for n in range(count, arguments.members))
        self._say(f"{count:,} members on the roster in {time.monotonic() - began:.1f} s")

    def _add(self, member: SwarmMember) -> None:
        before = self._members.get(member.host)
        silent = self._random.random() < self._silent if before is None else before.silent
        member.silent = silent
        self._members[member.host] = member

    def _registered(self, applicant: Applicant, result: PullResult | None) -> None:
        if result is not None:
            self._add(self._keys.registered(applicant.host.packed, result))

    def _failed(self, applicant: Applicant, why: str) -> None:
        """Tries again, as members do."""
        self._failures.append(why)
        self._applicants.append(applicant.host)

    def _waiting(self) -> Iterator[Applicant]:
        while self._applicants:
            host = self._applicants.popleft()
            way = PreSharedKey(Identity.of_address(host), Identity.of_address(SERVER), PSK)
            phase1 = Phase1Config((way,), (SUITES[SUITE],), nat=Traversal.OFF)
            yield Applicant(host, phase1, GROUP)

    def _churn(self) -> None:
        """Some lose all they have."""
        now = time.monotonic()
        number = int((now - self._churned) * self._arguments.churn / 60)
        if number and self._members:
            self._churned = now
            hosts = list(self._members)
            for host in self._random.sample(hosts, min(number, len(hosts))):
                self._forget(self._members[host])

    def _forget(self, member: SwarmMember) -> None:
        member.kek = -1  # reads nothing any more
        self._applicants.append(member.address)

    def _lost(self) -> bool:
        return self._loss > 0 and self._random.random() < self._loss

    # -- a step ------------------------------------------------------------------------------------

    def step(self) -> None:
        self._churn()
        self._registering.fill(self._waiting())
        sent = self._send_due()
        select.select([self.endpoint.socket], [], [], 0 if sent else self._pause())
        for _ in range(DRAINED):
            came = self.endpoint.receive()
            if came is None:
                break
            self._receive(*came)
        self._registering.tick()

    def _pause(self) -> float:
        """Until the next ACK is due, at most so long as members wait before they say it again."""
        due = [owed.waiting[-1][0] - time.monotonic() for owed in self._owed if owed.waiting]
        return max(0.0, min([0.02, *due]))

    def _receive(self, datagram: bytes, source: Peer, own: bytes) -> None:
        if datagram[EXCHANGE_AT : EXCHANGE_AT + 1] != bytes((ExchangeType.GROUPKEY_PUSH,)):
            self._registering.receive(datagram, source, own)
            return
        heard = self._keys.hear(datagram)
        if heard is None:
            self.unreadable += 1
            return
        if own == REKEYS_TO.packed:
            self._hear(heard, [m for m in self._members.values() if m.tree == heard.tree])
        elif own in self._members:
            self._hear(heard, [self._members[own]])

    def _hear(self, heard: Heard, members: list[SwarmMember]) -> None:
        now, random = time.monotonic() + self._arguments.delay, self._random.random
        jitter = self._arguments.jitter
        owed = _Owed(heard, [])
        for member in members:
            if self._lost() or member.kek < 0:
                continue
            if member.kek < heard.under:
                self.lagging += 1  # missed a KEK: it has to register again
                self._forget(member)
                continue
            if heard.brings is not None:
                member.kek = max(member.kek, heard.brings)
            if heard.acks is not None and not member.silent:
                owed.waiting.append((now + jitter * random(), member))
        owed.waiting.sort(key=itemgetter(0), reverse=True)
        if owed.waiting:
            self._owed.append(owed)

    def _send_due(self) -> int:
        now, number = time.monotonic(), 0
        to = (str(SERVER), PORT)
        for owed in self._owed:
            acks, waiting, heard = owed.heard.acks, owed.waiting, owed.heard
            while acks is not None and waiting and waiting[-1][0] <= now and number < BUSY:
                _, member = waiting[-1]
                number += 1
                lost = self._lost()
                if not lost and not self.endpoint.send(acks.make(member), to, member.host):
                    return number  # no room in our own send buffer: later
                waiting.pop()
                self.sent += 1
                if self._rekey is not None and not lost:
                    entry = (member.host, heard.tree, heard.under, heard.brings)
                    self._rekey.acked.add(entry)
        self._owed = [owed for owed in self._owed if owed.waiting]
        return number

    # -- phases ------------------------------------------------------------------------------------

    def register(self, server: RunningKeyServer) -> None:
        """All that are to register for real."""
        number, drops = self._arguments.members, socket_drops(PORT)
        self._values["restart"] = server.started_in
        before, began = server.processor, time.monotonic()
        progress = (0, began)
        first = len(self._members)
        # Those that churn makes register again may be at it for ever.
        while len(self._members) < number:
            self.step()
            server.check()
            done = self._registering.ended
            if done > progress[0]:
                progress = (done, time.monotonic())
            if time.monotonic() - progress[1] > PATIENCE:
                raise SystemExit(f"no registration for {PATIENCE:g} s: {self._failures[-3:]}")
            self._report(f"{len(self._members) - first:,} of {number - first:,} registered")
        taken, number = time.monotonic() - began, self._registering.ended
        self._values |= {
            "registrations": number / taken,
            "registration": 1e3 * (server.processor - before) / number,
            "refused": len(self._failures),
            "repeated": self._registering.retransmitted,
            "registration drops": socket_drops(PORT) - drops,
        }

    def rekey(self, server: RunningKeyServer, *, kek: bool) -> None:
        """Until the key server has counted everybody's ACK, or has closed the page."""
        (group,) = server.list("list-groups", "list-group")
        began, before = time.monotonic(), server.processor
        answer = server.ask("rekey", group="swarm", kek="yes" if kek else "no")
        late = _late(server)
        rekey = _Rekey(int(group["epoch"]), began, socket_drops(PORT), 0, before)
        rekey.expected = int(answer["expected"])
        self._rekey = rekey
        asked = 0.0
        window = float(answer["window"]) + PATIENCE
        while time.monotonic() - began < window:
            self.step()
            if time.monotonic() - asked < ASK:
                continue
            asked = time.monotonic()
            if self._look(server, rekey) and not self._owed:
                break
            server.check()
            acked = len(rekey.acked)
            self._report(f"epoch {rekey.epoch + 1}: {acked:,} sent, {rekey.counted:,} counted")
        self._rekey = None
        rekey.processor = server.processor - before
        rekey.drops = socket_drops(PORT) - rekey.drops
        rekey.late = _late(server) - late
        self._over.append(rekey)

    def _look(self, server: RunningKeyServer, rekey: _Rekey) -> bool:
        """How far the key server is: True where all pages of this rekey are closed."""
        now = time.monotonic()
        listed = server.list("list-rekeys", "list-rekey", group="swarm")
        pages = [page for page in listed if int(page["epoch"]) > rekey.epoch]
        rekey.counted = sum(int(page["acknowledged"]) for page in pages)
        if all(page["attempts"] == "1" for page in pages):
            rekey.at_once = rekey.counted
        expected = sum(int(page["expected"]) for page in pages)
        for share in SHARES:
            if expected and rekey.counted >= share * expected and share not in rekey.reached:
                rekey.reached[share] = now - rekey.began
        return bool(pages) and all(page["closed"] == "yes" for page in pages)

    # -- results -----------------------------------------------------------------------------------

    def figures(self, server: RunningKeyServer) -> list[Figure]:
        values, count = self._values, self._arguments.members
        real, over = self._arguments.registrations, self._over
        return [
            Figure(f"start with {count - real:,} members", values["restart"], "s"),
            Figure(f"{real:,} registrations", values["registrations"], "/s"),
            Figure("the key server's processor for a registration", values["registration"], "ms"),
            Figure("registrations that failed at first", values["refused"], ""),
            Figure("messages of registrations repeated", values["repeated"], ""),
            Figure("datagrams dropped meanwhile", values["registration drops"], ""),
            *(
                Figure(f"{share:.2%} acknowledged", statistics.median(times), "s")
                for share in SHARES
                if (times := [r.reached[share] for r in over if share in r.reached])
            ),
            Figure("ACKs sent in all rekeys", self.sent, ""),
            Figure("ACKs counted", sum(rekey.counted for rekey in over), ""),
            Figure(
                "of them, only when a PUSH was said again",
                sum(rekey.counted - rekey.at_once for rekey in over),
                "",
            ),
            Figure("ACKs that came after their KEK's end", sum(rekey.late for rekey in over), ""),
            Figure(
                "members' ACKs not counted, but for those",
                sum(max(0, abs(len(r.acked) - r.counted) - r.late) for r in over),
                "",
                0,
            ),
            Figure("ACKs dropped for want of room", sum(rekey.drops for rekey in over), "", 0),
            Figure(
                "the key server's processor for an ACK",
                1e6 * sum(r.processor for r in over) / max(1, sum(r.counted for r in over)),
                "us",
            ),
            Figure("members that missed a KEK", self.lagging, ""),
            Figure("the key server's memory", server.memory, "MB"),
        ]

    def _report(self, text: str) -> None:
        if time.monotonic() - self._reported >= REPORT:
            self._reported = time.monotonic()
            self._say(text)

    @staticmethod
    def _say(text: str) -> None:
        print(f"swarm: {text}", file=sys.stderr, flush=True)
