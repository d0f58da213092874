"""Groups with a key tree whose daemons end and start again, or whose configuration changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gdoi_plugin.protocol.actions import Persist, Send
from gdoi_plugin.protocol.forest import LkhPolicy
from gdoi_plugin.protocol.key_server import KeyServer
from gdoi_plugin.wire.registry import (
    ExchangeType,
)
from tests.protocol.test_lkh import BINARY, Attacker, evict, identity, in_step, lkh_world, stay
from tests.support.simnet import Network, Wire
from tests.support.worlds import (
    GROUP_ID,
    World,
    build,
    group_config,
)


def started_again(world: World, **changes: Any) -> tuple[Any, list[Any]]:
    config = replace(world.group.config, **changes)
    old = world.server.engine
    engine = KeyServer([config], old.phase1_for, old.random, old.make_signer)
    actions = engine.start(world.now, world.server.store.load())
    return engine.groups[GROUP_ID], actions


def test_the_store_gives_back_the_same_tree() -> None:
    world = lkh_world(6)
    evict(world, 3)
    group, _ = started_again(world)
    (ours,), (theirs,) = world.group.sas, group.sas
    assert ours.tree is not None
    assert ours.tree.take_dirty() == []
    for member in world.group.members.values():
        assert theirs.tree.path(member.leaf) == ours.tree.path(member.leaf)
    assert group.members == world.group.members
    assert theirs.kek.kek == ours.kek.kek


def test_a_store_whose_tree_does_not_fit_its_kek_is_refused() -> None:
    world = lkh_world(2)
    saved = world.server.store.load()
    for pages in (saved[GROUP_ID].pages[:0], ({**saved[GROUP_ID].pages[0], "nodes": b"AAA"},)):
        engine = KeyServer(
            [world.group.config], world.server.engine.phase1_for, world.server.engine.random
        )
        with pytest.raises(ValueError, match=r"root of tree 0|page 0 of 3 octets"):
            engine.start(world.now, {GROUP_ID: replace(saved[GROUP_ID], pages=pages)})


@pytest.mark.parametrize("fuse", range(12))
def test_a_key_server_that_dies_during_an_eviction_finishes_it(fuse: int) -> None:
    world = build(Network(fuse), 5, group=group_config(5, lkh=BINARY))
    world.start()
    world.network.run(5)
    spy = Attacker(world, world.members[1])
    world.server.fuse = fuse
    evict(world, 1)
    world.network.run(3)
    world.server.fuse = None
    world.server.restart()
    if identity(1) not in world.group.denied:
        evict(world, 1)  # it died before it knew
    world.network.run(60)
    assert in_step(world, stay(world, 1))
    spy.listen(world.datagrams(ExchangeType.GROUPKEY_PUSH))
    assert not spy.has_the_group()
    world.check_ledger()


@pytest.mark.parametrize("fuse", range(8))
def test_a_member_that_dies_during_an_eviction_comes_back(fuse: int) -> None:
    world = build(Network(fuse), 4, group=group_config(4, lkh=BINARY))
    world.start()
    world.network.run(5)
    world.members[0].fuse = fuse
    evict(world, 3)
    world.network.run(2)
    world.members[0].fuse = None
    world.members[0].restart()
    world.network.run(60)
    assert in_step(world, stay(world, 3))


def test_a_member_that_is_no_longer_listed_is_evicted_at_the_restart() -> None:
    world = lkh_world(4)
    spy = Attacker(world, world.members[3])
    group, actions = started_again(world, members=frozenset(identity(i) for i in range(3)))
    assert set(group.members) == {identity(i) for i in range(3)}
    assert [r.update is not None for r in group.open_rekeys()] == [True, False]
    removed = [a for a in actions if isinstance(a, Persist) and a.kind == "member-removed"]
    assert len(removed) == 1
    world.server.engine.groups[GROUP_ID] = group
    spy.listen(a for a in actions if isinstance(a, Send))
    assert not spy.has_the_group()


@pytest.mark.parametrize(
    "changes", [{"lkh": None}, {"lkh": LkhPolicy(arity=3, members=32)}, {"kek_bits": 128}]
)
def test_other_key_management_means_registering_again(changes: dict[str, Any]) -> None:
    world = build(Network(5), 3, group=group_config(3, lkh=BINARY))
    world.start()
    world.network.run(5)
    config = replace(world.group.config, **changes)
    old = world.server.engine
    world.server._make = lambda: KeyServer(  # the operator's new configuration
        [config], old.phase1_for, old.random, old.make_signer
    )
    world.server.restart()
    world.network.run(60)
    assert world.converged()
    assert all(bool(m.leaf) == (config.lkh is not None) for m in world.group.members.values())
    world.server.restart()  # and what was saved of it can be taken up
    world.network.run(30)
    assert world.converged()


def test_teks_that_newer_ones_replace_are_not_said_again() -> None:
    """Who was evicted in between knows the KEK that they were said under."""
    world = lkh_world(3)
    assert isinstance(world.network, Wire)
    world.rekey()
    world.network.waiting.clear()  # nobody hears it
    evict(world, 2)
    page = world.group.ledger[2]
    assert not page.closed
    assert not world.server.engine.rekeyer.sayer.repeatable(world.group, page)


def test_a_bare_delete_takes_nobody_s_place() -> None:
    world = lkh_world(3)
    assert isinstance(world.network, Wire)
    old = world.group.teks[0].tek.spi
    world.rekey()
    world.network.waiting.clear()
    page = world.group.ledger[world.group.epoch]
    engine = world.server.engine
    world.server.do(engine.delete_tek(GROUP_ID, old, world.now) or [])
    assert world.group.ledger[world.group.epoch].bare
    assert engine.rekeyer.sayer.repeatable(world.group, page)
