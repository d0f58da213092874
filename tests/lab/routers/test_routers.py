"""Members that are routers: a group's packets between hosts that know nothing of it.

::

    lan1 ---- eth1 [gm1] eth0 ----+---- eth0 [gm2] eth1 ---- lan2
         clear          gcks -----+     ESP               clear
                    stranger -----+---- capture

One group in tunnel mode, whose ESP packets are the routers' own: in AES-GCM, with a key of each
router. One in transport mode, whose ESP packets have the hosts' addresses. The routers' programs
send and listen as well.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from gdoi_lab.capture import Capture
from gdoi_lab.clear import BridgeCounts, count_capture
from gdoi_lab.group import GroupOptions, LabGroup
from gdoi_lab.net import INTERFACE, Host, Network
from gdoi_lab.routed import LAN_INTERFACE, add_lan, route_multicast
from gdoi_lab.table import Row, report
from gdoi_lab.traffic import Delivery, deliveries
from gdoi_lab.waiting import wait_until

from tests.lab.running import stopped
from tests.lab.watch import (
    PORT,
    Watch,
    reconfigure,
    rekey,
    rekeys_sent,
    sending,
    watched_together,
)

pytestmark = pytest.mark.uml

ROUTERS = ["gm1", "gm2"]
LANS = {"lan1": "gm1", "lan2": "gm2"}
OUTSIDERS = ("stranger", *LANS)
TRANSPORT = GroupOptions(
    name="transport",
    activation_delay="5s",
    deactivation_delay="12s",
    ack_jitter="0s",
)
TUNNEL = replace(TRANSPORT, name="tunnel", number=2, mode="tunnel", proposal="aes256gcm16")
GROUPS = [TRANSPORT, TUNNEL]
# No group's address, or not yet: it has a route, and the policies of `protect`.
PROTECTED = "239.192.77.1"
ADDRESSES = [*(options.data_group for options in GROUPS), PROTECTED]
# Packets a second from each of four hosts to each group: one processor encrypts, forwards and
# decrypts all of them, and starts a daemon meanwhile.
RATE = 25.0
REKEYS = 3
LIMIT = 150.0


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabGroup]:
    """Registered and routing; at the end every daemon stops cleanly."""
    folder = tmp_path_factory.mktemp("routers")
    with Network(["gcks", *ROUTERS, "stranger"], folder / "work") as network:
        for number, (name, router) in enumerate(LANS.items(), start=1):
            add_lan(network, network[router], name, number)
        group = LabGroup(
            network, folder / "work", folder, TRANSPORT, more=[TUNNEL], outsiders=OUTSIDERS
        )
        configure(group)
        for lan, router in LANS.items():
            others = [network[name] for name in (*LANS, *ROUTERS) if name not in (lan, router)]
            route_multicast(network[router], folder / "routes", ADDRESSES, [network[lan]], others)
        with stopped(group):
            group.start()
            yield group


def configure(group: LabGroup) -> None:
    """As deploy/docs/data-plane.md has it. The lab kernel has no nf_tables for IPv4."""
    reconfigure(
        group.gcks, 'mode = "tunnel"', 'mode = "tunnel"\naddress_preservation = "destination-only"'
    )
    reconfigure(group.gcks, "members = ", "forwarding = true\nmembers = ")
    for router in group.members.values():
        reconfigure(router, "ack_jitter = ", f'lan = ["{LAN_INTERFACE}"]\nack_jitter = ')
        more = f'firewall = "iptables-legacy"\nprotect = ["{PROTECTED}/32"]\n'
        reconfigure(router, "[member]\n", f"[member]\n{more}")


def expected(watch: Watch) -> list[Delivery]:
    """All pairs but these: a router's program has to send to the router's own LAN by itself, and
    hears nothing of a LAN whose packets come under a key for another source, the router."""
    return [
        pair
        for pair in deliveries(watch.reports)
        if LANS.get(pair.receiver) != pair.sender
        and (watch.options is not TUNNEL or pair.receiver in LANS or pair.sender not in LANS)
    ]


def sent(watch: Watch, *names: str) -> int:
    return sum(watch.reports[name].sent for name in names)


def overflows() -> int:
    """Packets that the lab's queue had no room for: /proc/net/softnet_stat, the second column."""
    lines = Path("/proc/net/softnet_stat").read_text().splitlines()
    return sum(int(line.split()[1], 16) for line in lines)


def account(watch: Watch, seconds: float, rekeys: int) -> None:
    pairs = expected(watch)
    clear = sum(watch.counts.clear.values())
    row = Row(
        scenario=f"routers between LANs, {watch.options.name}",
        sent=sent(watch, *watch.names),
        received=sum(pair.received for pair in pairs),
        lost=sum(pair.lost for pair in pairs),
        clear=clear,
        seconds=round(seconds, 1),
        rekeys=rekeys,
        note="gm1 killed and started",
    )
    report(row)
    assert clear == 0
    assert [(p.sender, p.receiver, p.gaps, p.duplicates) for p in pairs] == [
        (p.sender, p.receiver, [], 0) for p in pairs
    ]
    for name, told in watch.reports.items():
        assert told.send_errors == []
        # A router's socket also counts what its kernel keeps from it.
        assert told.socket_drops == 0 or name in ROUTERS


def assert_addresses(group: LabGroup, watch: Watch) -> None:
    """A tunnel is the router's, in transport mode the packet stays the host's."""
    for lan, router in LANS.items():
        address = group.network[router].address4
        if watch.options is TUNNEL:
            assert esp_of(watch.counts, address) == sent(watch, lan, router)
        else:
            assert esp_of(watch.counts, address) == sent(watch, router)
            assert esp_of(watch.counts, group.network[lan].address4) == sent(watch, lan)


def esp_of(counts: BridgeCounts, address: str) -> int:
    return sum(count for flow, count in counts.esp.items() if flow.source == address)


def assert_lan(group: LabGroup, watch: Watch, name: str, pcap: Path) -> None:
    """Clear packets of the LAN's host, and of everybody beyond its router."""
    counts = count_capture(pcap, {watch.options.data_group})
    assert not counts.esp
    heard = [who for who in watch.names if who != LANS[name]]
    assert counts.clear == {group.network[who].address4: sent(watch, who) for who in heard}


def change_keys(lab: LabGroup) -> None:
    """A rekey of each group, until both routers send with the new keys."""

    def used() -> list[list[int]]:
        return [sending(lab.network[r], o.data_group) for r in ROUTERS for o in GROUPS]

    before = used()
    for options in GROUPS:
        rekey(lab, ROUTERS, options.name)
    wait_until(
        lambda: all(new != old for new, old in zip(used(), before, strict=True)),
        LIMIT,
        "the routers to change over",
        interval=0.3,
    )


def test_both_ways_between_lans(lab: LabGroup, tmp_path: Path) -> None:
    """lan1, gm1 -> lan2, gm2 and back, under rekeys, while gm1's agent is killed and started."""
    names = [*LANS, *ROUTERS]
    lans = {
        name: Capture(lab.network[name], INTERFACE, tmp_path / f"{name}.pcap", tmp_path)
        for name in LANS
    }
    for capture in lans.values():
        capture.start()
    full = overflows()
    before = {options.name: rekeys_sent(lab, options.name) for options in GROUPS}
    began = time.monotonic()
    with watched_together(lab, tmp_path, GROUPS, names=names, rate=RATE) as watches:
        for number in range(REKEYS):
            change_keys(lab)
            if number == 0:
                lab.members["gm1"].kill()
                lab.members["gm1"].start()
    seconds = time.monotonic() - began
    for capture in lans.values():
        capture.stop()
    assert overflows() == full, "the lab itself has lost packets"
    for watch in watches:
        rekeys = len(rekeys_sent(lab, watch.options.name) - before[watch.options.name])
        assert rekeys >= REKEYS
        account(watch, seconds, rekeys)
        assert_addresses(lab, watch)
        for name, capture in lans.items():
            assert_lan(lab, watch, name, capture.path)


_SPOOF = """
import socket, struct, sys
group, port, *sources = sys.argv[1:]
sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
data = b"clear"
udp = struct.pack("!4H", int(port), int(port), 8 + len(data), 0) + data
for source in sources:
    ends = socket.inet_aton(source) + socket.inet_aton(group)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 8, 17, 0)
    sock.sendto(ip + ends + udp, (group, 0))
"""


def spoof(lab: LabGroup, sources: Sequence[str]) -> None:
    """Clear packets on the bridge, as if the named hosts had sent them."""
    addresses = [lab.network[name].address4 for name in sources]
    for group in ADDRESSES:
        argv = ["python3", "-ISc", _SPOOF, group, str(PORT), *addresses]
        lab.network["stranger"].run(argv)


def reached(lab: LabGroup, folder: Path, name: str) -> list[int]:
    """How many of the stranger's packets to each address come to a LAN.

    Once the bridge's capture is complete the routers have seen all.
    """
    folder.mkdir()
    pcap = folder / "lan.pcap"
    with (
        lab.network.capture(folder / "bridge.pcap"),
        Capture(lab.network[name], INTERFACE, pcap, folder),
    ):
        spoof(lab, [other for other in (*LANS, *ROUTERS, "stranger") if other != name])
    return [sum(count_capture(pcap, {group}).clear.values()) for group in ADDRESSES]


def test_clear_packets_of_a_stranger_come_to_no_lan(lab: LabGroup, tmp_path: Path) -> None:
    """stranger -> gm2: clear, with everybody's address; and who takes the rule away is noticed."""
    gm2 = lab.network["gm2"]
    assert reached(lab, tmp_path / "guarded", "lan2") == [0, 0, 0]
    gm2.run(["iptables-legacy", "-w", "-t", "mangle", "-F", "FORWARD"])
    # lan1's and gm1's have a route, and this is what the rule is there for.
    assert reached(lab, tmp_path / "open", "lan2") == [2, 2, 0]
    for options in GROUPS:
        rekey(lab, ROUTERS, options.name)
    # The rules are looked at again when the old keys go.
    wait_until(lambda: closed(gm2), LIMIT, "the rules to come back", interval=0.5)
    assert reached(lab, tmp_path / "mended", "lan2") == [0, 0, 0]


def closed(router: Host) -> bool:
    rules = router.run(["iptables-legacy", "-w", "-t", "mangle", "-S", "FORWARD"]).stdout
    return all(f"-d {options.data_group}/32 -j GDOI-" in rules for options in GROUPS)


def test_without_keys_nothing_leaves_a_lan(lab: LabGroup, tmp_path: Path) -> None:
    """lan2 -> gm2, whose SAs somebody has flushed and whose agent is gone."""
    gm2 = lab.members["gm2"]
    gm2.kill()
    gm2.host.run(["ip", "xfrm", "state", "flush"])
    with watched_together(lab, tmp_path, GROUPS, names=["lan2"], rate=RATE) as watches:
        wait_until(
            lambda: dropped(lab) > 2 * len(GROUPS), LIMIT, "packets that find no SA", interval=0.1
        )
    for watch in watches:
        assert sent(watch, "lan2") > 0
        assert (watch.counts.clear, watch.counts.esp) == ({}, {})
    gm2.start()
    for options in GROUPS:
        rekey(lab, ROUTERS, options.name)


def dropped(lab: LabGroup) -> int:
    lines = lab.network["gm2"].run(["cat", "/proc/net/xfrm_stat"]).stdout.splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("XfrmOutNoStates"))
