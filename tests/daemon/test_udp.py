"""Sockets on loopback: who hears what, and one sentence where a port is not to be had."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from ipaddress import ip_address
from typing import TypeVar

import pytest

from gdoi_plugin.daemon.errors import StartError
from gdoi_plugin.daemon.memberships import Membership, Memberships
from gdoi_plugin.daemon.udp import BURST, UdpSockets
from gdoi_plugin.protocol.actions import Peer
from gdoi_plugin.wire.encapsulation import KEEPALIVE
from gdoi_plugin.wire.header import MAX_MESSAGE
from tests.daemon.children import NOBODY, finished, python
from tests.kernel.namespaces import Namespace, eventually, ip

T = TypeVar("T")
PATIENCE = 60.0
TAKEN = "another program has the port (daemons need an address each)"
Heard = list[tuple[bytes, Peer, Peer]]


def free_port(host: str = "127.0.0.1") -> int:
    """Nobody has it now; that nobody takes it meanwhile is as likely as can be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def peer(host: str, port: int | None = None) -> Peer:
    return Peer(ip_address(host), port or free_port("::" if ":" in host else "127.0.0.1"))


def run(scenario: Callable[[UdpSockets, UdpSockets, Heard], Awaitable[T]]) -> T:
    """Two hosts in one process; what the second one hears is noted."""

    async def main() -> T:
        heard: Heard = []
        lost: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: lost.append(what))
        one = UdpSockets(lambda *_: None)
        two = UdpSockets(lambda *what: heard.append(what))
        try:
            result = await scenario(one, two, heard)
        finally:
            one.close()
            two.close()
            one.close()
        assert lost == []
        return result

    return asyncio.run(main())


def hear(sockets: UdpSockets, memberships: Memberships, group: Peer, ifindex: int) -> None:
    memberships.hold(Membership(group.host, ifindex))
    sockets.listen(group, ifindex)


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.002)


@pytest.mark.parametrize(("a", "b"), [("127.0.0.1", "127.0.0.2"), ("::1", "::1")])
def test_unicast(a: str, b: str) -> None:
    first, second = peer(a), peer(b)

    async def scenario(one: UdpSockets, two: UdpSockets, heard: Heard) -> None:
        one.bind(first, "lo")
        two.bind(second, "lo")
        for size in (0, 1, MAX_MESSAGE if first.host.version == 4 else 1400):
            one.send(bytes(size), second, first)
        await until(lambda: len(heard) == 3)
        assert [len(datagram) for datagram, _, _ in heard][:2] == [0, 1]
        assert {what[1:] for what in heard} == {(first, second)}

    run(scenario)


@pytest.fixture
def own_host() -> Iterator[None]:
    """A fresh network namespace: two interfaces for IPv6 multicast, which lo does not carry."""
    with Namespace() as fresh, fresh.entered():
        ip("link add net0 type veth peer name net1")
        for number, name in enumerate(("net0", "net1")):
            ip(f"link set {name} up")
            ip(f"addr add 2001:db8:{number}::1/64 dev {name} nodad")
            ip(f"addr add 192.0.2.{number + 1}/32 dev {name}")
        # The kernel's own worker makes a link ready, some time after it was asked to.
        eventually(lambda: all(map(ready, ("net0", "net1"))))
        yield


def ready(interface: str) -> bool:
    routes = ip(f"-6 route show table all dev {interface}")
    return "state UP" in ip(f"link show {interface}") and "multicast ff00::/8" in routes


@pytest.mark.usefixtures("own_host")
@pytest.mark.parametrize(
    ("a", "interface", "group"),
    [
        ("127.0.0.1", "lo", "239.192.77.1"),
        ("192.0.2.2", "net1", "239.192.77.1"),
        ("2001:db8:0::1", "net0", "ff05::7701"),
        ("2001:db8:1::1", "net1", "ff05::7701"),
        ("2001:db8:1::1", "net1", "ff12::7701"),
    ],
)
def test_multicast_joined_and_left(a: str, interface: str, group: str) -> None:
    """On the interface of the local address, whatever the routes say."""
    first, address = peer(a), peer(group)
    other = Peer(ip_address(group) + 1, address.port)
    index = socket.if_nametoindex(interface)

    async def scenario(one: UdpSockets, two: UdpSockets, heard: Heard) -> None:
        one.bind(first, interface)
        memberships = Memberships()
        hear(two, memberships, address, index)
        # The same port of the host: ACKs leave here.
        two.bind(Peer(first.host, address.port), interface)
        assert two.open == {address, Peer(first.host, address.port)}
        one.send(b"to another group", other, first)
        one.send(b"rekey", address, first)
        one.send(b"unicast", Peer(first.host, address.port), first)
        await until(lambda: len(heard) == 2)
        two.leave(address)
        memberships.close()
        one.send(b"too late", address, first)
        one.send(b"end", Peer(first.host, address.port), first)
        await until(lambda: heard[-1][0] == b"end")
        assert set(heard) == {
            (b"rekey", first, address),
            (b"unicast", first, Peer(first.host, address.port)),
            (b"end", first, Peer(first.host, address.port)),
        }

    run(scenario)


def test_an_endpoint_of_nat_traversal() -> None:
    """RFC 3948 section 2: a marker before each message, keepalives for the NAT alone."""
    first, second = peer("127.0.0.1"), peer("127.0.0.2")
    refused: list[tuple[Peer, str]] = []

    async def main() -> None:
        heard: Heard = []
        one = UdpSockets(lambda *_: None)
        two = UdpSockets(lambda *what: heard.append(what), lambda *what: refused.append(what))
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as raw:
            raw.bind((str(first.host), 0))
            raw.setblocking(False)
            bare = Peer(first.host, raw.getsockname()[1])
            one.bind_encapsulated(first)
            two.bind_encapsulated(second)
            one.send(b"message", second, first)
            one.send(KEEPALIVE, second, first)
            raw.sendto(b"ESP with an SPI", (str(second.host), second.port))
            raw.sendto(b"", (str(second.host), second.port))
            one.send(b"last", second, first)
            await until(lambda: len(heard) == 2)
            assert heard == [(b"message", first, second), (b"last", first, second)]
            assert refused == [
                (bare, "no non-ESP marker but 45535020 at octet 0"),
                (bare, "no non-ESP marker but nothing at octet 0"),
            ]
            two.send(b"answer", bare, second)
            two.send(KEEPALIVE, bare, second)
            got: list[bytes] = []
            await until(lambda: got.append(raw.recv(99)) or len(got) == 2)  # type: ignore[func-returns-value]
            assert got == [bytes(4) + b"answer", b"\xff"]
        two.leave(second)
        two.bind(second, "lo")
        one.send(b"to a plain socket", second, first)
        await until(lambda: len(heard) == 3)
        assert heard[-1][0] == bytes(4) + b"to a plain socket"
        one.close()
        two.close()

    asyncio.run(main())


def test_two_daemons_of_one_host_join_the_same_group() -> None:
    first, address = peer("127.0.0.1"), peer("239.192.77.2")
    lo = socket.if_nametoindex("lo")

    async def scenario(one: UdpSockets, two: UdpSockets, heard: Heard) -> None:
        one.bind(first, "lo")
        memberships = [Memberships(), Memberships()]
        hear(one, memberships[0], address, lo)
        hear(two, memberships[1], address, lo)
        memberships[0].close()
        one.send(b"rekey", address, first)
        await until(lambda: heard)
        assert heard == [(b"rekey", first, address)]
        memberships[1].close()

    run(scenario)


def test_a_burst_longer_than_one_turn() -> None:
    first, second = peer("127.0.0.1"), peer("127.0.0.2")
    count = 3 * BURST + 1

    async def scenario(one: UdpSockets, two: UdpSockets, heard: Heard) -> None:
        one.bind(first, "lo")
        two.bind(second, "lo")
        for number in range(count):
            one.send(number.to_bytes(4, "big"), second, first)
        await until(lambda: len(heard) == count)
        assert [int.from_bytes(datagram, "big") for datagram, _, _ in heard] == list(range(count))

    run(scenario)


def test_the_end_of_a_turn_is_told_once() -> None:
    """After all that waited, and also where one of them met a bug that nobody caught."""
    a, b = peer("127.0.0.1"), peer("127.0.0.2")
    told: list[object] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
        one = UdpSockets(lambda *_: None)

        def receive(datagram: bytes, *_: object) -> None:
            told.append((datagram, two.in_turn))
            if datagram == b"bug":
                raise ValueError

        two = UdpSockets(receive, turn_over=lambda: told.append(two.in_turn))
        with closing(one), closing(two):
            one.bind(a, "lo")
            two.bind(b, "lo")
            for number in range(3):
                one.send(b"%d" % number, b, a)
            await until(lambda: len(told) == 4)
            one.send(b"bug", b, a)
            await until(lambda: len(told) == 7)

    asyncio.run(main())
    assert told[:4] == [(b"0", True), (b"1", True), (b"2", True), False]
    assert told[4:6] == [(b"bug", True), False]
    assert isinstance(told[6], ValueError)


def test_a_refused_datagram_does_not_deafen() -> None:
    """The ICMP error of what was sent to a closed port comes with the next read."""
    first, second, nobody = peer("127.0.0.1"), peer("127.0.0.2"), peer("127.0.0.3")

    async def scenario(one: UdpSockets, two: UdpSockets, heard: Heard) -> None:
        two.bind(second, "lo")
        one.bind(first, "lo")
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)):
            for _ in range(3):
                two.send(b"?", nobody, second)
        one.send(b"still there", second, first)
        await until(lambda: heard)
        assert heard == [(b"still there", first, second)]

    run(scenario)


def test_closing_while_datagrams_are_heard() -> None:
    """What a receiver does may close the very socket that is being read."""
    first, second = peer("127.0.0.1"), peer("127.0.0.2")

    async def main() -> None:
        lost: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: lost.append(what))
        heard: list[bytes] = []

        def hear(datagram: bytes, *_: Peer) -> None:
            heard.append(datagram)
            two.leave(second)

        one, two = UdpSockets(lambda *_: None), UdpSockets(hear)
        one.bind(first, "lo")
        two.bind(second, "lo")
        for _ in range(5):
            one.send(b"x", second, first)
        await until(lambda: heard)
        one.close()
        assert heard == [b"x"]
        assert lost == []
        assert two.open == frozenset()

    asyncio.run(main())


def test_nothing_is_sent_from_an_address_that_is_not_bound() -> None:
    async def scenario(one: UdpSockets, _two: UdpSockets, _heard: Heard) -> None:
        with pytest.raises(OSError, match=r"no socket bound to 127\.0\.0\.1:9"):
            one.send(b"x", peer("127.0.0.2"), peer("127.0.0.1", 9))

    run(scenario)


# -- where it cannot be --------------------------------------------------------------------------


def why_not(local: Peer) -> str:
    async def main() -> str:
        sockets = UdpSockets(lambda *_: None)
        with pytest.raises(StartError) as caught:
            sockets.bind(local, "lo")
        assert sockets.open == frozenset()
        return str(caught.value)

    return asyncio.run(main())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_port_taken(host: str) -> None:
    local = peer(host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as other:
        other.bind((host, local.port))
        assert why_not(local) == f"cannot bind UDP {local}: {TAKEN}"


def test_no_address_of_this_host() -> None:
    for local in (peer("192.0.2.99", 848), peer("2001:db8::99", 848)):
        said = f"cannot bind UDP {local}: no interface of this host has that address"
        assert why_not(local) == said


BINDING = """
import asyncio
from ipaddress import ip_address
from gdoi_plugin.daemon.errors import StartError
from gdoi_plugin.daemon.memberships import Membership, Memberships
from gdoi_plugin.daemon.udp import UdpSockets
from gdoi_plugin.protocol.actions import Peer
async def main():
    try:
        UdpSockets(lambda *_: None).bind(Peer(ip_address("127.0.0.1"), 848), "lo")
    except StartError as error:
        print(error)
asyncio.run(main())
"""


def test_no_permission() -> None:
    """The ports that need one can be set (net.ipv4.ip_unprivileged_port_start); here they do."""
    done = finished([*NOBODY, *python(BINDING)])
    assert done.stderr == ""
    hint = "ports below 1024 need root or CAP_NET_BIND_SERVICE"
    assert done.stdout == f"cannot bind UDP 127.0.0.1:848: {hint}\n"
