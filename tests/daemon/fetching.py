"""A plain HTTP client for what the daemons serve, on whatever socket."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from pathlib import Path

from gdoi_plugin.protocol.actions import Peer


@dataclass(frozen=True, slots=True)
class Fetched:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


async def connect(place: Path | Peer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(place, Path):
        return await asyncio.open_unix_connection(str(place))
    return await asyncio.open_connection(str(place.host), place.port)


async def fetch(
    place: Path | Peer, target: str, *fields: str, method: str = "GET", host: str = "localhost"
) -> Fetched:
    reader, writer = await connect(place)
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close", *fields]
    writer.write("".join(f"{line}\r\n" for line in (*lines, "")).encode())
    octets = await reader.read()
    writer.close()
    return parsed(octets)


def parsed(octets: bytes) -> Fetched:
    head, _, body = octets.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Fetched(int(status.split()[1]), headers, body)


def free_tcp_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as sock:
        sock.bind((host, 0))
        return int(sock.getsockname()[1])
