"""A group too large for one key tree: several Rekey SAs under the same TEKs."""

from __future__ import annotations

from typing import Any

import pytest

from gdoi_plugin.protocol.forest import LkhPolicy
from gdoi_plugin.wire.registry import ExchangeType
from tests.protocol.test_lkh import Attacker, evict, identity, in_step, stay
from tests.support.simnet import Network
from tests.support.worlds import GROUP_ID, World, build, group_config


def forest(members: int = 5, **changes: Any) -> World:
    """Trees of two. Whoever finds its tree full in message 3 tries again a little later."""
    config = group_config(members, lkh=LkhPolicy(arity=2, members=2), **changes)
    world = build(Network(7), members, group=config)
    world.start()
    world.network.run(30)
    assert world.converged()
    return world


def test_beyond_one_tree_there_are_several_rekey_sas_under_the_same_teks() -> None:
    world = forest()
    sas = world.group.sas
    assert [sa.tree.members for sa in sas if sa.tree] == [2, 2, 1]
    assert len({sa.kek.kek.spi for sa in sas}) == 3
    held = [set(member.group.rollover.held) for member in world.members]
    assert all(h == held[0] for h in held)
    world.rekey()
    assert [r.sa for r in world.group.open_rekeys()] == [0, 1, 2]
    world.network.run(20)
    assert world.converged()
    assert sum(len(r.acknowledged) for r in world.group.ledger.values()) == 5
    world.check_ledger()


def test_an_eviction_renews_the_kek_of_its_own_tree_only() -> None:
    world = forest()
    before = [sa.kek.kek.spi for sa in world.group.sas]
    spy = Attacker(world, world.members[2])
    evict(world, 2)
    world.network.run(20)
    after = [sa.kek.kek.spi for sa in world.group.sas]
    assert [a != b for a, b in zip(before, after, strict=True)] == [False, True, False]
    assert in_step(world, stay(world, 2))
    spy.listen(world.datagrams(ExchangeType.GROUPKEY_PUSH))
    assert not spy.has_the_group()


def test_keks_of_a_forest_are_renewed_before_they_end_the_empty_tree_s_too() -> None:
    world = forest(4, kek_lifetime=600)
    assert [sa.tree.members for sa in world.group.sas if sa.tree] == [2, 2, 0]
    before = [sa.kek.kek.spi for sa in world.group.sas]
    world.network.run(500)
    after = [sa.kek.kek.spi for sa in world.group.sas]
    assert all(a != b for a, b in zip(before, after, strict=True))
    assert world.converged()
    reasons = [rekey.reason for rekey in world.group.ledger.values()]
    assert reasons == ["kek-lifetime"] * 4  # KEK and TEKs, for each tree with members


def test_room_is_made_before_a_member_needs_it() -> None:
    """RFC 6407 section 7.2.5: message 1 must not change the group."""
    world = forest(2)
    assert [sa.full for sa in world.group.sas] == [True, False]


def test_a_forest_survives_a_restart() -> None:
    world = forest(5, retransmissions=0)
    world.server.restart()
    world.network.run(20)
    assert [sa.tree.members for sa in world.group.sas if sa.tree] == [2, 2, 1]
    evict(world, 4)
    world.network.run(20)
    assert in_step(world, stay(world, 4))


@pytest.mark.parametrize("changes", [{}, {"rekey_address": None}], ids=["multicast", "unicast"])
def test_after_a_clean_slate_no_tree_of_before_is_spoken_to(changes: dict[str, Any]) -> None:
    world = forest(5, **changes)
    gone, dead = [i for i in range(5) if world.group.members[identity(i)].sa == 1]
    world.members[dead].crash()
    evict(world, gone)
    page = next(r for r in world.group.ledger.values() if r.sa == 1 and r.update)
    world.network.run(1)
    assert page.silent == {identity(dead)}
    world.server.do(world.server.engine.delete_group(GROUP_ID, world.now))
    world.network.run(60)
    assert (page.closed, page.attempts) == (True, 1)
    assert in_step(world, stay(world, gone, dead))
