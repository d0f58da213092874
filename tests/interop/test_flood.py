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
from .running import Daemon, daemon

pytestmark = pytest.mark.alone

SERVER, MEMBER, PORT = "10.99.0.1", "10.99.0.2", 848
PSK = b"a secret that the flood does not know"
# An initiator resends for 31 seconds, see gdoi_plugin.protocol.retransmission.
LIMIT = 31.0
RATE, SECONDS = 100_000, 4.0
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
        words = [self.flood, SERVER, PORT, forged, count, RATE, SECONDS, kind]
        with self.away.entered():
            return subprocess.Popen([str(w) for w in words], stdout=subprocess.PIPE, text=True)

    def drops(self) -> dict[str, int]:
        found = self.gcks.ask("stats")["drops"]
        return {name: int(count) for name, count in found.items()}


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


def register(away: Namespace) -> float:
    """Seconds until phase 1 and GROUPKEY-PULL are through; each message repeated as need be."""
    began = time.monotonic()
    while True:
        try:
            with away.entered():
                member = Member((MEMBER, PORT), (SERVER, PORT), PSK)
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
    before = site.drops()
    flooding = site.start_flood(forged, count, kind)
    took = []
    try:
        while flooding.poll() is None:
            took.append(register(site.away))
    finally:
        said, _ = flooding.communicate(timeout=30)
    report = json.loads(said)
    rate = report["sent"] / report["seconds"]
    new = {name: n - before.get(name, 0) for name, n in site.drops().items()}
    refused = {name: n for name, n in new.items() if n}
    print(  # noqa: T201 -- the figures, for pytest -s
        f"{kind} from {count}: {rate:,.0f}/s sent, {len(took)} registrations,"
        f" longest {max(took):.2f} s, drops {refused}"
    )
    assert rate >= 0.9 * RATE
    assert took
    assert max(took) < LIMIT
    # And when it is over everything is as before.
    assert register(site.away) < LIMIT
