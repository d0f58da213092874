"""What the kernel says of interfaces and addresses, in namespaces of the tests' own."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from gdoi_plugin.daemon.config_member import MemberDaemonConfig
from gdoi_plugin.daemon.errors import ConfigError, StartError
from gdoi_plugin.daemon.links import LinkWatch, deleted, is_up, watch_links
from gdoi_plugin.daemon.udp import UdpSockets
from gdoi_plugin.daemon.whereabouts import Whereabouts
from gdoi_plugin.protocol.actions import Peer
from tests.daemon.configs import gm, write
from tests.daemon.test_udp import until
from tests.kernel.namespaces import Namespace, eventually, ip

PATIENCE = 90.0
ADDRESS = 'address = "127.0.0.1"'


@pytest.fixture(autouse=True)
def own_host() -> Iterator[None]:
    with Namespace() as fresh, fresh.entered():
        yield


def add_link(name: str, *addresses: str) -> int:
    ip(f"link add {name} type veth peer name {name}peer")
    ip(f"link set {name}peer up")
    ip(f"link set {name} up")
    eventually(lambda: is_up(name))
    for address in addresses:
        ip(f"addr add {address} dev {name}")
    return socket.if_nametoindex(name)


Looks = list[frozenset[int]]


def watching(scenario: Callable[[Looks, LinkWatch], Awaitable[None]]) -> None:
    async def main() -> None:
        looks: Looks = []
        with closing(watch_links(looks.append)) as watch:
            await scenario(looks, watch)

    asyncio.run(main())


@pytest.mark.parametrize(
    "change",
    [
        "link add net1 type veth peer name net1peer",
        "link set net0 down",
        "link set net0peer down",
        "link set net0 name other0",
        "addr add 192.0.2.2/24 dev net0",
        "addr del 192.0.2.1/24 dev net0",
        "addr add 2001:db8::1/64 dev net0",
        "addr del 2001:db8::9/64 dev net0",
    ],
)
def test_every_change_is_looked_at(change: str) -> None:
    add_link("net0", "192.0.2.1/24", "2001:db8::9/64 nodad")

    async def scenario(looks: Looks, _: LinkWatch) -> None:
        ip(change)
        await until(lambda: looks)
        assert not any(looks)

    watching(scenario)


def test_an_address_that_becomes_usable_is_looked_at() -> None:
    """Duplicate address detection takes a second: until then no socket may have the address."""
    add_link("net0")

    async def scenario(looks: Looks, _: LinkWatch) -> None:
        ip("addr add 2001:db8::1/64 dev net0")
        while "tentative" in ip("addr show dev net0 to 2001:db8::1"):
            looks.clear()
            await asyncio.sleep(0.01)
        await until(lambda: looks)

    watching(scenario)


def test_an_interface_deleted_and_made_again_under_its_index() -> None:
    index = add_link("net0")

    async def scenario(looks: Looks, _: LinkWatch) -> None:
        ip("link del net0")
        ip(f"link add net0 index {index} type veth peer name net0peer")
        await until(lambda: looks)
        assert index in frozenset().union(*looks)

    watching(scenario)


def test_leaving_a_bridge_deletes_nothing() -> None:
    """The kernel says RTM_DELLINK of that too, for AF_BRIDGE."""
    add_link("net0")
    ip("link add br0 type bridge")
    ip("link set net0 master br0")

    async def scenario(looks: Looks, _: LinkWatch) -> None:
        ip("link set net0 nomaster")
        await until(lambda: looks)
        ip("link del br0")
        await until(lambda: any(looks))
        assert socket.if_nametoindex("net0") not in frozenset().union(*looks)

    watching(scenario)


def test_news_that_the_kernel_could_not_deliver() -> None:
    """ENOBUFS: whatever has been missed, there is a look afterwards."""
    add_link("net0")

    async def scenario(looks: Looks, watch: LinkWatch) -> None:
        watch._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for number in range(16):
            ip(f"link set net0 name other{number}")
            ip(f"link set other{number} name net0")
        lost = int(_drops(watch._socket))
        assert lost > 0
        await until(lambda: looks)

    watching(scenario)


def _drops(sock: socket.socket) -> str:
    """What /proc/net/netlink says was lost on the way to a socket, which it knows by its port."""
    lines = Path("/proc/thread-self/net/netlink").read_text().splitlines()
    port = str(sock.getsockname()[0])
    return next(line.split()[8] for line in lines[1:] if line.split()[1:3] == ["0", port])


def test_other_processes_are_not_believed() -> None:
    """Anybody may write to a netlink socket."""

    async def scenario(looks: Looks, watch: LinkWatch) -> None:
        message = struct.pack("=IHHIIBxHiII", 32, 17, 0, 0, 0, 0, 0, 77, 0, 0)
        assert deleted(message) == {77}
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as other:
            other.sendto(message, (watch._socket.getsockname()[0], 0))
        await until(lambda: looks)
        assert looks == [frozenset()]

    watching(scenario)


@pytest.mark.parametrize("length", range(40))
def test_cut_off_messages(length: int) -> None:
    message = struct.pack("=IHHIIBxHiII", 32, 17, 0, 0, 0, 0, 0, 77, 0, 0)
    assert deleted((message + bytes(8))[:length]) <= {77}
    assert deleted(bytes(length)) == set()


def test_no_netlink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "NETLINK_ROUTE", 31)
    with pytest.raises(StartError, match="no news of interfaces from the kernel: Protocol not"):
        watching(lambda *_: asyncio.sleep(0))


def test_up_with_a_carrier() -> None:
    assert is_up("lo")
    assert not is_up("net0")
    add_link("net0")
    ip("link set net0peer down")
    eventually(lambda: not is_up("net0"))  # the kernel looks after carriers in its own time
    ip("link set net0peer up")
    eventually(lambda: is_up("net0"))
    ip("link set net0 down")
    assert not is_up("net0")


@pytest.mark.parametrize(
    ("address", "group"), [("192.0.2.1", "239.192.77.1"), ("2001:db8::1", "ff15::7701")]
)
def test_multicast_leaves_over_an_interface_made_again(address: str, group: str) -> None:
    """A socket knows its interface by index, and until told it sends nowhere."""
    local, rekeys = Peer(ip_address(address), 1848), Peer(ip_address(group), 848)
    prefix = f"{address}/24" if local.host.version == 4 else f"{address}/64 nodad"
    add_link("net0", prefix)

    def sent() -> int:
        shown: list[dict[str, Any]] = json.loads(ip("-json -stats link show dev net0"))
        return int(shown[0]["stats64"]["tx"]["packets"])

    async def main() -> None:
        with closing(UdpSockets(lambda *_: None)) as sockets:
            sockets.bind(local, "net0")
            sockets.send(b"one", rekeys, local)
            ip("link del net0")
            add_link("net0", prefix)
            with pytest.raises(OSError, match=r"No such device|unreachable"):
                sockets.send(b"two", rekeys, local)
            sockets.aim(local, "net0")
            before = sent()
            sockets.send(b"three", rekeys, local)
            eventually(lambda: sent() > before)

    asyncio.run(main())


# -- where a member is ---------------------------------------------------------------------------


class Member:
    """A member's sockets and where it takes itself to be."""

    def __init__(self, folder: Path, line: str, lan: str | None = None) -> None:
        path = write(folder, gm(ADDRESS, f"port = 1848\n{line}"))
        if "2001" in line:
            path.write_text(path.read_text().replace("127.0.0.9", "2001:db8::9"))
        if lan is not None:
            text = path.read_text()
            path.write_text(text.replace("[[group]]\n", f'[[group]]\nlan = ["{lan}"]\n'))
        self.sockets = UdpSockets(lambda *_: None)
        self.place = Whereabouts(MemberDaemonConfig(path), self.sockets)

    def look(self) -> list[tuple[str, str]]:
        """What is told."""
        return [
            (event.name, str(event.fields.get("address") or event.fields.get("error")))
            for event in self.place.look()
        ]


def member(
    folder: Path, line: str, scenario: Callable[[Member], None], lan: str | None = None
) -> None:
    async def main() -> None:
        chosen = Member(folder, line, lan)
        with closing(chosen.sockets):
            scenario(chosen)

    asyncio.run(main())


def test_an_interface_that_comes_late_and_goes(tmp_path: Path) -> None:
    def scenario(gm: Member) -> None:
        ((event, said),) = gm.look()
        assert event == "network-lost"
        assert said.endswith("member.interface: no interface net0; this host has lo")
        assert gm.look() == []
        add_link("net0")
        ((_, said),) = gm.look()
        assert said.endswith("member.interface: net0 has no IPv4 address; give member.address")
        assert not gm.place.bound
        ip("addr add 192.0.2.1/24 dev net0")
        assert gm.look() == [("network-found", "192.0.2.1")]
        assert gm.place.bound
        assert gm.look() == []
        ip("link set net0 down")
        assert gm.look() == [("network-lost", "net0 has no link")]
        ip("link set net0 up")
        eventually(lambda: is_up("net0"))
        assert gm.look() == [("network-found", "192.0.2.1")]
        ip("link del net0")
        assert [name for name, _ in gm.look()] == ["network-lost"]
        assert str(gm.place.config.local) == "192.0.2.1:1848", "until there is another"
        add_link("net0", "192.0.2.2/24")
        assert gm.look() == [("network-found", "192.0.2.2")]
        assert str(gm.place.config.local) == "192.0.2.2:1848"

    member(tmp_path, 'interface = "net0"', scenario)


def test_an_address_that_moves_to_another_interface(tmp_path: Path) -> None:
    add_link("net0", "192.0.2.1/24")

    def scenario(gm: Member) -> None:
        assert gm.look() == []
        before = gm.place.config
        ip("addr del 192.0.2.1/24 dev net0")
        add_link("net1", "192.0.2.1/24")
        assert gm.look() == [("network-found", "192.0.2.1")]
        assert gm.place.config.local == before.local
        assert gm.place.config.interface == "net1"

    member(tmp_path, 'address = "192.0.2.1"', scenario)


def test_an_address_where_the_configuration_does_not_fit(tmp_path: Path) -> None:
    """It is waited for until the address is elsewhere again, or the file another one."""
    add_link("net0", "192.0.2.1/24")

    def scenario(gm: Member) -> None:
        assert gm.look() == []
        ip("addr del 192.0.2.1/24 dev net0")
        add_link("lan0", "192.0.2.1/24")
        ((event, said),) = gm.look()
        assert event == "network-lost"
        assert "group.0.lan: lan0 is [member]'s interface" in said
        with pytest.raises(ConfigError, match="lan0"):
            gm.place.look(strict=True)
        ip("addr del 192.0.2.1/24 dev lan0")
        ip("addr add 192.0.2.1/24 dev net0")
        assert gm.look() == [("network-found", "192.0.2.1")]

    member(tmp_path, 'address = "192.0.2.1"', scenario, lan="lan0")


def test_no_file_descriptor_for_a_socket(tmp_path: Path) -> None:
    add_link("net0", "192.0.2.1/24")

    def scenario(gm: Member) -> None:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.open("/dev/null", os.O_RDONLY)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, most[1]))
        try:
            assert not is_up("net0")
            with pytest.raises(StartError, match="Too many open files"):
                gm.sockets.bind(Peer(ip_address("192.0.2.1"), 1848), "net0")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, most)
        assert gm.look() == []

    member(tmp_path, 'interface = "net0"', scenario)


def test_an_address_that_is_not_usable_yet(tmp_path: Path) -> None:
    add_link("net0")

    def scenario(gm: Member) -> None:
        ip("addr add 2001:db8::1/64 dev net0")
        ((event, said),) = gm.look()
        assert event == "network-lost"
        assert "cannot bind UDP [2001:db8::1]:1848" in said
        deadline = time.monotonic() + PATIENCE
        while not gm.place.bound and time.monotonic() < deadline:
            told = gm.look()
        assert told == [("network-found", "2001:db8::1")]

    member(tmp_path, 'address = "2001:db8::1"', scenario)


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """At the start that is the end; later, at another address, it is waited for."""
    add_link("net0", "192.0.2.1/24")

    def scenario(gm: Member) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("192.0.2.1", 1848))
            with pytest.raises(StartError, match="another program has the port"):
                gm.place.look(strict=True)
            ((event, said),) = gm.look()
            assert (event, "another program" in said) == ("network-lost", True)
        assert gm.look() == [("network-found", "192.0.2.1")]

    member(tmp_path, 'interface = "net0"', scenario)
