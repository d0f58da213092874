"""Hundreds of clients of a control socket that mean no good; run as a program until killed.

``python -m tests.daemon.control_flood SOCKET EVENT...`` prints a line when all have begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections.abc import Awaitable, Callable

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
EVENTS = [name.encode() for name in sys.argv[2:]]
LISTS = (
    (b"list-members", b"list-member"),
    (b"list-groups", b"list-group"),
    (b"list-sas", b"list-sa"),
)


def segment(kind: int, name: bytes, rest: bytes = b"") -> bytes:
    packet = bytes([kind, len(name)]) + name + rest
    return len(packet).to_bytes(4, "big") + packet


async def deaf(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Registers for everything, asks for long lists, and reads nothing."""
    for name in EVENTS:
        writer.write(segment(3, name))
    for command, event in LISTS:
        writer.write(segment(3, event) + 20 * segment(0, command))
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.sleep(3600)


async def greedy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Asks for long lists without end, and reads them."""
    for command, event in LISTS:
        writer.write(segment(3, event) + 5 * segment(0, command))
    while await reader.read(1 << 20):
        writer.write(segment(0, LISTS[0][0]))


async def heavy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Messages of as many elements as there may be, for commands that do not want them."""
    elements = b"".join(bytes([3, 4]) + b"%04d" % n + b"\0\0" for n in range(3_999))
    writer.write(segment(0, b"stats", elements))
    while await reader.read(1 << 16):
        writer.write(segment(0, b"stats", elements))


async def half(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Begins a packet as large as one may be, and stops just before its end."""
    size = 128 * 1024
    writer.write(size.to_bytes(4, "big") + bytes([0, 5]) + b"rekey" + bytes(size - 8))
    await asyncio.sleep(3600)


async def rubbish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    dice = random.Random()
    body = dice.randbytes(dice.randrange(1, 200))
    writer.write(dice.choice([body, len(body).to_bytes(4, "big") + body]))
    while await reader.read(1 << 16):
        pass


KINDS: list[tuple[Talk, int]] = [(deaf, 140), (greedy, 20), (heavy, 10), (half, 90), (rubbish, 40)]


async def client(talk: Talk) -> None:
    """Comes again when it is closed."""
    while True:
        writer = None
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_unix_connection(sys.argv[1])
            await talk(reader, writer)
        if writer is not None:
            writer.close()
        await asyncio.sleep(0.05)


async def main() -> None:
    tasks = [asyncio.ensure_future(client(talk)) for talk, count in KINDS for _ in range(count)]
    sys.stdout.write(f"{len(tasks)}\n")
    sys.stdout.flush()
    await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(main())
