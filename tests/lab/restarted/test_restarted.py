"""A member restarted as ``systemctl restart`` does it, time and again, under traffic.

::

    gcks ----+---- gm1 (restarted), gm2
             |
          capture

SIGTERM, wait for the end, start. SAs and policies are the kernel's, and the next process finds
them there: nothing is lost, nothing is in clear, and no sequence number is used twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gdoi_lab.group import Daemon, GroupOptions, LabGroup
from gdoi_lab.waiting import wait_until

from gdoi_plugin.daemon.leftovers import GRACE
from tests.lab.running import running
from tests.lab.watch import (
    assert_adopted,
    policies,
    refused_to_send,
    rekey,
    sas,
    wait_agreed,
    watched,
)

pytestmark = pytest.mark.uml

MEMBERS = ["gm1", "gm2"]
OPTIONS = GroupOptions(activation_delay="5s", deactivation_delay="7s", ack_jitter="0s")
LIMIT = 150.0
RATE = 260.0  # from each of the two
TIMES = 5


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabGroup]:
    folder = tmp_path_factory.mktemp("restarted")
    with running(folder, MEMBERS, OPTIONS) as lab:
        yield lab


def start(daemon: Daemon) -> None:
    """Until it has registered."""
    before = len(list(daemon.events("registered")))
    daemon.start()
    daemon.wait_event("registered", LIMIT, before + 1)


def test_restarts_lose_nothing(group: LabGroup, tmp_path: Path) -> None:
    """Most of them before it has registered again, and a rekey as soon as the last one has."""
    gm1 = group.members["gm1"]
    refused = {name: refused_to_send(group.network[name]) for name in MEMBERS}
    with watched(group, tmp_path, scenario="restarted", rate=RATE) as watch:
        held, before = policies(gm1.host, group.data_group), sas(gm1.host, group.data_group)
        for _ in range(TIMES):
            assert gm1.stop() == 0
            registered = len(list(gm1.events("registered")))
            gm1.start()
            assert policies(gm1.host, group.data_group) == held
            before = assert_adopted(gm1.host, before, group.data_group)
        gm1.wait_event("registered", LIMIT, registered + 1)
        rekey(group, MEMBERS)
        wait_agreed(group, MEMBERS, OPTIONS)
    # No kernel was ever at a loss what to send a packet with.
    assert {name: refused_to_send(group.network[name]) for name in MEMBERS} == refused
    watch.assert_whole()
    assert list(gm1.events("kernel-restored")) == []


def test_the_state_file_is_lost(group: LabGroup, tmp_path: Path) -> None:
    """The key server tells what is held already: it is adopted, and the rest goes after DTD."""
    gm1 = group.members["gm1"]
    host, destination = gm1.host, group.data_group
    with watched(group, tmp_path) as watch:
        held, before = policies(host, destination), sas(host, destination)
        assert gm1.stop() == 0
        (gm1.work / "state" / f"{OPTIONS.name}.json").unlink()
        reqid = host.run(["ip", "xfrm", "state"]).stdout.split("reqid ")[1].split()[0]
        for spi, whose in (("0x4242", reqid), ("0x4343", "77")):
            sa = f"src 0.0.0.0 dst {destination} proto esp spi {spi} mode transport reqid {whose}"
            keys = ["auth-trunc", "hmac(sha256)", "0x" + 64 * "0", "128", "enc", "cbc(aes)"]
            host.run(["ip", "xfrm", "state", "add", *sa.split(), *keys, "0x" + 32 * "0"])
        removed = len(list(gm1.events("leftovers-removed")))
        start(gm1)
        assert policies(host, destination) == held
        assert 0x4242 in sas(host, destination), "others may send with it for a while"
        gm1.wait_event("leftovers-removed", LIMIT + GRACE, removed + 1)
        after = assert_adopted(host, before | sas(host, destination), destination)
        assert after.keys() - {0x4242} == before.keys() | {0x4343}, "one is somebody else's"
        wait_until(lambda: 0x4242 not in sas(host, destination), LIMIT, "the old SA to go")
    host.run(["ip", "xfrm", "state", "delete", "dst", destination, "proto", "esp", "spi", "0x4343"])
    watch.assert_whole()
