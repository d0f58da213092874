"""What a key server blocks, in a real kernel: policies need no ESP, and nothing here comes in any.

::

    key server  v0 ---- veth ---- v1  peers
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path

import pytest
from gdoi_xfrm import (
    Direction,
    Network,
    Operation,
    Policy,
    PolicyAction,
    Result,
    Selector,
    UpdatePolicy,
    Xfrm,
)

from gdoi_plugin.daemon.charon.blocks import Blocks, blocks_for
from gdoi_plugin.daemon.errors import StoreError
from gdoi_plugin.daemon.guard import CHANNEL_PRIORITY
from gdoi_plugin.daemon.state_file import StateDirectory
from gdoi_plugin.protocol.actions import Event
from tests.daemon.children import eventually as in_time
from tests.daemon.ends import Pair, two_ends
from tests.daemon.test_processes import Server
from tests.kernel.conftest import namespace, xfrm
from tests.kernel.namespaces import eventually, ip

__all__ = ["namespace", "xfrm"]

PORTS = (848, 4500)
NAME = "gcks-channels"
PATIENCE = 90.0
NESTED = {
    4: ("10.0.0.0/8", "10.1.0.0/16", "10.1.1.0/24", "10.1.1.1/32"),
    6: ("fd00::/16", "fd00:1::/32", "fd00:1:1::/48", "fd00:1:1::1/128"),
}
PEERS = {
    4: ("10.9.9.9", "10.1.9.9", "10.1.1.9", "10.1.1.1"),
    6: ("fd00:9::9", "fd00:1:9::9", "fd00:1:1::9", "fd00:1:1::1"),
}
OWN = {4: "10.255.0.1", 6: "fd00:ffff::1"}


def networks(peers: Mapping[str, bool]) -> dict[Network, bool]:
    return {ip_network(text): inside for text, inside in peers.items()}


def wanted(peers: Mapping[str, bool]) -> tuple[Policy, ...]:
    return blocks_for(networks(peers), PORTS)


A = wanted({"10.0.0.0/8": True, "10.1.0.0/16": False, "fd00::/16": True})
B = wanted({"10.0.0.0/8": False, "10.1.0.0/16": True, "192.0.2.7/32": True})
OTHERS = Policy(Selector(ip_network("10.0.0.0/8"), ip_network("0.0.0.0/0")), Direction.IN, 500000)


class Holder:
    """A key server's part of it, and what it says."""

    def __init__(self, folder: Path) -> None:
        self.told: list[Event] = []
        self.blocks = Blocks(StateDirectory(folder), NAME, self.told.extend)

    def names(self) -> list[str]:
        return [event.name for event in self.told]


def run(folder: Path, scenario: Callable[[Holder], Awaitable[None]]) -> Holder:
    """One life of a key server. Its end is a kill: nothing is taken back."""

    async def main() -> Holder:
        holder = Holder(folder)
        try:
            await scenario(holder)
        finally:
            holder.blocks.close()
        return holder

    return asyncio.run(main())


def hold(folder: Path, policies: tuple[Policy, ...]) -> None:
    async def scenario(holder: Holder) -> None:
        holder.blocks.hold(policies)

    run(folder, scenario)


async def until(condition: Callable[[], object]) -> None:
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)


def there(xfrm: Xfrm) -> set[Policy]:
    return set(xfrm.dump_policies())


# -- what passes -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hosts() -> Iterator[Pair]:
    with two_ends() as ends:
        for version, length in ((4, "8"), (6, "16 nodad")):
            here, beyond = ends
            with here.namespace.entered():
                ip(f"addr add {OWN[version]}/{length} dev {here.name}")
            with beyond.namespace.entered():
                for address in PEERS[version]:
                    ip(f"addr add {address}/{length} dev {beyond.name}")
        yield ends


def opened(version: int, address: str, port: int) -> socket.socket:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((address, port))
    sock.setblocking(False)
    return sock


def comes(hosts: Pair, version: int, peer: str, port: int) -> bool:
    """Whether a peer's datagram to a port of the key server's arrives there in clear."""
    here, beyond = hosts
    with here.namespace.entered():
        receiver = opened(version, OWN[version], port)
    with beyond.namespace.entered():
        sender = opened(version, peer, 9848)
    before, found = here.refused("In"), []

    def decided() -> bool:
        sender.sendto(b"in clear", (OWN[version], port))
        with suppress(BlockingIOError):
            found.append(receiver.recv(100))
        return bool(found) or here.refused("In") > before

    with sender, receiver:
        eventually(decided)
    return bool(found)


def goes(hosts: Pair, version: int, peer: str, port: int) -> bool:
    """Whether the key server's own port may send to a peer, whatever port of it."""
    with hosts[0].namespace.entered(), opened(version, OWN[version], port) as sender:
        try:
            sender.sendto(b"in clear", (peer, 9848))
        except PermissionError:
            return False
    return True


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("reverse", [False, True], ids=["widest first", "widest last"])
@pytest.mark.parametrize("inside", [True, False])
def test_the_most_specific_network_counts(
    hosts: Pair, version: int, *, reverse: bool, inside: bool, tmp_path: Path
) -> None:
    """Each of four networks lies in the one before, and is what that is not."""
    closed = [inside, not inside, inside, not inside]
    peers = dict(zip(NESTED[version], closed, strict=True))
    if reverse:
        peers = dict(reversed(peers.items()))
    with hosts[0].namespace.entered():
        hold(tmp_path, wanted(peers))
    try:
        for port in PORTS:
            assert [comes(hosts, version, peer, port) for peer in PEERS[version]] == [
                not one for one in closed
            ]
            assert [goes(hosts, version, peer, port) for peer in PEERS[version]] == [
                not one for one in closed
            ]
        # Other ports, and the other IP version, are nobody's business.
        assert comes(hosts, version, PEERS[version][0 if inside else 1], 5001)
        assert goes(hosts, version, PEERS[version][0 if inside else 1], 5001)
        assert comes(hosts, 10 - version, PEERS[10 - version][0 if inside else 1], 848)
    finally:
        with hosts[0].namespace.entered():
            hold(tmp_path, ())
    assert all(comes(hosts, version, peer, 848) for peer in PEERS[version])


def test_nothing_that_is_open_anyway_has_a_policy() -> None:
    assert wanted({"10.0.0.0/8": False, "fd00::/16": False}) == ()
    found = wanted({"10.0.0.0/8": True, "192.0.2.0/24": False, "fd00:1::/32": False})
    assert {p.action for p in found} == {PolicyAction.BLOCK}


# -- one life and the next -------------------------------------------------------------------------


def test_a_reload_takes_what_is_new_and_drops_what_is_not(xfrm: Xfrm, tmp_path: Path) -> None:
    """Others' policies stay, also one with a selector that was ours."""
    taken = A[0].selector, A[0].direction
    xfrm.transaction([UpdatePolicy(OTHERS)])

    async def scenario(holder: Holder) -> None:
        for policies in (A, A, B, A, B):
            holder.blocks.hold(policies)
            assert there(xfrm) == {*policies, OTHERS}
        assert taken not in {(p.selector, p.direction) for p in B if p.action is A[0].action}
        theirs = Policy(B[0].selector, B[0].direction, 300000, PolicyAction.ALLOW)
        xfrm.transaction([UpdatePolicy(theirs)])
        holder.blocks.hold(())
        assert there(xfrm) == {theirs, OTHERS}

    assert run(tmp_path, scenario).told == []


def test_while_it_changes_what_either_blocks_is_blocked(xfrm: Xfrm, tmp_path: Path) -> None:
    async def scenario(holder: Holder) -> None:
        for sets in ((A, B), (B, A)):
            holder.blocks.hold(*sets)
            found = there(xfrm)
            assert {p for p in (*A, *B) if p.action is PolicyAction.BLOCK} <= found
            assert found <= {*A, *B}
        holder.blocks.hold(B)
        assert there(xfrm) == set(B)

    run(tmp_path, scenario)


@pytest.mark.parametrize("then", [(), B], ids=["without", "with others"])
def test_killed_and_started_again(xfrm: Xfrm, then: tuple[Policy, ...], tmp_path: Path) -> None:
    """What is not configured any more goes; some of it may have gone before."""
    hold(tmp_path, A)
    assert there(xfrm) == set(A)
    ip(f"xfrm policy delete {_words(A[0])}")
    hold(tmp_path, then)
    assert there(xfrm) == set(then)
    hold(tmp_path, ())
    assert there(xfrm) == set()


class Killed(Exception):
    pass


class Dying(Xfrm):
    """The process ends when the kernel has what it was given."""

    def transaction(self, operations: Sequence[Operation]) -> list[Result]:
        super().transaction(operations)
        raise Killed


def test_killed_before_it_could_say_so(xfrm: Xfrm, tmp_path: Path) -> None:
    """They are remembered before they are there."""

    async def scenario(holder: Holder) -> None:
        holder.blocks._xfrm = Dying()
        holder.blocks.hold(A)

    with pytest.raises(Killed):
        run(tmp_path, scenario)
    assert there(xfrm) == set(A)
    hold(tmp_path, ())
    assert there(xfrm) == set()


@pytest.mark.parametrize("text", ['{"channels": [{"source": 1}]}', '{"channels": 7}', "{"])
def test_a_memory_that_cannot_be_read_takes_nothing_away(
    xfrm: Xfrm, text: str, tmp_path: Path
) -> None:
    hold(tmp_path, A)
    (tmp_path / f"{NAME}.json").write_text(text)
    with pytest.raises(StoreError, match=f"{NAME}.json"):
        hold(tmp_path, ())
    assert there(xfrm) == set(A)


def test_without_any_no_kernel_and_no_file_is_touched(tmp_path: Path) -> None:
    hold(tmp_path, ())
    assert list(tmp_path.iterdir()) == []


# -- somebody else ---------------------------------------------------------------------------------


def _words(policy: Policy) -> str:
    chosen = policy.selector
    ports = f"sport {chosen.source_port} " if chosen.source_port else ""
    ports += f"dport {chosen.destination_port} " if chosen.destination_port else ""
    return (
        f"dir {policy.direction.name.lower()} src {chosen.source} dst {chosen.destination} "
        f"proto udp {ports}"
    )


def test_what_somebody_takes_away_or_changes_comes_back(xfrm: Xfrm, tmp_path: Path) -> None:
    """Told once for each time; what has been configured away does not."""

    async def scenario(holder: Holder) -> None:
        holder.blocks.hold(A)
        ip(f"xfrm policy delete {_words(A[0])}")
        await until(lambda: holder.told)
        assert [e.fields for e in holder.told] == [{"policies": 1}]
        assert there(xfrm) == set(A)
        ip(f"xfrm policy update {_words(A[0])} action allow priority {A[0].priority}")
        await until(lambda: len(holder.told) == 2)
        assert there(xfrm) == set(A)
        holder.blocks.hold(B)
        ip("xfrm policy flush")
        await until(lambda: len(holder.told) == 3)
        assert there(xfrm) == set(B)
        assert holder.told[-1].fields == {"policies": len(B)}

    assert set(run(tmp_path, scenario).names()) == {"blocks-restored"}


# -- the daemon ------------------------------------------------------------------------------------


def edit(server: Server, old: str, new: str) -> None:
    text = server.config.read_text()
    assert text.count(old) == 1, old
    server.config.write_text(text.replace(old, new))


INSIDE = 'address = "127.0.0.0/8"\nchannel = "ike"\n'
MORE = '\n[[peer]]\naddress = "fd00::/16"\nchannel = "ike"\npsk = "of other peers"\n\n[[group]]'


def test_the_key_server_starts_reloads_is_killed_and_starts_again(
    xfrm: Xfrm, tmp_path: Path
) -> None:
    def closed() -> set[str]:
        found = there(xfrm)
        assert all(0 <= p.priority - CHANNEL_PRIORITY <= 128 for p in found)
        assert all(
            server.port in (p.selector.source_port, p.selector.destination_port)
            or 4500 in (p.selector.source_port, p.selector.destination_port)
            for p in found
        )
        return {str(p.selector.source) for p in found if p.direction is Direction.IN}

    server = Server(tmp_path)
    edit(server, 'address = "127.0.0.0/8"\n', INSIDE)
    with server.running() as child:
        assert closed() == {"127.0.0.0/8"}
        edit(server, "\n[[group]]", MORE)
        child.send_signal(signal.SIGHUP)
        in_time(lambda: closed() == {"127.0.0.0/8", "fd00::/16"}, "another peer")
        edit(server, INSIDE, 'address = "127.0.0.0/8"\n')
        child.send_signal(signal.SIGHUP)
        in_time(lambda: closed() == {"fd00::/16"}, "a peer that may come in clear")
        in_time(lambda: len(server.events("config-reloaded")) == 2, "the key server to say so")
        ip("xfrm policy flush")
        in_time(lambda: server.events("blocks-restored"), "the policies")
        assert closed() == {"fd00::/16"}
    assert closed() == {"fd00::/16"}, "it was killed"
    edit(server, MORE, "\n[[group]]")
    with server.running():
        assert there(xfrm) == set()
    assert server.events("bug") == []
