"""LKH with the peers written from the RFCs: our member's engine here, our key server below.

The key server's tree there has eight leaves and LKH IDs and handles at random; nothing of it is
ours. The member's side of it tells our key server's arrays from what the texts allow.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from .engine_shell import World
from .rfc_key_server import Tek
from .rfc_octets import KeyPacket
from .rfc_peer import Member, Notified, Silence
from .running import Daemon, daemon, wait_for
from .test_our_member import new_world, push_teks

# -- our member ------------------------------------------------------------------------------------


def evict(world: World, leaf: int, *, keep: slice = slice(None)) -> bytes:
    """The PUSH that changes the KEK for all but this leaf, with `keep` of its arrays, shuffled."""
    server = world.server
    kek, packet = server.evict(leaf)
    arrays = list(packet.updates[keep])
    secrets.SystemRandom().shuffle(arrays)
    packet = KeyPacket(packet.kind, packet.spi, packet.keys, tuple(arrays))
    return server.push([server.sak(kek, management=1)], [packet], next_kek=kek)


@pytest.mark.parametrize("bits", [128, 256])
@pytest.mark.parametrize("ack", [1, 2, 4])
def test_our_member_follows_evictions_anywhere_in_the_tree(bits: int, ack: int) -> None:
    with new_world(bits=bits, ack=ack) as world:
        world.server.use_lkh(leaf=5)
        world.register()
        for leaf in (4, 0, 7, 3):  # its sibling, and ever farther away
            world.acked(evict(world, leaf))
            world.acked(push_teks(world, Tek("239.192.1.1")))
        held = world.agent.engine.kek
        assert held is not None
        assert world.server.lkh is not None
        assert [(n.lkh_id, n.handle, n.iv, n.key.reveal()) for n in held.kek.path] == [
            tuple(node) for node in world.server.lkh.path(5)
        ]


def test_our_member_is_silent_about_updates_for_others_and_registers_by_itself() -> None:
    with new_world() as world:
        world.server.use_lkh(leaf=5)
        world.register()
        world.silent(evict(world, 0, keep=slice(0, 2)))  # its own is the third
        assert "rekey-for-others" in world.agent.names()
        world.agent.skew = 8.0
        registered = world.agent.names().count("registered")
        world.until(
            lambda: world.agent.names().count("registered") > registered, "it to register again"
        )
        world.acked(push_teks(world, Tek("239.192.1.1")))


def test_our_member_cannot_follow_its_own_eviction() -> None:
    with new_world() as world:
        world.server.use_lkh(leaf=5)
        world.register()
        world.silent(evict(world, 5))
        world.silent(push_teks(world, Tek("239.192.1.1")))
        assert len(world.agent.held) == 1


# -- our key server --------------------------------------------------------------------------------

NET = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}"
PORT = 5850
SERVER = (f"{NET}.1", PORT)
PSK = b"a pre-shared key of two readings"
HOSTS = [(f"{NET}.{n}", PORT) for n in range(2, 7)]
TREE, FOREST = 1, 2
WIDE = """lkh_arity = 2
lkh_members = 8
ack = "lkh-sha512"
"""
NARROW = """lkh_arity = 3
lkh_members = 2
kek = "aes128"
"""


def group(name: str, number: int, lkh: str) -> str:
    return f"""
[[group]]
name = "{name}"
id = {number}
members = {[host for host, _ in HOSTS]}
[group.rekey]
port = {PORT}
signature = "ecdsa256"
retransmissions = 0
kek_management = "lkh"
{lkh}
[[group.tek]]
destination = "239.192.3.{number}"
"""


CONFIG = f"""
[key_server]
address = "{SERVER[0]}"
port = {PORT}
state = "@/state.sqlite"
control = "@/control"
proposals = ["aes256-sha256-ecp256"]
[[peer]]
address = "{NET}.0/24"
psk = "{PSK.decode()}"
{group("tree", TREE, WIDE)}
{group("forest", FOREST, NARROW)}
"""


@pytest.fixture(scope="module")
def gcks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon("gdoi-gcks", CONFIG, tmp_path_factory.mktemp("gcks")) as running:
        yield running
        assert running.events("bug") == []


@pytest.fixture
def peers() -> Iterator[list[Member]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Member(host, SERVER, PSK)) for host in HOSTS]


def join(peers: list[Member], number: int) -> None:
    for peer in peers:
        peer.phase1()
        peer.pull(number)


def take(gcks: Daemon, peer: Member) -> None:
    push = peer.push()
    before = len(gcks.events("rekey-acked"))
    peer.send(peer.ack(push))
    wait_for(lambda: len(gcks.events("rekey-acked")) > before, "the ACK to count")


def test_our_key_server_evicts_with_arrays_that_the_texts_allow(
    gcks: Daemon, peers: list[Member]
) -> None:
    join(peers, TREE)
    assert len({peer.path[0].number for peer in peers}) == 5
    assert len({peer.path[-1] for peer in peers}) == 1
    gone, *rest = peers
    old = rest[0].path[-1]
    (told,) = gcks.ctl("evict", "--group", "tree", HOSTS[0][0])
    assert (told["evicted"], told["registered"]) == ("1", "1")
    for peer in rest:
        take(gcks, peer)
    kek = rest[0].path[-1]
    assert kek.key != old.key
    assert {peer.path[-1] for peer in rest} == {kek}
    for peer in rest:
        take(gcks, peer)  # the TEKs, under the new KEK
    assert len({frozenset(peer.teks) for peer in rest}) == 1
    assert set(rest[0].teks) > set(gone.teks)
    with pytest.raises(Silence):
        gone.push(timeout=0.3)
    gone.phase1()
    with pytest.raises(Notified):
        gone.pull(TREE)
    gcks.ctl("admit", "--group", "tree", HOSTS[0][0])
    gone.pull(TREE)
    assert gone.path[-1] == kek


def test_our_key_server_s_forest(gcks: Daemon, peers: list[Member]) -> None:
    join(peers, FOREST)
    keks = [peer.path[-1].key for peer in peers]
    assert [keks.count(key) for key in dict.fromkeys(keks)] == [2, 2, 1]
    assert len({frozenset(peer.teks) for peer in peers}) == 1
    gcks.ctl("evict", "--group", "forest", HOSTS[3][0])
    others = peers[:3] + peers[4:]
    take(gcks, peers[2])  # alone in its tree, it gets a new KEK
    assert [peer.path[-1].key == key for peer, key in zip(peers, keks, strict=True)] == [
        True,
        True,
        False,
        True,
        True,
    ]
    for peer in others:
        take(gcks, peer)
    assert len({frozenset(peer.teks) for peer in others}) == 1
    assert set(others[0].teks) > set(peers[3].teks)
    asked = gcks.start_ctl("rekey", "--group", "forest")
    for peer in others:
        take(gcks, peer)
    (told,) = gcks.answer(asked)
    assert (told["expected"], told["acknowledged"], told["missing"]) == ("4", "4", [])
