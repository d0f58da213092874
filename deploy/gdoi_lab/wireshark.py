"""A copy of a capture in which Wireshark can find the phase-1 transform, and so decrypt.

Wireshark 4.0 takes every SA payload with DOI 2 for a group's (RFC 6407 section 5.2), those of phase
1 too: it never sees which cipher and hash were chosen, and the key table is of no use to it. In the
copy the DOI of main mode messages 1 and 2 says 1. Nothing else is changed, no HASH is touched, for
Wireshark verifies none; UDP checksums of changed IPv4 packets are left out (zero).
"""

import struct
from pathlib import Path

from gdoi_lab.clear import read_frames
from gdoi_lab.errors import LabError

GDOI_PORT = 848
_ETHERNET, _IPV6, _UDP, _ISAKMP = 14, 40, 8, 28  # octets of each header
_PCAP_HEADER, _RECORD_HEADER = 24, 16
_SA, _MAIN_MODE, _ENCRYPTED = 1, 2, 1
_DOI_IPSEC, _DOI_GDOI = (1).to_bytes(4, "big"), (2).to_bytes(4, "big")


def write_readable(capture: Path, copy: Path) -> int:
    """Writes ``copy``; returns how many messages were changed. Raises LabError on a bad file."""
    data = capture.read_bytes()
    changed = 0
    with copy.open("wb") as file:
        file.write(data[:_PCAP_HEADER])
        at = _PCAP_HEADER
        for frame in read_frames(capture):
            file.write(data[at : at + _RECORD_HEADER])
            at += _RECORD_HEADER + len(frame)
            readable = _readable(frame)
            changed += readable != frame
            file.write(readable)
        if at != len(data):
            raise LabError(f"{capture}: {len(data) - at} octets left over")
    return changed


def _readable(frame: bytes) -> bytes:
    isakmp = _isakmp_offset(frame)
    if isakmp is None:
        return frame
    header = frame[isakmp : isakmp + _ISAKMP]
    doi = isakmp + _ISAKMP + 4  # behind the SA payload's generic header
    if (header[16], header[18], header[19] & _ENCRYPTED) != (_SA, _MAIN_MODE, 0):
        return frame
    if frame[doi : doi + 4] != _DOI_GDOI:
        return frame
    changed = bytearray(frame)
    changed[doi : doi + 4] = _DOI_IPSEC
    checksum = isakmp - 2
    changed[checksum:isakmp] = bytes(2)
    return bytes(changed)


def _isakmp_offset(frame: bytes) -> int | None:
    """Where the ISAKMP header starts in a UDP packet to or from port 848; None in all others."""
    version = {b"\x08\x00": 4, b"\x86\xdd": 6}.get(frame[12:14])
    if version == 4:
        udp = _ETHERNET + 4 * (frame[_ETHERNET] & 0x0F)
        protocol = frame[_ETHERNET + 9]
    elif version == 6:
        udp = _ETHERNET + _IPV6
        protocol = frame[_ETHERNET + 6]
    else:
        return None
    if protocol != 17 or len(frame) < udp + _UDP + _ISAKMP + 8:
        return None
    ports = struct.unpack_from("!2H", frame, udp)
    return udp + _UDP if GDOI_PORT in ports else None
