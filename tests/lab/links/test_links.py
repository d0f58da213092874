"""Interfaces and addresses that come late, go down, go away, and come back as others.

::

    gcks ----+---- gm1          address configured
             |
             +---- gm2          interface configured, which is not there when the agent starts
          capture

The agents are started once; each test goes on from where the one before has left the hosts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gdoi_lab.group import GroupOptions, LabGroup
from gdoi_lab.net import INTERFACE, Network
from gdoi_lab.waiting import wait_until

from tests.lab.links.network import (
    LIMIT,
    count,
    joined,
    plug,
    renumber,
    reported_sources,
    unplug,
    wait_joined,
)
from tests.lab.running import stopped
from tests.lab.watch import let_pass, reconfigure, rekey, sas, wait_agreed, watched

pytestmark = pytest.mark.uml

MEMBERS = ["gm1", "gm2"]
NEW_ADDRESS = "10.66.0.77"
VIDEO = GroupOptions(activation_delay="5s", deactivation_delay="30s", ack_jitter="0s")
TUNNEL = GroupOptions(
    "tunnel", 2, mode="tunnel", activation_delay="5s", deactivation_delay="30s", ack_jitter="0s"
)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabGroup]:
    """gm2 joins its data, and the key server expects it under another address as well."""
    folder = tmp_path_factory.mktemp("links")
    with Network(["gcks", *MEMBERS], folder / "work") as network:
        lab = LabGroup(network, folder / "work", folder, VIDEO, more=[TUNNEL])
        gm2 = network["gm2"]
        reconfigure(lab.members["gm2"], f'address = "{gm2.address4}"', f'interface = "{INTERFACE}"')
        reconfigure(lab.members["gm2"], "recovery_delay", "join = true\nrecovery_delay")
        reconfigure(lab.gcks, f'"{gm2.address4}"', f'"{gm2.address4}", "{NEW_ADDRESS}"')
        with stopped(lab):
            yield lab


@pytest.fixture(scope="module")
def capture_of_joins(group: LabGroup, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agents started, gm2 before its interface."""
    network, gm2 = group.network, group.members["gm2"]
    unplug(network["gm2"])
    group.start("gm1")
    gm2.start()
    gm2.wait_event("network-lost", LIMIT)
    (lost,) = gm2.events("network-lost")
    assert f"member.interface: no interface {INTERFACE}" in lost["error"]
    (video, _) = group.listed(gm2, "group")
    assert video["state"] == "idle"
    assert "address" not in video
    assert video["network"] == lost["error"]
    capture = network.capture(tmp_path_factory.mktemp("joins") / "bridge.pcap")
    plug(network, network["gm2"])
    gm2.wait_event("registered", LIMIT, 2)
    rekeys, data = VIDEO.rekey_group, VIDEO.data_group
    assert rekeys is not None
    wait_joined(network["gm2"], rekeys, data)
    wait_until(
        lambda: (
            (rekeys, network["gcks"].address4)
            in reported_sources(capture.path, network["gm2"].address4)
        ),
        LIMIT,
        "an IGMP report that names the key server",
    )
    capture.stop()
    return capture.path


@pytest.fixture
def running(group: LabGroup, capture_of_joins: Path) -> LabGroup:
    assert capture_of_joins.exists()
    return group


def test_started_before_its_interface(running: LabGroup) -> None:
    """It has registered since; what it holds came from the one start of the agent."""
    gm2 = running.members["gm2"]
    assert count(gm2, "started") == 1
    (found,) = gm2.events("network-found")
    assert found["address"] == running.network["gm2"].address4
    rekey(running, MEMBERS)


def test_joins_are_seen_on_the_wire(running: LabGroup, capture_of_joins: Path) -> None:
    """IGMPv3: rekeys from the key server alone, data from anybody; without ``join`` no data."""
    network = running.network
    named = set(reported_sources(capture_of_joins, network["gm2"].address4))
    assert {group for group, _ in named} == {VIDEO.rekey_group, TUNNEL.rekey_group}
    assert {source for _, source in named} == {network["gcks"].address4}
    assert {VIDEO.data_group, TUNNEL.data_group} <= joined(network["gm2"])
    assert joined(network["gm1"]).isdisjoint({VIDEO.data_group, TUNNEL.data_group})


def test_link_down_and_up(running: LabGroup, tmp_path: Path) -> None:
    """What is sent meanwhile is lost; afterwards nothing is, over another rekey."""
    network, gm2 = running.network, running.members["gm2"]
    host = network["gm2"]
    lost, found, registered = (
        count(gm2, name) for name in ("network-lost", "network-found", "registered")
    )
    with watched(running, tmp_path, scenario="link down and up") as watch:
        let_pass(1)
        host.run(["ip", "link", "set", INTERFACE, "down"])
        gm2.wait_event("network-lost", LIMIT, lost + 1)
        let_pass(1)
        host.run(["ip", "link", "set", INTERFACE, "up"])
        renumber(host, host.address4)
        gm2.wait_event("network-found", LIMIT, found + 1)
        gm2.wait_event("registered", LIMIT, registered + 2)
        up = time.time()
        let_pass(1)
        rekey(running, MEMBERS)
        wait_agreed(running, MEMBERS, VIDEO)
        let_pass(1)
    watch.assert_nothing_clear()
    for pair in watch.pairs:
        assert pair.duplicates == 0
        for gap in pair.gaps:
            assert gap.before is not None, f"nothing from {pair.sender} after the link was up"
            assert gap.before < up, f"{gap.count} of {pair.sender} lost after the link was up"
    assert count(gm2, "started") == 1


@pytest.mark.parametrize("name", ["gm2", "gcks"])
def test_deleted_and_made_again(name: str, running: LabGroup) -> None:
    """Under another index. Rekeys by multicast are heard and sent on the new one."""
    network, members = running.network, running.members
    registered = {member: count(members[member], "registered") for member in MEMBERS}
    lost = count(members["gm2"], "network-lost")
    unplug(network[name])
    if name == "gm2":
        members["gm2"].wait_event("network-lost", LIMIT, lost + 1)
    plug(network, network[name])
    if name == "gm2":
        members["gm2"].wait_event("registered", LIMIT, registered["gm2"] + 2)
        wait_joined(network["gm2"], str(VIDEO.rekey_group), VIDEO.data_group)
    rekey(running, MEMBERS)
    assert {"gm1": count(members["gm1"], "registered")} == {"gm1": registered["gm1"]}
    assert [count(daemon, "started") for daemon in (*members.values(), running.gcks)] == [1, 1, 1]


def test_address_changed(running: LabGroup) -> None:
    """gm2 goes on with the keys it has, and registers as somebody else."""
    network, gm2 = running.network, running.members["gm2"]
    host, old = network["gm2"], network["gm2"].address4
    registered = count(gm2, "registered")
    before = sas(host, VIDEO.data_group)
    renumber(host, NEW_ADDRESS)
    gm2.wait_event("registered", LIMIT, registered + 2)
    host.address4 = NEW_ADDRESS
    assert list(gm2.events("network-found"))[-1]["address"] == NEW_ADDRESS
    for item in running.listed(gm2, "group"):
        assert (item["address"], item["state"]) == (NEW_ADDRESS, "registered")
    assert before.keys() <= sas(host, VIDEO.data_group).keys()
    kernel = host.run(["sh", "-c", "ip xfrm state; ip xfrm policy; ss --udp --all -n"]).stdout
    assert old not in kernel
    assert f"src {NEW_ADDRESS} dst {TUNNEL.data_group}" in kernel
    assert f"{NEW_ADDRESS}:848" in kernel
    for options in (VIDEO, TUNNEL):
        rekey(running, MEMBERS, options.name)
    assert count(gm2, "started") == 1
