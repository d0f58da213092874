"""Three gdoi-gcks on loopback with one PostgreSQL, each behind a relay; members as engines.

Members run in the test's thread, while ``until`` waits. Everything that key servers and members say
has happened goes into one timeline.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from gdoi_plugin.cli.client import Client, ClientError
from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.protocol.actions import Peer
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.isakmp import SUITES
from gdoi_plugin.protocol.member import GroupMember
from gdoi_plugin.protocol.member_config import MemberConfig
from gdoi_plugin.protocol.phase1 import Phase1Config, PreSharedKey
from gdoi_plugin.protocol.registration import KeyServerEntry
from gdoi_plugin.wire.registry import ExchangeType
from tests.daemon.configs import PSK, write
from tests.daemon.test_udp import free_port
from tests.interop.engine_shell import Agent, open_socket
from tests.support.postgres import Postgres

PATIENCE = 120.0
PROGRAM = Path(__file__).with_name("pausing.py")
LEASE = 2.0

CONFIG = """\
[key_server]
address = "{host}"
port = {port}
nat_traversal = false
database = "{url}"
name = "{name}"
lease = "{lease}s"
control = "{folder}/{name}.vici"
log = "{folder}/{name}.log"
proposals = ["aes128-sha256-ecp256"]

[[peer]]
address = "127.0.0.0/8"
psk = "{psk}"

[[group]]
name = "video"
id = 1
members = ["127.0.0.0/8"]

[group.rekey]
signature = "ecdsa256"
{rekey}

[[group.tek]]
destination = "239.192.1.1"
"""


class Server:
    """One key server, its relay to the database, and its log."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.name = f"gcks{number}"
        self.peer = Peer(ip_address(f"{cluster.net}.{number}"), cluster.port)
        self.control = cluster.folder / f"{self.name}.vici"
        self._log = cluster.folder / f"{self.name}.log"
        port = free_port()
        relay = [sys.executable, Path(__file__).with_name("relay.py"), port, cluster.socket]
        self.relay = subprocess.Popen([str(word) for word in relay], stdout=subprocess.PIPE)
        assert self.relay.stdout is not None
        assert self.relay.stdout.readline() == b"ready\n"
        text = CONFIG.format(
            host=self.peer.host,
            port=self.peer.port,
            url=f"postgresql://postgres@127.0.0.1:{port}/{cluster.database}",
            name=self.name,
            lease=LEASE,
            folder=cluster.folder,
            psk=PSK,
            rekey=cluster.rekey,
        )
        self._config = write(cluster.folder, text, f"{self.name}.toml")
        self._pause = cluster.folder / f"{self.name}.pause"
        self.child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = os.environ | {"GDOI_TEST_PAUSE": str(self._pause)}
        command = [sys.executable, str(PROGRAM), "--config", str(self._config)]
        self.child = subprocess.Popen(command, env=environment)

    def send_signal(self, number: signal.Signals) -> None:
        assert self.child is not None
        self.child.send_signal(number)
        if number == signal.SIGKILL:
            self.child.wait()

    def stop_at(self, place: str) -> None:
        """It stops itself there in the next step that sends a rekey; see ``pausing``."""
        self._pause.write_text(place)

    def go_on(self) -> None:
        """It has not come there."""
        self._pause.unlink(missing_ok=True)

    def stopped(self) -> bool:
        assert self.child is not None
        stat = Path(f"/proc/{self.child.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    def lines(self) -> list[dict[str, Any]]:
        if not self._log.exists():
            return []
        complete = self._log.read_text().rpartition("\n")[0]
        return [json.loads(line) | {"server": self.name} for line in complete.splitlines()]

    def ask(self, command: str, **fields: str) -> dict[str, Any]:
        with Client(self.control, 30.0) as client:
            answer: dict[str, Any] = client.request(command, fields)
        return answer

    def group(self) -> dict[str, Any]:
        with Client(self.control, 30.0) as client:
            (group,) = client.stream("list-groups", "list-group")
        return group

    def role(self) -> str:
        """``gone`` where nobody answers."""
        try:
            return str(self.ask("stats")["servers"]["role"])
        except ClientError:
            return "gone"

    def close(self) -> None:
        for process in (self.child, self.relay):
            if process is not None:
                process.kill()
                process.wait()
        assert self.relay.stdout is not None
        self.relay.stdout.close()


class Member(Agent):
    """Keeps every PUSH by its KEK and SEQ, and of all that arrive who said them under which KEK."""

    def __init__(self, cluster: Cluster, number: int, servers: list[Server]) -> None:
        here = Peer(ip_address(f"{cluster.net}.{number}"), cluster.port)
        me = Identity.of_address(here.host)
        entries = []
        for server in servers:
            its = Identity.of_address(server.peer.host)
            phase1 = Phase1Config(
                (PreSharedKey(me, its, Secret(PSK.encode())),), (SUITES["aes128-sha256-ecp256"],)
            )
            entries.append(KeyServerEntry(server.peer, phase1))
        config = MemberConfig(
            "video", GroupId.of_number(1), here, tuple(entries), recovery_delay=1.0, ack_jitter=0.0
        )
        super().__init__(GroupMember(config, os.urandom))
        self.pushes: dict[tuple[str, int], set[bytes]] = defaultdict(set)
        self.heard: list[tuple[str, str]] = []
        self.accepted: Counter[str] = Counter()  # by who said them
        self.registrations = 0
        self._cluster = cluster
        self.multicast: socket.socket | None = None
        if cluster.address is not None:
            self.multicast = open_socket((cluster.address, cluster.port), shared=True)
            group = socket.inet_aton(cluster.address) + here.host.packed
            self.multicast.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)

    @property
    def sockets(self) -> list[socket.socket]:
        return [self.socket, *([self.multicast] if self.multicast else [])]

    def arrived(self) -> None:
        for sock in self.sockets:
            with contextlib.suppress(BlockingIOError):
                self._arrived(sock)

    def _arrived(self, sock: socket.socket) -> None:
        datagram, (host, port) = sock.recvfrom(65535)
        here = Peer(ip_address(sock.getsockname()[0]), sock.getsockname()[1])
        before = len(self.events)
        actions = self.members.receive(datagram, Peer(ip_address(host), port), here, self.now())[1]
        push = datagram[18] == ExchangeType.GROUPKEY_PUSH
        if push:
            self.heard.append((host, datagram[:16].hex()))
        self.perform(actions)
        for event in self.events[before:]:
            self._cluster.note(str(self.local.host), event.name, dict(event.fields))
            self.registrations += event.name == "registered"
            if event.name == "rekey-received" and push:
                key = (str(event.fields["kek-spi"]), int(str(event.fields["seq"])))
                self.pushes[key].add(datagram)
                self.accepted[host] += 1

    def keys(self) -> tuple[str, tuple[bytes, ...]] | None:
        """The KEK it has, and every data SA with its key that it would send with."""
        engine = self.engine
        if engine.kek is None:
            return None
        sending = [held.tek for held in engine.rollover.held.values()]
        newest = max(sending, key=lambda tek: list(self.held).index(tek.spi), default=None)
        return engine.kek.kek.name, (newest.spi, self.held[newest.spi]) if newest else ()


class Cluster:
    def __init__(
        self,
        folder: Path,
        postgres: Postgres,
        net: str,
        rekey: str = "",
        address: str | None = None,
        servers: int = 3,
    ) -> None:
        """``address``: where rekeys go; None: to each member its own."""
        self.folder, self.net, self.address = folder, net, address
        self.port = 5848
        self.rekey = rekey
        if address is not None:
            self.rekey += f'\naddress = "{address}"\nport = {self.port}\n'
        self.socket = postgres.socket
        self.database = postgres.create_database()
        self.began = time.time()
        self.timeline: list[tuple[float, str, str]] = []
        self.servers = [Server(self, number) for number in range(1, servers + 1)]
        self.members: list[Member] = []
        self._selector = selectors.DefaultSelector()

    def close(self) -> None:
        for server in self.servers:
            server.close()
        for member in self.members:
            for sock in member.sockets:
                sock.close()
        self._selector.close()

    def note(self, who: str, what: str, fields: dict[str, Any] | None = None) -> None:
        told = " ".join(f"{key}={value}" for key, value in (fields or {}).items())
        self.timeline.append((time.time(), who, f"{what} {told}".strip()))

    # -- time passes -----------------------------------------------------------------------------

    def until(self, condition: Callable[[], object], what: str) -> None:
        """With members that answer, until the condition holds."""
        deadline = time.monotonic() + PATIENCE
        look_at = 0.0
        while True:
            for key, _ in self._selector.select(0.02):
                key.data()
            for member in self.members:
                member.tick()
            if time.monotonic() >= look_at:
                if condition():
                    return
                look_at = time.monotonic() + 0.1
            assert time.monotonic() < deadline, f"not in time: {what}\n{self.story()}"

    def join(self, number: int, servers: list[Server] | None = None) -> Member:
        member = Member(self, number, servers or self.servers)
        self.members.append(member)
        for sock in member.sockets:
            self._selector.register(sock, selectors.EVENT_READ, member.arrived)
        member.start()
        return member

    def leader(self) -> Server:
        """Waits until there is one, and it alone."""
        found: list[Server] = []

        def one() -> bool:
            found[:] = [s for s in self.servers if s.role() == "leader"]
            return len(found) == 1

        self.until(one, "one leader")
        return found[0]

    def rekeyed(self, *, kek: bool = False) -> Server:
        """By the leader, whoever that is by now."""
        answered: list[Server] = []

        def asked() -> bool:
            for server in self.servers:
                with contextlib.suppress(ClientError):
                    answer = server.ask("rekey", group="video", kek="yes" if kek else "no")
                    self.note("test", f"{server.name} rekeys", {"epoch": answer["epoch"]})
                    answered.append(server)
                    return True
            return False

        self.until(asked, "a leader that rekeys")
        return answered[0]

    def in_step(self) -> bool:
        """Every member has the keys that living servers hand out, and the same as the others."""
        keys = {member.keys() for member in self.members}
        groups = [s.group() for s in self.servers if s.role() in ("leader", "follower")]
        same = {(group["epoch"], group["kek-spi"]) for group in groups}
        return (
            len(keys) == 1
            and None not in keys
            and len(same) == 1
            and {spi for spi, _ in (key for key in keys if key)} == {spi for _, spi in same}
        )

    # -- what happened ---------------------------------------------------------------------------

    def lines(self, event: str) -> list[dict[str, Any]]:
        found = [line for s in self.servers for line in s.lines() if line["event"] == event]
        return sorted(found, key=lambda line: str(line["time"]))

    def story(self) -> str:
        from datetime import datetime

        told = list(self.timeline)
        for server in self.servers:
            for line in server.lines():
                when = datetime.fromisoformat(line["time"]).timestamp()
                skip = ("time", "level", "event", "server", "group")
                rest = " ".join(f"{k}={v}" for k, v in line.items() if k not in skip)
                told.append((when, server.name, f"{line['event']} {rest}"))
        return "\n".join(
            f"{when - self.began:7.2f} s  {who:12} {what}" for when, who, what in sorted(told)
        )

    def check(self) -> None:
        """What must hold whatever was done to them."""
        said = self.lines("rekey-sent")
        under: dict[int, set[str]] = defaultdict(set)
        seqs: dict[str, list[int]] = defaultdict(list)
        by_server: dict[tuple[str, str], list[int]] = defaultdict(list)
        for line in said:
            under[line["epoch"]].add(line["kek-spi"])
            seqs[line["kek-spi"]].append(line["seq"])
            by_server[line["server"], line["kek-spi"]].append(line["seq"])
        assert all(len(keks) == 1 for keks in under.values()), under
        assert all(len(numbers) == len(set(numbers)) for numbers in seqs.values()), seqs
        assert all(numbers == sorted(numbers) for numbers in by_server.values()), by_server
        pushes: dict[tuple[str, int], set[bytes]] = defaultdict(set)
        for member in self.members:
            taken: dict[str, int] = {}
            for (kek, seq), datagrams in member.pushes.items():
                pushes[kek, seq] |= datagrams
                assert taken.get(kek, 0) < seq, (member.local, kek, seq)
                taken[kek] = seq
        assert pushes
        assert all(len(datagrams) == 1 for datagrams in pushes.values())
        assert Counter(line["event"] for s in self.servers for line in s.lines())["bug"] == 0


@contextlib.contextmanager
def cluster(
    folder: Path,
    postgres: Postgres,
    net: str,
    rekey: str = "",
    address: str | None = None,
    servers: int = 3,
) -> Iterator[Cluster]:
    made = Cluster(folder, postgres, net, rekey, address, servers)
    try:
        for server in made.servers:
            server.start()
        made.until(lambda: all(s.role() != "gone" for s in made.servers), "the key servers")
        yield made
    finally:
        made.close()
