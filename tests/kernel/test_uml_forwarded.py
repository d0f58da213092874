"""What the kernel asks the SPD about multicast that it forwards, and what it does not ask.

::

    host 10.1.0.2 ---- lan 10.1.0.1 [router] wan 10.9.0.1 ---- 10.9.0.2 receiver

Routers are built on this: each case is a policy that blocks, and whether it does.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

import pytest
from gdoi_xfrm import Direction, Policy, PolicyAction, Selector, Xfrm

from tests.kernel.namespaces import Namespace, counter, eventually, ip

pytestmark = pytest.mark.uml

GROUP, PORT = ip_address("239.1.1.1"), 5000
ALL, UDP = ip_network("0.0.0.0/0"), 17
HOST, ROUTER = ip_network("10.1.0.2/32"), ip_network("10.9.0.1/32")
LOOPBACK = 1
# linux/mroute.h; struct vifctl: vifi, flags, threshold, rate_limit, ifindex, rmt_addr; struct
# mfcctl: origin, mcastgrp, parent, ttls, three counters, expire
_INIT, _ADD_VIF, _ADD_MFC = 200, 202, 204
_VIFCTL, _MFCCTL = struct.Struct("=HBBIi4x"), struct.Struct("@4s4sH32sIIIi")
_USE_IFINDEX = 8


@dataclass(frozen=True)
class Path:
    """From a sender through the router to the receiver."""

    router: Namespace
    xfrm: Xfrm
    host: socket.socket
    own: socket.socket
    receiver: socket.socket

    def dropped(self, name: str) -> int:
        with self.router.entered():
            return counter(name)

    def passes(self, sender: socket.socket) -> None:
        eventually(lambda: send(sender) and self._received())

    def stops(self, sender: socket.socket, name: str) -> None:
        """Fails unless a packet is counted as blocked, and none arrives."""
        self._received()
        before = self.dropped(name)
        eventually(lambda: send(sender) and self.dropped(name) > before)
        assert not self._received()

    def _received(self) -> bool:
        found = False
        with suppress(BlockingIOError):
            while self.receiver.recv(100):
                found = True
        return found


def send(sender: socket.socket) -> bool:
    with suppress(OSError):  # EPERM for a router's own packet that is blocked
        sender.sendto(b"clear", (str(GROUP), PORT))
    return True


@pytest.fixture
def path() -> Iterator[Path]:
    with ExitStack() as stack:
        host, router, receiver = (stack.enter_context(Namespace()) for _ in range(3))
        with router.entered():
            for inside, outside, other in (("lan", "host", host), ("wan", "far", receiver)):
                ip(f"link add {inside} type veth peer name {outside}")
                other.take(outside)
            ip("addr add 10.1.0.1/24 dev lan")
            ip("addr add 10.9.0.1/24 dev wan")
            ip("link set lan up")
            ip("link set wan up")
            stack.enter_context(routes())
            xfrm = stack.enter_context(Xfrm())
            own = stack.enter_context(multicast_socket("10.9.0.1"))
        with host.entered():
            ip("addr add 10.1.0.2/24 dev host")
            ip("link set host up")
            sender = stack.enter_context(multicast_socket("10.1.0.2"))
        with receiver.entered():
            ip("addr add 10.9.0.2/24 dev far")
            ip("link set far up")
            heard = stack.enter_context(multicast_socket("10.9.0.2"))
            joined = GROUP.packed + ip_address("10.9.0.2").packed
            heard.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
            heard.bind((str(GROUP), PORT))
        made = Path(router, xfrm, sender, own, heard)
        made.passes(sender)
        made.passes(own)
        yield made


def multicast_socket(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, ip_address(address).packed)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 8)
    return sock


def routes() -> socket.socket:
    """Multicast routing for as long as it is open: from the host by lan to wan."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IGMP)
    sock.setsockopt(socket.IPPROTO_IP, _INIT, 1)
    for number, name in enumerate(("lan", "wan")):
        vif = _VIFCTL.pack(number, _USE_IFINDEX, 1, 0, socket.if_nametoindex(name))
        sock.setsockopt(socket.IPPROTO_IP, _ADD_VIF, vif)
    ttls = bytes([0, 1]).ljust(32, b"\0")
    source = HOST.network_address.packed
    sock.setsockopt(
        socket.IPPROTO_IP, _ADD_MFC, _MFCCTL.pack(source, GROUP.packed, 0, ttls, 0, 0, 0, 0)
    )
    return sock


def block(path: Path, direction: Direction, make: Callable[[], Selector]) -> None:
    with path.router.entered():
        selector = make()
    path.xfrm.add_policy(Policy(selector, direction, 1, PolicyAction.BLOCK))


def to_group(source: object = ALL, protocol: int = 0, interface: str = "") -> Selector:
    index = socket.if_nametoindex(interface) if interface else 0
    network = ip_network(str(source))
    return Selector(network, ip_network(GROUP), protocol, interface=index)


OUT = {
    "everything": (lambda: to_group(), True, True),
    "the host's address": (lambda: to_group(HOST), False, False),
    "the router's": (lambda: to_group(ROUTER), True, True),
    "UDP": (lambda: to_group(protocol=UDP), False, True),
    "by the WAN": (lambda: to_group(interface="wan"), True, True),
    "by the LAN": (lambda: to_group(interface="lan"), False, False),
}


@pytest.mark.parametrize("case", OUT)
def test_out_policies(path: Path, case: str) -> None:
    """Forwarded packets have the router's address and no protocol that anybody would name."""
    make, forwarded, own = OUT[case]
    block(path, Direction.OUT, make)
    for sender, stopped in ((path.host, forwarded), (path.own, own)):
        if stopped:
            path.stops(sender, "XfrmOutPolBlock")
        else:
            path.passes(sender)


@pytest.mark.parametrize("direction", [Direction.IN, Direction.FWD])
def test_other_policies_are_not_asked(path: Path, direction: Direction) -> None:
    block(path, direction, to_group)
    path.passes(path.host)


@pytest.mark.parametrize(("interface", "stopped"), [("lan", False), ("lo", True)])
def test_in_policies_know_no_interface_but_one(path: Path, interface: str, stopped: bool) -> None:
    """To them all that the router itself hears comes from the loopback interface."""
    with path.router.entered(), multicast_socket("10.1.0.1") as local:
        joined = GROUP.packed + ip_address("10.1.0.1").packed
        local.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
        local.bind((str(GROUP), PORT))
        here = Path(path.router, path.xfrm, path.host, path.own, local)
        here.passes(path.host)
        block(path, Direction.IN, lambda: to_group(interface=interface))
        if stopped:
            here.stops(path.host, "XfrmInPolBlock")
        else:
            here.passes(path.host)
