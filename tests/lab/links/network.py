"""What is done to a lab host's interface, and what its kernel says of memberships."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

from gdoi_lab.clear import read_frames
from gdoi_lab.group import Daemon
from gdoi_lab.net import BRIDGE, INTERFACE, Host, Network
from gdoi_lab.waiting import wait_until

LIMIT = 150.0
_IGMP = 2
_REPORT_V3 = 0x22


def unplug(host: Host) -> None:
    """The interface is deleted, and its end at the bridge with it."""
    host.run(["ip", "link", "delete", INTERFACE])


def plug(network: Network, host: Host, address: str | None = None) -> None:
    """A new interface of the old name, with ``address`` or the host's own.

    Its MAC address is another one, which the others would find out in half a minute.
    """
    port = f"p{list(network.hosts.values()).index(host) + 1}"
    network.bridge.run(
        ["ip", "-batch", "-"],
        stdin=f"link add {port} type veth peer name {INTERFACE} netns {host.namespace}\n"
        f"link set {port} master {BRIDGE} up\n",
    )
    host.run(["ip", "link", "set", INTERFACE, "up"])
    renumber(host, address or host.address4)
    for other in network.hosts.values():
        other.run(["ip", "neighbour", "flush", "dev", INTERFACE])


def renumber(host: Host, address: str) -> None:
    """Another address, and the route that goes with the last one."""
    host.run(
        ["ip", "-batch", "-"],
        stdin=f"address flush dev {INTERFACE} scope global\n"
        f"address add {address}/24 dev {INTERFACE}\n"
        f"route replace multicast 224.0.0.0/4 dev {INTERFACE}\n",
    )


def joined(host: Host) -> set[str]:
    """The groups that a host's interface has joined."""
    shown = host.run(["ip", "maddress", "show", "dev", INTERFACE], check=False).stdout
    return set(re.findall(r"inet6?\s+(\S+)", shown))


def count(daemon: Daemon, *events: str) -> int:
    return len(list(daemon.events(*events)))


def wait_joined(host: Host, *groups: str) -> None:
    wait_until(lambda: joined(host) >= set(groups), LIMIT, f"{host.name} to join {groups}")


def reported_sources(pcap: Path, reporter: str) -> Iterator[tuple[str, str]]:
    """(group, source) of every source-specific record in a host's IGMPv3 reports, RFC 3376 4.2."""
    for frame in read_frames(pcap):
        ip = frame[14:]
        if frame[12:14] != b"\x08\x00" or ip[9] != _IGMP or str(IPv4Address(ip[12:16])) != reporter:
            continue
        report = ip[4 * (ip[0] & 0x0F) :]
        if report[0] != _REPORT_V3:
            continue
        offset = 8
        for _ in range(int.from_bytes(report[6:8], "big")):
            auxiliary, sources = report[offset + 1], int.from_bytes(report[offset + 2 : offset + 4])
            group = str(IPv4Address(report[offset + 4 : offset + 8]))
            for number in range(sources):
                at = offset + 8 + 4 * number
                yield group, str(IPv4Address(report[at : at + 4]))
            offset += 8 + 4 * (sources + auxiliary)
