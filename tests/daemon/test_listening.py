"""Sockets and memberships follow what a member's groups hold, in a namespace of their own."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from ipaddress import ip_address

import pytest

from gdoi_plugin.crypto.signature import load_public
from gdoi_plugin.daemon.listening import Listening
from gdoi_plugin.daemon.udp import UdpSockets
from gdoi_plugin.protocol.actions import Event, IPAddress, Peer
from gdoi_plugin.protocol.member import GroupMember
from gdoi_plugin.protocol.nat import Nat
from gdoi_plugin.protocol.policy import Kek, Tek
from gdoi_plugin.protocol.rekey_sas import HeldKek
from gdoi_plugin.protocol.rollover import Held
from gdoi_plugin.wire.registry import SaDirection
from tests.daemon.teks import flow, tek
from tests.daemon.test_memberships import add_link, joined
from tests.kernel.namespaces import Namespace, ip
from tests.support.worlds import ECDSA, member_config, signer

LOCAL = Peer(ip_address("192.0.2.1"), 848)
SERVER, NEXT_SERVER = ip_address("192.0.2.9"), ip_address("192.0.2.10")
REKEYS, CHANNEL = ip_address("239.192.0.1"), ip_address("232.1.1.1")
ANY = frozenset[IPAddress]()


@pytest.fixture(autouse=True)
def own_host() -> Iterator[None]:
    with Namespace() as fresh, fresh.entered():
        for name in ("net0", "net1"):
            add_link(name)
        yield


def group(
    rekeys: IPAddress | None = REKEYS,
    source: IPAddress | None = SERVER,
    *,
    servers: Sequence[IPAddress] = (SERVER,),
    nat: Nat | None = None,
    teks: Sequence[Tek] = (),
) -> GroupMember:
    """A registered member of a group, as far as listening is concerned."""
    config = member_config()
    (entry,) = config.key_servers
    entries = tuple(replace(entry, remote=Peer(server, 848)) for server in servers)
    member = GroupMember(replace(config, local=LOCAL, key_servers=entries), os.urandom)
    der = signer(ECDSA).public_der
    key = tek(0x100).encryption_key
    kek = Kek(b"k" * 16, bytes(16), key, ECDSA, der, 3600, rekeys, source, 1848)
    member.rekey_sas.current = HeldKek(kek, load_public(ECDSA, der), 0, 1e12)
    if nat is not None:
        member.registrar.nat = nat
    hold(member, teks)
    return member


def hold(member: GroupMember, teks: Sequence[Tek]) -> None:
    member.rollover.held = {t.spi: Held(t, 1, 0.0, 1e12) for t in teks}


class Host:
    """A member's sockets; what it tells is kept."""

    def __init__(self, data: Mapping[str, Sequence[str]] | None = None) -> None:
        self.told: list[Event] = []
        self.sockets = UdpSockets(lambda *_: None)
        self.data = data or {}
        self.listening = Listening(self.sockets, self.told.append)

    def update(self, *groups: GroupMember) -> None:
        self.listening.update("net0", [LOCAL], self.data, groups)

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.listening.close()
        self.sockets.close()

    @property
    def failures(self) -> list[tuple[object, object]]:
        return [
            (event.fields["address"], event.fields["error"])
            for event in self.told
            if event.name == "join-failed"
        ]


_Sources = dict[tuple[str, str], frozenset[IPAddress]]


def held(host: Host) -> _Sources:
    """Sources by group and interface. The kernel has joined them (and test_memberships.py looks at
    sources: mcfilter shows those of the interface's last group only)."""
    found = {}
    for membership, sources in host.listening.memberships.items():
        name = socket.if_indextoname(membership.ifindex)
        assert str(membership.group) in joined(name)
        found[str(membership.group), name] = sources
    return found


def run(scenario: Callable[[Host], None], data: Mapping[str, Sequence[str]] | None = None) -> Host:
    async def main() -> Host:
        with Host(data) as host:
            scenario(host)
        return host

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("member", "sources"),
    [
        (group, {SERVER}),
        (partial(group, source=None), ANY),
        (partial(group, servers=(SERVER, NEXT_SERVER)), ANY),
        (partial(group, nat=Nat(there=True)), ANY),
        (partial(group, nat=Nat(here=True)), {SERVER}),
        (partial(group, source=ip_address("2001:db8::9")), ANY),
        (partial(group, CHANNEL, servers=(SERVER, NEXT_SERVER)), {SERVER, NEXT_SERVER}),
    ],
    ids=[
        "one source",
        "no source",
        "two key servers",
        "key server behind a NAT",
        "member behind a NAT",
        "other family",
        "source-specific group",
    ],
)
def test_who_may_send_rekeys(
    member: Callable[[], GroupMember], sources: frozenset[IPAddress]
) -> None:
    registered = member()
    (kek,) = (h.kek for h in registered.rekey_sas.held)

    def scenario(host: Host) -> None:
        host.update(registered)
        assert held(host) == {(str(kek.destination), "net0"): sources}
        bound = {LOCAL, Peer(LOCAL.host, 1848), Peer(kek.destination or LOCAL.host, 1848)}
        assert host.sockets.open == bound

    assert [event.name for event in run(scenario).told] == ["joined"]


def test_unicast_rekeys_are_not_joined() -> None:
    def scenario(host: Host) -> None:
        host.update(group(rekeys=LOCAL.host), group(rekeys=None))
        assert held(host) == {}
        assert host.sockets.open == {LOCAL}

    run(scenario)


def test_data_is_joined_while_there_are_sas_for_it() -> None:
    """On two interfaces, from any source as long as one TEK has any. One to send with has none."""
    member = group(rekeys=None)
    pinned = tek(0x100, flow("192.0.2.77/32")), tek(0x101, flow("192.0.2.78/32"))
    subnet = tek(0x102, flow("192.0.2.64/28"))
    ours = tek(0x103, flow("192.0.2.1/32", "239.1.1.2"), direction=SaDirection.SENDER_ONLY)
    named = frozenset(ip_address(f"192.0.2.{host}") for host in (77, 78))

    def scenario(host: Host) -> None:
        for teks, sources in (
            ((*pinned, ours), named),
            ((*pinned, subnet), ANY),
            (pinned[:1], frozenset({ip_address("192.0.2.77")})),
        ):
            hold(member, teks)
            host.update(member)
            assert held(host) == {("239.1.1.1", name): sources for name in ("net0", "net1")}
        hold(member, ())
        host.update(member)
        assert held(host) == {}
        assert "239.1.1.1" not in joined("net0") | joined("net1")

    host = run(scenario, {member.config.name: ("net0", "net1")})
    assert [event.name for event in host.told] == ["joined"] * 6
    assert host.told[0].fields == {
        "address": "239.1.1.1",
        "interface": "net0",
        "sources": ["192.0.2.77", "192.0.2.78"],
    }
    assert host.told[2].fields["sources"] == "any"


def test_rekeys_and_data_of_one_address() -> None:
    member = group(CHANNEL, teks=[tek(0x100, flow("192.0.2.77/32", str(CHANNEL)))])

    def scenario(host: Host) -> None:
        host.update(member)
        both = frozenset({SERVER, ip_address("192.0.2.77")})
        assert held(host) == {(str(CHANNEL), "net0"): both}

    run(scenario, {member.config.name: ("net0",)})


def test_what_cannot_be_joined_is_told_once() -> None:
    """An interface that is not there, a group without source; the rest is joined all the same."""
    teks = [tek(0x100, flow(None, "232.1.1.2")), tek(0x101)]
    member = group(teks=teks)

    def scenario(host: Host) -> None:
        for _ in range(3):
            host.update(member)
        assert not host.listening.complete
        assert set(held(host)) == {(str(REKEYS), "net0"), ("239.1.1.1", "net0")}
        add_link("later0")
        hold(member, teks[1:])
        host.update(member)
        assert host.listening.complete
        assert ("239.1.1.1", "later0") in held(host)

    host = run(scenario, {member.config.name: ("net0", "later0")})
    no_source = "a source-specific group, and the policy names no source"
    no_device = "no interface with this name"
    assert sorted(host.failures) == [
        ("232.1.1.2 on later0", no_device),
        ("232.1.1.2 on net0", no_source),
        ("239.1.1.1 on later0", no_device),
    ]


def test_an_interface_made_again() -> None:
    member = group(ip_address("ff12::7701"), None)

    def scenario(host: Host) -> None:
        host.update(member)
        before = socket.if_nametoindex("net0")
        ip("link del net0")
        add_link("net0")
        assert socket.if_nametoindex("net0") != before
        host.listening.interface_gone(before)
        host.update(member)
        assert held(host) == {("ff12::7701", "net0"): ANY}
        assert Peer(ip_address("ff12::7701"), 1848) in host.sockets.open

    assert [event.name for event in run(scenario).told] == ["joined"] * 2
