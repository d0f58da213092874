"""The key server is away for longer than its keys live.

::

    gcks (killed)     gm1, gm2, gm3 == ESP ==> each other, until the TEK's hard lifetime; then
                      blocked, and nothing in clear; with gcks back, by themselves as before
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from gdoi_lab.group import GroupOptions, LabGroup
from gdoi_lab.net import Host
from gdoi_lab.traffic import Gap, Report
from gdoi_lab.waiting import wait_until

from tests.lab.running import running
from tests.lab.watch import let_pass, rekey, sas, state_entry, wait_agreed, watched

pytestmark = pytest.mark.uml

MEMBERS = ["gm1", "gm2", "gm3"]
# The members ask for new keys 5 to 10 s before the end.
OPTIONS = GroupOptions(
    activation_delay="5s", deactivation_delay="6s", ack_jitter="0.1s", tek_lifetime="40s"
)
LIMIT = 150.0
# The kernel counts in seconds, and a packet of the last one may be its last.
GRAIN = 2.0


@pytest.fixture
def group(tmp_path: Path) -> Iterator[LabGroup]:
    with running(tmp_path, MEMBERS, OPTIONS) as lab:
        yield lab


def test_traffic_until_the_hard_lifetime_and_then_none(group: LabGroup, tmp_path: Path) -> None:
    with watched(group, tmp_path, scenario="key server away") as watch:
        rekey(group, MEMBERS)
        newest = wait_agreed(group, MEMBERS, OPTIONS)
        group.gcks.kill()
        ends = [expiry(group.network[name], newest) for name in MEMBERS]
        for daemon in group.members.values():
            # Soft first: they ask, and go on sending with what they have.
            daemon.wait_event("sa-expiring", LIMIT)
        for name in MEMBERS:
            wait_until(
                lambda name=name: sas(group.network[name], group.data_group) == {},  # type: ignore[misc]
                LIMIT,
                f"the end of {name}'s SAs",
                interval=0.2,
            )
        let_pass(2.0)
        began = time.monotonic()
        group.gcks.start()
        wait_agreed(group, MEMBERS, OPTIONS)
        watch.note = f"blocked meanwhile; all well {time.monotonic() - began:.1f} s after its start"
        rekey(group, MEMBERS)
        wait_agreed(group, MEMBERS, OPTIONS)
        let_pass(1.0)
    watch.assert_nothing_clear()
    for name in MEMBERS:  # what the kernel took from them in those seconds is on no wire
        report = watch.reports[name]
        assert watch.esp_of(name) < report.sent + report.refused
    for pair in watch.pairs:
        for gap in pair.gaps:
            assert gap.before is not None, "not heard again"
            assert sent_before(watch.reports[pair.sender], gap) >= min(ends) - GRAIN


def expiry(host: Host, spi: int) -> float:
    """When a host's kernel will take an SA away, in seconds since 1970."""
    entry = state_entry(host, spi)
    hard = re.search(r"expire add: soft \d+\(sec\), hard (\d+)\(sec\)", entry)
    added = re.search(r"add (\d+-\d+-\d+ \d+:\d+:\d+)", entry)
    assert hard is not None
    assert added is not None
    return datetime.fromisoformat(added[1]).timestamp() + int(hard[1])


def sent_before(sender: Report, gap: Gap) -> float:
    """A time at which the first packet of a gap had been sent, by the sender's own notes."""
    later = [at for number, at in sender.sent_at if number >= gap.first]
    return later[0] if later else float("inf")
