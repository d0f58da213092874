"""Connections to a daemon's control socket, on strongSwan's `vici` package.

The package blocks, takes off its time limit after the first octet of an answer, and mixes up
answers and events on a session that has both.  So: a transport of our own below its `Session`
with a time limit for each whole packet, one connection for commands (`Client`), another for
events (`EventClient`), and every way in which either can fail is a `ClientError` whose text is
one sentence for the operator.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from vici import Session
from vici.exception import (
    CommandException,
    DeserializationException,
    EventUnknownException,
    SessionException,
)
from vici.protocol import Message, Packet

Fields: TypeAlias = dict[str, Any]
"""A received message: str, list of str, or Fields again, by key."""

MAX_PACKET = 512 * 1024
"""Octets in a packet, vici's limit: anything longer does not come from a vici daemon."""

QUEUE_PAUSE = 0.05
"""Seconds between attempts while the daemon's queue of new connections is full."""

_DEFAULT = object()


class ClientError(Exception):
    """Why there is no answer, in one sentence."""


class _Transport:
    """What `vici.Session` needs of a transport; `receive` has one deadline for a whole packet.

    Octets that came before the deadline are kept: a later call goes on with them.
    """

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self.socket = sock
        self.timeout = timeout
        self.last_type: int | None = None
        self._data = bytearray()

    def send(self, packet: bytes) -> None:
        self.socket.settimeout(self.timeout)
        self.socket.sendall(struct.pack("!I", len(packet)) + packet)

    def receive(self, timeout: Any = _DEFAULT) -> bytes:
        deadline = time.monotonic() + (self.timeout if timeout is _DEFAULT else timeout)
        self._fill(4, deadline)
        length = int.from_bytes(self._data[:4], "big")
        if not 0 < length <= MAX_PACKET:
            raise SessionException(f"packet of {length} octets")
        self._fill(4 + length, deadline)
        packet = bytes(self._data[4 : 4 + length])
        del self._data[: 4 + length]
        self.last_type = packet[0]
        return packet

    def _fill(self, count: int, deadline: float) -> None:
        while len(self._data) < count:
            # 0 would mean "do not block": an expired deadline still takes what is there.
            self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionResetError
            self._data += data

    def close(self) -> None:
        self.socket.close()


class Client:
    """Commands to the daemon at `path`; each answer may take `timeout` seconds."""

    def __init__(self, path: Path, timeout: float) -> None:
        self.path = path
        self._timeout = timeout
        self._transport = _Transport(_connect(path, timeout), timeout)
        self._session = Session(self._transport.socket)
        self._session.transport = self._transport

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._transport.close()

    def request(self, command: str, fields: Mapping[str, str | list[str]] | None = None) -> Fields:
        """The response to `command`."""
        with self._errors(command):
            answer: Fields = _text(self._session.request(command, dict(fields or {})))
        return answer

    def stream(
        self, command: str, event: str, fields: Mapping[str, str] | None = None
    ) -> list[Fields]:
        """The items that a list command sends as events."""
        with self._errors(command):
            items = self._session.streamed_request(command, event, dict(fields or {}))
            return [_text(item) for item in items]

    @contextlib.contextmanager
    def _errors(self, command: str) -> Iterator[None]:
        with _one_sentence(self.path, self._timeout):
            try:
                yield
            except CommandException as exc:
                reason = str(exc).removeprefix("Command failed: ")
                raise ClientError(f"{command}: {reason}") from exc
            except (EventUnknownException, SessionException) as exc:
                unknown = (Packet.CMD_UNKNOWN, Packet.EVENT_UNKNOWN)
                if self._transport.last_type in unknown:
                    raise ClientError(self._unknown(command)) from exc
                raise

    def _unknown(self, command: str) -> str:
        """Of the two daemons the other has it."""
        daemon = "the daemon"
        with contextlib.suppress(SessionException, CommandException):
            daemon = _text(self._session.request("version")).get("daemon", daemon)
        owner = {"gdoi-gcks": "; a member does", "gdoi-gm": "; a key server does"}.get(daemon, "")
        return f"{daemon} at {self.path} does not know the command {command}{owner}"


class EventClient:
    """Events of the daemon at `path`."""

    def __init__(self, path: Path, timeout: float) -> None:
        self.path = path
        self._timeout = timeout
        self._transport = _Transport(_connect(path, timeout), timeout)
        self._early: list[tuple[str, Fields]] = []

    def __enter__(self) -> EventClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._transport.close()

    def fileno(self) -> int:
        """For selectors; ask `poll(0)` until it gives None before waiting again."""
        return self._transport.socket.fileno()

    def register(self, events: tuple[str, ...]) -> list[str]:
        """Register for `events`; returns those that the daemon has."""
        known = []
        with _one_sentence(self.path, self._timeout):
            for event in events:
                self._transport.send(Packet.register_event(event))
                while (answer := Packet.parse(self._transport.receive())).response_type == (
                    Packet.EVENT
                ):
                    self._early.append(_event(answer))
                if answer.response_type == Packet.EVENT_CONFIRM:
                    known.append(event)
        return known

    def poll(self, timeout: float) -> tuple[str, Fields] | None:
        """The next event, or None if there is none in `timeout` seconds."""
        if self._early:
            return self._early.pop(0)
        with _one_sentence(self.path, self._timeout):
            try:
                answer = Packet.parse(self._transport.receive(timeout))
            except TimeoutError:
                return None
            return _event(answer) if answer.response_type == Packet.EVENT else None


def _event(answer: Any) -> tuple[str, Fields]:
    return answer.event_type.decode(errors="replace"), _text(Message.deserialize(answer.payload))


def _text(value: Any) -> Any:
    """vici's values are octets; ours are text."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, list):
        return [_text(item) for item in value]
    return {key: _text(item) for key, item in value.items()}


def _connect(path: Path, timeout: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout)
    deadline = time.monotonic() + timeout
    try:
        while not _try_connect(sock, path, deadline):
            time.sleep(QUEUE_PAUSE)
    except OSError as exc:
        sock.close()
        raise ClientError(_why_not(path, exc, timeout)) from exc
    return sock


def _try_connect(sock: socket.socket, path: Path, deadline: float) -> bool:
    """False if the daemon's queue is full: a socket with a time limit is told so at once."""
    try:
        sock.connect(str(path))
    except BlockingIOError:
        if time.monotonic() > deadline:
            raise
        return False
    return True


def _why_not(path: Path, exc: OSError, timeout: float) -> str:
    if isinstance(exc, FileNotFoundError):
        return f"no daemon at {path}: there is no such socket"
    if isinstance(exc, ConnectionRefusedError):
        return f"no daemon at {path}: the socket is left over from one that has ended"
    if isinstance(exc, PermissionError):
        return f"permission denied at {path}: be root or in the group that owns the socket"
    if isinstance(exc, (TimeoutError, BlockingIOError)):
        return f"no answer from {path} in {timeout:g} s"
    return f"cannot connect to {path}: {exc.strerror or exc}"


@contextlib.contextmanager
def _one_sentence(path: Path, timeout: float) -> Iterator[None]:
    """Turn whatever sockets and the vici package raise into ClientError."""
    try:
        yield
    except TimeoutError as exc:
        raise ClientError(f"no answer from {path} in {timeout:g} s") from exc
    except OSError as exc:
        raise ClientError(f"the daemon at {path} closed the connection") from exc
    except struct.error as exc:
        raise ClientError(f"cannot understand the answer from {path}: cut short") from exc
    except (DeserializationException, SessionException, LookupError, UnicodeError) as exc:
        raise ClientError(f"cannot understand the answer from {path}: {exc}") from exc
