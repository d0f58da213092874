"""A hundred thousand bogus first messages a second, and members that want to register.

::

    a network of its own                    another
    gdoi-gcks  10.99.0.1 ------- veth ------- 10.99.0.2  a member written from the RFCs
                                              flood.c: raw packets from forged addresses

The key server is a process like any; what comes from the forged addresses is answered into nothing.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kernel.namespaces import Namespace, ip

from .rfc_peer import Member, Silence
from .running import Daemon, daemon, wait_for

pytestmark = pytest.mark.alone

SERVER, MEMBER, PORT = "10.99.0.1", "10.99.0.2", 848
PSK = b"a secret that the flood does not know"
# What is sent a second; a machine with something else to do sends less, and hears less too.
RATE = 110_000
# One registration in the middle of a flood; it takes some seconds, of chance and of repetitions.
LIMIT = 150.0
CONFIG = f"""
[key_server]
address = "{SERVER}"
state = "@/state.sqlite"
control = "@/control"
[[peer]]
address = "0.0.0.0/0"
psk = "{PSK.decode()}"
[[group]]
name = "video"
id = 1234
members = ["10.99.0.0/24"]
rekey.signature = "ecdsa256"
[[group.tek]]
destination = "239.192.1.1"
"""


@dataclass
class Site:
    """Both ends of the link, the key server and the program that floods it."""

    gcks: Daemon
    away: Namespace
    flood: Path

    def start_flood(self, forged: str, count: int, kind: str) -> subprocess.Popen[str]:
        words = [self.flood, SERVER, PORT, forged, count, RATE, 4 * LIMIT, kind]
        with self.away.entered():
            return subprocess.Popen([str(w) for w in words], stdout=subprocess.PIPE, text=True)

    def drops(self) -> dict[str, int]:
        found = self.gcks.ask("stats")["drops"]
        return {name: int(count) for name, count in found.items()}

    def arrived(self) -> int:
        """Packets, at the key server's end of the link."""
        statistics = Path(f"/proc/{self.gcks.process.pid}/net/dev").read_text()
        (line,) = (line for line in statistics.splitlines() if "flood0:" in line)
        return int(line.split()[2])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("flood")
    program = folder / "flood"
    source = Path(__file__).with_name("flood.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-o", program, source], check=True)
    with ExitStack() as stack:
        here, away = stack.enter_context(Namespace()), stack.enter_context(Namespace())
        with here.entered():
            ip("link add flood0 type veth peer name flood1")
            away.take("flood1")
            ip(f"address add {SERVER}/24 dev flood0")
            ip("link set flood0 up")
            ip(f"route add default via {MEMBER}")
        with away.entered():
            ip(f"address add {MEMBER}/24 dev flood1")
            ip("link set flood1 up")
        with here.entered():
            gcks = stack.enter_context(daemon("gdoi-gcks", CONFIG, folder / "gcks"))
        yield Site(gcks, away, program)
        assert gcks.events("bug", "lanes") == []


class Calm(Member):
    """Takes only answers to its own message 1: its address gets those to forged ones as well."""

    def receive(self, *exchanges: int, timeout: float | None = None) -> bytes:
        deadline = time.monotonic() + (self.patience if timeout is None else timeout)
        while (left := deadline - time.monotonic()) > 0:
            datagram = super().receive(*exchanges, timeout=left)
            if datagram[:8] == self.cky_i:
                return datagram
        raise Silence("only answers to others")


def register(away: Namespace) -> float:
    """Seconds until phase 1 and GROUPKEY-PULL are through; each message repeated as need be."""
    began = time.monotonic()
    while True:
        with away.entered():
            member = Calm((MEMBER, PORT), (SERVER, PORT), PSK)
        try:
            with member:
                member.phase1()
                member.pull(1234)
                return time.monotonic() - began
        except Silence:
            assert time.monotonic() - began < LIMIT


@pytest.mark.parametrize(
    ("forged", "count", "kind"),
    [
        ("198.18.0.1", 100_000, "same"),  # what peers offer, from everywhere
        ("10.99.0.2", 1, "same"),  # from the member's own address
        ("198.18.0.1", 100_000, "new"),  # never offered before
        ("198.18.0.1", 100_000, "junk"),
    ],
)
def test_a_member_registers_all_the_same(
    site: Site,
    forged: str,
    count: int,
    kind: str,
) -> None:
    before, arrived = site.drops(), site.arrived()
    flooding = site.start_flood(forged, count, kind)
    try:
        # The flood is there, and the key server's queue full, before the member begins.
        wait_for(lambda: site.arrived() > arrived + RATE, "the flood", LIMIT)
        took = register(site.away)
        assert flooding.poll() is None
    finally:
        flooding.terminate()
        said, _ = flooding.communicate(timeout=90)
    report = json.loads(said)
    rate = report["sent"] / report["seconds"]
    new = {name: n - before.get(name, 0) for name, n in site.drops().items()}
    refused = {name: n for name, n in new.items() if n}
    print(  # noqa: T201 -- the figures, for pytest -s
        f"{kind} from {count}: {rate:,.0f}/s sent, registered after {took:.2f} s, drops {refused}"
    )
    assert took < LIMIT
    # And when it is over everything is as before.
    assert register(site.away) < LIMIT
