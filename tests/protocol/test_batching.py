"""Members that join or leave within a while do so by one rekey."""

from __future__ import annotations

from typing import Any

import pytest

from gdoi_plugin.protocol.actions import Drop
from gdoi_plugin.protocol.forest import LkhPolicy
from gdoi_plugin.protocol.identity import Identity
from tests.support.simnet import Network
from tests.support.worlds import GROUP_ID, World, build, group_config, member_peer

LKH = LkhPolicy(2, 16)
JOINS = LkhPolicy(2, 16, rekey_on_join=True)
MEMBERS = 6
BATCH = 2.0


def identity(index: int) -> Identity:
    return Identity.of_address(member_peer(index).host)


def world(started: int = MEMBERS, **changes: Any) -> World:
    config = group_config(MEMBERS, **({"batch": BATCH, "lkh": LKH} | changes))
    made = build(Network(5), MEMBERS, group=config)
    made.server.start()
    for member in made.members[:started]:
        member.start()
    made.network.run_until(lambda: len(made.group.members) == started, 60)
    made.network.run(60)
    return made


def evict(made: World, *indices: int) -> None:
    named = [identity(index) for index in indices]
    made.server.do(made.server.engine.evict(GROUP_ID, named, made.now))


def reasons(made: World, since: int) -> list[str]:
    return [page.reason for epoch, page in made.group.ledger.items() if epoch > since]


@pytest.mark.parametrize("multicast", [True, False])
def test_evictions_of_a_while_are_one_update(multicast: bool) -> None:
    address: dict[str, Any] = {} if multicast else {"rekey_address": None}
    made = world(**address)
    epoch, kek = made.group.epoch, made.group.current_kek().kek.spi
    at = made.now
    for index in (5, 4, 3):
        evict(made, index)
        made.network.run(0.5)
    assert made.group.epoch == epoch, "not yet"
    assert identity(3) not in made.group.members, "but it is out already"
    assert made.group.current_kek().kek.spi == kek
    made.network.run_until(lambda: made.group.epoch > epoch, BATCH)
    assert made.now - at == pytest.approx(BATCH, abs=0.1)
    made.network.run(5)
    assert reasons(made, epoch) == ["evict", "evict"], "a new KEK, then the TEKs under it"
    assert all(made.in_step(member) for member in made.members[:3])
    assert not any(made.in_step(member) for member in made.members[3:])
    tree = made.group.sas[0].tree
    assert tree is not None
    assert tree.members == 3


def test_without_a_tree_one_delete_is_for_all() -> None:
    made = world(lkh=None)
    epoch = made.group.epoch
    evict(made, 5)
    evict(made, 4)
    made.network.run(60)
    assert reasons(made, epoch) == ["delete"]
    assert all(made.in_step(member) for member in made.members[:4])


@pytest.mark.parametrize("kek", [False, True])
def test_a_rekey_meanwhile_is_nothing_for_who_has_left(kek: bool) -> None:
    """TEKs said under the old KEK would be: it comes with the new one, and there is no second."""
    made = world()
    epoch = made.group.epoch
    evict(made, 5)
    made.rekey(kek=kek)
    assert made.group.pending is None
    made.network.run(30)
    assert reasons(made, epoch) == ["operator", "operator"]
    assert all(made.in_step(member) for member in made.members[:5])
    assert not made.in_step(made.members[5])


def test_a_revocation_waits_for_nobody_and_takes_the_others_along() -> None:
    made = world()
    epoch = made.group.epoch
    evict(made, 5)
    made.server.do(made.server.engine.revoke(GROUP_ID, [identity(4)], made.now))
    assert reasons(made, epoch) == ["revoke", "revoke"]
    made.network.run(30)
    assert reasons(made, epoch) == ["revoke", "revoke"]
    assert all(made.in_step(member) for member in made.members[:4])
    assert not any(made.in_step(member) for member in made.members[4:])


@pytest.mark.parametrize("lkh", [None, LKH])
def test_a_crash_meanwhile_forgets_nobody_who_has_left(lkh: LkhPolicy | None) -> None:
    made = world(lkh=lkh)
    epoch = made.group.epoch
    evict(made, 5)
    made.server.restart()
    assert made.group.pending is not None
    made.network.run(60)
    assert made.group.pending is None
    assert reasons(made, epoch) == (["evict", "evict"] if lkh else ["delete"])
    assert all(made.in_step(member) for member in made.members[:5])
    assert not made.in_step(made.members[5])


def test_who_is_let_in_again_meanwhile_has_a_leaf_of_its_own() -> None:
    made = world()
    evict(made, 5)
    made.server.do(made.server.engine.admit(GROUP_ID, [identity(5)]))
    made.members[5].restart()
    made.network.run(60)
    assert made.converged()


# -- joins ---------------------------------------------------------------------------------------


def test_newcomers_of_a_while_come_by_one_rekey() -> None:
    made = world(2, lkh=JOINS)
    epoch = made.group.epoch
    old = {t.tek.spi for t in made.group.teks} | {made.group.current_kek().kek.spi}
    for member in made.members[2:]:
        member.start()
        made.network.run(0.3)
    assert made.group.epoch == epoch
    assert len(made.group.members) == 2
    made.network.run(BATCH + 5)
    assert reasons(made, epoch) == ["join", "join"], "a new KEK, then the TEKs under it"
    assert made.converged()
    for member in made.members[2:]:
        assert not old & set(member.kernel.sas), "nothing of what was before"
        assert member.group.counters.registrations == 1
    assert all(page.closed and not page.missing for page in made.group.ledger.values())


def test_without_a_while_each_comes_by_its_own() -> None:
    made = world(2, lkh=JOINS, batch=0.0)
    epoch = made.group.epoch
    for member in made.members[2:4]:
        member.start()
        made.network.run(5)
    assert reasons(made, epoch) == ["join"] * 4


def test_joins_and_evictions_are_one_update() -> None:
    made = world(3, lkh=JOINS)
    epoch = made.group.epoch
    made.members[3].start()
    made.network.run(0.2)
    evict(made, 0)
    made.network.run(30)
    assert reasons(made, epoch) == ["join", "join"]
    assert set(made.group.members) == {identity(index) for index in (1, 2, 3)}
    assert all(made.in_step(member) for member in made.members[1:4])
    assert not made.in_step(made.members[0])


def test_a_message_3_that_waits_is_not_answered_twice() -> None:
    made = world(2, lkh=JOINS)
    made.members[2].start()
    made.network.run(0.5)
    ours = [s for _, s in made.network.sent if s.source == made.members[2].address]
    for _ in range(3):
        made.server.hear(ours[-1].datagram, made.members[2].address)
    assert made.server.dropped()[-3:] == [Drop.DUPLICATE] * 3
    made.network.run(30)
    registered = made.server.events("member-registered")
    assert [e.fields["member"] for e in registered].count(str(identity(2))) == 1
    assert made.converged() or made.in_step(made.members[2])


def test_a_rekey_while_newcomers_wait_has_them_come_again() -> None:
    made = world(2, lkh=JOINS)
    made.members[2].start()
    made.network.run(0.5)
    made.rekey()
    made.network.run(60)
    assert made.in_step(made.members[2])
    assert len(made.group.members) == 3


def test_who_is_evicted_while_it_waits_does_not_come_in() -> None:
    made = world(2, lkh=JOINS)
    made.members[2].start()
    made.network.run(0.5)
    evict(made, 2)
    made.network.run(30)
    assert identity(2) not in made.group.members
    assert all(made.in_step(member) for member in made.members[:2])


def test_more_newcomers_than_leaves_go_into_the_next_tree() -> None:
    made = world(2, lkh=LkhPolicy(2, 4, rekey_on_join=True))
    for member in made.members[2:]:
        member.start()
    made.network.run(120)
    assert made.converged()
    assert len(made.group.sas) >= 2
