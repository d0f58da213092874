"""A key server that starts again under another configuration, or another clock."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from gdoi_plugin.protocol.actions import Action, Event, Persist
from gdoi_plugin.protocol.group import OFFERED_OUTGOING, Group
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.key_server import KeyServer
from gdoi_plugin.protocol.nat import Path
from gdoi_plugin.protocol.policy import TEK_SUITES
from gdoi_plugin.protocol.tek_policy import TekConfig
from gdoi_plugin.wire.header import pull_header
from gdoi_plugin.wire.registry import ExchangeType
from tests.support.simnet import Network
from tests.support.worlds import (
    FLOW,
    REKEY,
    SERVER,
    World,
    build,
    group_config,
    member_peer,
    sends,
    server_phase1,
    signers,
)

STAYS, GOES = (Identity.of_address(member_peer(i).host) for i in range(2))


GM = Identity.of_address(member_peer(0).host)


def world_of_two(**changes: Any) -> World:
    world = build(Network(3), 2, group=group_config(2, **changes))
    world.start()
    world.network.run(5)
    assert set(world.group.members) == {STAYS, GOES}
    return world


def started_again(world: World, now: float, **changes: Any) -> tuple[Group, list[Action]]:
    """A new engine from what the old one saved."""
    config = replace(world.group.config, **changes)
    engine = KeyServer([config], server_phase1, Random(1).randbytes, signers())
    actions = engine.start(now, world.server.store.load())
    return engine.groups[config.group_id.key], actions


def pushed_to(actions: list[Action]) -> list[Any]:
    push = ExchangeType.GROUPKEY_PUSH
    return [
        send.destination
        for send in sends(actions)
        if pull_header(send.datagram).exchange_type == push
    ]


def test_member_that_is_no_longer_admitted_is_forgotten_and_sent_nothing() -> None:
    world = world_of_two(rekey_address=None)
    old = world.group.current_kek().kek.spi
    group, actions = started_again(world, world.now, members=frozenset({STAYS}))
    assert set(group.members) == {STAYS}
    assert group.roster.whose(member_peer(1).host, member_peer(1)) is None
    assert group.current_kek().kek.spi != old, "it has the old one"
    assert pushed_to(actions) == [member_peer(0)]
    assert group.ledger[group.epoch].expected == {STAYS}
    removed = [a for a in actions if isinstance(a, Persist) and a.kind == "member-removed"]
    assert [record.record["address"] for record in removed] == [member_peer(1).host.packed]
    told = [
        a.fields["member"] for a in actions if isinstance(a, Event) and a.name[-7:] == "removed"
    ]
    assert told == [str(GOES)]


def test_with_multicast_the_others_fetch_the_new_keys() -> None:
    """What is pushed under the old KEK can be read by whoever has it."""
    world = world_of_two()
    group, actions = started_again(world, world.now, members=frozenset({STAYS}))
    assert group.ledger[group.epoch].reason == "delete"
    assert pushed_to(actions) == [REKEY]


def test_nobody_removed_nothing_done() -> None:
    world = world_of_two()
    epoch = world.group.epoch
    group, actions = started_again(world, world.now)
    assert (group.epoch, pushed_to(actions)) == (epoch, [])


@pytest.mark.parametrize("years", [0.001, 2])
def test_clock_that_was_ahead_gives_no_key_more_than_its_life(years: float) -> None:
    world = world_of_two()
    back = world.now - years * 365 * 86400
    group, _ = started_again(world, back)
    assert group.ledger[group.epoch].reason == "clock"
    offered = group.offer(GM, Path(SERVER, member_peer(0)), back)
    assert offered.kek is not None
    assert offered.kek.lifetime <= group.config.kek_lifetime
    assert max(tek.lifetime for tek in offered.teks) <= group.config.teks[0].lifetime
    assert group.next_rekey()[0] < back + group.config.teks[0].lifetime


@pytest.mark.parametrize("days", [1, 700])
def test_after_a_clock_was_set_back_no_window_stays_open_and_the_silent_are_asked(
    days: float,
) -> None:
    """A day earlier, all that was registered, sent and retired lies in the future."""
    world = world_of_two(rekey_address=None, retransmissions=1)
    world.rekey(kek=True)
    world.network.run(60)
    world.members[1].crash()
    world.rekey()
    world.network.run(3)
    now = world.now - days * 86400
    engine = KeyServer([world.group.config], server_phase1, Random(1).randbytes, signers())
    engine.start(now, world.server.store.load())
    engine.sent(now)
    group = engine.groups[world.group.config.group_id.key]
    last = group.ledger[group.epoch]
    assert last.reason == "clock"
    assert {m.registered_at for m in group.members.values()} == {now}
    asked, until = [], now + 600
    while (at := engine.deadline) is not None and at <= until:
        assert at >= now
        now = at
        asked += pushed_to(engine.tick(now))
        engine.sent(now)
    assert asked.count(member_peer(1)) >= 1, "it is silent"
    assert last.closed
    assert not group.open_rekeys()
    assert group.old_keks == {}
    assert all(tek.retire_at is None for tek in group.teks)


def test_offer_stays_within_a_message_however_often_the_group_is_rekeyed() -> None:
    teks = tuple(
        TekConfig(replace(FLOW, destination_port=port, protocol=17), TEK_SUITES["aes256-sha256"])
        for port in range(1, 65)
    )
    world = world_of_two(teks=teks, deactivation_delay=1000)
    for _ in range(6):
        world.rekey()
    assert len(world.group.teks) == 7 * 64
    policy = world.group.offer(GM, Path(SERVER, member_peer(0)), world.now)
    assert len(policy.teks) == (1 + OFFERED_OUTGOING) * 64
    current = {t.tek.spi for t in world.group.teks if t.retire_at is None}
    assert current <= {tek.spi for tek in policy.teks}


@pytest.mark.parametrize("kek", [False, True])
def test_a_group_s_record_from_before_its_last_rekey_is_refused(kek: bool) -> None:
    """One row put back, and SEQs would be used twice."""
    world = world_of_two()
    before = world.server.store.load()[world.group.config.group_id.key]
    world.rekey(kek=kek)
    world.network.run(30)
    saved = world.server.store.load()[world.group.config.group_id.key]
    engine = KeyServer([world.group.config], server_phase1, Random(1).randbytes, signers())
    key = world.group.config.group_id.key
    with pytest.raises(ValueError, match="older than its ledger"):
        engine.start(world.now, {key: replace(saved, group=before.group)})


def test_an_ack_of_a_number_that_is_nobody_s_is_refused() -> None:
    world = world_of_two()
    world.rekey()
    world.network.run(30)
    key, roster = world.group.config.group_id.key, world.group.roster
    saved = world.server.store.load()[key]
    for number in (0, roster.next_number, 1 << 26):
        engine = KeyServer([world.group.config], server_phase1, Random(1).randbytes, signers())
        acks = [(world.group.epoch, [(number, 1, 0.0)])]
        with pytest.raises(ValueError, match="nobody's"):
            engine.start(world.now, {key: replace(saved, acks=acks)})
