"""Members with charon, strongSwan's IKE daemon, on the same hosts: neither touches the other's.

::

    gcks ----+---- gm1, gm2

charon's CHILD_SAs, in transport mode: everything between gm1 and gm2; UDP 848 between gm1 and
gcks, which so carries gm1's registrations, unicast rekeys and acknowledgements, and which the first
of these packets brings up. Between gm2 and gcks UDP 848 is in clear. Both members have
default_policy = "block".
"""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from gdoi_lab.clear import read_frames
from gdoi_lab.group import GroupOptions, LabGroup
from gdoi_lab.net import Host, Network
from gdoi_lab.waiting import wait_until

from gdoi_plugin.daemon.guard import ALLOW_PRIORITY, BLOCK_PRIORITY, BYPASS_PRIORITY
from gdoi_plugin.daemon.kernel_options import PRIORITY
from gdoi_plugin.daemon.reqid import FIRST_REQID
from tests.interop.charon import Charon, Record, charon
from tests.kernel.namespaces import Namespace
from tests.lab.running import stopped
from tests.lab.watch import frozen, reconfigure, rekey, sas, state_entries

pytestmark = pytest.mark.uml

PEERS = {"gm1": "gm2", "gm2": "gm1"}
MEMBERS = list(PEERS)
OPTIONS = GroupOptions(
    unicast=True,
    activation_delay="0s",
    deactivation_delay="0s",
    ack_jitter="0s",
)
KEEP = 'on_stop = "keep"\n'
# charon has UDP 4500.
SETTINGS = f"""nat_port = 4501
protect = ["239.192.0.0/16"]
default_policy = "block"
{KEEP}
[[member.bypass]]
destination = "239.192.0.0/16"
protocol = 17
destination_port = 9875
"""
PSK = b"a pre-shared key of two IKE daemons"
PROTECTED = "239.192.9.9"  # and no data SA is for it
PACKETS = 20
UDP = 17
LIMIT = 150.0


@dataclass(frozen=True, slots=True)
class Lab:
    group: LabGroup
    ike: dict[str, Charon]

    def host(self, name: str) -> Host:
        return self.group.network[name]

    def connect(self) -> None:
        """charon's connection between the members; returns when both use it."""
        self.ike["gm1"].initiate("gm2", "hosts")
        wait_until(lambda: all(self.children().values()), LIMIT, "the CHILD_SA at both")

    def children(self) -> dict[str, list[Record]]:
        """The CHILD_SAs between the members, at each of them."""
        return {name: self.ike[name].children(other) for name, other in PEERS.items()}

    def assert_connected(self) -> None:
        """gm1 and gm2 reach each other, there and back, by their one CHILD_SA."""
        before = self.children()
        exchange(self)
        for name, (now,) in self.children().items():
            (then,) = before[name]
            for count in ("packets-in", "packets-out"):
                assert int(now[count]) - int(then[count]) >= PACKETS, f"{name}: {count}"


def exchange(lab: Lab, times: int = PACKETS) -> None:
    """A packet from gm1 to gm2 and one back: nobody listens there, and the host says so."""
    address = lab.host("gm2").address4, 9
    with Namespace.named(lab.host("gm1").namespace) as there, there.entered():
        for _ in range(times):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address, LIMIT)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """charon runs everywhere and knows its connections; no daemon of the group does."""
    folder = tmp_path_factory.mktemp("beside_charon")
    with Network(["gcks", *MEMBERS], folder / "work") as network, ExitStack() as stack:
        lab = LabGroup(network, folder / "work", folder, OPTIONS, settings=SETTINGS)
        ike = {
            name: stack.enter_context(
                charon(folder / name, before=tuple(network[name].command([])))
            )
            for name in network.hosts
        }
        # Nobody listens there, but packets are to come.
        reconfigure(lab.members["gm2"], "recovery_delay", "join = true\nrecovery_delay")
        for name, other in PEERS.items():
            load(ike[name], network[name], network[other])
        for name, other in (("gcks", "gm1"), ("gm1", "gcks")):
            load(ike[name], network[name], network[other])
        with stopped(lab):
            yield Lab(lab, ike)
        for daemon in (*lab.members.values(), lab.gcks):
            assert list(daemon.events("bug")) == []


def load(ike: Charon, here: Host, there: Host, *, encap: str = "no", priority: str = "0") -> None:
    """A connection that has the other host's name. Between members its child is "hosts", and from
    gm1 to gm2 "all", of this ``priority``; with the key server "channel", which comes up when gm1
    needs it."""
    common = {"esp_proposals": ["aes128gcm16"], "mode": "transport"}
    if "gcks" in (here.name, there.name):
        selectors = ["dynamic[udp/848]"]
        trap = {"start_action": "trap" if here.name == "gm1" else "none"}
        children = {"channel": common | trap | {"local_ts": selectors, "remote_ts": selectors}}
    else:
        ways = ("local_ts", "remote_ts") if here.name == "gm2" else ("remote_ts", "local_ts")
        everything = dict(zip(ways, (["224.0.0.0/4"], ["dynamic"]), strict=True))
        special = {"mode": "tunnel", "priority": priority}
        children = {"hosts": common, "all": common | everything | special}
    ike.load_psk(PSK, here.address4, there.address4)
    ike.load(
        there.name,
        version="2",
        local_addrs=[here.address4],
        remote_addrs=[there.address4],
        proposals=["aes128-sha256-ecp256"],
        encap=encap,
        local={"auth": "psk"},
        remote={"auth": "psk"},
        children=children,
    )


# -- who owns what --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tables:
    """SAs and policies as `ip` shows them, keys too; sequence numbers are left out."""

    charons: list[str]
    ours: list[str]


def tables(host: Host) -> Tables:
    text = host.ip("xfrm", "state") + host.ip("xfrm", "policy", "list", "nosock")
    text = re.sub(r"\tanti-replay .*\n", "", text)
    entries = sorted(re.split(r"^(?=src )", text, flags=re.MULTILINE)[1:])
    numbers = [re.search(r"reqid (\d+)", entry) for entry in entries]
    theirs = [found is not None and int(found[1]) < FIRST_REQID for found in numbers]
    return Tables(
        [entry for entry, his in zip(entries, theirs, strict=True) if his],
        [entry for entry, his in zip(entries, theirs, strict=True) if not his],
    )


def priorities(entries: list[str]) -> set[int]:
    return {int(number) for entry in entries for number in re.findall(r"priority (\d+)", entry)}


def datagrams(pcap: Path, port: int) -> Counter[tuple[str, str]]:
    """Those in clear to a UDP port, by source and destination."""
    found: Counter[tuple[str, str]] = Counter()
    for frame in read_frames(pcap):
        udp = frame[14 + 4 * (frame[14] & 0x0F) :]
        if frame[12:14] == b"\x08\x00" and frame[23] == UDP and udp[2:4] == port.to_bytes(2, "big"):
            source, destination = (".".join(map(str, frame[at : at + 4])) for at in (26, 30))
            found[source, destination] += 1
    return found


# -- the tests, in this order ---------------------------------------------------------------------


def test_ike_passes_where_all_of_the_group_is_blocked(lab: Lab) -> None:
    """Members without keys: their policies, and the kernel's default, are there already."""
    for member in lab.group.members.values():
        member.start()
    before = {name: tables(lab.host(name)) for name in MEMBERS}
    for name in MEMBERS:
        assert priorities(before[name].ours) == {BYPASS_PRIORITY, BLOCK_PRIORITY, ALLOW_PRIORITY}
        assert lab.host(name).ip("xfrm", "policy", "getdefault").count("block") == 2
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
    clear = datagrams(capture.path, 848)
    gcks, gm1, gm2 = (lab.host(name).address4 for name in ("gcks", *MEMBERS))
    assert clear[gcks, gm2] > 0
    assert clear[gm2, gcks] > 0
    assert (clear[gcks, gm1], clear[gm1, gcks]) == (0, 0)
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


def assert_received(lab: Lab) -> None:
    """gm2 has what gm1 sends to the group, by the one SA that each of them has for it."""
    address = lab.group.data_group

    def counted() -> list[int]:
        return [packets(lab.host(name), address) for name in MEMBERS]

    before = counted()
    send(lab, address)
    wait_until(
        lambda: (
            [now - then for now, then in zip(counted(), before, strict=True)] == [PACKETS, PACKETS]
        ),
        LIMIT,
        "both SAs to have counted what was sent",
    )


def packets(host: Host, address: str) -> int:
    """What the host's one SA for the group has been used for."""
    (entry,) = [entry for entry in state_entries(host) if f" dst {address}\n" in entry]
    (count,) = re.findall(r"^\t  \d+\(bytes\), (\d+)\(packets\)$", entry, re.MULTILINE)
    return int(count)


def settled(lab: Lab, name: str) -> Tables:
    """Once the member has one SA of the group, which nothing but a rekey will change."""
    host = lab.host(name)
    wait_until(lambda: len(sas(host, lab.group.data_group)) == 1, LIMIT, "one SA of the group")
    return tables(host)


def rekey_hosts(lab: Lab) -> None:
    """charon's CHILD_SA between the members; returns when both have the new one alone."""
    spis = [child["spi-in"] for child in lab.children()["gm1"]]
    lab.ike["gm1"].rekey("hosts")

    def rekeyed() -> bool:
        found = lab.children()
        new = [child["spi-in"] for child in found["gm1"]]
        return len(new) == len(found["gm2"]) == 1 and new != spis

    wait_until(rekeyed, LIMIT, "another CHILD_SA")


def send(lab: Lab, address: str) -> None:
    """PACKETS of gm1 to a group. Raises PermissionError where a policy does not let them."""
    with (
        Namespace.named(lab.host("gm1").namespace) as there,
        there.entered(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        for _ in range(PACKETS):
            sock.sendto(b"x", (address, 9))


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
