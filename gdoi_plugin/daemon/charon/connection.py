"""A connection to charon's control socket; connecting, writing and reading have a time limit.

charon's socket accepts connections as long as its backlog has room, whether charon runs or stands
still, and a full backlog answers EAGAIN at once. Neither may hold up who asks.
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Self

from gdoi_plugin.daemon.charon.errors import CharonError, CharonLost, CharonRefused
from gdoi_plugin.daemon.vici_message import (
    MAX_PACKET,
    Message,
    MessageError,
    Packet,
    PacketType,
    decode_packet,
    encode_segment,
)

TIME_LIMIT = 5.0
"""Seconds for an answer. A charon that runs answers within milliseconds, a busy one within one."""

MAX_ELEMENTS = 50_000
"""Elements in one message: an IKE_SA with a thousand CHILD_SAs, or the names of as many
connections as a packet holds. Reading so many takes 0.1 s."""

_FULL_BACKLOG = 0.05  # seconds until the next attempt


class Connection:
    """Packets to and from charon. ``asked`` is what an error says charon was asked."""

    def __init__(self, sock: socket.socket, asked: str, limit: float) -> None:
        self._sock, self._asked, self._limit = sock, asked, limit
        self._received = bytearray()

    @classmethod
    async def open(cls, path: Path, asked: str, limit: float = TIME_LIMIT) -> Self:
        """Raises CharonLost."""
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:  # this process has all the files open that it may have
            raise CharonLost(asked, os.strerror(error.errno or 0)) from error
        sock.setblocking(False)
        try:
            async with asyncio.timeout(limit):
                await _connect(sock, path)
        except TimeoutError as error:
            sock.close()
            raise CharonLost(asked, f"{path} accepted nothing within {limit:g} s") from error
        except (OSError, ValueError) as error:  # ValueError: a path that no address can hold
            sock.close()
            why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
            raise CharonLost(asked, f"{path}: {why}") from error
        except BaseException:
            sock.close()
            raise
        return cls(sock, asked, limit)

    async def send(self, packet: Packet) -> None:
        """Raises CharonLost; CharonError, if vici cannot carry the packet."""
        try:
            data = encode_segment(packet, octets=True)
        except MessageError:  # whose text may have a part of a secret
            raise CharonError(self._asked, "a name or value is too long for vici") from None
        try:
            async with asyncio.timeout(self._limit):
                await asyncio.get_running_loop().sock_sendall(self._sock, data)
        except TimeoutError as error:
            why = f"took no request within {self._limit:g} s"
            raise CharonLost(self._asked, why) from error
        except OSError as error:
            raise CharonLost(self._asked, f"the connection ended: {error.strerror}") from error

    async def receive(self, wait: float) -> Packet:
        """The next packet. Raises CharonLost; TimeoutError, if none has begun within ``wait``."""
        await asyncio.sleep(0)  # reading what is there already would give nobody else a turn
        async with asyncio.timeout(wait):
            await self._fill(1)
        try:
            async with asyncio.timeout(self._limit):
                await self._fill(4)
                length = int.from_bytes(self._received[:4], "big")
                if not 0 < length <= MAX_PACKET:
                    raise CharonLost(self._asked, f"answered with a packet of {length} octets")
                await self._fill(4 + length)
        except TimeoutError as error:
            raise CharonLost(self._asked, "stopped in the middle of an answer") from error
        data = bytes(self._received[4 : 4 + length])
        del self._received[: 4 + length]
        try:
            return decode_packet(data, octets=True, max_elements=MAX_ELEMENTS)
        except MessageError as error:
            raise CharonLost(self._asked, f"answered with what is no vici: {error}") from error

    async def ask(self, packet: Packet) -> Packet:
        """Sends, and returns the next packet, whatever it is. Raises CharonLost."""
        await self.send(packet)
        return await self.answer()

    async def answer(self) -> Packet:
        """The next packet, which is owed. Raises CharonLost."""
        try:
            return await self.receive(self._limit)
        except TimeoutError as error:
            raise CharonLost(self._asked, f"no answer within {self._limit:g} s") from error

    def close(self) -> None:
        self._sock.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def _fill(self, count: int) -> None:
        """Waits until so many octets have come."""
        while len(self._received) < count:
            try:
                data = await asyncio.get_running_loop().sock_recv(self._sock, 65536)
            except OSError as error:
                raise CharonLost(self._asked, f"the connection ended: {error.strerror}") from error
            if not data:
                raise CharonLost(self._asked, "charon closed the connection")
            self._received += data


async def _connect(sock: socket.socket, path: Path) -> None:
    """asyncio's own takes EAGAIN for a connection that is on its way; for AF_UNIX it is none."""
    while True:
        try:
            sock.connect(str(path))
        except BlockingIOError:
            await asyncio.sleep(_FULL_BACKLOG)
        else:
            return


def unknown(asked: str, packet: Packet) -> CharonError:
    """For an answer that is not the one that was asked for."""
    if packet.type is PacketType.CMD_UNKNOWN:
        return CharonRefused(asked, "charon does not know this command")
    if packet.type is PacketType.EVENT_UNKNOWN:
        return CharonRefused(asked, "charon does not know this event")
    return CharonLost(asked, f"answered with {packet.type.name}")


def accepted(message: Message | None) -> str | None:
    """None if the response says that it worked, or says nothing; else why it did not."""
    success = (message or {}).get("success", "yes")
    if success == "yes":
        return None
    why = (message or {}).get("errmsg", "")
    return why if isinstance(why, str) and why else "refused without a reason"
