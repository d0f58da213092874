"""Members with charon, strongSwan's IKE daemon, on the same hosts: neither touches the other's.

::

    gcks ----+---- gm1, gm2

charon's CHILD_SAs, in transport mode: everything between gm1 and gm2; UDP 848 between gm1 and
gcks, which so carries gm1's registrations, unicast rekeys and acknowledgements, and which the first
of these packets brings up. Between gm2 and gcks UDP 848 is in clear. Both members have
default_policy = "block".
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
from gdoi_lab.waiting import wait_until

from gdoi_plugin.daemon.guard import ALLOW_PRIORITY, BLOCK_PRIORITY, BYPASS_PRIORITY
from gdoi_plugin.daemon.kernel_options import PRIORITY
from tests.lab.watch import frozen, reconfigure, rekey

from .lab import (
    KEEP,
    LIMIT,
    MEMBERS,
    PACKETS,
    PEERS,
    PROTECTED,
    UDP,
    Lab,
    assert_received,
    exchange,
    in_clear,
    load,
    priorities,
    send,
    settled,
    tables,
)

pytestmark = pytest.mark.uml


# In this order.


def test_ike_passes_where_all_of_the_group_is_blocked(lab: Lab) -> None:
    """Members without keys: their policies, and the kernel's default, are there already."""
    for member in lab.group.members.values():
        member.start()
    before = {name: tables(lab.host(name)) for name in MEMBERS}
    for name in MEMBERS:
        assert priorities(before[name].ours) == {BYPASS_PRIORITY, BLOCK_PRIORITY, ALLOW_PRIORITY}
        assert len(before[name].blocks) == 2
    lab.connect()
    lab.assert_connected()
    for name in MEMBERS:
        after = tables(lab.host(name))
        assert after.ours == before[name].ours
        assert len(after.charons) > len(before[name].charons)


def test_registration_and_rekeys_inside_a_child_sa(lab: Lab, tmp_path: Path) -> None:
    """gm1's are in ESP between it and the key server; the first packet brings that up."""
    group = lab.group
    capture = group.network.capture(tmp_path / "bridge.pcap")
    group.gcks.start()
    for member in group.members.values():
        member.wait_event("registered", LIMIT)
    rekey(group, MEMBERS)
    capture.stop()
    clear = in_clear(capture.path)
    gcks, gm1, gm2 = (lab.host(name).address4 for name in ("gcks", *MEMBERS))
    for one, other in ((gcks, gm2), (gm2, gcks)):
        assert clear[UDP, one, other, 848] > 0
    for one, other in ((gcks, gm1), (gm1, gcks)):
        assert clear[UDP, one, other, 848] == 0
    (child,) = lab.ike["gm1"].children("gcks")
    # Phase 1 and the PULL are of ten messages, PUSH and ACK of one each.
    assert int(child["packets-in"]) >= 6
    assert int(child["packets-out"]) >= 6


def test_each_packet_by_its_own_sas(lab: Lab) -> None:
    """While charon's CHILD_SA carries, is rekeyed, ends and comes back over UDP 4500, nothing of
    the group changes. Without it packets between the hosts are in clear, as without IKE."""
    hosts = [lab.host(name) for name in MEMBERS]
    ours = [settled(lab, name).ours for name in MEMBERS]
    for host in hosts:
        found = tables(host)
        assert max(priorities(found.charons)) < BYPASS_PRIORITY
        assert {BYPASS_PRIORITY, PRIORITY, BLOCK_PRIORITY, ALLOW_PRIORITY} == priorities(found.ours)
    lab.assert_connected()
    assert_received(lab)
    rekey_hosts(lab)
    lab.assert_connected()
    lab.ike["gm1"].terminate("gm2")
    wait_until(lambda: not any(lab.children().values()), LIMIT, "the end at both")
    exchange(lab)
    assert_received(lab)
    assert [tables(host).ours for host in hosts] == ours
    for name, other in PEERS.items():
        load(lab.ike[name], lab.host(name), lab.host(other), encap="yes")
    lab.connect()
    assert [child["encap"] for (child,) in lab.children().values()] == ["yes", "yes"]
    lab.assert_connected()
    assert_received(lab)
    assert [tables(host).ours for host in hosts] == ours


def rekey_hosts(lab: Lab) -> None:
    """charon's CHILD_SA between the members; returns when both have the new one alone."""
    spis = [child["spi-in"] for child in lab.children()["gm1"]]
    lab.ike["gm1"].rekey("hosts")

    def rekeyed() -> bool:
        found = lab.children()
        new = [child["spi-in"] for child in found["gm1"]]
        return len(new) == len(found["gm2"]) == 1 and new != spis

    wait_until(rekeyed, LIMIT, "another CHILD_SA")


def test_restored_beside_charons(lab: Lab) -> None:
    """Somebody deletes gm1's SAs and policies of the group. Where a policy misses its SA, the
    kernel asks charon for one, which is none of charon's business, and the member goes on."""
    gm1, host, address = lab.group.members["gm1"], lab.host("gm1"), lab.group.data_group
    before = settled(lab, "gm1")
    with frozen(gm1):
        host.ip("xfrm", "state", "deleteall", "dst", address)
        send(lab, address)
        assert not set(before.ours) <= set(tables(host).ours)
    wait_until(lambda: tables(host) == before, LIMIT, "the SAs to be as they were")
    host.ip("xfrm", "policy", "deleteall", "dst", f"{address}/32")
    wait_until(lambda: tables(host) == before, LIMIT, "the policies to be as they were")
    assert len(list(gm1.events("kernel-restored"))) >= 2
    lab.assert_connected()


@pytest.mark.parametrize(("priority", "blocked"), [("0", False), ("395000", True)])
def test_a_child_sa_for_all_multicast(lab: Lab, priority: str, blocked: bool) -> None:
    """As a VPN for everything would be: it is behind the group's SAs, but before what blocks all
    else that is protected, unless charon is told a number."""
    ike = lab.ike["gm1"]
    load(ike, lab.host("gm1"), lab.host("gm2"), encap="yes", priority=priority)
    ike.initiate("gm2", "all")

    def carried() -> int:
        (child,) = [c for c in ike.children("gm2") if c["name"] == "all"]
        return int(child["packets-out"])

    assert_received(lab)
    assert carried() == 0
    with pytest.raises(PermissionError) if blocked else nullcontext():
        send(lab, PROTECTED)
    assert carried() == (0 if blocked else PACKETS)
    ike.terminate("gm2", "all")
    lab.assert_connected()


def test_stopped_beside_charon(lab: Lab) -> None:
    """With each on_stop: what gm1 leaves behind, and what its next start finds, is its own."""
    gm1, host, former = lab.group.members["gm1"], lab.host("gm1"), KEEP
    for on_stop in ("keep", "remove", "block"):
        if on_stop != "keep":
            reconfigure(gm1, former, former := f'on_stop = "{on_stop}"\n')
            registered = len(list(gm1.events("registered")))
            gm1.start()
            gm1.wait_event("registered", LIMIT, registered + 1)
        before = settled(lab, "gm1")
        assert gm1.stop() == 0
        after = tables(host)
        assert after.charons == before.charons
        assert after.ours == left_behind(on_stop, before.ours)
        lab.assert_connected()


def left_behind(on_stop: str, ours: list[str]) -> list[str]:
    if on_stop == "remove":
        return []
    return [entry for entry in ours if on_stop == "keep" or "priority" in entry]


def test_ike_passes_where_everything_is_blocked(lab: Lab) -> None:
    """Policies flushed and no agent to put them back: gm1 is cut off. charon is not, and what its
    next CHILD_SA is for passes."""
    lab.host("gm1").ip("xfrm", "policy", "flush")
    with pytest.raises(PermissionError):
        exchange(lab, 1)
    lab.ike["gm1"].terminate("gm2")
    wait_until(lambda: not any(lab.children().values()), LIMIT, "the end at both")
    lab.connect()
    lab.assert_connected()
