"""One socket that hears what a policy keeps from all others. Policies need no ESP."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_network

import pytest
from gdoi_xfrm import Direction, Policy, PolicyAction, Selector, Xfrm, bypass

from tests.kernel.namespaces import Namespace, counter, eventually, ip

__all__: list[str] = []
ENDS = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
EVERYTHING = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}


@pytest.fixture
def ends() -> Iterator[tuple[Namespace, Namespace]]:
    """Two namespaces on one cable."""
    with Namespace() as left, Namespace() as right:
        with left.entered():
            ip("link add eth0 type veth peer name eth1")
            right.take("eth1")
        for place, device, number in ((left, "eth0", 0), (right, "eth1", 1)):
            with place.entered():
                ip(f"address add {ENDS[4][number]}/24 dev {device}")
                ip(f"address add {ENDS[6][number]}/64 dev {device} nodad")
                ip(f"link set {device} up")
        yield left, right


@pytest.mark.parametrize("version", [4, 6])
def test_bypass(ends: tuple[Namespace, Namespace], version: int) -> None:
    left, right = ends
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    here, there = ENDS[version]
    with right.entered(), Xfrm() as xfrm:
        # UDP only: neighbour discovery goes on.
        chosen = Selector(EVERYTHING[version], EVERYTHING[version], 17)
        xfrm.add_policy(Policy(chosen, Direction.IN, 1, PolicyAction.BLOCK))
        xfrm.add_policy(Policy(chosen, Direction.OUT, 1, PolicyAction.BLOCK))
        open_one, other = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(2))
    with left.entered():
        sender = socket.socket(family, socket.SOCK_DGRAM)
    with open_one, other, sender:
        bypass(open_one)
        for sock, port in ((open_one, 1000), (other, 2000)):
            sock.setblocking(False)
            sock.bind((there, port))
        sender.sendto(b"to nobody", (there, 2000))
        with right.entered():
            eventually(lambda: counter("XfrmInPolBlock") == 1)
        sender.sendto(b"to one", (there, 1000))
        open_one.settimeout(10)
        assert open_one.recv(100) == b"to one"
        with pytest.raises(BlockingIOError):
            other.recv(100)
        with pytest.raises(PermissionError):
            open_one.sendto(b"back", (here, 1000))
