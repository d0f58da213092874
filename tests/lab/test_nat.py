"""Two members behind the kernel's own NAT: registration, rekeys by unicast, acknowledgements.

::

    gm1 10.67.0.2 --- 10.67.0.1 +-----+
                                | nat | 10.66.0.1 --- 10.66.0.2 gcks
    gm2 10.67.1.2 --- 10.67.1.1 +-----+
                           10.66.0.1:30000..59999
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.interop.running import Daemon, Record, daemon, wait_for
from tests.kernel.namespaces import Namespace, ip

pytestmark = pytest.mark.uml

OUTSIDE, GCKS = "10.66.0.1", "10.66.0.2"
MEMBERS = {"gm1": "10.67.0.2", "gm2": "10.67.1.2"}
PORTS = range(30000, 60000)
PSK = "one key for all behind the NAT"
# MASQUERADE without ports keeps those that are free: here nobody keeps his. The lab kernel has no
# nf_tables for IPv4.
RULES = (
    f"-t nat -A POSTROUTING -o out -p udp -j MASQUERADE --to-ports {PORTS[0]}-{PORTS[-1]}",
    # IP, UDP and one octet.
    "-A FORWARD -p udp --dport 4500 -m length --length 29",
)
KEY_SERVER = f"""
[key_server]
address = "{GCKS}"
state = "@/state.sqlite"
control = "@/control"
[[peer]]
address = "{OUTSIDE}"
identity = "{MEMBERS["gm1"]}"
more_identities = ["{MEMBERS["gm2"]}"]
psk = "{PSK}"
[[group]]
name = "far"
id = 77
members = {list(MEMBERS.values())}
[group.rekey]
signature = "ecdsa256"
activation_delay = "0s"
deactivation_delay = "0s"
[[group.tek]]
destination = "239.192.1.77"
"""


def member(address: str) -> str:
    return f"""
[member]
address = "{address}"
state = "@/state"
control = "@/control"
keep_alive = "1s"
[[group]]
name = "far"
id = 77
[[group.key_server]]
address = "{GCKS}"
psk = "{PSK}"
dpd_delay = "1s"
"""


def iptables(arguments: str) -> str:
    command = ["iptables-legacy", *arguments.split()]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class Lab:
    """The three hosts, the NAT between them, and a daemon on each host."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.router = stack.enter_context(Namespace())
        with self.router.entered():
            server = self._host(stack, "out", f"{OUTSIDE}/24", f"{GCKS}/24")
            hosts = {
                name: self._host(stack, name, address[:-1] + "1/24", f"{address}/24")
                for name, address in MEMBERS.items()
            }
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            for rule in RULES:
                iptables(rule)
        with server.entered():
            self.gcks = stack.enter_context(daemon("gdoi-gcks", KEY_SERVER, folder / "gcks"))
        self.members: dict[str, Daemon] = {}
        for name, host in hosts.items():
            with host.entered():
                config = member(MEMBERS[name])
                self.members[name] = stack.enter_context(daemon("gdoi-gm", config, folder / name))

    @staticmethod
    def _host(stack: ExitStack, link: str, router: str, address: str) -> Namespace:
        """A host behind one interface of the router, in whose namespace this is."""
        host = stack.enter_context(Namespace())
        ip(f"link add {link} type veth peer name net0")
        host.take("net0")
        ip(f"address add {router} dev {link}")
        ip(f"link set {link} up")
        with host.entered():
            ip(f"address add {address} dev net0")
            ip("link set net0 up")
            if link != "out":  # the key server knows no way to what is behind the NAT
                ip(f"route add default via {router.partition('/')[0]}")
        return host

    def keepalives(self) -> int:
        """What the NAT has forwarded of them."""
        with self.router.entered():
            return int(iptables("-L FORWARD -n -v -x").splitlines()[2].split()[0])

    def forget(self) -> None:
        """MASQUERADE lets go of its mappings where the interface goes down."""
        with self.router.entered():
            ip("link set out down")
            ip("link set out up")

    def rows(self) -> dict[str, Record]:
        return {row["identity"]: row for row in self.gcks.ctl("members", "--group", "far")}


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with ExitStack() as stack:
        made = Lab(stack, tmp_path_factory.mktemp("nat"))
        yield made
        for running in (made.gcks, *made.members.values()):
            assert running.events("bug", "nat-traversal-off") == []


def rekeyed(lab: Lab, kek: str) -> None:
    """One rekey, acknowledged by each of the two."""
    before = len(lab.gcks.events("rekey-acked"))
    lab.gcks.ask("rekey", group="far", kek=kek)
    wait_for(lambda: len(lab.gcks.events("rekey-acked")) == before + len(MEMBERS), "the ACKs")
    acked = lab.gcks.events("rekey-acked")[before:]
    assert {event["member"] for event in acked} == set(MEMBERS.values())


def test_members_behind_a_nat_register_and_are_rekeyed(lab: Lab) -> None:
    for name, running in lab.members.items():
        wait_for(lambda r=running: r.events("registered"), f"{name} to register")  # type: ignore[misc]
        (established,) = running.events("phase1-established")
        assert (established["peer"], established["nat"]) == (f"{GCKS}:4500", "here")
    rows = lab.rows()
    assert set(rows) == set(MEMBERS.values())
    for row in rows.values():
        host, _, port = row["address"].rpartition(":")
        assert (host, row["behind-nat"]) == (OUTSIDE, "yes")
        assert int(port) in PORTS
    rekeyed(lab, kek="no")
    rekeyed(lab, kek="yes")
    wait_for(lambda: lab.keepalives() > 2, "keepalives")

    # Other ports: the members' next DPD says so, and the next rekey arrives there.
    lab.forget()
    wait_for(lambda: len(lab.gcks.events("member-moved")) == len(MEMBERS), "both to be followed")
    for moved in lab.gcks.events("member-moved"):
        assert moved["before"] == rows[moved["member"]]["address"]
    rekeyed(lab, kek="no")
    reasons = {event["reason"] for event in lab.gcks.events("dropped")}
    assert reasons <= {"duplicate"}
