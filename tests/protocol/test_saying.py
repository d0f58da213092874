"""What the key server keeps of a rekey that it says, and what may change while it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

import pytest

from gdoi_plugin.protocol import saying
from gdoi_plugin.protocol.forest import LkhPolicy
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.wire.buffer import EncodeError
from tests.protocol.test_keeper import reload
from tests.protocol.test_pacing import MEMBERS, page, pushes, world
from tests.support.worlds import GROUP_ID, World, member_peer

LKH = LkhPolicy(2, 16)


def exempt(index: int) -> frozenset[Identity]:
    return frozenset({Identity.of_address(member_peer(index).host)})


@pytest.mark.parametrize("lkh", [None, LKH])
def test_nothing_that_was_said_is_kept_once_everybody_has_acknowledged_it(
    lkh: LkhPolicy | None,
) -> None:
    """It holds keys."""
    made = world(lkh=lkh, pace=1000)
    for _ in range(3):
        made.rekey(kek=True)
        made.network.run(5)
    assert all(rekey.closed for rekey in made.group.ledger.values())
    assert made.server.engine.rekeyer.sayer._said == {}


@pytest.mark.parametrize("lkh", [None, LKH])
@pytest.mark.parametrize(("before", "after"), [((), (11,)), ((11,), ()), (range(MEMBERS), ())])
def test_who_is_exempt_from_acks_may_change_while_members_are_told(
    lkh: LkhPolicy | None, before: Sequence[int], after: Sequence[int]
) -> None:
    """RFC 6407 section 5.3.2: a member that does not know KEK_ACK_REQUESTED must not see it."""
    made = world(lkh=lkh, ack_exempt=_all(before), retransmissions=0)
    made.rekey(kek=True)
    assert len(pushes(made)) <= 2
    reload(made, replace(made.group.config, ack_exempt=_all(after)))
    made.network.run(60)
    assert made.server.alive
    assert made.converged(), "everybody was told"
    said = [(rekey.kek_spi, seq) for rekey in made.group.ledger.values() for seq in rekey.seqs]
    assert len(set(said)) == len(said)


def _all(indices: Sequence[int]) -> frozenset[Identity]:
    return frozenset().union(*(exempt(index) for index in indices))


@pytest.mark.parametrize("step", ["build_push"])
def test_a_rekey_that_no_message_holds_is_closed_and_told_of(
    monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    made = world()

    def refuse(*_: Any) -> NoReturn:
        raise EncodeError("message of 70000 octets")

    with monkeypatch.context() as patched:
        patched.setattr(saying, step, refuse)
        made.rekey()
    assert len(made.server.events("message-too-large")) == 1
    assert page(made).closed
    assert len(page(made).missing) == MEMBERS
    made.rekey()
    made.network.run(10)
    assert made.converged()


def test_a_crash_and_another_policy_leave_nobody_without_the_new_kek() -> None:
    """The new policy is said under a KEK that half of the members were not told of yet."""
    made = world(pace=5, retransmissions=2)
    made.rekey(kek=True)
    made.network.run(0.5)
    assert 2 <= len({peer for _, peer in pushes(made)}) < MEMBERS
    (tek,) = made.group.config.teks
    _restart_with(made, teks=(replace(tek, lifetime=600),))
    made.network.run(60)
    assert made.converged()
    assert len(made.server.events("member-registered")) == MEMBERS, "nobody had to come back"


@pytest.mark.parametrize("lkh", [None, LKH])
@pytest.mark.parametrize("how", ["command", "reload", "restart"])
def test_a_clean_slate_reaches_who_was_not_told_of_the_kek_that_it_is_said_under(
    lkh: LkhPolicy | None, how: str
) -> None:
    made = world(lkh=lkh)
    made.rekey(kek=True)
    assert len(pushes(made)) <= 2
    other = None if lkh else LKH
    if how == "reload":
        reload(made, replace(made.group.config, lkh=other))
    elif how == "restart":
        _restart_with(made, lkh=other)
    else:
        made.server.do(made.server.engine.delete_group(GROUP_ID, made.now))
    made.network.run_until(made.converged, 120)


@pytest.mark.parametrize("lkh", [None, LKH])
@pytest.mark.parametrize("fuse", [1, 5, 9, 20])
def test_a_crash_in_two_rekeys_at_once_has_nobody_come_back(
    lkh: LkhPolicy | None, fuse: int
) -> None:
    made = world(lkh=lkh, retransmissions=2)
    made.server.fuse = fuse
    made.rekey(kek=True)
    made.network.run(0.2)
    if made.server.alive:
        made.rekey(kek=True)
        made.network.run(30)
    made.server.restart()
    made.network.run_until(made.converged, 120)
    assert len(made.server.events("member-registered")) == MEMBERS
    made.network.run(60)
    made.check_ledger()


def _restart_with(made: World, **changes: Any) -> None:
    config, old = replace(made.group.config, **changes), made.server.engine
    made.server._make = lambda: type(old)([config], old.phase1_for, old.random, old.make_signer)
    made.server.restart()


def test_a_slate_that_falls_due_after_a_crash_in_the_middle_of_a_kek() -> None:
    """Saved ahead as told, and not told: they hear of the KEK before what is said under it."""
    made = world(batch=1.0)
    made.rekey(kek=True)
    made.network.run(0.2)
    assert 2 <= len(pushes(made)) < MEMBERS
    gone = next(iter(made.group.members))
    made.server.do(made.server.engine.evict(GROUP_ID, [gone], made.now))
    made.server.restart()
    assert made.group.pending is not None
    epoch = made.group.epoch
    made.network.run_until(lambda: made.group.epoch > epoch, 30)
    assert page(made).reason == "delete"
    others = [m for m in made.members if Identity.of_address(m.address.host) != gone]
    made.network.run_until(lambda: all(map(made.in_step, others)), 60)
