"""Debian's tshark as a second opinion: captures made of our datagrams, read by its dissector."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gdoi_plugin.protocol.actions import Peer, Send

_FILE_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101)  # raw IP


def write_capture(path: Path, sends: Iterable[Send]) -> None:
    frames = [_packet(send.source, send.destination, send.datagram) for send in sends]
    records = [struct.pack("<IIII", 0, 0, len(f), len(f)) + f for f in frames]
    path.write_bytes(_FILE_HEADER + b"".join(records))


def _packet(source: Peer, destination: Peer, payload: bytes) -> bytes:
    udp = struct.pack("!4H", source.port, destination.port, 8 + len(payload), 0) + payload
    addresses = source.host.packed + destination.host.packed
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + addresses + udp


def dissect(
    folder: Path, capture: Path, keys: Mapping[bytes, bytes], fields: Sequence[str], shown: str = ""
) -> list[list[str]]:
    """A line for each packet that the display filter shows; ``keys`` by initiator cookie."""
    folder.mkdir(exist_ok=True)
    table = "".join(f"{cookie.hex()},{key.hex()}\n" for cookie, key in keys.items())
    (folder / "ikev1_decryption_table").write_text(table)
    command = ["tshark", "-r", str(capture), "-d", "udp.port==848,isakmp", "-T", "fields"]
    command += [word for field in fields for word in ("-e", field)]
    command += ["-Y", shown] if shown else []
    env = {"WIRESHARK_CONFIG_DIR": str(folder), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    return [line.split("\t") for line in done.stdout.splitlines()]
