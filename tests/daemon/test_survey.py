"""What is added up of the ledger between two looks: each rekey, round and ACK once."""

from __future__ import annotations

import asyncio

import pytest

from gdoi_plugin.daemon import survey
from gdoi_plugin.daemon.survey import Surveyor, Totals
from gdoi_plugin.protocol.silence import REMINDER, SilencePolicy
from tests.support.simnet import Link, Network
from tests.support.worlds import GROUP_ID, World, build, group_config


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "FRESH", 0.0)


def _world(silence: SilencePolicy | None = None) -> World:
    config = group_config(3) if silence is None else group_config(3, silence=silence)
    world = build(Network(1), 3, group=config)
    world.start()
    world.network.run(5)
    return world


def _rekey(world: World) -> None:
    world.rekey()
    world.network.run(5)


def _look(surveyor: Surveyor) -> Totals:
    asyncio.run(surveyor.look())
    return surveyor.totals(GROUP_ID)


def test_rounds_that_are_said_during_a_look_are_the_next_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(survey, "PORTION", 1)
    world = _world()
    surveyor = Surveyor(world.server.engine)
    _rekey(world)
    page = world.group.ledger[2]
    begun = page.attempts

    async def main() -> None:
        looking = asyncio.ensure_future(surveyor.look())
        while not looking.done():
            page.attempts += 1
            await asyncio.sleep(0)
        assert page.attempts > begun + 3
        await surveyor.look()

    asyncio.run(main())
    totals = surveyor.totals(GROUP_ID)
    assert (totals.rekeys, totals.said, totals.acks) == (1, page.attempts, 3)


def test_what_a_group_that_is_taken_up_later_had_before_is_old() -> None:
    world = _world()
    groups = world.server.engine.groups
    _rekey(world)
    group = groups.pop(GROUP_ID)
    surveyor = Surveyor(world.server.engine)
    _look(surveyor)
    groups[GROUP_ID] = group
    assert _look(surveyor) == Totals()
    _rekey(world)
    totals = _look(surveyor)
    assert (totals.rekeys, totals.acks) == (1, 3)
    del groups[GROUP_ID]
    _look(surveyor)
    assert not surveyor._seen, "nothing is kept of a group that has gone"


def test_a_round_trip_is_that_of_its_rekey() -> None:
    """Also where members have acknowledged another one since, and one heard a repetition only."""
    world = _world()
    surveyor, took = Surveyor(world.server.engine), list[float]()
    for delay in (0.1, 0.4):
        world.network.link = Link(delay=delay)
        world.member.alive = False
        world.rekey()
        world.network.run(1)
        world.member.alive = True
        world.network.run(60)
        page = world.group.ledger[world.group.epoch]
        assert (len(page.acknowledged), page.attempts) == (3, 2)
        took += [member.rtt or 0.0 for member in world.group.members.values()]
    totals = _look(surveyor)
    assert (totals.rekeys, totals.acks, sum(totals.round_trips)) == (2, 6, 6)
    assert totals.seconds == pytest.approx(sum(took), rel=1e-4)


def test_a_reminder_is_no_rekey() -> None:
    world = _world(SilencePolicy(reminder=1))
    surveyor = Surveyor(world.server.engine)
    _rekey(world)
    world.members[0].crash()
    world.rekey()
    world.network.run(120)
    reasons = [page.reason for page in world.group.ledger.values()]
    assert reasons.count(REMINDER) == 1
    totals = _look(surveyor)
    assert totals.rekeys == 2
    assert totals.said == sum(page.attempts for page in world.group.ledger.values())
