"""A sender whose SAs are gone at its next start, and receivers that remember its numbers.

::

    gcks ----+---- gm1 (stopped or killed, its SAs taken away), gm2
             |
          capture

AES-GCM, an SA for each sender, replay windows. The member has the same keys again from its state
file; a sender that began at 1 again would be dropped until it has caught up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gdoi_lab.group import Daemon, GroupOptions, LabGroup
from gdoi_lab.net import Network

from tests.lab.watch import let_pass, sas, sending, state_entry, watched

pytestmark = pytest.mark.uml

OPTIONS = GroupOptions(proposal="aes128gcm16", ack_jitter="0s")
LIMIT = 150.0
RATE = 260.0
# Seconds of traffic: some windows of 32 packets.
A_WHILE = 0.5


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabGroup]:
    folder = tmp_path_factory.mktemp("numbers")
    with Network(["gcks", "gm1", "gm2"], folder / "work") as network:
        lab = LabGroup(network, folder / "work", folder, OPTIONS, settings='on_stop = "block"\n')
        lab.start()
        yield lab
        for daemon in [*lab.members.values(), lab.gcks]:
            daemon.stop()


def stopped(daemon: Daemon) -> None:
    assert daemon.stop() == 0


def crashed(daemon: Daemon) -> None:
    daemon.kill()
    daemon.host.ip("xfrm", "state", "flush")


def received(group: LabGroup, spi: int) -> int:
    """The highest number of an SA that gm1's window has seen."""
    entry = state_entry(group.network["gm1"], spi)
    found = re.search(r"anti-replay context: seq 0x([0-9a-f]+)", entry)
    assert found is not None
    return int(found[1], 16)


@pytest.mark.parametrize("ended", [stopped, crashed])
def test_receivers_take_what_a_restarted_sender_sends(
    group: LabGroup, tmp_path: Path, ended: Callable[[Daemon], None]
) -> None:
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
    gm1, destination = group.members["gm1"], group.data_group
    with watched(group, tmp_path / "before", rate=RATE) as watch:
        let_pass(A_WHILE)
    watch.assert_whole()
    before = sas(gm1.host, destination)
    own, theirs = (sending(group.network[name], destination)[0] for name in ("gm1", "gm2"))
    highest = received(group, theirs)
    assert highest > 32
    ended(gm1)
    assert sas(gm1.host, destination) == {}
    registered = len(list(gm1.events("registered")))
    gm1.start()
    gm1.wait_event("registered", LIMIT, registered + 1)
    after = sas(gm1.host, destination)
    assert sending(gm1.host, destination) == [own], "the same SA as before"
    with watched(group, tmp_path / "after", rate=RATE) as watch:
        let_pass(A_WHILE)
    watch.assert_whole()
    assert after[own].oseq >= before[own].oseq, "no number was used twice"
    if ended is stopped:
        assert received(group, theirs) >= highest
