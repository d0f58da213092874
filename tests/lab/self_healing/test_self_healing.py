"""Somebody flushes, deletes and changes a member's SAs and policies, under traffic.

::

    gcks ----+---- gm1 <- vandal
             |---- gm2
          capture

gm1's default is to block, so that no flush lets a packet out in clear. What is lost is what gm1
sent or received in the milliseconds until everything is back.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gdoi_lab.checkout import PYTHON
from gdoi_lab.group import Daemon, GroupOptions, LabGroup
from gdoi_lab.net import Network
from gdoi_lab.waiting import wait_until

from tests.lab.running import stopped
from tests.lab.watch import let_pass, policies, reconfigure, rekey, sas, wait_agreed, watched

pytestmark = pytest.mark.uml

MEMBERS = ["gm1", "gm2"]
OPTIONS = GroupOptions(activation_delay="1s", deactivation_delay="2s", ack_jitter="0s")
LIMIT = 150.0
RATE = 300.0
# Milliseconds, of a member and its vandal whose one processor is also two senders' and receivers'.
# How fast it is where nothing else runs is tests/daemon/test_uml_watch.py's business.
BOUND = 10000.0
# Seconds of traffic that a flush may cost beyond what its vandal measures: packets whose sender has
# waited for the one processor go out in a bunch. All flushes together: half of what is sent.
SCHEDULING = 0.25
VANDALISM = ["flush-sas", "flush-policies", "flush-both"] * 2
FOREIGN = "src 10.66.0.1 dst 10.66.0.99 proto esp spi 0x4242"


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabGroup]:
    folder = tmp_path_factory.mktemp("healing")
    with Network(["gcks", *MEMBERS], folder / "work") as network:
        lab = LabGroup(network, folder / "work", folder, OPTIONS)
        reconfigure(lab.members["gm1"], "[member]\n", '[member]\ndefault_policy = "block"\n')
        with stopped(lab):
            lab.start()
            yield lab


def repairs(group: LabGroup, name: str) -> int:
    stats = group.command(group.members[name], "stats")
    return int(stats["kernel"]["repairs"])


def restored(daemon: Daemon) -> list[float]:
    return [event["milliseconds"] for event in daemon.events("kernel-restored")]


def test_own_changes_are_not_taken_for_others(group: LabGroup) -> None:
    """Two rekeys, one with a new KEK, switches and ends included: nothing to repair."""
    before = {name: repairs(group, name) for name in MEMBERS}
    for kek in ("no", "yes"):
        rekey(group, MEMBERS, kek=kek)
        wait_agreed(group, MEMBERS, OPTIONS)
    for name in MEMBERS:
        held = group.network[name]
        wait_until(lambda: len(sas(held, group.data_group)) == 1, LIMIT, "old SAs to go")  # noqa: B023
    assert {name: repairs(group, name) for name in MEMBERS} == before


def test_flushes_under_load(group: LabGroup, tmp_path: Path) -> None:
    gm1 = group.members["gm1"]
    before = sas(gm1.host, group.data_group), policies(gm1.host, group.data_group)
    known = len(restored(gm1))
    with watched(group, tmp_path, scenario="self_healing", rate=RATE) as watch:
        let_pass(0.5)
        argv = [PYTHON, "-m", "tests.lab.self_healing.vandal", *VANDALISM]
        measured = [float(word) for word in gm1.host.run(argv).stdout.split()]
        let_pass(0.5)
    late, times = measured[::2], measured[1::2]
    noticed = restored(gm1)[known:]
    print(f"back after {times} ms; noticed to mended {noticed} ms; late {late} ms")  # noqa: T201
    assert max(noticed) < BOUND
    assert max(times) < BOUND
    assert len(times) == len(VANDALISM)
    watch.assert_nothing_clear()
    # Both flushes at once are seen together or one after the other.
    assert len(VANDALISM) <= repairs(group, "gm1") <= len(VANDALISM) + 2
    assert len(restored(gm1)) == repairs(group, "gm1")
    after = sas(gm1.host, group.data_group), policies(gm1.host, group.data_group)
    assert after[1] == before[1]
    assert after[0].keys() == before[0].keys()
    (spi,) = before[0]
    sent = watch.reports["gm1"].sent
    assert after[0][spi].oseq >= before[0][spi].oseq + sent, "no number was used twice"
    # Who was late to flush was so with everybody else: what should have been sent is sent then.
    most = RATE * (sum(times) / 1000 + sum(late) / 1000 + len(VANDALISM) * SCHEDULING)
    # One stretch of packets for each table that is flushed.
    flushes = len(VANDALISM) + VANDALISM.count("flush-both")
    for pair in watch.pairs:
        assert pair.duplicates == 0
        assert pair.lost <= most
        assert len(pair.gaps) <= flushes


def test_single_changes_and_what_is_others(group: LabGroup) -> None:
    """A deletion, a policy bent to another SPI; another program's SA goes and stays gone."""
    gm1 = group.members["gm1"]
    host, destination = gm1.host, group.data_group
    (spi,) = sas(host, destination)
    held = policies(host, destination)
    count = repairs(group, "gm1")

    def mended() -> None:
        nonlocal count
        count += 1
        wait_until(lambda: repairs(group, "gm1") == count, LIMIT, f"repair {count}")
        assert policies(host, destination) == held
        assert sas(host, destination).keys() == {spi}

    host.run(["ip", "xfrm", "state", "delete", "dst", destination, "proto", "esp", "spi", hex(spi)])
    mended()
    bend = f"src 0.0.0.0/0 dst {destination}/32 dir out priority 1 tmpl proto esp spi 0x999"
    host.run(["ip", "xfrm", "policy", "update", *bend.split()])
    mended()
    theirs = [*FOREIGN.split(), "mode", "transport", "reqid", "5", "enc", "ecb(cipher_null)", ""]
    host.run(["ip", "xfrm", "state", "add", *theirs])
    host.run(["ip", "xfrm", "state", "delete", *FOREIGN.split()])
    rekey(group, MEMBERS)
    assert repairs(group, "gm1") == count
    assert "0x00004242" not in host.run(["ip", "xfrm", "state"]).stdout
