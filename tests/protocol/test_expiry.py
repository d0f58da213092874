"""What the kernel counts: seconds and octets of an SA that are nearly, or all, used up."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gdoi_plugin.protocol.policy import TEK_SUITES
from gdoi_plugin.protocol.renewal import margin, margin_of_octets
from gdoi_plugin.protocol.tek_policy import TekConfig
from tests.support.simnet import MemberHost, Network
from tests.support.worlds import FLOW, World, build, group_config

BOUNDED = TekConfig(FLOW, TEK_SUITES["aes256-sha256"], lifetime=3600, lifetime_kilobytes=1000)


def running(members: int = 1, tek: TekConfig = BOUNDED) -> World:
    world = build(Network(), members, group=group_config(members, teks=(tek,)))
    world.start()
    world.network.run(5)
    assert world.converged()
    return world


def newest(world: World) -> bytes:
    return world.group.teks[-1].tek.spi


def softly(world: World, member: MemberHost, spi: bytes) -> None:
    member.do(member.group.soft_expired(spi, world.now))


def use_up(world: World, member: MemberHost, spi: bytes) -> None:
    """As the kernel does it: the SA is gone, and then it says so."""
    del member.kernel.sas[spi]
    member.do(member.group.hard_expired(spi, world.now))


# -- soft limits ----------------------------------------------------------------------------------


def test_asks_for_new_keys_within_the_recovery_delay_and_once() -> None:
    world = running()
    spi, group = newest(world), world.member.group
    softly(world, world.member, spi)
    assert len(world.member.events("sa-expiring")) == 1
    assert group.deadline is not None
    assert group.deadline <= world.now + group.config.recovery_delay
    world.network.run(4)
    assert group.counters.registrations == 2
    softly(world, world.member, spi)
    assert len(world.member.events("sa-expiring")) == 1


def test_seconds_ask_at_a_random_point_before_the_end() -> None:
    """All members hear their kernels at the same moment."""
    world = running(8, replace(BOUNDED, lifetime_kilobytes=None))
    spi = newest(world)
    left = world.members[0].group.rollover.held[spi].expires - world.now
    for member in world.members:
        softly(world, member, spi)
    times = {member.group.registrar.at for member in world.members}
    assert len(times) == len(world.members)
    assert all(at is not None and world.now <= at <= world.now + left / 2 for at in times)


def test_a_tek_with_a_successor_asks_for_nothing() -> None:
    world = running()
    old = newest(world)
    world.rekey()
    world.network.run(1)
    at = world.member.group.registrar.at
    softly(world, world.member, old)
    softly(world, world.member, b"none")
    assert not world.member.events("sa-expiring")
    assert world.member.group.registrar.at == at


# -- hard limits ----------------------------------------------------------------------------------


def test_spent_tek_is_sent_with_no_more_and_never_taken_again() -> None:
    world = running()
    spent = newest(world)
    use_up(world, world.member, spent)
    assert world.member.kernel.sending(FLOW) is None, "blocked, not in clear"
    assert spent not in world.member.group.rollover.held
    assert [e.fields["spi"] for e in world.member.events("sa-expired")] == [f"0x{spent.hex()}"]
    # What the key server still has is offered again, and is not what is wanted.
    world.member.do(world.member.group.register(world.now))
    world.network.run(1)
    assert spent not in world.member.kernel.sas
    assert spent not in [bytes.fromhex(e["tek"]["spi"]) for e in world.member.record["teks"]]
    world.rekey()
    world.network.run(1)
    tek = world.member.kernel.sending(FLOW)
    assert tek is not None
    assert tek.spi == newest(world) != spent


def test_successor_takes_over_at_once_though_its_time_has_not_come() -> None:
    world = running()
    spent = newest(world)
    world.rekey()
    world.network.run(1)
    tek = world.member.kernel.sending(FLOW)
    assert tek is not None
    assert tek.spi == spent
    use_up(world, world.member, spent)
    tek = world.member.kernel.sending(FLOW)
    assert tek is not None
    assert tek.spi == newest(world)


def test_spent_tek_is_not_taken_again_after_a_restart() -> None:
    world = running()
    spent = newest(world)
    use_up(world, world.member, spent)
    world.member.restart()
    world.network.run(1)
    assert spent not in world.member.kernel.sas


def test_who_has_no_tek_left_asks_again_and_again() -> None:
    world = running()
    before = world.member.group.counters.registrations
    use_up(world, world.member, newest(world))
    world.member.group.soft_expired(newest(world), world.now)
    world.network.run(100)
    assert world.member.group.counters.registrations > before


def test_a_flow_that_was_given_up_is_not_asked_for_any_more() -> None:
    world = running()
    use_up(world, world.member, newest(world))
    group = world.member.group
    assert group.rollover.lacks
    other = replace(BOUNDED, flow=replace(FLOW, destination=FLOW.destination + 1))
    world.group.config = replace(world.group.config, teks=(other,))
    world.rekey()
    world.network.run(60)
    assert world.member.kernel.sending(other.flow) is not None
    assert not group.rollover.lacks
    before = group.counters.registrations
    world.network.run(600)
    assert group.counters.registrations == before


def test_refusing_kernel_is_asked_again_to_let_go() -> None:
    world = running()
    spent = newest(world)
    world.rekey()
    world.network.run(1)
    world.member.kernel.refuse_next()
    use_up(world, world.member, spent)
    tek = world.member.kernel.sending(FLOW)
    assert tek is None
    world.network.run(2)
    tek = world.member.kernel.sending(FLOW)
    assert tek is not None
    assert tek.spi == newest(world)


def test_clock_that_was_set_on_costs_an_sa_but_not_its_lifetime() -> None:
    """The kernel goes by the wall clock, the engine does not."""
    world = running(tek=replace(BOUNDED, lifetime_kilobytes=None))
    spi = newest(world)
    use_up(world, world.member, spi)
    tek = world.member.kernel.sending(FLOW)
    assert tek is not None
    assert tek.spi == spi
    assert 3500 < tek.lifetime <= 3600
    assert not world.member.events("sa-expired")


def test_unknown_sa_of_somebody_else() -> None:
    world = running()
    assert world.member.group.hard_expired(b"none", world.now) == []


def test_state_of_a_former_release_has_no_spent_teks() -> None:
    world = running()
    record = dict(world.member.record)
    del record["spent"]
    world.member.saved = json.dumps(record)
    world.member.restart()
    assert not world.member.events("state-unreadable")
    assert newest(world) in world.member.group.rollover.held


# -- margins --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("life", "most"), [(3600, 180), (86400, 4320), (600, 30), (60, 15), (4, 1)]
)
def test_margin_is_a_share_of_the_lifetime(life: int, most: float) -> None:
    assert margin(life, 1.0) == most
    assert margin(life, 0.0) == most / 2


def test_margin_of_octets() -> None:
    assert margin_of_octets(1000, 0.0) == 100
    assert margin_of_octets(1000, 1.0) == 200
