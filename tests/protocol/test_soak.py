"""Random lives of a group over a bad network, a few of them; and what longer ones have found."""

from __future__ import annotations

from typing import Any

import pytest

from gdoi_plugin.protocol.forest import LkhPolicy
from gdoi_plugin.wire.registry import AckType, ExchangeType
from tests.support.simnet import Link, Network
from tests.support.soak import Soak, Spy, identity
from tests.support.worlds import GROUP_ID, World, build, group_config

PUSH, ACK = ExchangeType.GROUPKEY_PUSH, ExchangeType.GROUPKEY_PUSH_ACK


@pytest.mark.parametrize("seed", [95, 385, 388, 1473, 3048])
def test_random_life(seed: int) -> None:
    soak = Soak(seed)
    soak.live(40)
    soak.heal()


def running(members: int, **changes: Any) -> World:
    """Everybody is registered, and acknowledges without jitter."""
    config = group_config(members, **changes)
    world = build(Network(7), members, group=config, member_changes={"ack_jitter": 0.0})
    world.start()
    world.network.run_until(world.converged, 30)
    world.network.sent.clear()
    return world


def delete_group(world: World) -> None:
    world.server.do(world.server.engine.delete_group(GROUP_ID, world.now))


def test_the_spy_reads_whatever_its_keys_open() -> None:
    """What it fails at elsewhere, it would notice."""
    world = running(2)
    kek = world.group.current_kek().kek
    spy = Spy(1, {kek.iv + kek.key.reveal()}, frozenset())
    world.rekey(kek=True)
    new = world.group.current_kek().kek
    assert not spy.teks
    spy.listen(world.datagrams(PUSH), {new.iv + new.key.reveal()})
    assert len(spy.keys) == 2
    assert world.group.teks[-1].tek.encryption_key.reveal() in spy.teks


def test_what_was_open_when_somebody_was_put_out_is_not_said_again() -> None:
    """Without LKH the group is deleted; who is out knows the KEK that the open rekey came under."""
    world = running(3)
    kek = world.group.current_kek().kek
    spy = Spy(1, {kek.iv + kek.key.reveal()}, frozenset())
    world.members[2].crash()
    world.rekey()
    world.network.run(5)
    assert not world.group.ledger[world.group.epoch].closed
    world.server.do(world.server.engine.evict(GROUP_ID, [identity(1)], world.now))
    world.network.run(60)
    spy.listen(world.datagrams(PUSH), set())
    assert spy.teks, "those of before"
    new = {t.tek.encryption_key.reveal() for t in world.group.teks if t.retire_at is None}
    assert not new & spy.teks


def test_teks_are_not_said_again_to_a_tree_that_all_have_left() -> None:
    """No later rekey of that tree takes the place of the one that is open."""
    world = running(4, lkh=LkhPolicy(arity=2, members=2))
    tree = next(m.sa for m in world.group.members.values() if m.sa)
    gone = [i for i in range(4) if world.group.members[identity(i)].sa == tree]
    kek = world.group.sas[tree].kek.kek
    spy = Spy(gone[0], {kek.iv + kek.key.reveal()}, frozenset())
    world.network.link = Link(drop=1.0)
    world.rekey()
    (page,) = (r for r in world.group.open_rekeys() if r.sa == tree)
    evicted = [identity(i) for i in gone]
    world.server.do(world.server.engine.evict(GROUP_ID, evicted, world.now))
    assert not page.closed
    world.server.restart()
    world.network.run(60)
    spy.listen(world.datagrams(PUSH), set())
    assert spy.teks, "those of before"
    new = {t.tek.encryption_key.reveal() for t in world.group.teks if t.retire_at is None}
    assert not new & spy.teks


@pytest.mark.parametrize("ack", [AckType.REKEY_ACK_KEK_SHA256, AckType.REKEY_ACK_LKH_SHA512])
def test_the_end_of_a_forest_is_said_once_to_each_and_acknowledged(ack: AckType) -> None:
    world = running(5, lkh=LkhPolicy(arity=2, members=2), rekey_address=None, ack=ack)
    before = {member.sa for member in world.group.members.values()}
    assert before == {0, 1, 2}
    delete_group(world)
    told = [send.destination for send in world.datagrams(PUSH)]
    assert sorted(told, key=str) == sorted((m.address for m in world.members), key=str)
    world.network.run(5)
    ended = [rekey for rekey in world.group.ledger.values() if rekey.bare]
    assert len(ended) == 3
    assert all(rekey.closed and not rekey.missing for rekey in ended)
    world.network.run_until(world.converged, 60)


def test_a_rekey_that_is_open_when_its_tree_goes_is_closed() -> None:
    world = running(4, lkh=LkhPolicy(arity=2, members=2), rekey_address=None, retransmissions=3)
    late = next(m for i, m in enumerate(world.members) if world.group.members[identity(i)].sa)
    late.crash()
    world.rekey()
    world.network.run(1)
    delete_group(world)
    world.network.run(60)
    assert not world.group.open_rekeys()
    late.start()
    world.network.run_until(world.converged, 60)


def test_the_kek_of_an_empty_tree_goes_with_the_group() -> None:
    world = running(2, lkh=LkhPolicy(arity=2, members=2))
    assert len(world.group.sas) == 2
    delete_group(world)
    world.network.run(60)
    assert world.group.old_keks == {}
