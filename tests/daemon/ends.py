"""Two hosts whose kernels groups are given to, and packets between them.

192.0.2.1, 2001:db8::1  sender ---- veth ---- receiver  192.0.2.2, 2001:db8::2
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import count
from typing import Any

from gdoi_xfrm import Xfrm

from gdoi_plugin.daemon.guard import Guard
from gdoi_plugin.daemon.kernel import GroupKernel
from gdoi_plugin.daemon.kernel_options import KernelOptions
from gdoi_plugin.protocol.actions import ApplyKernel, IPAddress
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.policy import Flow, Tek
from tests.kernel.namespaces import Namespace, counter, eventually, ip

PORT = 5000
HOSTS: dict[int, tuple[IPAddress, IPAddress]] = {
    4: (ip_address("192.0.2.1"), ip_address("192.0.2.2")),
    6: (ip_address("2001:db8::1"), ip_address("2001:db8::2")),
}
GROUPS: dict[int, IPAddress] = {4: IPv4Address("239.2.0.0"), 6: IPv6Address("ff05::")}
REASONS = {
    "In": ("NoPols", "PolBlock", "TmplMismatch", "NoStates"),
    "Out": ("PolBlock", "NoStates"),
}
NUMBERS = count(1)
SPIS = count(0x1000)


@dataclass
class End:
    """One host: its part of the kernel, and a socket of each IP version."""

    name: str
    place: int
    namespace: Namespace
    xfrm: Xfrm
    sockets: dict[int, socket.socket] = field(default_factory=dict)

    def address(self, version: int) -> IPAddress:
        return HOSTS[version][self.place]

    def kernel(self, version: int, **options: Any) -> GroupKernel:
        made = KernelOptions(**options)
        guard = Guard(self.xfrm)
        return GroupKernel(self.xfrm, GroupId.of_number(7), self.address(version), guard, made)

    def install(self, wanted: Tek, **options: Any) -> None:
        version = wanted.flow.destination.version
        outbound = (wanted,) if wanted.sent_by(self.address(version)) else ()
        self.kernel(version, **options).apply(ApplyKernel(1, (wanted,), outbound))

    def open(self, version: int) -> None:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        made = self.sockets[version] = socket.socket(family, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setblocking(False)
        own = self.address(version)
        if version == 4:
            made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, own.packed)
            made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
        else:
            index = socket.if_nametoindex(self.name)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
        made.bind(("0.0.0.0" if version == 4 else "::", PORT))  # noqa: S104

    def membership(self, group: IPAddress, *, join: bool) -> None:
        """A socket may be in twenty groups of IPv4."""
        if group.version == 4:
            option = socket.IP_ADD_MEMBERSHIP if join else socket.IP_DROP_MEMBERSHIP
            value = group.packed + self.address(4).packed
            self.sockets[4].setsockopt(socket.IPPROTO_IP, option, value)
        else:
            index = socket.if_nametoindex(self.name).to_bytes(4, "little")
            option = socket.IPV6_JOIN_GROUP if join else socket.IPV6_LEAVE_GROUP
            self.sockets[6].setsockopt(socket.IPPROTO_IPV6, option, group.packed + index)

    def send(self, group: IPAddress, text: bytes = b"text", port: int = PORT) -> None:
        with suppress(OSError):  # what is blocked may be refused to the sender
            self.sockets[group.version].sendto(text, (str(group), port))

    def heard(self, version: int) -> list[bytes]:
        found = []
        with suppress(BlockingIOError):
            while True:
                found.append(self.sockets[version].recv(2000))
        return found

    def refused(self, direction: str) -> int:
        """Packets that policies, or the lack of SAs, dropped."""
        with self.namespace.entered():
            return sum(counter(f"Xfrm{direction}{reason}") for reason in REASONS[direction])


Pair = tuple[End, End]


@contextmanager
def two_ends() -> Iterator[Pair]:
    with ExitStack() as stack:
        namespaces = [stack.enter_context(Namespace()) for _ in range(2)]
        with namespaces[0].entered():
            ip("link add v0 type veth peer name v1")
            namespaces[1].take("v1")
        made = []
        for place, namespace in enumerate(namespaces):
            with namespace.entered():
                end = End(f"v{place}", place, namespace, stack.enter_context(Xfrm()))
                ip(f"addr add {end.address(4)}/24 dev v{place}")
                ip(f"addr add {end.address(6)}/64 dev v{place} nodad")
                ip(f"link set v{place} up")
                ip(f"route add 239.0.0.0/8 dev v{place}")
                for version in (4, 6):
                    end.open(version)
                    stack.enter_context(end.sockets[version])
                made.append(end)
        yield made[0], made[1]


def joined(end: End, group: IPAddress) -> ExitStack:
    stack = ExitStack()
    with end.namespace.entered():
        end.membership(group, join=True)

    def leave() -> None:
        with end.namespace.entered():
            end.membership(group, join=False)

    stack.callback(leave)
    return stack


def delivered(sender: End, receiver: End, group: IPAddress) -> None:
    """Fails unless packets get through, protected (the link needs a moment to come up)."""

    def look() -> bool:
        sender.send(group, b"protected")
        return b"protected" in receiver.heard(group.version)

    eventually(look)
    receiver.heard(group.version)


def refused(sender: End, receiver: End, group: IPAddress, at: End, direction: str) -> None:
    """Fails unless a packet is counted as dropped there, and none arrives."""
    before = at.refused(direction)

    def look() -> bool:
        sender.send(group, b"never")
        return at.refused(direction) > before

    eventually(look)
    assert b"never" not in receiver.heard(group.version)


def new_group(version: int) -> IPAddress:
    return GROUPS[version] + next(NUMBERS)


def serves(version: int, group: IPAddress, *, one: bool, **more: int) -> Flow:
    return Flow(ip_network(HOSTS[version][0]) if one else None, group, **more)
