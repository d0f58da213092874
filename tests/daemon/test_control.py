"""The control server against the real `vici` package, and against clients that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import vici
from vici.exception import CommandException, EventUnknownException, SessionException
from vici.protocol import Packet

from gdoi_plugin.daemon.control import (
    CommandFailed,
    ControlError,
    ControlServer,
    Handler,
    Limits,
    Message,
    StreamHandler,
    Trigger,
)

T = TypeVar("T")
PATIENCE = 90.0


async def echo(request: Message) -> Message:
    await asyncio.sleep(0)
    return request


def refuse(request: Message) -> Message:
    raise CommandFailed(f"no group {request.get('group', '')}")


def broken(_request: Message) -> Message:
    raise ZeroDivisionError("a bug")


def broken_io(_request: Message) -> Message:
    raise PermissionError("a file")


def too_large(_request: Message) -> Message:
    return {str(n): "x" * 65535 for n in range(9)}


def three(request: Message) -> Iterator[Message]:
    for number in range(3):
        yield {"number": str(number), **request}


async def many(_request: Message) -> AsyncIterator[Message]:
    for number in range(5000):
        yield {"number": str(number), "fill": "x" * 200}


def half(_request: Message) -> Iterator[Message]:
    yield {"number": "0"}
    raise CommandFailed("the list broke off")


COMMANDS: dict[str, Handler] = {
    "echo": echo,
    "refuse": refuse,
    "broken": broken,
    "broken-io": broken_io,
    "too-large": too_large,
}
STREAMS: dict[str, StreamHandler] = {
    "list-threes": ("list-three", three),
    "list-many": ("list-one-of-many", many),
    "list-half": ("list-one-of-half", half),
}
EVENTS = ("rekey-sent", "rekey-acked")


class Traced:
    """What the server said to `trace`."""

    def __init__(self) -> None:
        self.lines: list[tuple[Trigger, str]] = []

    def __call__(self, trigger: Trigger, detail: str) -> None:
        self.lines.append((trigger, detail))

    @property
    def triggers(self) -> list[Trigger]:
        return [trigger for trigger, _ in self.lines]


def run(
    path: Path,
    scenario: Callable[[ControlServer, Traced], Awaitable[T]],
    *,
    limits: Limits | None = None,
    mode: int = 0o660,
    group: str | None = None,
) -> T:
    """A server around `scenario`; nothing may reach the loop's exception handler."""

    async def main() -> T:
        lost: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: lost.append(what))
        traced = Traced()
        about = {"daemon": "gdoi-test", "version": "1.2"}
        server = ControlServer(
            path,
            COMMANDS,
            STREAMS,
            EVENTS,
            mode=mode,
            group=group,
            about=about,
            limits=limits,
            trace=traced,
        )
        await server.start()
        try:
            result = await asyncio.wait_for(scenario(server, traced), 60)
        finally:
            await server.close()
        assert lost == []
        return result

    result = asyncio.run(main())
    assert not path.exists()
    return result


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(PATIENCE)
    sock.connect(str(path))
    return sock


@contextlib.contextmanager
def session(path: Path) -> Iterator[Any]:
    """A session of the real vici client."""
    sock = connect(path)
    try:
        yield vici.Session(sock)
    finally:
        sock.close()


def with_client(path: Path, talk: Callable[[Any], None], **options: Any) -> list[Trigger]:
    """`talk` with a vici session in a thread; returns the triggers that were traced."""

    def in_thread() -> None:
        with session(path) as client:
            talk(client)

    async def scenario(_server: ControlServer, traced: Traced) -> list[Trigger]:
        await asyncio.to_thread(in_thread)
        return traced.triggers

    return run(path, scenario, **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.vici"


# ---------------------------------------------------------------- the protocol


def test_commands(path: Path) -> None:
    def talk(client: Any) -> None:
        version = client.version()
        assert version["daemon"] == b"gdoi-test"
        assert {"version", "sysname", "release", "machine"} < set(version)
        sent = {"a": "1", "l": ["x", "y"], "s": {"b": "2"}}
        assert client.request("echo", sent) == {"a": b"1", "l": [b"x", b"y"], "s": {"b": b"2"}}
        assert client.request("echo") == {}

    assert with_client(path, talk) == []


def test_failures_are_told_and_the_session_goes_on(path: Path) -> None:
    def talk(client: Any) -> None:
        with pytest.raises(CommandException, match="Command failed: no group 7"):
            client.request("refuse", {"group": "7"})
        with pytest.raises(SessionException, match="Unexpected response type 2"):
            client.request("nothing-of-the-kind")
        for command in ("broken", "broken-io", "too-large"):
            with pytest.raises(CommandException, match=f"internal error in {command}"):
                client.request(command)
        assert client.request("echo", {"still": "here"}) == {"still": b"here"}

    assert with_client(path, talk) == [Trigger.HANDLER_FAILED] * 3


def test_streams(path: Path) -> None:
    def talk(client: Any) -> None:
        items = list(client.streamed_request("list-threes", "list-three", {"group": "1"}))
        assert [item["number"] for item in items] == [b"0", b"1", b"2"]
        assert items[0]["group"] == b"1"
        assert len(list(client.streamed_request("list-many", "list-one-of-many"))) == 5000
        got = client.streamed_request("list-half", "list-one-of-half")
        assert next(got)["number"] == b"0"
        with pytest.raises(CommandException, match="the list broke off"):
            next(got)
        # Not registered for the event: only the response.
        assert client.request("list-threes") == {}

    assert with_client(path, talk) == []


def test_events_reach_those_who_registered(path: Path) -> None:
    async def scenario(server: ControlServer, traced: Traced) -> None:
        with session(path) as one, session(path) as two:
            with pytest.raises(EventUnknownException):
                await asyncio.to_thread(one._register_unregister, "no-such-event", True)
            listen = one.listen(["rekey-sent", "rekey-acked"], timeout=0.001)
            assert await asyncio.to_thread(next, listen) == (None, None)
            server.emit("rekey-sent", {"group": "1"})
            server.emit("rekey-acked", {"member": "a"})
            assert await asyncio.to_thread(next, listen) == (b"rekey-sent", {"group": b"1"})
            assert await asyncio.to_thread(next, listen) == (b"rekey-acked", {"member": b"a"})
            # The other one hears nothing, and the first nothing more once it has left.
            assert await asyncio.to_thread(two.request, "echo", {"x": "y"}) == {"x": b"y"}
            await asyncio.to_thread(listen.close)
            server.emit("rekey-sent", {"group": "2"})
            assert await asyncio.to_thread(one.request, "echo", {"x": "z"}) == {"x": b"z"}
        assert traced.triggers == []

    run(path, scenario)


def test_emit_never_raises(path: Path) -> None:
    async def scenario(server: ControlServer, traced: Traced) -> None:
        server.emit("misspelt", {})
        server.emit("rekey-sent", {"k" * 300: "x"})
        assert traced.triggers == [Trigger.BAD_EVENT, Trigger.BAD_EVENT]

    run(path, scenario)


def test_two_hundred_clients(path: Path) -> None:
    def open_all(stack: contextlib.ExitStack) -> list[Any]:
        clients = [stack.enter_context(session(path)) for _ in range(200)]
        for number, client in enumerate(clients):
            assert client.request("echo", {"n": str(number)}) == {"n": str(number).encode()}
            client._register_unregister("rekey-sent", True)
        return clients

    async def scenario(server: ControlServer, traced: Traced) -> None:
        with contextlib.ExitStack() as stack:
            clients = await asyncio.to_thread(open_all, stack)
            assert server.clients == 200
            server.emit("rekey-sent", {"group": "1"})

            def receive_all() -> None:
                for client in clients:
                    assert Packet.parse(client.transport.receive()).event_type == b"rekey-sent"

            await asyncio.to_thread(receive_all)
        await until(lambda: server.clients == 0)
        assert traced.triggers == []

    run(path, scenario)


# ---------------------------------------------------------------- misbehaviour


def closed(sock: socket.socket) -> bool:
    """The server has closed this connection, without a word."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def segment(packet: bytes) -> bytes:
    return struct.pack("!I", len(packet)) + packet


@pytest.mark.parametrize(
    ("data", "trigger"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", Trigger.OVERSIZED),
        (b"\xff\xff\xff\xff", Trigger.OVERSIZED),
        (struct.pack("!I", 512 * 1024 + 1), Trigger.OVERSIZED),
        (segment(b""), Trigger.BAD_PACKET),
        (segment(b"\x63"), Trigger.BAD_PACKET),
        (segment(b"\x00\x09echo"), Trigger.BAD_PACKET),
        (segment(b"\x00\x04echo\x03\x01a\x00\x09x"), Trigger.BAD_PACKET),
        (segment(b"\x00\x04echo\x01\x01a"), Trigger.BAD_PACKET),
        (segment(b"\x01"), Trigger.BAD_PACKET),
        (segment(b"\x07\x0arekey-sent"), Trigger.BAD_PACKET),
    ],
)
def test_malformed_closes_this_client_only(path: Path, data: bytes, trigger: Trigger) -> None:
    async def scenario(_server: ControlServer, traced: Traced) -> None:
        with session(path) as other, connect(path) as sock:
            sock.sendall(data)
            assert await asyncio.to_thread(closed, sock)
            assert await asyncio.to_thread(other.request, "echo", {"x": "y"}) == {"x": b"y"}
        assert traced.triggers == [trigger]
        assert f"pid {os.getpid()}" in traced.lines[0][1]

    run(path, scenario)


@pytest.mark.parametrize("sent", [1, 4, 9])
def test_connection_that_ends_inside_a_packet(path: Path, sent: int) -> None:
    async def scenario(server: ControlServer, traced: Traced) -> None:
        with connect(path) as sock:
            sock.sendall(segment(Packet.request("echo"))[:sent])
        await until(lambda: traced.triggers == [Trigger.BAD_PACKET])
        await until(lambda: server.clients == 0)

    run(path, scenario)


def test_slow_sender_is_closed_and_an_idle_client_is_not(path: Path) -> None:
    async def scenario(_server: ControlServer, traced: Traced) -> None:
        with session(path) as idle, connect(path) as sock:
            sock.sendall(b"\x00\x00")
            assert await asyncio.to_thread(closed, sock)
            assert traced.triggers == [Trigger.SLOW_SENDER]
            assert await asyncio.to_thread(idle.request, "echo", {"x": "y"}) == {"x": b"y"}

    run(path, scenario, limits=Limits(packet_time=0.05))


def test_octet_by_octet_is_well(path: Path) -> None:
    async def scenario(_server: ControlServer, traced: Traced) -> None:
        with session(path) as client:
            for octet in segment(Packet.request("version")):
                client.transport.socket.sendall(bytes([octet]))
                await asyncio.sleep(0)
            answer = Packet.parse(await asyncio.to_thread(client.transport.receive))
            assert answer.response_type == Packet.CMD_RESPONSE
        assert traced.triggers == []

    run(path, scenario)


def test_a_reader_too_slow_for_events_is_dropped_and_the_others_get_all(path: Path) -> None:
    count = 400

    def read_all(client: Any) -> int:
        return sum(
            Packet.parse(client.transport.receive()).event_type == b"rekey-sent"
            for _ in range(count)
        )

    async def scenario(server: ControlServer, traced: Traced) -> None:
        with session(path) as slow, session(path) as quick:
            for client in (slow, quick):
                await asyncio.to_thread(client._register_unregister, "rekey-sent", True)
            reading = asyncio.create_task(asyncio.to_thread(read_all, quick))
            for _ in range(count):
                server.emit("rekey-sent", {"fill": "x" * 10000})
                await asyncio.sleep(0.001)
            assert await reading == count
            assert traced.triggers == [Trigger.SLOW_READER]
            await until(lambda: server.clients == 1)

    run(path, scenario, limits=Limits(output=1_000_000))


def test_a_list_that_nobody_reads(path: Path) -> None:
    async def scenario(server: ControlServer, traced: Traced) -> None:
        with session(path) as other, connect(path) as sock:
            sock.sendall(segment(Packet.register_event("list-one-of-many")))
            sock.sendall(segment(Packet.request("list-many")))
            await until(lambda: traced.triggers == [Trigger.SLOW_READER])
            await until(lambda: server.clients == 1)
            assert await asyncio.to_thread(other.request, "echo", {"x": "y"}) == {"x": b"y"}

    run(path, scenario, limits=Limits(write_time=0.1))


def test_a_client_that_leaves_in_the_middle_of_a_list(path: Path) -> None:
    async def scenario(server: ControlServer, traced: Traced) -> None:
        with connect(path) as sock:
            sock.sendall(segment(Packet.register_event("list-one-of-many")))
            sock.sendall(segment(Packet.request("list-many")))
            assert await asyncio.to_thread(sock.recv, 100)
        await until(lambda: server.clients == 0)
        assert traced.triggers == []

    run(path, scenario)


def test_half_closed_without_reading_does_not_linger(path: Path) -> None:
    async def scenario(server: ControlServer, traced: Traced) -> None:
        with connect(path) as sock:
            sock.sendall(segment(Packet.register_event("rekey-sent")))
            await until(lambda: bool(server.clients))
            assert await asyncio.to_thread(sock.recv, 5) == segment(b"\x05")
            for _ in range(60):
                server.emit("rekey-sent", {"fill": "x" * 10000})
            sock.shutdown(socket.SHUT_WR)
            await until(lambda: server.clients == 0)
            assert traced.triggers == [Trigger.SLOW_READER]

    run(path, scenario, limits=Limits(write_time=0.1))


def test_many_requests_at_once_leave_the_loop_its_turns(path: Path) -> None:
    async def scenario(_server: ControlServer, traced: Traced) -> None:
        count = 3000
        turns, going = 0, True

        async def clock() -> None:
            nonlocal turns
            while going:
                await asyncio.sleep(0)
                turns += 1

        ticking = asyncio.create_task(clock())
        with connect(path) as sock:
            await asyncio.to_thread(sock.sendall, segment(Packet.request("echo")) * count)
            received = 0
            while received < 5 * count:
                received += len(await asyncio.to_thread(sock.recv, 65536))
        going = False
        await ticking
        assert turns >= count
        assert traced.triggers == []

    run(path, scenario)


def test_too_many_clients(path: Path) -> None:
    async def scenario(server: ControlServer, traced: Traced) -> None:
        with session(path) as one, session(path) as two:
            for client in (one, two):
                await asyncio.to_thread(client.request, "version")
            with connect(path) as sock:
                assert await asyncio.to_thread(closed, sock)
            assert traced.triggers == [Trigger.TOO_MANY_CLIENTS]
        await until(lambda: server.clients == 0)
        with session(path) as again:
            await asyncio.to_thread(again.request, "version")

    run(path, scenario, limits=Limits(clients=2))


# ---------------------------------------------------------------- the socket file


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def gid_of(path: Path) -> int:
    return path.stat().st_gid


def start_only(path: Path, **options: Any) -> tuple[str | None, int, int]:
    """The warning, the mode and the group of the socket file."""

    async def main() -> tuple[str | None, int, int]:
        server = ControlServer(path, {}, **options)
        warning = await server.start()
        found = mode_of(path), gid_of(path)
        await server.close()
        return warning, *found

    return asyncio.run(main())


def test_mode_and_group(tmp_path: Path) -> None:
    path = tmp_path / "run" / "c.vici"
    assert start_only(path) == (None, 0o660, os.getgid())
    assert start_only(path, mode=0o600)[1] == 0o600
    warning, mode, gid = start_only(path, group="no-such-group")
    assert mode == 0o600
    assert gid == os.getgid()
    assert warning is not None
    assert "there is no group no-such-group; only its owner can use it" in warning
    assert mode_of(path.parent) == 0o755
    assert list(path.parent.iterdir()) == []


def test_group_that_exists(path: Path) -> None:
    warning, mode, gid = start_only(path, group="daemon")
    assert (warning, mode) == (None, 0o660)
    assert gid != 0


def test_nobody_can_connect_before_the_mode_is_set(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, int]] = []
    chmod = Path.chmod

    def look(place: Path, mode: int) -> None:
        seen.append((path.exists(), mode_of(place.parent)))
        chmod(place, mode)

    monkeypatch.setattr(Path, "chmod", look)
    start_only(path)
    assert seen == [(False, 0o700)]


def test_stale_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    with_client(path, lambda client: client.version())


def test_living_daemon_is_left_alone(path: Path) -> None:
    async def scenario(_server: ControlServer, _traced: Traced) -> None:
        with pytest.raises(ControlError, match="another daemon is serving it"):
            await ControlServer(path, {}).start()
        with session(path) as client:
            await asyncio.to_thread(client.version)

    run(path, scenario)


def test_hung_daemon_with_a_full_queue_counts_as_living(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as hung, contextlib.ExitStack() as stack:
        hung.bind(str(path))
        hung.listen(0)
        result = 0
        while result == 0:
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            result = waiting.connect_ex(str(path))
        with pytest.raises(ControlError, match="another daemon is serving it"):
            asyncio.run(ControlServer(path, {}).start())


def test_what_cannot_be_a_socket(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(ControlError, match="a file that is not a socket"):
        asyncio.run(ControlServer(file, {}).start())
    assert file.read_text() == "precious"
    with pytest.raises(ControlError, match=r"Not a directory|File exists"):
        asyncio.run(ControlServer(file / "c.vici", {}).start())
    with pytest.raises(ControlError, match="at most 107 octets"):
        asyncio.run(ControlServer(tmp_path / ("x" * 120), {}).start())


def test_close_leaves_a_successors_socket_alone_and_ends_handlers(path: Path) -> None:
    def replace() -> None:
        path.unlink()
        path.write_text("somebody else's")

    async def main() -> None:
        ended = asyncio.Event()
        began = asyncio.Event()

        async def hang(_request: Message) -> Message:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            return {}

        server = ControlServer(path, {"hang": hang})
        await server.start()
        with connect(path) as sock:
            sock.sendall(segment(Packet.request("hang")))
            await began.wait()
            replace()
            await server.close()
            await server.close()
            assert ended.is_set()
            assert await asyncio.to_thread(closed, sock)

    asyncio.run(main())
    assert path.read_text() == "somebody else's"
