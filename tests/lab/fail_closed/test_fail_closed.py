"""Nothing of a group in clear, whatever becomes of keys, agents and policies; exceptions pass.

::

    gcks ----+---- gm1, gm2     a sender each, all the time; gm1 has default_policy = "block"
             |
    out -----+                  sends to the group too, in clear, and hears what is in clear
          capture

What members put on the wire is read from the capture; what they took from the outsider, from their
own accounts. The rekey group lies among the protected ones, as the data group does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from gdoi_lab.clear import (
    NEIGHBOUR_ADVERTISEMENT,
    NEIGHBOUR_SOLICITATION,
    BridgeCounts,
    count_capture,
)
from gdoi_lab.group import GROUP, Daemon, GroupOptions, LabGroup
from gdoi_lab.net import Host, Network
from gdoi_lab.traffic import Traffic, deliveries
from gdoi_lab.waiting import wait_until

from tests.lab.watch import (
    Watch,
    frozen,
    let_pass,
    reconfigure,
    rekey,
    sas,
    sending,
    wait_agreed,
    watched,
)

pytestmark = pytest.mark.uml

MEMBERS = ["gm1", "gm2"]
HOSTS = [*MEMBERS, "out"]
OPTIONS = GroupOptions(activation_delay="1s", deactivation_delay="2s", ack_jitter="0s")
PROTECT = 'protect = ["239.192.0.0/16", "ff18::/16"]\n'
DEFAULT = 'default_policy = "block"\n'
KEEP = 'on_stop = "keep"\n'
BYPASS = """
[[member.bypass]]
destination = "239.192.0.0/16"
protocol = 17
destination_port = 9875
"""
IGMP, ICMPV6 = 2, 58
LIMIT = 150.0
# Long enough for some dozen packets of each sender.
A_WHILE = 0.5


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabGroup]:
    """No daemon of it runs yet."""
    folder = tmp_path_factory.mktemp("fail_closed")
    with Network(["gcks", *HOSTS], folder / "work") as network:
        settings = f"{PROTECT}{KEEP}{BYPASS}"
        lab = LabGroup(
            network, folder / "work", folder, OPTIONS, outsiders=["out"], settings=settings
        )
        reconfigure(lab.members["gm1"], PROTECT, PROTECT + DEFAULT)
        for name in MEMBERS:
            # Their reports go to the group that is joined; those of later versions do not.
            network[name].sysctl(
                {
                    "net/ipv4/conf/eth0/force_igmp_version": 2,
                    "net/ipv6/conf/eth0/force_mld_version": 1,
                }
            )
        yield lab
        for daemon in [*lab.members.values(), lab.gcks]:
            daemon.stop()


def up(daemon: Daemon) -> None:
    if daemon.process is None or not daemon.process.running:
        daemon.start()


def restart_registered(daemon: Daemon) -> None:
    before = len(list(daemon.events("registered")))
    daemon.start()
    daemon.wait_event("registered", LIMIT, before + 1)


def register(group: LabGroup) -> None:
    """Everybody is there, in the order of their names, and has keys."""
    up(group.gcks)
    for member in group.members.values():
        up(member)
        member.wait_event("registered", LIMIT)


def heard_from(watch: Watch, receiver: str, sender: str) -> int:
    """Packets of ``sender`` that the traffic program at ``receiver`` was given."""
    got = watch.reports[receiver].received.get(watch.traffic.ids[sender])
    return 0 if got is None else got.distinct


def clear_of(watch: Watch, name: str) -> int:
    return watch.counts.clear[watch.group.network[name].address4]


def assert_closed(watch: Watch, *names: str) -> None:
    """No member sent in clear, none took what came in clear, though both were tried."""
    assert clear_of(watch, "out") > 0
    for name in names or MEMBERS:
        assert clear_of(watch, name) == 0, f"{name} sent in clear"
        assert watch.reports[name].sent + watch.reports[name].refused > 0
        assert heard_from(watch, name, "out") == 0, f"{name} took clear packets"
        assert heard_from(watch, "out", name) == 0, f"{name} was heard by the outsider"


def test_without_agents_all_is_in_clear(group: LabGroup, tmp_path: Path) -> None:
    """What the others are compared with: these watches do see clear packets."""
    if any(daemon.process for daemon in group.members.values()):
        pytest.fail("to be run first")
    with watched(group, tmp_path, names=HOSTS) as watch:
        let_pass(A_WHILE)
    for name in MEMBERS:
        assert clear_of(watch, name) == watch.reports[name].sent > 0
        assert heard_from(watch, name, "out") > 0
        assert heard_from(watch, "out", name) > 0


def test_before_registration(group: LabGroup, tmp_path: Path) -> None:
    """Agents, no key server."""
    for member in group.members.values():
        up(member)
    with watched(group, tmp_path, names=HOSTS, scenario="before the registration") as watch:
        watch.note = "no keys yet: nothing is sent"
        let_pass(A_WHILE)
    assert_closed(watch)
    assert watch.counts.esp.total() == 0
    assert [watch.reports[name].sent for name in MEMBERS] == [0, 0]


_CONNECT = """
import socket, sys
socket.create_connection((sys.argv[1], 9), 20)
"""


def assert_reached(host: Host, address: str) -> None:
    """There and back: nobody listens, and says so."""
    done = host.run(["python3", "-ISc", _CONNECT, address], check=False)
    assert "ConnectionRefusedError" in done.stderr, done.stderr


_JOIN = """
import ipaddress, socket, struct, sys, time
group, address, index = ipaddress.ip_address(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if group.version == 4:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    request = group.packed + socket.inet_aton(address)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
else:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    request = group.packed + struct.pack("@I", index)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
time.sleep(0.3)
"""


def report_membership(host: Host, group: str) -> None:
    """Of a group that nobody on this host is in, and to which nobody else on the link reports now:
    who hears another one's report keeps his own back."""
    index = host.run(["cat", f"/sys/class/net/{host.interface}/ifindex"]).stdout.strip()
    host.run(["python3", "-ISc", _JOIN, group, host.address4, index])


def assert_managed(counts: BridgeCounts, hosts: list[Host]) -> None:
    """Everybody has reported its groups, asked for its neighbour, and answered it."""
    for host in hosts:
        assert counts.other[host.address4, IGMP] > 0, "no IGMPv2 report"
        for kind in (NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT):
            assert counts.neighbours[host.address6, kind] > 0, f"{host.name}: no ICMPv6 {kind}"
    # MLD: from a link-local address each.
    assert len([source for source, protocol in counts.other if protocol == ICMPV6]) == len(hosts)


def test_what_has_to_pass(group: LabGroup, tmp_path: Path) -> None:
    """An exception, IGMP, MLD, neighbour discovery, unicast; gm1 has a default that blocks."""
    for member in group.members.values():
        up(member)
    network, announced = group.network, "239.192.9.9"
    hosts = [network[name] for name in MEMBERS]
    capture = network.capture(tmp_path / "bridge.pcap")
    allowed = Traffic(hosts, announced, 9875, tmp_path / "allowed", rate=50)
    blocked = Traffic(hosts, announced, 9876, tmp_path / "blocked", rate=50)
    six = Traffic(hosts, "ff18::99", 9875, tmp_path / "six", rate=50)
    several = (allowed, blocked, six)
    for traffic in several:
        traffic.open()
    for traffic in several:
        traffic.start()
    for host in hosts:
        report_membership(host, "239.192.8.8")
        report_membership(host, "ff18::88")
    for one, other in (hosts, reversed(hosts)):
        one.run(["ip", "neigh", "flush", "all"])
        assert_reached(one, other.address6)
    assert_reached(hosts[0], hosts[1].address4)
    for pair in deliveries(allowed.finish()):
        assert (pair.sent > 0, pair.lost) == (True, 0)
    for traffic in (blocked, six):
        for report in traffic.finish().values():
            assert (report.sent, report.refused > 0, report.received) == (0, True, {})
    capture.stop()
    counts = count_capture(capture.path, {announced, "ff18::99", "239.192.8.8", "ff18::88"})
    assert_managed(counts, hosts)
    assert {source for source in counts.clear if ":" in source} == set()


def test_registration(group: LabGroup, tmp_path: Path) -> None:
    """The key server comes; then a rekey, to a group that is protected."""
    for member in group.members.values():
        up(member)
    with watched(group, tmp_path, names=HOSTS, scenario="registration under traffic") as watch:
        watch.note = "lost: until the other one has keys, too"
        register(group)
        rekey(group, MEMBERS)
        wait_agreed(group, MEMBERS, OPTIONS)
        let_pass(A_WHILE)
    assert_closed(watch)
    for sender, receiver in (("gm1", "gm2"), ("gm2", "gm1")):
        assert watch.esp_of(sender) == watch.reports[sender].sent > 0
        assert heard_from(watch, receiver, sender) > 0


def test_reports_to_a_group_with_keys(group: LabGroup, tmp_path: Path) -> None:
    """IGMPv2 reports go to the group itself, and its TEK is for every protocol but this one."""
    register(group)
    capture = group.network.capture(tmp_path / "bridge.pcap")
    hosts = [group.network[name] for name in MEMBERS]
    for host in hosts:
        assert sending(host, group.data_group)
        report_membership(host, group.data_group)
    capture.stop()
    counts = count_capture(capture.path, {group.data_group})
    for host in hosts:
        assert counts.other[host.address4, IGMP] > 0
    assert counts.esp == {}


def tables(host: Host) -> tuple[str, str, str]:
    """SAs, policies, the default."""
    # Without those of sockets, the agent's among them: they come and go with it.
    words = ("state",), ("policy", "list", "nosock"), ("policy", "getdefault")
    sas, policies, default = (host.run(["ip", "xfrm", *word]).stdout for word in words)
    return sas, policies, default


def test_on_stop(group: LabGroup, tmp_path: Path) -> None:
    """gm1 stops and starts: keep, block; and at last remove."""
    register(group)
    gm1 = group.members["gm1"]
    # Another program's, which nobody but that one takes away.
    foreign = ["src", "0.0.0.0/0", "dst", "239.192.1.1/32", "proto", "tcp"]
    gm1.host.run(["ip", "xfrm", "policy", "add", *foreign, "dir", "out", "action", "block"])
    with watched(group, tmp_path, names=HOSTS, scenario='on_stop = "keep", "block"') as watch:
        watch.note = "lost: after the second stop, until the start"
        sas_before, policies_before, default_before = tables(gm1.host)
        assert default_before.count("block") == 2
        assert gm1.stop() == 0
        kept = tables(gm1.host)
        assert kept[0].count("spi 0x") == sas_before.count("spi 0x") > 0
        assert (_selectors(kept[1]), kept[2]) == (_selectors(policies_before), default_before)
        reconfigure(gm1, KEEP, 'on_stop = "block"\n')
        restart_registered(gm1)
        assert gm1.stop() == 0
        blocked = tables(gm1.host)
        let_pass(A_WHILE)
        assert "spi 0x" not in blocked[0]
        assert (_selectors(blocked[1]), blocked[2]) == (_selectors(kept[1]), default_before)
        reconfigure(gm1, 'on_stop = "block"\n', 'on_stop = "remove"\n')
        restart_registered(gm1)
        let_pass(A_WHILE)
    assert_closed(watch)
    # Without its SA a policy drops, and the sender is not told.
    assert 0 < watch.esp_of("gm1") < watch.reports["gm1"].sent

    (tmp_path / "remove").mkdir()
    with watched(group, tmp_path / "remove", names=HOSTS) as watch:
        assert gm1.stop() == 0
        removed = tables(gm1.host)
        let_pass(A_WHILE)
    reconfigure(gm1, 'on_stop = "remove"\n', KEEP)
    assert (removed[0], "block" in removed[2]) == ("", False)
    assert _selectors(removed[1]) == ["src 0.0.0.0/0 dst 239.192.1.1/32 proto tcp"]
    assert clear_of(watch, "gm1") > 0
    assert heard_from(watch, "gm1", "out") > 0
    gm1.host.run(["ip", "xfrm", "policy", "delete", *foreign, "dir", "out"])
    restart_registered(gm1)


def _selectors(policies: str) -> list[str]:
    return sorted(line.strip() for line in re.findall("^src .*", policies, re.MULTILINE))


def test_group_deleted(group: LabGroup, tmp_path: Path) -> None:
    """By the key server, which then does not answer whoever wants to register again."""
    register(group)
    with watched(group, tmp_path, names=HOSTS, scenario="group deleted") as watch:
        watch.note = "lost: from then on"
        let_pass(A_WHILE)
        group.command(group.gcks, "delete-group", group=GROUP)
        with frozen(group.gcks):
            for name, member in group.members.items():
                member.wait_event("group-deleted", LIMIT)
                assert not sas(group.network[name], group.data_group)
            let_pass(A_WHILE)
    assert_closed(watch)
    for name in MEMBERS:
        assert 0 < watch.esp_of(name) < watch.reports[name].sent + watch.reports[name].refused


def test_policies_flushed(group: LabGroup, tmp_path: Path) -> None:
    """While nobody is there to put them back: gm1's default is to block, gm2's is not."""
    register(group)
    with watched(group, tmp_path, names=HOSTS, scenario="policies flushed, agents dead") as watch:
        watch.note = "in clear: the member without default_policy"
        for name in MEMBERS:
            group.members[name].kill()
            group.network[name].run(["ip", "xfrm", "policy", "flush"])
        let_pass(A_WHILE)
        for name in MEMBERS:
            restart_registered(group.members[name])
        let_pass(A_WHILE)
    assert_closed(watch, "gm1")
    assert watch.reports["gm1"].refused > 0
    assert watch.esp_of("gm1") == watch.reports["gm1"].sent > 0
    assert clear_of(watch, "gm2") > 0


def test_key_server_gone(group: LabGroup, tmp_path: Path) -> None:
    """The last TEK expires, gm1's agent is dead by then; it starts again, after a reboot too.

    At last nothing is protected by configuration: gm1 knows its group by a former TEK alone.
    """
    gm1, gcks = group.members["gm1"], group.gcks
    assert gcks.stop() == 0
    reconfigure(gcks, 'lifetime = "1h"', 'lifetime = "30s"')
    register(group)
    rekey(group, MEMBERS)
    wait_until(
        lambda: all(len(sas(group.network[name], group.data_group)) == 1 for name in MEMBERS),
        LIMIT,
        "the TEK of an hour to go",
    )
    with watched(group, tmp_path, names=HOSTS, scenario="key server gone, TEK expired") as watch:
        watch.note = "the agent of one killed; lost: after the end"
        gcks.kill()
        gm1.kill()
        wait_until(
            lambda: not any(sas(group.network[name], group.data_group) for name in MEMBERS),
            LIMIT,
            "the last SAs to expire",
        )
        let_pass(A_WHILE)
        gm1.start()
        let_pass(A_WHILE)
        gm1.kill()
        watch.traffic.stop("gm1", "out")
        _reboot(gm1.host)
        reconfigure(gm1, f"{PROTECT}{DEFAULT}{KEEP}{BYPASS}", "")
        gm1.start()
        watch.traffic.start("gm1", "out")
        let_pass(A_WHILE)
    assert_closed(watch)
    for name in MEMBERS:
        assert 0 < watch.esp_of(name) < watch.reports[name].sent + watch.reports[name].refused
    assert watch.reports["gm1"].refused > 0, "a block says so, a policy without its SA does not"


def _reboot(host: Host) -> None:
    """As far as XFRM is concerned."""
    host.run(["ip", "xfrm", "state", "flush"])
    host.run(["ip", "xfrm", "policy", "flush"])
    host.run(["ip", "xfrm", "policy", "setdefault", "in", "accept", "out", "accept"])
