"""Our `gdoi-gm` with a real kernel against the key server written from the RFCs.

::

    gdoi-<id>-gcks                          gdoi-<id>-gm
      KeyServer, in this process  <-------->  gdoi-gm (ours) --> ip xfrm state
"""

from __future__ import annotations

import ctypes
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from gdoi_lab.net import Host, Network

from .engine_shell import PSK, Serving
from .rfc_key_server import KeyServer, Quirks, Tek
from .rfc_octets import (
    ID_IPV4,
    ID_SUBNET4,
    Selector,
    address,
    pack_delete,
    tv,
)
from .running import Daemon, daemon

pytestmark = pytest.mark.uml

PORT = 848
DATA = "239.192.1.1"
REKEY = "239.192.0.7"
CLONE_NEWNET = 0x40000000
LIMIT = 150.0


def socket_at(host: Host) -> socket.socket:
    """A UDP socket in the host's namespace: only a thread that ends goes there."""
    opened: list[socket.socket] = []

    def there() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/run/netns", host.namespace).open("rb") as namespace:
            if libc.setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        opened.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

    thread = threading.Thread(target=there)
    thread.start()
    thread.join(LIMIT)
    made = opened[0]
    made.bind((host.address4, PORT))
    interface = address(host.address4)
    made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
    made.setblocking(False)
    return made


class Lab(Serving):
    """The key server here, the member's host there."""

    def __init__(self, network: Network, agent: Daemon, server: KeyServer) -> None:
        self.member = network["gm"]
        super().__init__(server, socket_at(network["gcks"]), (self.member.address4, PORT))
        self.agent = agent

    def told(self) -> str:
        return self.agent.log.read_text()[-2000:]

    def wait_event(self, name: str, count: int = 1) -> None:
        self.until(lambda: len(self.agent.events(name)) >= count, f"the event {name}", LIMIT)

    def states(self) -> str:
        return self.member.run(["ip", "xfrm", "state"]).stdout

    def holds(self, tek: Tek) -> bool:
        """Whether `ip xfrm state` shows the TEK, with its key."""
        text = self.states()
        return f"spi 0x{tek.spi.hex()}" in text and tek.key.hex() in text

    def tek_push(self, *teks: Tek) -> bytes:
        policy = [*self.server.gap(), *(tek.sat() for tek in teks)]
        return self.server.push(policy, [tek.packet() for tek in teks])


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One key server and one member for the whole module, registered."""
    work = tmp_path_factory.mktemp("interop")
    signer = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    with Network(["gcks", "gm"], work) as network:
        gcks, gm = network["gcks"], network["gm"]
        quirks = Quirks(gap=tv(1, 0) + tv(2, 1))
        server = KeyServer((gcks.address4, PORT), PSK, signer, quirks=quirks)
        server.teks = [Tek(DATA)]
        config = (
            f'[member]\naddress = "{gm.address4}"\nstate = "@/state"\ncontrol = "@/control"\n\n'
            f'[[group]]\nname = "video"\nid = {server.group}\nack_jitter = "0s"\n'
            f'recovery_delay = "1s"\n\n[[group.key_server]]\naddress = "{gcks.address4}"\n'
            f'psk = "{PSK.decode()}"\n'
        )
        with daemon("gdoi-gm", config, work / "gm", before=tuple(gm.command([]))) as agent:
            made = Lab(network, agent, server)
            try:
                made.wait_event("registered")
                yield made
                assert agent.events("bug") == []
            finally:
                made.close()


def test_registered(lab: Lab) -> None:
    assert all(lab.holds(tek) for tek in lab.server.teks)


def test_the_sas_are_there_when_the_ack_arrives(lab: Lab) -> None:
    for _ in range(2):
        tek = Tek(DATA)
        assert not lab.holds(tek)
        lab.acked(lab.tek_push(tek))
        assert lab.holds(tek)
        lab.server.teks = [tek]


def test_no_ack_when_the_kernel_refuses(lab: Lab) -> None:
    """A PUSH whose SPI somebody else's SA has: refused, not acknowledged, then recovered from."""
    tek = Tek(DATA)
    which = f"src 0.0.0.0 dst {DATA} proto esp spi 0x{tek.spi.hex()}"
    keys = f"mode transport enc cbc(aes) 0x{'11' * 16}"
    lab.member.run(f"ip xfrm state add {which} {keys}".split())
    registered = len(lab.agent.events("registered"))
    failed = len(lab.agent.events("install-failed"))
    acks = len(lab.server.acks)
    lab.send(lab.tek_push(tek))
    try:
        lab.wait_event("install-failed", failed + 1)
        lab.settle(0.2)
        assert len(lab.server.acks) == acks
        assert not lab.holds(tek)
        assert "11" * 16 in lab.states()
        assert all(lab.holds(known) for known in lab.server.teks)
        lab.wait_event("registered", registered + 1)
    finally:
        lab.member.run(f"ip xfrm state delete {which}".split())
    again = Tek(DATA)
    lab.acked(lab.tek_push(again))
    assert lab.holds(again)
    assert len(lab.server.acks) == acks + 1


def test_cisco_style(lab: Lab) -> None:
    """SAK in every PUSH, known TEKs again, subnet 0/0, Length as sent, lifetimes as TV."""
    server = lab.server
    server.quirks = Quirks(lifetime=tv(4, 3600), gap=None)
    any_source = Selector(ID_SUBNET4, 0, bytes(8))
    known: list[Tek] = []
    for _ in range(2):
        known = [*known[-1:], Tek(DATA, source=any_source, lifetime=tv(1, 1) + tv(2, 3600))]
        policy = [server.sak(), *(tek.sat() for tek in known)]
        keys = [server.kek_packet(server.kek), *(tek.packet() for tek in known)]
        lab.acked(server.push(policy, keys, sign_length_as_sent=True))
        assert all(lab.holds(tek) for tek in known)


def test_new_kek_by_multicast(lab: Lab) -> None:
    """The SAK moves rekeys to a multicast address: the next one comes there."""
    server = lab.server
    server.rekey_to = Selector(ID_IPV4, PORT, address(REKEY))
    new = server.new_kek()
    tek = Tek(DATA)
    policy = [server.sak(new), *server.gap(), tek.sat()]
    keys = [server.kek_packet(new, server.kek.spi), tek.packet()]
    lab.acked(server.push(policy, keys, next_kek=new))
    assert lab.holds(tek)
    lab.until(
        lambda: REKEY in lab.member.run(["ip", "maddress"]).stdout, "the member to join", LIMIT
    )
    tek = Tek(DATA)
    lab.acked(lab.tek_push(tek), (REKEY, PORT))
    assert lab.holds(tek)


def test_delete_everything(lab: Lab) -> None:
    """Acknowledged, and no SA is left; the last test, for the group ends here."""
    lab.server.teks = [Tek(DATA)]
    gone = [pack_delete(1, [bytes(4)]), pack_delete(0, [bytes(16)])]
    lab.acked(lab.server.push(None, deletes=gone))
    assert "proto esp" not in lab.states()
