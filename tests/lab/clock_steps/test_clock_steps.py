"""Somebody sets the clock, by a day ahead and back, under traffic from every member.

::

    gcks ----+---- gm1, gm2     their time of day steps; agents and key server go on, and some are
             |                  killed and start again
          capture

Lifetimes are counted by clocks that do not step: no packet is lost, and none is in clear.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gdoi_lab.group import Daemon, GroupOptions, LabGroup

from tests.lab.running import running
from tests.lab.steps import DAY, TimeOfDay, time_of_day
from tests.lab.watch import assert_adopted, sas, wait_agreed, watched

pytestmark = [pytest.mark.uml, pytest.mark.own_kernel]

MEMBERS = ["gm1", "gm2"]
OPTIONS = GroupOptions(activation_delay="5s", deactivation_delay="30s", ack_jitter="0s")
LIMIT = 150.0


@pytest.fixture
def clock() -> Iterator[TimeOfDay]:
    with time_of_day() as day:
        yield day


@pytest.fixture
def group(tmp_path: Path, clock: TimeOfDay) -> Iterator[LabGroup]:
    """The clock is right again when the daemons have stopped."""
    assert clock
    with running(tmp_path, MEMBERS, OPTIONS) as lab:
        yield lab


def count(daemon: Daemon, event: str) -> int:
    return len(list(daemon.events(event)))


def restart(daemon: Daemon, group: LabGroup) -> None:
    """Killed and started: what it held it holds, and its kernel too."""
    before = sas(daemon.host, group.data_group)
    registered = count(daemon, "registered")
    daemon.kill()
    daemon.start()
    daemon.wait_event("registered", LIMIT, registered + 1)
    assert_adopted(daemon.host, before, group.data_group)


def test_a_day_ahead_and_back(group: LabGroup, clock: TimeOfDay, tmp_path: Path) -> None:
    """With a rekey, with restarts, and in the first second of new SAs: there the kernel takes them
    away, and the agents put them back before anybody sends with them."""
    gm1 = group.members["gm1"]
    with watched(group, tmp_path, scenario="the clock steps by days") as watch:
        held = sas(gm1.host, group.data_group)
        clock.step(DAY)
        restart(gm1, group)
        clock.step(-2 * DAY)
        group.gcks.kill()
        group.gcks.start()
        installed = {name: count(group.members[name], "rekey-installed") for name in MEMBERS}
        group.command(group.gcks, "rekey", group=OPTIONS.name)
        for name in MEMBERS:
            group.members[name].wait_event("rekey-installed", LIMIT, installed[name] + 1)
        clock.step(DAY)
        wait_agreed(group, MEMBERS, OPTIONS)
        # One rekey, one more SA: the key server had not lost its keys and made others.
        assert len(sas(gm1.host, group.data_group).keys() - held.keys()) == 1
    watch.assert_whole()
