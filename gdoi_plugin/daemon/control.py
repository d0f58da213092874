"""The control socket: strongSwan's vici protocol, served by gdoi-gm and gdoi-gcks.

Source of the behaviour: README.md of strongSwan's vici plugin.  Any vici client, in any language,
can drive the daemons as it drives charon:

* a command is a named request and gets one response; one that fails answers
  `{success: no, errmsg: ...}`, one that does not exist CMD_UNKNOWN;
* a list command streams: the client registers for the command's event, asks, receives one event
  for each item and then the response.  Without the registration there is only the response;
* an event reaches every client that registered for it.

Requests of one client are answered in the order they came, those of different clients side by
side.  Whoever may open the socket may command the daemon, but no client can hurt it: what a
client can make it hold is bounded (see the constants), a client that breaks the protocol or
stands still in the middle of a packet is closed, and every such case is told to `trace` with a
word from `Trigger`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import platform
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterable, Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

from gdoi_plugin.daemon.errors import StartError
from gdoi_plugin.daemon.requests import CommandFailed, Keys, check
from gdoi_plugin.daemon.unix_socket import inode, listen
from gdoi_plugin.daemon.vici_message import (
    Message,
    MessageError,
    Packet,
    PacketType,
    Value,
    decode_packet,
    encode_segment,
    to_message,
)

__all__ = [
    "CommandFailed",
    "ControlError",
    "ControlServer",
    "Handler",
    "Limits",
    "Message",
    "StreamHandler",
    "Trigger",
    "Value",
    "to_message",
]

Handler: TypeAlias = Callable[[Message], "Awaitable[Message] | Message"]
"""Takes the request's message, returns the response's."""

StreamFunction: TypeAlias = Callable[[Message], "AsyncIterable[Message] | Iterable[Message]"]
StreamHandler: TypeAlias = tuple[str, StreamFunction]
"""The event's name and a function that yields one message for each item.  A slow client makes
the function wait between items: it walks over a copy of what it lists, not over live state."""

WHAT = "control socket"

MAX_CLIENTS = 256
"""Connections at one time: far above any number of operators and scripts, far below the 1,024
file descriptors that a process has by default."""

PACKET_TIME = 10.0
"""Seconds from the first octet of a packet to its last.  A local client writes a packet at once;
one that stops in the middle (a slow loris) would hold its place for ever."""

WRITE_TIME = 30.0
"""Seconds that a response or a list item waits for a client that does not read."""

OUTPUT_LIMIT = 1024 * 1024
"""Octets that wait for a client beyond the kernel's buffer before it is dropped: twice the
largest packet, some 5,000 events."""

OUTPUT_TOTAL = 32 * 1024 * 1024
"""Octets that wait for all of them: beyond it whoever has most is dropped. Clients that all stand
still could otherwise have 256 MiB."""

MAX_REQUEST = 128 * 1024
"""Octets of a request: as many as MAX_ELEMENTS identities take. An answer may be as large as vici
allows, but each of 256 clients could leave a request that is all but complete."""

LISTEN_BACKLOG = MAX_CLIENTS
"""Connections the kernel holds until they are accepted.  Beyond it a client with a time limit on
its socket is told EAGAIN at once, so all clients that are allowed may come at the same time."""

ITEMS_PER_TURN = 32
"""List items that are sent before the next client, and the daemon's loop, get their turn again."""

MAX_ERRMSG = 4096
"""Characters of an error message: a sentence, never a dump."""


class ControlError(StartError):
    """The control socket cannot be served; the text is one sentence for the operator."""


class Trigger(StrEnum):
    """Why a client was closed or a message dropped."""

    BAD_PACKET = "bad-packet"
    OVERSIZED = "oversized"
    SLOW_SENDER = "slow-sender"
    SLOW_READER = "slow-reader"
    TOO_MANY_CLIENTS = "too-many-clients"
    HANDLER_FAILED = "handler-failed"
    BAD_EVENT = "bad-event"


Trace: TypeAlias = Callable[[Trigger, str], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may take; the reasons stand at the constants."""

    clients: int = MAX_CLIENTS
    packet: int = MAX_REQUEST
    packet_time: float = PACKET_TIME
    write_time: float = WRITE_TIME
    output: int = OUTPUT_LIMIT
    output_total: int = OUTPUT_TOTAL


class _Closed(Exception):
    """This client has to go; with the trigger, if it is to blame."""

    def __init__(self, trigger: Trigger, detail: str) -> None:
        super().__init__(detail)
        self.trigger = trigger


@dataclass(eq=False, slots=True)
class _Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    who: str
    events: set[str] = field(default_factory=set)

    @property
    def waiting(self) -> int:
        """Octets written and not yet taken by the kernel."""
        return self.writer.transport.get_write_buffer_size()


class ControlServer:
    """Serves `commands`, `streams` and `events` on a Unix socket at `path`.

    `commands` maps a command to its handler, `streams` a list command to its event and generator,
    `events` are the names that `emit` sends.  `accepts` has the keys that each command may be
    asked with; one that is not in it checks its own.  `version` is answered from `about` (daemon,
    version) and the host's name and release, `describe` from all of these, unless there are
    commands of those names.  `trace` hears of every closed client, failed handler and dropped
    message.
    """

    def __init__(
        self,
        path: Path,
        commands: Mapping[str, Handler],
        streams: Mapping[str, StreamHandler] | None = None,
        events: Collection[str] = (),
        *,
        accepts: Mapping[str, Keys] | None = None,
        mode: int = 0o660,
        group: str | None = None,
        about: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.path = path
        self.mode = mode
        self.group = group
        self.limits = limits or Limits()
        self.dropped: Counter[Trigger] = Counter()
        self._commands: dict[str, Handler] = {
            "version": _version(about or {}),
            "describe": self._describe,
            **commands,
        }
        self._streams = dict(streams or {})
        self._accepts = {"version": {}, "describe": {}, **(accepts or {})}
        self._events = frozenset(events) | {event for event, _ in self._streams.values()}
        self._trace = trace
        self._clients: set[_Client] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self._inode: tuple[int, int] | None = None

    @property
    def clients(self) -> int:
        """How many clients are connected."""
        return len(self._clients)

    def _describe(self, _: Message) -> Message:
        """What there is to ask and to hear, for clients that do not want to know it by heart."""
        names = sorted((*self._commands, *self._streams))
        return to_message(
            {
                "commands": {name: list(self._accepts.get(name, ())) for name in names},
                "streams": {name: event for name, (event, _) in sorted(self._streams.items())},
                "events": sorted(self._events - {event for event, _ in self._streams.values()}),
            }
        )

    async def start(self) -> str | None:
        """Listen.  Returns a sentence for the log if the group could not be given access.

        ControlError: another daemon serves the socket, or it cannot be made.
        """
        try:
            sock, warning = listen(WHAT, self.path, self.mode, self.group, LISTEN_BACKLOG)
        except StartError as exc:
            raise ControlError(str(exc)) from exc
        try:
            self._inode = inode(self.path)
            self._server = await asyncio.start_unix_server(
                self._serve, sock=sock, backlog=LISTEN_BACKLOG
            )
        except OSError as exc:
            sock.close()
            raise ControlError(f"{WHAT} {self.path}: {exc.strerror}") from exc
        return warning

    async def close(self) -> None:
        """Stop listening, close every client, take the socket file away if it is still ours."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        with contextlib.suppress(OSError):
            if inode(self.path) == self._inode:
                self.path.unlink()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def listened(self, event: str) -> bool:
        """Whether `emit` has anything to do; it also tells of an event that is none."""
        listening = any(event in client.events for client in self._clients)
        return listening or event not in self._events

    def emit(self, event: str, message: Message) -> None:
        """Send an event to every client that registered for it.  Never waits, never raises."""
        if event not in self._events:
            self._tell(Trigger.BAD_EVENT, f"event {event} is not one of this daemon's")
            return
        try:
            segment = encode_segment(Packet(PacketType.EVENT, event, message))
        except MessageError as exc:
            self._tell(Trigger.BAD_EVENT, f"event {event} not sent: {exc}")
            return
        total = 0
        for client in [client for client in self._clients if event in client.events]:
            if client.writer.is_closing():
                continue
            if client.waiting > self.limits.output:
                self._drop_reader(client)
            else:
                client.writer.write(segment)
                total += client.waiting
        if total > self.limits.output_total:
            self._drop_reader(max(self._clients, key=lambda client: client.waiting))

    def _drop_reader(self, client: _Client) -> None:
        detail = f"{client.who}: {client.waiting} octets of events not read"
        self._tell(Trigger.SLOW_READER, detail)
        self._clients.discard(client)
        client.writer.transport.abort()

    # ------------------------------------------------------------ one client

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The task of one client, from connect to close."""
        client = _Client(reader, writer, _peer(writer))
        if self._server is None:  # accepted in the very turn in which close() was called
            writer.close()
            return
        if len(self._clients) >= self.limits.clients:
            detail = f"{client.who}: closed, {len(self._clients)} clients are connected"
            self._tell(Trigger.TOO_MANY_CLIENTS, detail)
            writer.close()
            return
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  (we are running in it)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._clients.add(client)
        try:
            await self._converse(client)
            await self._finish(client)
        except _Closed as exc:
            self._tell(exc.trigger, f"{client.who}: {exc}")
            writer.transport.abort()
        except OSError:  # it went away while we wrote: nobody is left to be told
            writer.transport.abort()
        except asyncio.CancelledError:  # close(): the end of this task, and of nothing else
            writer.transport.abort()
        finally:
            self._clients.discard(client)

    async def _converse(self, client: _Client) -> None:
        while (data := await self._receive(client)) is not None:
            # A client that sends many requests at once finds them all in the reader's buffer,
            # where reading does not wait.
            await self._turn()
            try:
                packet = decode_packet(data)
            except MessageError as exc:
                raise _Closed(Trigger.BAD_PACKET, str(exc)) from exc
            await self._answer(client, packet)

    async def _finish(self, client: _Client) -> None:
        """Close after the client did, once it has read what it asked for or has had its time."""
        client.events.clear()
        client.writer.close()
        try:
            async with asyncio.timeout(self.limits.write_time):
                await client.writer.wait_closed()
        except TimeoutError as exc:
            raise _Closed(Trigger.SLOW_READER, "closed before it read its answer") from exc

    async def _receive(self, client: _Client) -> bytes | None:
        """The next packet, or None when the client has closed between two packets."""
        first = await client.reader.read(1)
        if not first:
            return None
        try:
            async with asyncio.timeout(self.limits.packet_time):
                length = int.from_bytes(first + await client.reader.readexactly(3), "big")
                if length > self.limits.packet:
                    detail = f"packet of {length} octets, at most {self.limits.packet} are allowed"
                    raise _Closed(Trigger.OVERSIZED, detail)
                return await client.reader.readexactly(length)
        except TimeoutError as exc:
            detail = f"packet not complete after {self.limits.packet_time:g} s"
            raise _Closed(Trigger.SLOW_SENDER, detail) from exc
        except asyncio.IncompleteReadError as exc:
            raise _Closed(Trigger.BAD_PACKET, "connection ended inside a packet") from exc

    async def _answer(self, client: _Client, packet: Packet) -> None:
        if packet.type is PacketType.CMD_REQUEST:
            await self._command(client, packet.name, packet.message or {})
        elif packet.type not in (PacketType.EVENT_REGISTER, PacketType.EVENT_UNREGISTER):
            raise _Closed(Trigger.BAD_PACKET, f"{packet.type.name} is not for a client to send")
        elif packet.name not in self._events:
            await self._send(client, Packet(PacketType.EVENT_UNKNOWN))
        else:
            if packet.type is PacketType.EVENT_REGISTER:
                client.events.add(packet.name)
            else:
                client.events.discard(packet.name)
            await self._send(client, Packet(PacketType.EVENT_CONFIRM))

    async def _command(self, client: _Client, name: str, request: Message) -> None:
        if name not in self._commands and name not in self._streams:
            await self._send(client, Packet(PacketType.CMD_UNKNOWN))
            return
        try:
            if name in self._accepts:
                check(name, request, self._accepts[name])
            if name in self._streams:
                response = await self._stream(client, name, request)
            else:
                result = self._commands[name](request)
                response = await result if inspect.isawaitable(result) else result
            segment = encode_segment(Packet(PacketType.CMD_RESPONSE, message=response))
        except CommandFailed as exc:
            segment = _failure(str(exc))
        except (_Closed, OSError) as exc:
            if isinstance(exc, _Closed) or client.writer.is_closing():
                raise
            segment = self._broken(client, name, exc)
        except Exception as exc:  # noqa: BLE001  (a bug in one command must not end the daemon)
            segment = self._broken(client, name, exc)
        await self._write(client, segment)

    async def _stream(self, client: _Client, name: str, request: Message) -> Message:
        """Send an event for each item, to this client only; the response says nothing more."""
        event, function = self._streams[name]
        if event not in client.events:
            return {}
        count = 0
        async for item in _items(function(request)):
            await self._send(client, Packet(PacketType.EVENT, event, item))
            count += 1
            if count % ITEMS_PER_TURN == 0:
                await self._turn()
        return {}

    async def _turn(self) -> None:
        """Until it is this client's: in one turn of the loop one client is served, or datagrams
        would wait for hundreds of them."""
        async with self._gate:
            await asyncio.sleep(0)

    def _broken(self, client: _Client, name: str, exc: Exception) -> bytes:
        """A handler raised what it should not have: told to the log, named to the client."""
        self._tell(Trigger.HANDLER_FAILED, f"{client.who}: {name}: {type(exc).__name__}: {exc}")
        return _failure(f"internal error in {name} ({type(exc).__name__}), see the daemon's log")

    async def _send(self, client: _Client, packet: Packet) -> None:
        await self._write(client, encode_segment(packet))

    async def _write(self, client: _Client, segment: bytes) -> None:
        client.writer.write(segment)
        try:
            async with asyncio.timeout(self.limits.write_time):
                await client.writer.drain()
        except TimeoutError as exc:
            detail = f"{client.waiting} octets not read in {self.limits.write_time:g} s"
            raise _Closed(Trigger.SLOW_READER, detail) from exc

    def _tell(self, trigger: Trigger, detail: str) -> None:
        self.dropped[trigger] += 1
        if self._trace is not None:
            self._trace(trigger, detail)


async def _items(
    source: AsyncIterable[Message] | Iterable[Message],
) -> AsyncIterable[Message]:
    if isinstance(source, AsyncIterable):
        async for item in source:
            yield item
    else:
        for item in source:
            yield item


def _failure(errmsg: str) -> bytes:
    # Surrogates (a file name, a peer's octets) cannot be sent: shown as question marks.
    text = errmsg[:MAX_ERRMSG].encode(errors="replace").decode()
    message: Message = {"success": "no", "errmsg": text}
    return encode_segment(Packet(PacketType.CMD_RESPONSE, message=message))


def _version(about: Mapping[str, str]) -> Handler:
    """The `version` command, with the keys that charon's has."""
    host = {"sysname": platform.system(), "release": platform.release()}
    answer = to_message({**about, **host, "machine": platform.machine()})
    return lambda _request: dict(answer)


def _peer(writer: asyncio.StreamWriter) -> str:
    """Who is at the other end, for the log: SO_PEERCRED, see unix(7)."""
    sock = writer.get_extra_info("socket")
    size = struct.calcsize("3i")
    try:
        pid, uid, _gid = struct.unpack(
            "3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        )
    except OSError:
        return "control client"
    return f"control client (pid {pid}, uid {uid})"
