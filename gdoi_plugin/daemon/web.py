"""A small HTTP server for pages that are only read: metrics, and the key server's status page.

On a loopback address or a Unix socket. Whoever may open that may read, and nothing else: GET and
HEAD, no bodies. What a client can make it hold is bounded (see the constants), one request is
answered in a turn of the daemon's loop, and the loop waits for nobody. HTTP itself is h11's.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

import h11

from ..protocol.actions import Peer
from .control import Trace, Trigger
from .errors import StartError
from .unix_socket import inode, listen

# Connections at one time: a few browsers with six each, or a few Prometheus servers.
MAX_CLIENTS = 64
# Octets of a request's line and header fields.
MAX_REQUEST = 8192
# Parameters of a query.
MAX_PARAMETERS = 16
# Seconds from the first octet of a request to its last; a slow one holds its place no longer.
REQUEST_TIME = 10.0
# Seconds that a connection stays open without a request.
IDLE_TIME = 75.0
# Seconds that an answer waits for a client that does not read.
WRITE_TIME = 30.0

# Nothing here is for other sites, and nothing of other sites is for here.
_ALWAYS = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
        " img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
)


@dataclass(frozen=True, slots=True)
class Request:
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    accept: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


Answer = Callable[[Request], Awaitable[Response]]


def refusal(status: int, why: str, *headers: tuple[str, str]) -> Response:
    return Response(f"{why}\n".encode(), status=status, headers=headers)


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may take; the reasons stand at the constants."""

    clients: int = MAX_CLIENTS
    request_time: float = REQUEST_TIME
    idle_time: float = IDLE_TIME
    write_time: float = WRITE_TIME


class _Closed(Exception):
    """This client has to go; with the trigger."""

    def __init__(self, trigger: Trigger, detail: str) -> None:
        super().__init__(detail)
        self.trigger = trigger


class WebServer:
    """Answers requests at ``place``; ``what`` names it in errors and in the trace.

    ``group``: who may open a Unix socket, beside its owner.
    """

    def __init__(
        self,
        what: str,
        place: Path | Peer,
        answer: Answer,
        trace: Trace,
        *,
        group: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.what, self.place = what, place
        self._answer, self._trace, self._group = answer, trace, group
        self._limits = limits or Limits()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._inode: tuple[int, int] | None = None
        self._gate = asyncio.Lock()

    async def start(self) -> str | None:
        """A sentence for the log where ``group`` could not be given access. Raises StartError."""
        warning = None
        if isinstance(self.place, Path):
            sock, warning = listen(self.what, self.place, 0o660, self._group, MAX_CLIENTS)
            self._inode = inode(self.place)
            self._server = await asyncio.start_unix_server(
                self._serve, sock=sock, limit=MAX_REQUEST
            )
        else:
            sock = _bound(self.what, self.place)
            self._server = await asyncio.start_server(self._serve, sock=sock, limit=MAX_REQUEST)
        return warning

    async def close(self) -> None:
        if self._server is None:
            return
        self._server.close()
        self._server = None
        if isinstance(self.place, Path):
            with contextlib.suppress(OSError):
                if inode(self.place) == self._inode:
                    self.place.unlink()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- one client --------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None or len(self._tasks) >= self._limits.clients:
            if self._server is not None:
                self._tell(Trigger.TOO_MANY_CLIENTS, f"{len(self._tasks)} clients are connected")
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  (we are running in it)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await self._converse(reader, writer)
            await self._finish(writer)
        except _Closed as error:
            self._tell(error.trigger, str(error))
            writer.transport.abort()
        except (OSError, asyncio.CancelledError):  # it went away, or close()
            writer.transport.abort()
        except Exception as error:  # noqa: BLE001  (nobody outside ends the daemon)
            self._tell(Trigger.HANDLER_FAILED, f"{type(error).__name__}: {error}")
            writer.transport.abort()

    async def _finish(self, writer: asyncio.StreamWriter) -> None:
        writer.close()
        async with self._reading():
            await writer.wait_closed()

    @contextlib.asynccontextmanager
    async def _reading(self) -> AsyncIterator[None]:
        """The client has its time to take what it asked for."""
        try:
            async with asyncio.timeout(self._limits.write_time):
                yield
        except TimeoutError:
            what = f"an answer was not read in {self._limits.write_time:g} s"
            raise _Closed(Trigger.SLOW_READER, what) from None

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST)
        while True:
            try:
                event = await self._request(client, reader)
            except h11.RemoteProtocolError as error:
                self._tell(Trigger.BAD_PACKET, str(error))
                if client.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    status = error.error_status_hint
                    await self._send(client, writer, refusal(status, "not understood"), bare=False)
                return
            if event is None:
                return
            await self._turn()
            response = await self._respond(event)
            await self._send(client, writer, response, bare=event.method == b"HEAD")
            if client.our_state is h11.MUST_CLOSE or client.their_state is not h11.DONE:
                return  # a body that nobody wants is not read
            client.start_next_cycle()

    async def _turn(self) -> None:
        """Until it is this client's: requests that are sent at once are all here already, and
        nothing waits between them; datagrams would wait for hundreds, of every client."""
        async with self._gate:
            await asyncio.sleep(0)

    async def _request(
        self, client: h11.Connection, reader: asyncio.StreamReader
    ) -> h11.Request | None:
        """With its end, where that is here already. None where the client has gone, or said
        nothing for long."""
        request, seconds = None, self._limits.idle_time
        if client.trailing_data[0]:
            seconds = self._limits.request_time
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            event = client.next_event()
            if isinstance(event, h11.Request):
                request = event
            elif event is h11.NEED_DATA and request is None:
                try:
                    async with asyncio.timeout_at(deadline):
                        octets = await reader.read(MAX_REQUEST)
                except TimeoutError:
                    if seconds == self._limits.idle_time:
                        return None
                    raise _Closed(Trigger.SLOW_SENDER, f"no request in {seconds:g} s") from None
                if seconds == self._limits.idle_time:
                    seconds = self._limits.request_time
                    deadline = loop.time() + seconds
                client.receive_data(octets)
            else:  # its end, a body, or the end of the connection
                return request

    async def _respond(self, event: h11.Request) -> Response:
        if event.method not in (b"GET", b"HEAD"):
            return refusal(405, "GET and HEAD only", ("Allow", "GET, HEAD"))
        if not isinstance(self.place, Path) and not _is_loopback(_host(event.headers)):
            # Somebody's page in a browser of this host, by a name that leads here (DNS rebinding).
            return refusal(421, "the Host is none of this server's: localhost or its address")
        try:
            target = urlsplit(event.target.decode("ascii"))
            query = dict(parse_qsl(target.query, max_num_fields=MAX_PARAMETERS, errors="strict"))
        except ValueError:
            return refusal(400, "not understood")
        accept = b", ".join(value for name, value in event.headers if name == b"accept")
        request = Request(unquote(target.path), query, accept.decode("latin-1"))
        try:
            return await self._answer(request)
        except Exception as error:  # noqa: BLE001  (a bug in a page must not end the daemon)
            self._tell(Trigger.HANDLER_FAILED, f"{type(error).__name__}: {error}")
            return refusal(500, "internal error, see the daemon's log")

    async def _send(
        self,
        client: h11.Connection,
        writer: asyncio.StreamWriter,
        response: Response,
        *,
        bare: bool,
    ) -> None:
        headers: Sequence[tuple[str, str]] = (
            ("Content-Type", response.content_type),
            ("Content-Length", str(len(response.body))),
            *_ALWAYS,
            *response.headers,
        )
        head = h11.Response(status_code=response.status, headers=headers)
        writer.write(client.send(head) or b"")
        if not bare:
            writer.write(client.send(h11.Data(data=response.body)) or b"")
        writer.write(client.send(h11.EndOfMessage()) or b"")
        async with self._reading():
            await writer.drain()

    def _tell(self, trigger: Trigger, detail: str) -> None:
        self._trace(trigger, f"{self.what}: {detail}")


def _host(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """Without its port. HTTP/1.0 has none."""
    value = next((v for name, v in headers if name == b"host"), b"").decode("latin-1")
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.partition(":")[0]


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _bound(what: str, place: Peer) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if place.host.version == 6 else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind((str(place.host), place.port))
        sock.listen(MAX_CLIENTS)
    except OSError as error:
        sock.close()
        raise StartError(f"{what} {place}: {error.strerror or error}") from error
    return sock
