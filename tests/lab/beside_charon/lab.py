"""Hosts with charon, strongSwan's IKE daemon, and a member each: who owns what, and what passes."""

from __future__ import annotations

import re
import socket
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from gdoi_lab.clear import read_frames
from gdoi_lab.group import GroupOptions, LabGroup
from gdoi_lab.net import Host
from gdoi_lab.waiting import wait_until
from gdoi_xfrm import SaState, Xfrm

from gdoi_plugin.daemon.guard import (
    ALLOW_PRIORITY,
    BLOCK_PRIORITY,
    BYPASS_PRIORITY,
    CHANNEL_PRIORITY,
)
from gdoi_plugin.daemon.reqid import FIRST_REQID
from tests.interop.charon import Charon, Record
from tests.kernel.namespaces import Namespace

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
TCP, UDP = 6, 17
DISCARD = 9
LIMIT = 150.0
# Of policies that have no reqid.
OWN = {CHANNEL_PRIORITY, BYPASS_PRIORITY, BLOCK_PRIORITY, ALLOW_PRIORITY}


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


def exchange(
    lab: Lab, times: int = PACKETS, *, address: str | None = None, port: int = DISCARD
) -> None:
    """A packet from gm1 to gm2 and one back: nobody listens there, and the host says so."""
    there_is = address or lab.host("gm2").address4, port
    with Namespace.named(lab.host("gm1").namespace) as there, there.entered():
        for _ in range(times):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(there_is, LIMIT)


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
        unique="replace",
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
    """SAs and policies as `ip` shows them, keys too; sequence numbers are left out. And the lines
    of the default policy that block."""

    charons: list[str]
    ours: list[str]
    blocks: list[str]


def asked(host: Host, *commands: str) -> str:
    """What commands say one after the other, as one program that starts them: processes are slow
    to begin in the lab kernel."""
    with Namespace.named(host.namespace) as there, there.entered():
        script = ["sh", "-ec", "\n".join(commands)]
        return subprocess.run(script, stdout=subprocess.PIPE, text=True, check=True).stdout


def tables(host: Host) -> Tables:
    every = ("state", "policy list nosock", "policy getdefault")
    text, default = asked(host, *(f"ip xfrm {one}" for one in every)).split("Default policies:\n")
    text = re.sub(r"\tanti-replay .*\n", "", text)
    entries = sorted(re.split(r"^(?=src )", text, flags=re.MULTILINE)[1:])
    own = [is_own(entry) for entry in entries]
    return Tables(
        [entry for entry, ours in zip(entries, own, strict=True) if not ours],
        [entry for entry, ours in zip(entries, own, strict=True) if ours],
        re.findall(r".*block.*", default),
    )


def is_own(entry: str) -> bool:
    """By its reqid; what passes or blocks has none."""
    found = re.search(r"reqid (\d+)", entry)
    return bool(priorities([entry]) & OWN) if found is None else int(found[1]) >= FIRST_REQID


def priorities(entries: list[str]) -> set[int]:
    return {int(number) for entry in entries for number in re.findall(r"priority (\d+)", entry)}


# -- what passes ----------------------------------------------------------------------------------


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
    (found,) = sas(host, address)
    return found.packets


def sas(host: Host, address: str) -> list[SaState]:
    """The host's SAs for the group."""
    with Namespace.named(host.namespace) as there, there.entered(), Xfrm() as xfrm:
        return [found for found in xfrm.dump_sas() if str(found.sa.destination) == address]


def settled(lab: Lab, name: str) -> Tables:
    """Once the member has one SA of the group, which nothing but a rekey will change."""
    host = lab.host(name)
    wait_until(lambda: len(sas(host, lab.group.data_group)) == 1, LIMIT, "one SA of the group")
    return tables(host)


def send(lab: Lab, address: str) -> None:
    """PACKETS of gm1 to a group. Raises PermissionError where a policy does not let them."""
    with (
        Namespace.named(lab.host("gm1").namespace) as there,
        there.entered(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        for _ in range(PACKETS):
            sock.sendto(b"x", (address, 9))


def in_clear(pcap: Path) -> Counter[tuple[int, str, str, int]]:
    """Of IPv4: protocol (TCP or UDP), source, destination, destination port."""
    found: Counter[tuple[int, str, str, int]] = Counter()
    for frame in read_frames(pcap):
        if frame[12:14] == b"\x08\x00" and frame[23] in (TCP, UDP):
            source, destination = (".".join(map(str, frame[at : at + 4])) for at in (26, 30))
            ports = frame[14 + 4 * (frame[14] & 0x0F) :]
            port = int.from_bytes(ports[2:4], "big")
            found[frame[23], source, destination, port] += 1
    return found
