"""charon's events, on a connection of their own that is made again whenever it is lost.

The events are registered for before `Up` is told. So whoever takes a snapshot (list-sas) when it
hears `Up`, and then goes on with the events, has missed nothing: what happened before is in the
snapshot, what happened since comes as an event, perhaps once more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from gdoi_plugin.daemon.charon.connection import TIME_LIMIT, Connection, unknown
from gdoi_plugin.daemon.charon.errors import CharonError
from gdoi_plugin.daemon.vici_message import Message, Packet, PacketType

PROBE = 10.0
"""Seconds without an event until charon is asked whether it still answers."""

FIRST_RETRY, LAST_RETRY = 0.25, 5.0
"""Seconds until the next attempt to reach charon: doubled each time."""

SETTLED = 30.0
"""Seconds that a connection must last for the retries to begin with the shortest again."""

MAX_EARLY = 10_000
"""Events that may come while others are still being registered for."""

_ASKED = "events"


@dataclass(frozen=True, slots=True)
class Up:
    """charon is there, and tells its events from now on."""


@dataclass(frozen=True, slots=True)
class Down:
    """charon is not there, or not any more. Told once until it is `Up` again."""

    error: CharonError


@dataclass(frozen=True, slots=True)
class Happened:
    """An event; its message as charon's vici README has it."""

    event: str
    message: Message


News: TypeAlias = Up | Down | Happened


async def charon_events(
    path: Path,
    events: Sequence[str],
    *,
    time_limit: float = TIME_LIMIT,
    probe: float = PROBE,
) -> AsyncGenerator[News, None]:
    """`Up` or `Down` first, then news without an end. Raises nothing of its own."""
    retry, down = FIRST_RETRY, False
    while True:
        up_since: float | None = None
        try:
            async with await Connection.open(path, _ASKED, time_limit) as connection:
                early = await _registered(connection, events)
                up_since, down = time.monotonic(), False
                yield Up()
                for news in early:
                    yield news
                while True:
                    yield await _next(connection, probe)
        except CharonError as error:
            if not down:
                down = True
                yield Down(error)
        if up_since is not None and time.monotonic() - up_since > SETTLED:
            retry = FIRST_RETRY
        await asyncio.sleep(retry)
        retry = min(2 * retry, LAST_RETRY)


async def _registered(connection: Connection, events: Sequence[str]) -> list[Happened]:
    """Registers for all; those that came meanwhile. Raises CharonLost."""
    early: list[Happened] = []
    for event in events:
        packet = await connection.ask(Packet(PacketType.EVENT_REGISTER, event))
        while packet.type is PacketType.EVENT and len(early) < MAX_EARLY:
            early.append(Happened(packet.name, packet.message or {}))
            packet = await connection.answer()
        if packet.type is not PacketType.EVENT_CONFIRM:
            raise unknown(f"{_ASKED}: {event}", packet)
    return early


async def _next(connection: Connection, probe: float) -> Happened:
    """The next event, however long that takes while charon answers. Raises CharonLost."""
    while True:
        try:
            packet = await connection.receive(probe)
        except TimeoutError:
            packet = await connection.ask(Packet(PacketType.CMD_REQUEST, "version", {}))
        if packet.type is PacketType.EVENT:
            return Happened(packet.name, packet.message or {})
        if packet.type is not PacketType.CMD_RESPONSE:
            raise unknown(_ASKED, packet)
