"""Unicast rekeys leave spread over time, and every member's window is its own."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from gdoi_plugin.protocol.actions import Peer
from gdoi_plugin.protocol.forest import LkhPolicy
from gdoi_plugin.protocol.page import Rekey
from gdoi_plugin.protocol.rounds import TURN, Round, Wave, spread, waves
from gdoi_plugin.wire.registry import ExchangeType
from tests.support.simnet import Network
from tests.support.worlds import World, build, group_config, member_peer

MEMBERS = 12
# A member in a turn, so that twelve are told in 1.1 seconds.
PACE = 10


def world(**changes: Any) -> World:
    config = group_config(MEMBERS, **({"rekey_address": None, "pace": PACE} | changes))
    made = build(Network(5), MEMBERS, group=config)
    made.start()
    made.network.run_until(lambda: len(made.group.members) == MEMBERS, 60)
    made.network.run(5)
    return made


def pushes(made: World) -> list[tuple[float, Peer]]:
    kind = ExchangeType.GROUPKEY_PUSH
    ours = {id(send) for send in made.datagrams(kind)}
    return [(at, send.destination) for at, send in made.network.sent if id(send) in ours]


def page(made: World) -> Rekey:
    return made.group.ledger[made.group.epoch]


# -- waves and rounds ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "pace", "sizes"),
    [(0, 100, []), (9, 100, [9]), (10, 100, [10]), (25, 100, [10, 10, 5]), (3, 10, [1, 1, 1])],
)
def test_waves(members: int, pace: int, sizes: list[int]) -> None:
    numbers = range(members, 0, -1)
    made = list(waves(numbers, pace, 5.0))
    assert [len(wave.numbers or ()) for wave in made] == sizes
    assert [n for wave in made for n in wave.numbers or ()] == list(range(1, members + 1))
    assert spread(members, pace) == pytest.approx(max(0, len(sizes) - 1) * TURN)


def test_a_round_knows_when_each_was_told() -> None:
    first = Round(0)
    for place, wave in enumerate(waves(range(1, 7), 20, 0.0)):
        assert first.note(wave) == place
        first.left(place, 100.0 + place)
    assert [first.told_at(n) for n in range(1, 8)] == [100, 100, 101, 101, 102, 102, None]
    everybody = Round(0)
    everybody.note(Wave(None, 7.0))
    assert everybody.told_at(1_000_000) == 7.0


# -- in the engine -------------------------------------------------------------------------------


def test_a_group_of_less_than_a_turn_is_told_at_once() -> None:
    made = world(pace=MEMBERS * 10)
    at = made.now
    made.rekey()
    assert {when for when, _ in pushes(made)} == {at}
    assert len(pushes(made)) == MEMBERS


def test_members_are_told_one_after_another_each_once() -> None:
    made = world()
    at = made.now
    made.rekey()
    # The first turn's and one that is saved up.
    assert len(pushes(made)) <= 2
    assert made.server.engine.deadline is not None
    made.network.run(5)
    told = pushes(made)
    assert Counter(peer for _, peer in told) == Counter(member_peer(i) for i in range(MEMBERS))
    gaps = [b - a for (a, _), (b, _) in pairwise(told[2:])]
    assert gaps == pytest.approx([TURN] * len(gaps))
    assert told[-1][0] - at == pytest.approx((MEMBERS - 2) * TURN, abs=TURN)
    assert page(made).closed
    assert page(made).seqs == [1], "one message, whenever it leaves"
    assert made.converged()
    made.check_ledger()


def test_round_trips_are_counted_from_each_members_own_datagram() -> None:
    made = world()
    made.rekey()
    made.network.run(5)
    rtts = [member.rtt for member in made.group.members.values()]
    # Two ways of a millisecond; the rekey as a whole took a second.
    assert rtts == pytest.approx([0.002] * MEMBERS, abs=0.001)


def test_each_window_begins_with_the_members_own_datagram() -> None:
    made = world(retransmissions=1)
    for member in made.members[::3]:
        member.crash()
    silent = [member.address for member in made.members[::3]]
    made.rekey()
    made.network.run(60)
    times: dict[Peer, list[float]] = {}
    for at, peer in pushes(made):
        times.setdefault(peer, []).append(at)
    for peer, told in times.items():
        assert len(told) == (2 if peer in silent else 1), "repeated to the silent alone"
        if len(told) == 2:
            wait = made.group.config.ack_wait
            assert wait <= told[1] - told[0] <= wait + 3 * TURN
    closed = next(e for e in made.server.events("rekey-closed"))
    assert closed.fields["acknowledged"] == MEMBERS - len(silent)
    assert page(made).closed
    assert {str(identity) for identity in page(made).missing} == {str(p.host) for p in silent}


def test_round_trip_of_a_middle_repetition_is_counted_from_its_own_seq() -> None:
    """An ACK of the second of three, that comes after the third has left."""
    made = world(retransmissions=2, pace=1000)
    victim = made.members[4]
    victim.crash()
    made.rekey()
    made.network.run(25)
    rekey = page(made)
    assert rekey.seqs == [1, 2, 3]
    number = next(m.number for m in made.group.members.values() if m.address == victim.address)
    sent = [rekey.sent_to(number, seq) for seq in rekey.seqs]
    assert [b - a for a, b in pairwise(sent)] == pytest.approx([10, 10], abs=0.5)
    assert rekey.sent_to(number, 2) not in (rekey.first_sent, rekey.sent_at)


def test_delays_are_longer_by_the_time_that_it_takes_to_tell_all() -> None:
    """Nobody sends with what others do not have yet, nobody gives up what others still use."""
    made = world()
    late = made.group.spread
    assert late == 2
    config = made.group.config
    at = made.now
    made.rekey()
    kernels = [member.kernel for member in made.members]
    old = {kernel.history[-1][2] for kernel in kernels}
    made.network.run(config.activation_delay + late - 0.5)
    assert {kernel.history[-1][2] for kernel in kernels} == old, "nobody before the last has it"
    made.network.run_until(lambda: all(len(k.history) == 2 for k in kernels), 5)
    last = max(kernel.history[-1][0] for kernel in kernels)
    assert all(old <= set(kernel.sas) for kernel in kernels)
    made.network.run(120)
    assert last < at + config.deactivation_delay + 2 * late
    assert not any(old & set(kernel.sas) for kernel in kernels)


@pytest.mark.parametrize("lkh", [None, LkhPolicy(2, 16)])
def test_two_rekeys_at_once_share_the_uplink_in_order(lkh: LkhPolicy | None) -> None:
    """With a tree the first brings the KEK that the second goes under."""
    made = world(lkh=lkh)
    at = made.now
    made.rekey(kek=True)
    made.rekey()
    made.network.run(10)
    times = sorted(when for when, _ in pushes(made))
    for begin in (0.0, 0.5, 1.0):
        burst = [t for t in times if at + begin <= t < at + begin + 0.5]
        assert len(burst) <= 0.5 * PACE + 2
    assert made.converged()
    assert all(rekey.closed and not rekey.missing for rekey in made.group.ledger.values())


def test_who_registers_or_leaves_meanwhile_is_not_told() -> None:
    made = world(pace=10)
    made.rekey()
    late, gone = made.members[-1], made.members[-2]
    late.restart()
    identity = next(i for i, m in made.group.members.items() if m.address == gone.address)
    gone.crash()
    made.network.run(0.5)
    made.server.do(made.server.engine.rekeyer.forget(made.group, [identity]))
    made.network.run(5)
    peers = [peer for _, peer in pushes(made)]
    assert late.address not in peers
    assert gone.address not in peers
    assert made.in_step(late)


@pytest.mark.parametrize("fuse", range(1, 40, 3))
def test_a_crash_in_the_middle_goes_on_with_the_rest(fuse: int) -> None:
    """The host checks that no SEQ is used twice; nobody who has acknowledged is told again."""
    made = world(retransmissions=2)
    made.server.fuse = fuse
    made.rekey()
    made.network.run(30)
    if made.server.alive:
        made.server.crash()
    before = Counter(peer for _, peer in pushes(made))
    group = made.group
    heard = made.server.store.acknowledged(group.config.group_id.key, group.epoch)
    peers = {b"\1" + peer.host.packed: peer for peer in map(member_peer, range(MEMBERS))}
    made.server.restart()
    made.network.run(60)
    assert made.converged()
    rekey = page(made)
    assert rekey.closed
    assert not rekey.missing
    assert len(rekey.acknowledged) == MEMBERS
    total = Counter(peer for _, peer in pushes(made))
    assert [peer for text in heard if total[peer := peers[text]] != before[peer]] == []
    assert all(total[peer] <= before[peer] + 2 for peer in total)
    made.check_ledger()


def test_a_crash_in_a_long_round_tells_only_who_was_not_told() -> None:
    """Who has been told has its window, and no second message, unless it stays silent."""
    made = world(pace=5, retransmissions=2)
    made.rekey()
    made.network.run(0.5)
    before = {peer for _, peer in pushes(made)}
    assert 2 <= len(before) < MEMBERS
    assert page(made).told is not None
    made.server.restart()
    rest = len(pushes(made))
    made.network.run(8)
    after = [peer for _, peer in pushes(made)[rest:]]
    assert len(after) == len(set(after))
    assert not before & set(after)
    made.network.run(60)
    assert page(made).closed
    assert not page(made).missing
    assert made.converged()
