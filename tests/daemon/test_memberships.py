"""Joins as the kernel sees them: /proc/net/igmp, mcfilter, and who is heard."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import pytest

from gdoi_plugin.daemon.memberships import Membership, Memberships
from gdoi_plugin.protocol.actions import IPAddress
from tests.kernel.namespaces import Namespace, eventually, ip

GROUPS = {4: ip_address("239.192.77.1"), 6: ip_address("ff05::7701")}
SOURCES: dict[int, list[IPAddress]] = {
    4: [ip_address("192.0.2.10") + number for number in range(30)],
    6: [ip_address("2001:db8::10") + number for number in range(30)],
}


@pytest.fixture(autouse=True)
def own_host() -> Iterator[None]:
    with Namespace() as fresh, fresh.entered():
        add_link("net0")
        # The kernel joins these by itself, later, and then they come first. mcfilter6 skips an
        # interface whose first group has no sources.
        eventually(lambda: "ff02::1:ff00:1" in joined("net0"))
        yield


def add_link(name: str) -> int:
    ip(f"link add {name} type veth peer name {name}peer")
    ip(f"link set {name}peer up")
    ip(f"link set {name} addrgenmode none")
    ip(f"link set {name} up")
    ip(f"addr add 192.0.2.1/24 dev {name}")
    ip(f"addr add 2001:db8::1/64 dev {name} nodad")
    return socket.if_nametoindex(name)


@pytest.fixture
def memberships() -> Iterator[Memberships]:
    with closing(Memberships()) as opened:
        yield opened


def joined(name: str) -> set[str]:
    """What the kernel has joined on an interface."""
    return set(re.findall(r"inet6?\s+(\S+)", ip(f"maddr show dev {name}")))


def filters(version: int) -> set[tuple[str, str]]:
    """(group, source) of every included source."""
    lines = Path(f"/proc/thread-self/net/mcfilter{'6' if version == 6 else ''}").read_text()
    found = set()
    for line in lines.splitlines()[1:]:
        _, _, group, source, include, _ = line.split()
        if int(include):
            octets = (bytes.fromhex(text.removeprefix("0x")) for text in (group, source))
            group, source = (str(ip_address(packed)) for packed in octets)
            found.add((group, source))
    return found


@pytest.mark.parametrize("version", [4, 6])
def test_any_source(memberships: Memberships, version: int) -> None:
    index = socket.if_nametoindex("net0")
    held = Membership(GROUPS[version], index)
    assert memberships.hold(held)
    assert not memberships.hold(held)
    assert memberships.held == {held: frozenset()}
    assert str(GROUPS[version]) in joined("net0")
    assert filters(version) == set()
    memberships.drop(held)
    memberships.drop(held)
    assert str(GROUPS[version]) not in joined("net0")


@pytest.mark.parametrize("version", [4, 6])
def test_sources(memberships: Memberships, version: int) -> None:
    """More than one socket may name (net.ipv4.igmp_max_msf is 10), then others than before."""
    held = Membership(GROUPS[version], socket.if_nametoindex("net0"))
    for chosen in (SOURCES[version], SOURCES[version][:1], SOURCES[version][5:7]):
        assert memberships.hold(held, frozenset(chosen))
        assert filters(version) == {(str(held.group), str(source)) for source in chosen}
    memberships.close()
    assert filters(version) == set()


def test_more_groups_than_one_socket_may_join(memberships: Memberships) -> None:
    """net.ipv4.igmp_max_memberships is 20, for each socket."""
    index = socket.if_nametoindex("net0")
    groups = {ip_address("239.192.77.1") + number for number in range(50)}
    for group in groups:
        memberships.hold(Membership(group, index))
    assert {str(group) for group in groups} <= joined("net0")


@pytest.mark.parametrize("sources", [frozenset[IPAddress](), frozenset(SOURCES[4])])
def test_the_kernels_limit_is_named(
    memberships: Memberships, sources: frozenset[IPAddress]
) -> None:
    Path("/proc/sys/net/ipv4/igmp_max_memberships").write_text("0")
    held = Membership(GROUPS[4], socket.if_nametoindex("net0"))
    with pytest.raises(OSError, match=r"raise net\.ipv4\.igmp_max_memberships") as caught:
        memberships.hold(held, sources)
    assert caught.value.errno == errno.ENOBUFS
    assert memberships.held == {}


def test_where_there_is_no_interface(memberships: Memberships) -> None:
    with pytest.raises(OSError, match="No such device"):
        memberships.hold(Membership(GROUPS[4], 99999))
    assert memberships.held == {}


def test_a_change_that_fails_leaves_what_was(memberships: Memberships) -> None:
    held = Membership(GROUPS[4], socket.if_nametoindex("net0"))
    memberships.hold(held, frozenset(SOURCES[4][:1]))
    Path("/proc/sys/net/ipv4/igmp_max_memberships").write_text("0")
    with pytest.raises(OSError, match="no more memberships"):
        memberships.hold(held)
    assert filters(4) == {(str(held.group), str(SOURCES[4][0]))}


@pytest.mark.parametrize("version", [4, 6])
def test_an_interface_made_again(memberships: Memberships, version: int) -> None:
    """Under its old index: the kernel has forgotten the group, and the sockets do not know."""
    index = socket.if_nametoindex("net0")
    held = Membership(GROUPS[version], index)
    memberships.hold(held, frozenset(SOURCES[version][:1]))
    ip("link del net0")
    ip(f"link add net0 index {index} type veth peer name net0peer")
    ip("link set net0 up")
    assert filters(version) == set()
    memberships.forget(index)
    assert memberships.held == {}
    memberships.hold(held, frozenset(SOURCES[version][:1]))
    assert filters(version) == {(str(held.group), str(SOURCES[version][0]))}


def test_who_is_not_named_is_not_heard(memberships: Memberships) -> None:
    """Two addresses of the host behind the other end of the link; only one is named."""
    with Namespace() as other:
        other.take("net0peer")
        with other.entered():
            ip("link set net0peer up")
            for number in (10, 11):
                ip(f"addr add 192.0.2.{number}/24 dev net0peer")
        memberships.hold(
            Membership(GROUPS[4], socket.if_nametoindex("net0")), frozenset(SOURCES[4][:1])
        )
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.bind((str(GROUPS[4]), 848))
            receiver.setblocking(False)
            heard: list[bytes] = []

            def both_said() -> bool:
                with other.entered():
                    for source in SOURCES[4][1::-1]:
                        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                            sender.bind((str(source), 0))
                            sender.setsockopt(
                                socket.IPPROTO_IP, socket.IP_MULTICAST_IF, source.packed
                            )
                            sender.sendto(str(source).encode(), (str(GROUPS[4]), 848))
                try:
                    while True:
                        heard.append(receiver.recv(100))
                except BlockingIOError:
                    return len(heard) > 2

            eventually(both_said)
        assert set(heard) == {str(SOURCES[4][0]).encode()}
