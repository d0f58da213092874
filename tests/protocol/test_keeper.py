"""A key server whose configuration changes while it runs: one rekey at most, or a clean slate."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from gdoi_plugin.protocol.actions import Action, Drop, Event
from gdoi_plugin.protocol.follow import adopt
from gdoi_plugin.protocol.forest import LkhPolicy
from gdoi_plugin.protocol.group import Group, GroupConfig
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.identity_pattern import IdentityList
from gdoi_plugin.protocol.keeper import SavedGroup
from gdoi_plugin.protocol.nat import Path
from gdoi_plugin.protocol.policy import TEK_SUITES
from gdoi_plugin.protocol.pull import PullState
from gdoi_plugin.protocol.tek_policy import TekConfig
from gdoi_plugin.wire.registry import AckType, ExchangeType
from tests.support.simnet import Network
from tests.support.worlds import (
    FLOW,
    GROUP_ID,
    REKEY,
    World,
    build,
    group_config,
    member_peer,
    registered,
)

STAYS, GOES = (Identity.of_address(member_peer(i).host) for i in range(2))
LKH = LkhPolicy(arity=2, members=8)
OTHER = ip_address("239.192.0.77")
ESP = TekConfig(FLOW, TEK_SUITES["aes256-sha256"])


def world_of_two(**changes: Any) -> World:
    world = build(Network(3), 2, group=group_config(2, **changes))
    world.start()
    world.network.run(5)
    assert set(world.group.members) == {STAYS, GOES}
    return world


def reload(world: World, *configs: GroupConfig, replace_old: bool = False) -> list[Action]:
    engine, host = world.server.engine, world.server
    saved = {key: value for key, value in host.store.load().items() if key not in engine.groups}
    before = len(host.actions)
    host.do(engine.reconfigure(configs, saved, world.now, replace_old=replace_old))
    return host.actions[before:]


def pages(group: Group) -> list[tuple[str, bool]]:
    return [(rekey.reason, rekey.with_kek) for rekey in group.ledger.values()]


NOTHING: list[str] = []
TEKS, KEK = ["rekey: new TEKs"], ["rekey: new KEK and TEKs"]
SLATE = ["delete group: every key; members register again"]


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        ({}, NOTHING),
        ({"retransmissions": 5}, NOTHING),
        ({"push_limit": 1000}, NOTHING),
        ({"teks": (replace(ESP, lifetime=600),)}, TEKS),
        ({"teks": (replace(ESP, suite=TEK_SUITES["aes128-sha256"]),)}, TEKS),
        ({"teks": (ESP, replace(ESP, flow=replace(FLOW, destination=OTHER)))}, TEKS),
        ({"kek_lifetime": 3600}, KEK),
        ({"kek_bits": 128}, KEK),
        ({"ack": AckType.REKEY_ACK_KEK_SHA512}, KEK),
        ({"ack": None}, KEK),
        ({"lkh": LKH}, SLATE),
    ],
    ids=str,
)
def test_what_is_shown_is_what_is_done(change: dict[str, Any], steps: list[str]) -> None:
    """And by one rekey, which every member follows."""
    world = world_of_two()
    config = replace(world.group.config, **change)
    plan = world.server.engine.plan([config], world.now)[GROUP_ID]
    assert plan.steps == steps
    assert world.group.config != config or not change, "looking changes nothing"
    assert pages(world.group) == []
    reload(world, config)
    assert world.group.config == config
    assert len(world.group.ledger) == (1 if steps else 0)
    assert all(with_kek == (steps == KEK) for _, with_kek in pages(world.group))
    world.network.run_until(lambda: world.converged(), 120)
    assert world.server.engine.plan([config], world.now)[GROUP_ID].steps == []


def test_a_new_multicast_address_is_told_where_members_listen() -> None:
    world = world_of_two()
    reload(world, replace(world.group.config, rekey_address=OTHER))
    (push,) = world.datagrams(ExchangeType.GROUPKEY_PUSH)
    assert push.destination == REKEY
    world.network.run_until(world.converged, 60)
    for member in world.members:
        assert member.group.kek is not None
        assert member.group.kek.kek.destination == OTHER
        world.network.joined[OTHER].append(member)
    world.rekey()
    assert world.datagrams(ExchangeType.GROUPKEY_PUSH)[-1].destination.host == OTHER
    world.network.run_until(world.converged, 60)


def test_from_multicast_to_unicast_and_back() -> None:
    world = world_of_two()
    reload(world, replace(world.group.config, rekey_address=None))
    world.network.run_until(world.converged, 60)
    world.rekey()
    told = {push.destination for push in world.datagrams(ExchangeType.GROUPKEY_PUSH)}
    assert told == {REKEY, member_peer(0), member_peer(1)}
    world.network.run_until(world.converged, 60)
    reload(world, replace(world.group.config, rekey_address=REKEY.host))
    assert world.datagrams(ExchangeType.GROUPKEY_PUSH)[-1].destination == member_peer(1)
    world.network.run_until(world.converged, 60)


@pytest.mark.parametrize("lkh", [None, LKH])
def test_who_is_listed_no_more_is_out_with_all_its_keys(lkh: LkhPolicy | None) -> None:
    world = world_of_two(lkh=lkh)
    keys = {world.group.current_kek().kek.spi, *(t.tek.spi for t in world.group.teks)}
    config = replace(world.group.config, members=frozenset({STAYS}))
    plan = world.server.engine.plan([config], world.now)[GROUP_ID]
    assert plan.steps[0] == f"remove 1 members: {GOES}"
    assert plan.steps[1:] == (KEK if lkh else SLATE)
    actions = reload(world, config)
    ended = [a for a in actions if isinstance(a, Event) and a.name == "phase1-deleted"]
    assert [event.fields["reason"] for event in ended] == ["evicted"]
    current = {world.group.current_kek().kek.spi}
    current |= {t.tek.spi for t in world.group.teks if t.retire_at is None}
    assert not current & keys
    world.network.run(60)
    assert set(world.group.members) == {STAYS}
    assert world.in_step(world.members[0])
    assert not world.in_step(world.members[1])
    assert Drop.NOT_AUTHORISED in world.network.reasons, "it tried to come back"


def test_replace_leaves_no_old_sa_anywhere() -> None:
    world = world_of_two()
    (old,) = world.group.teks
    reload(world, replace(world.group.config, teks=(replace(ESP, lifetime=600),)), replace_old=True)
    assert old.tek.spi not in [t.tek.spi for t in world.group.teks]
    world.network.run(2)
    for member in world.members:
        assert old.tek.spi not in member.kernel.sas
    assert world.converged()


def test_a_registration_under_way_gets_nothing_that_the_new_configuration_denies() -> None:
    wire, world = registered(2)
    world.members[1].restart()
    sessions = world.server.engine.isakmp.sessions
    while not any(
        pull.exchange.state is PullState.SENT_2
        for session in sessions.of(GOES)
        for pull in session.pulls.values()
    ):
        wire.pass_on()
    registrations = len(world.server.events("member-registered"))
    reload(world, replace(world.group.config, members=frozenset({STAYS})))
    wire.settle()
    assert len(world.server.events("member-registered")) == registrations
    assert GOES not in world.group.members


# -- groups that come and go ---------------------------------------------------------------------


def second(world: World) -> GroupConfig:
    return replace(world.group.config, name="h", group_id=GroupId.of_number(GROUP_ID + 1))


def test_a_group_comes_goes_and_comes_again_without_using_a_number_twice() -> None:
    world = world_of_two()
    config, more = world.group.config, second(world)
    engine = world.server.engine
    assert engine.plan([config, more], world.now)[GROUP_ID + 1].steps == ["new group"]
    reload(world, config, more)
    group = engine.groups[GROUP_ID + 1]
    assert group.epoch == 1
    kek = group.current_kek().kek.spi
    (step,) = engine.plan([config], world.now)[GROUP_ID + 1].steps
    assert step.startswith("delete group")
    reload(world, config)
    world.network.run(60)
    assert set(engine.groups) == {GROUP_ID}
    assert world.converged(), "the other group has not noticed"
    reload(world, config, more)
    again = engine.groups[GROUP_ID + 1]
    assert again.epoch == group.epoch == 2
    assert again.current_kek().kek.spi != kek


def test_members_of_a_group_that_goes_lose_every_key() -> None:
    world = world_of_two(rekey_address=None)
    group = world.group
    reload(world, second(world))
    assert [page.reason for page in group.ledger.values()] == ["delete"]
    world.network.run(1)
    for member in world.members:
        assert not member.kernel.sas
    world.network.run(60)
    assert GROUP_ID not in world.server.engine.groups
    assert Drop.UNKNOWN_GROUP in world.network.reasons
    assert world.server.store.members(GROUP_ID) == []


def test_a_group_that_is_back_before_its_last_message_had_its_time() -> None:
    world = world_of_two()
    config, epoch = world.group.config, world.group.epoch
    reload(world, second(world))
    assert world.server.engine.keeper.leaving == {GROUP_ID}
    reload(world, config, second(world))
    assert world.server.engine.keeper.leaving == set()
    assert world.group.epoch == epoch + 1
    world.network.run_until(world.converged, 120)


@pytest.mark.parametrize("back", [True, False], ids=["back", "gone"])
def test_who_took_a_group_out_and_leads_no_more_does_not_end_it_when_it_leads_again(
    back: bool,
) -> None:
    """Its file has the group again, or has not; meanwhile another key server has led."""
    world = world_of_two()
    config, engine = world.group.config, world.server.engine
    reload(world)
    assert engine.keeper.leaving == {GROUP_ID}
    world.server.do(engine.lead(False, world.now))
    world.server.do(adopt(engine, [config] if back else [], world.server.store.load(), world.now))
    world.server.do(engine.lead(True, world.now))
    world.network.run(60)
    world.server.do(engine.tick_groups(world.now))
    assert engine.groups.keys() == ({GROUP_ID} if back else set())


def test_a_restart_in_mid_change_does_what_is_left() -> None:
    """The file is the new one whatever the crash left undone."""
    world = world_of_two(rekey_address=None)
    config = replace(world.group.config, teks=(replace(ESP, lifetime=600),))
    world.server.fuse = 1  # saved, and nothing sent
    reload(world, config)
    assert not world.server.alive
    make = world.server.engine
    world.server._make = lambda: type(make)(
        [config], make.phase1_for, make.random, make.make_signer
    )
    world.server.restart()
    assert [page.reason for page in world.group.ledger.values()] == ["policy-change"]
    world.network.run_until(world.converged, 60)


# -- revoke --------------------------------------------------------------------------------------


def revoke(world: World, *identities: Identity) -> None:
    world.server.do(world.server.engine.revoke(GROUP_ID, identities, world.now))


@pytest.mark.parametrize("lkh", [None, LKH])
def test_revoke_leaves_nothing_that_the_member_knows(lkh: LkhPolicy | None) -> None:
    world = world_of_two(lkh=lkh)
    keks = {world.group.current_kek().kek.spi}
    teks = {t.tek.spi for t in world.group.teks}
    engine = world.server.engine
    assert engine.isakmp.sessions.of(GOES)
    revoke(world, GOES)
    assert not engine.isakmp.sessions.of(GOES)
    assert engine.isakmp.sessions.of(STAYS)
    assert world.group.current_kek().kek.spi not in keks
    assert not teks & {t.tek.spi for t in world.group.teks}, "none is on its way out either"
    world.network.run_until(lambda: world.in_step(world.members[0]), 60)
    assert not teks & set(world.members[0].kernel.sas)
    world.network.run(120)
    assert set(world.group.members) == {STAYS}
    assert not world.in_step(world.members[1])
    world.server.do(engine.admit(GROUP_ID, [GOES]))
    world.network.run_until(world.converged, 3600)


@pytest.mark.parametrize("lkh", [None, LKH])
def test_revoke_of_one_that_is_not_registered_makes_new_keys_all_the_same(
    lkh: LkhPolicy | None,
) -> None:
    """Its keys may be in other hands."""
    world = world_of_two(lkh=lkh)
    teks, kek = {t.tek.spi for t in world.group.teks}, world.group.current_kek().kek.spi
    absent = Identity.parse("192.0.2.77")
    revoke(world, absent)
    assert not world.group.admits(absent)
    assert world.group.current_kek().kek.spi != kek
    assert not teks & {t.tek.spi for t in world.group.teks}
    world.network.run_until(world.converged, 120)


def test_revoke_outlives_a_restart() -> None:
    world = world_of_two(lkh=LKH)
    revoke(world, GOES)
    world.server.restart()
    assert not world.group.admits(GOES)
    assert GOES not in world.group.members
    assert world.group.admits(STAYS)


def test_nobody_is_listed_any_more() -> None:
    world = world_of_two(lkh=LKH)
    reload(world, replace(world.group.config, members=IdentityList()))
    world.network.run(120)
    assert world.group.members == {}
    assert world.group.sas[0].tree is not None
    assert world.group.sas[0].tree.members == 0


def test_one_group_that_cannot_be_read_keeps_all_others_out() -> None:
    """Nothing has changed: what was made of the others before was never saved."""
    world = world_of_two()
    config, more = world.group.config, second(world)
    bad = replace(more, name="i", group_id=GroupId.of_number(GROUP_ID + 2))
    engine = world.server.engine
    torn = {GROUP_ID + 2: SavedGroup({"epoch": 3})}
    with pytest.raises(KeyError):
        engine.reconfigure([config, more, bad], torn, world.now)
    assert set(engine.groups) == {GROUP_ID}


def test_acknowledgements_of_a_group_that_has_gone_are_nobodys() -> None:
    """The last of them may be on their way to the store when it goes."""
    world = world_of_two(rekey_address=None)
    engine, ledger = world.server.engine, world.server.engine.ledger
    reload(world, second(world))
    (page,) = engine.groups[GROUP_ID].ledger.values()
    ledger.gate.page(engine.groups[GROUP_ID], page).fresh.append((1, page.seqs[0], world.now))
    records = ledger.unsaved()
    world.network.run(60)
    assert GROUP_ID not in engine.groups
    assert ledger.saved(records, world.now) == []
    ledger.gate.judge([], [], world.now)
    assert ledger.gate.pages == {}


@pytest.mark.parametrize(
    ("life", "activation", "usual", "repeated", "told"),
    [
        (3600, 10, 30, 2, 30),  # DTD is shorter than any short life
        (3600, 10, 1200, 2, 180),  # 5 % of a life
        (600, 10, 240, 2, 90),
        (86400, 10, 7200, 2, 3600),
        (3600, 300, 1200, 2, 600),  # others send with the old ones until ATD
        (3600, 30, 1200, 20, 230),  # and until ATD after the last repetition, 20 * 10 s later
    ],
)
def test_old_sas_live_shortly_where_the_policy_has_changed(
    life: int, activation: int, usual: int, repeated: int, told: int
) -> None:
    """And no longer than DTD; a rekey that changes no policy gives them all of that."""
    delays = {"activation_delay": activation, "deactivation_delay": usual}
    delays["retransmissions"] = repeated
    esp = replace(ESP, lifetime=life)
    world = world_of_two(teks=(esp,), kek_lifetime=10 * life, **delays)
    world.server.do(world.server.engine.rekey(GROUP_ID, world.now, "operator"))
    world.network.run(1)
    older, old = world.group.teks
    assert older.retire_at == pytest.approx(world.now - 1 + usual)
    other = replace(esp, suite=TEK_SUITES["aes128-sha256"])
    reload(world, replace(world.group.config, teks=(other,)))
    now = world.now
    *outgoing, current = world.group.teks
    assert [t.tek.spi for t in outgoing] == [older.tek.spi, old.tek.spi]
    # One that was to go earlier still does.
    ends = [min(now - 1 + usual, now + told), now + told]
    assert [t.retire_at for t in outgoing] == pytest.approx(ends)
    world.network.run(told / 2)
    for member in world.members:
        assert set(member.kernel.sas) == {older.tek.spi, old.tek.spi, current.tek.spi}
    # Who registers now is told that it ends then, whatever it makes of DTD.
    path = Path(world.group.config.source, member_peer(1))
    offered = {t.spi: t.lifetime for t in world.group.offer(GOES, path, world.now).teks}
    assert offered[old.tek.spi] == int(now + told - world.now)
    world.network.run(told / 2 + 1)
    assert [t.tek.spi for t in world.group.teks] == [current.tek.spi]
    for member in world.members:
        assert set(member.kernel.sas) == {current.tek.spi}
    world.server.do(world.server.engine.rekey(GROUP_ID, world.now, "operator"))
    assert world.group.teks[0].retire_at == pytest.approx(world.now + usual)
