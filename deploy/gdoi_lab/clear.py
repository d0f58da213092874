"""What a capture of the bridge shows: packets to the data groups in clear, in ESP and in AH; and
neighbour discovery.

Reads pcap files as tcpdump writes them (Ethernet, IPv4 and IPv6) and is strict: a file it does not
understand is an error, never a count of zero.
"""

import struct
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from gdoi_lab.errors import LabError

Address = IPv4Address | IPv6Address

_MAGICS = {
    b"\xd4\xc3\xb2\xa1": "<",  # microseconds
    b"\xa1\xb2\xc3\xd4": ">",
    b"\x4d\x3c\xb2\xa1": "<",  # nanoseconds
    b"\xa1\xb2\x3c\x4d": ">",
}
_LINKTYPE_ETHERNET = 1
_MAX_PACKET = 1 << 18  # tcpdump's own largest snapshot length
_ETHERTYPE_IPV4 = 0x0800
_ETHERTYPE_IPV6 = 0x86DD
_UDP = 17
_ESP = 50
_AH = 51
_ICMPV6 = 58
_FRAGMENT = 44
_SKIPPED_HEADERS = (0, 43, 60)  # hop-by-hop, routing, destination options
# ICMPv6 types, RFC 4861 sections 4.3 and 4.4
NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT = 135, 136
_OF_NEIGHBOURS = (bytes([NEIGHBOUR_SOLICITATION]), bytes([NEIGHBOUR_ADVERTISEMENT]))


@dataclass(frozen=True, slots=True, order=True)
class EspFlow:
    """Packets of one sender under one SA."""

    source: str
    destination: str
    spi: int


@dataclass(slots=True)
class BridgeCounts:
    """`clear`: UDP packets (fragments too) to a data group, by source. `esp`: ESP packets to one,
    `ah`: AH packets.

    `other` counts everything else to a data group by (source, IP protocol), such as IGMP reports;
    `neighbours` neighbour solicitations and advertisements, to whomever, by (source, ICMPv6 type).
    """

    packets: int = 0
    clear: Counter[str] = field(default_factory=Counter)
    esp: Counter[EspFlow] = field(default_factory=Counter)
    ah: Counter[EspFlow] = field(default_factory=Counter)
    other: Counter[tuple[str, int]] = field(default_factory=Counter)
    neighbours: Counter[tuple[str, int]] = field(default_factory=Counter)


def count_capture(pcap: Path, groups: Collection[str]) -> BridgeCounts:
    """Count the packets of `pcap` to the addresses in `groups`. Raises LabError on a bad file."""
    wanted = {ip_address(group) for group in groups}
    counts = BridgeCounts()
    for frame in read_frames(pcap):
        counts.packets += 1
        packet = _ip_packet(frame)
        if packet is None:
            continue
        source, destination, protocol, payload = packet
        if (source.version, protocol) == (6, _ICMPV6) and payload[:1] in _OF_NEIGHBOURS:
            counts.neighbours[str(source), payload[0]] += 1
        if destination not in wanted:
            continue
        if protocol == _UDP:
            counts.clear[str(source)] += 1
        elif protocol == _ESP and len(payload) >= 4:
            spi = int.from_bytes(payload[:4], "big")
            counts.esp[EspFlow(str(source), str(destination), spi)] += 1
        elif protocol == _AH and len(payload) >= 8:  # RFC 4302 section 2: the SPI is second
            spi = int.from_bytes(payload[4:8], "big")
            counts.ah[EspFlow(str(source), str(destination), spi)] += 1
        else:
            counts.other[str(source), protocol] += 1
    return counts


def read_frames(pcap: Path) -> Iterator[bytes]:
    """The Ethernet frames of a pcap file, whole."""
    with pcap.open("rb") as file:
        header = file.read(24)
        order = _MAGICS.get(header[:4])
        if order is None or len(header) < 24:
            raise LabError(f"{pcap} is not a pcap file")
        if struct.unpack(order + "I", header[20:24])[0] & 0x0FFFFFFF != _LINKTYPE_ETHERNET:
            raise LabError(f"{pcap} is not a capture of Ethernet frames")
        record = struct.Struct(order + "4I")
        while head := file.read(record.size):
            if len(head) < record.size:
                raise LabError(f"{pcap} ends in the middle of a record")
            _, _, captured, length = record.unpack(head)
            if captured != length or captured > _MAX_PACKET:
                raise LabError(f"{pcap} holds a packet of {length} octets cut to {captured}")
            frame = file.read(captured)
            if len(frame) < captured:
                raise LabError(f"{pcap} ends in the middle of a packet")
            yield frame


def _ip_packet(frame: bytes) -> tuple[Address, Address, int, bytes] | None:
    """(source, destination, protocol, payload) of a frame; None when it is not IP."""
    if len(frame) < 14:
        return None
    ethertype = int.from_bytes(frame[12:14], "big")
    packet = frame[14:]
    if ethertype == _ETHERTYPE_IPV4 and len(packet) >= 20:
        payload = packet[(packet[0] & 0x0F) * 4 :]
        return IPv4Address(packet[12:16]), IPv4Address(packet[16:20]), packet[9], payload
    if ethertype == _ETHERTYPE_IPV6 and len(packet) >= 40:
        protocol, payload = _skip_extensions(packet[6], packet[40:])
        return IPv6Address(packet[8:24]), IPv6Address(packet[24:40]), protocol, payload
    return None


def _skip_extensions(protocol: int, payload: bytes) -> tuple[int, bytes]:
    while len(payload) >= 8:
        if protocol in _SKIPPED_HEADERS:
            protocol, payload = payload[0], payload[(payload[1] + 1) * 8 :]
        elif protocol == _FRAGMENT:
            protocol, payload = payload[0], payload[8:]
        else:
            break
    return protocol, payload
