"""The HTTP server: what it answers, what it refuses, and that no client can hold it up."""

from __future__ import annotations

import asyncio
import contextlib
import random
import stat
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path

import pytest

from gdoi_plugin.daemon.control import Trigger
from gdoi_plugin.daemon.web import MAX_CLIENTS, MAX_REQUEST, Limits, Request, Response, WebServer
from gdoi_plugin.protocol.actions import Peer
from tests.daemon.fetching import connect, fetch, free_tcp_port, parsed

PATIENCE = 90.0
CLOSE = b"Host: localhost\r\nConnection: close\r\n"
Told = list[tuple[Trigger, str]]


async def answer(request: Request) -> Response:
    if request.path == "/bug":
        raise KeyError("a secret of ours")
    if request.path == "/large":
        return Response(b"x" * 50_000_000)
    return Response(repr((request.path, dict(request.query), request.accept)).encode())


@contextlib.asynccontextmanager
async def serving(place: Path | Peer, **limits: float) -> AsyncIterator[tuple[WebServer, Told]]:
    told: Told = []
    server = WebServer(
        "page", place, answer, lambda *what: told.append(what),
        limits=Limits(**limits),  # type: ignore[arg-type]
    )  # fmt: skip
    assert await server.start() is None
    try:
        async with asyncio.timeout(PATIENCE):
            yield server, told
    finally:
        await server.close()


def on_loopback(scenario: Callable[[Peer, Told], Awaitable[None]], **limits: float) -> None:
    async def main() -> None:
        place = Peer(ip_address("127.0.0.1"), free_tcp_port())
        async with serving(place, **limits) as (_, told):
            await scenario(place, told)

    asyncio.run(main())


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 (the server has its own limit)
        await asyncio.sleep(0.005)


def test_a_request() -> None:
    async def scenario(place: Peer, _: Told) -> None:
        got = await fetch(place, "/a%20b?q=%3Cx%3E&n=1", "Accept: text/plain")
        assert (got.status, got.text) == (200, "('/a b', {'q': '<x>', 'n': '1'}, 'text/plain')")
        head = await fetch(place, "/", method="HEAD")
        assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "13")
        assert "script-src 'self'" in got.headers["content-security-policy"]
        assert "default-src 'none'" in got.headers["content-security-policy"]
        assert got.headers["x-content-type-options"] == "nosniff"
        assert not any(name.startswith("access-control") for name in got.headers)

    on_loopback(scenario)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "X"])
def test_nothing_is_done_only_read(method: str) -> None:
    async def scenario(place: Peer, _: Told) -> None:
        got = await fetch(place, "/", "Content-Length: 0", method=method)
        assert (got.status, got.headers["allow"]) == (405, "GET, HEAD")

    on_loopback(scenario)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:1234", 200),
        ("127.0.0.1:8480", 200),
        ("[::1]:8480", 200),
        ("evil.example", 421),
        ("evil.example:8480", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("192.0.2.1", 421),
        ("", 421),
    ],
)
def test_another_sites_name_leads_nowhere(host: str, status: int) -> None:
    async def scenario(place: Peer, _: Told) -> None:
        assert (await fetch(place, "/", host=host)).status == status

    on_loopback(scenario)


def test_a_connection_serves_several_requests() -> None:
    async def scenario(place: Peer, _: Told) -> None:
        reader, writer = await connect(place)
        request = b"GET /%d HTTP/1.1\r\nHost: localhost\r\n\r\n"
        writer.write(b"".join(request % n for n in range(3)))  # at once
        for n in range(3):
            got = parsed(await reader.readuntil(b"\r\n\r\n"))
            body = await reader.readexactly(int(got.headers["content-length"]))
            assert body.startswith(b"('/%d'" % n)
        writer.write(b"GET /last HTTP/1.0\r\n\r\n")  # which has no Host
        assert parsed(await reader.read()).status == 421
        writer.close()

    on_loopback(scenario)


@pytest.mark.parametrize(
    ("octets", "status"),
    [
        (b"\0" * 100 + b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /" + b"x" * 2 * MAX_REQUEST, 431),
        (b"GET / HTTP/1.1\r\n" + CLOSE + b"X: " + b"y" * 2 * MAX_REQUEST, 431),
        (b"GET /?" + b"a=1&" * 99 + b" HTTP/1.1\r\n" + CLOSE + b"\r\n", 400),
        (b"GET /?a=%FF HTTP/1.1\r\n" + CLOSE + b"\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\n" + CLOSE + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + CLOSE + b"Content-Length: 9999999\r\n\r\nxxx", 200),
    ],
)
def test_rubbish_ends_the_connection(octets: bytes, status: int) -> None:
    async def scenario(place: Peer, _: Told) -> None:
        reader, writer = await connect(place)
        writer.write(octets)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        try:
            got = await reader.read()
        except ConnectionError:  # reset: more had been sent than was read
            got = b""
        if got or len(octets) < MAX_REQUEST:  # those are read whole, and always answered
            assert parsed(got).status == status
        writer.close()
        assert (await fetch(place, "/")).status == 200

    on_loopback(scenario)


def test_any_octets_do_no_harm() -> None:
    async def scenario(place: Peer, told: Told) -> None:
        dice = random.Random(4)
        for _ in range(100):
            reader, writer = await connect(place)
            junk = bytes(dice.choices(b"GET / HTTP/1.\r\n: \0\xff", k=dice.randrange(300)))
            writer.write(junk)
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()
        assert (await fetch(place, "/")).status == 200
        assert {trigger for trigger, _ in told} <= {Trigger.BAD_PACKET}

    on_loopback(scenario)


def test_a_bug_is_told_to_the_log_and_not_to_the_client() -> None:
    async def scenario(place: Peer, told: Told) -> None:
        got = await fetch(place, "/bug")
        assert (got.status, b"secret" in got.body) == (500, False)
        assert told == [(Trigger.HANDLER_FAILED, "page: KeyError: 'a secret of ours'")]
        assert (await fetch(place, "/")).status == 200

    on_loopback(scenario)


def test_a_slow_request_ends() -> None:
    async def scenario(place: Peer, told: Told) -> None:
        reader, writer = await connect(place)
        writer.write(b"GET / HT")
        assert await _ended(reader)
        assert told == [(Trigger.SLOW_SENDER, "page: no request in 0.2 s")]
        writer.close()

    on_loopback(scenario, request_time=0.2)


def test_an_idle_connection_ends_without_a_word() -> None:
    async def scenario(place: Peer, told: Told) -> None:
        reader, writer = await connect(place)
        assert await _ended(reader)
        assert told == []
        writer.close()

    on_loopback(scenario, idle_time=0.2)


async def _ended(reader: asyncio.StreamReader) -> bool:
    with contextlib.suppress(ConnectionError):
        return await reader.read() == b""
    return True


def test_requests_that_come_at_once_are_answered_one_in_a_turn() -> None:
    """Of one client and of several; whoever else needs the loop has it between them."""

    async def main() -> None:
        place, turns, moments = Peer(ip_address("127.0.0.1"), free_tcp_port()), 0, Counter[int]()

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async def note(_: Request) -> Response:
            moments[turns] += 1
            return Response(b"")

        async with serving(place) as (server, _):
            server._answer = note
            other = asyncio.ensure_future(count())
            clients = [await connect(place) for _ in range(4)]
            many, last = b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HEAD / HTTP/1.1\r\n"
            for _, writer in clients:
                writer.write(250 * many + last + CLOSE + b"\r\n")
            for reader, writer in clients:
                assert (await reader.read()).count(b"HTTP/1.1 200") == 251
                writer.close()
            other.cancel()
        assert moments.total() == 4 * 251
        # Two where the counter is late in one turn and early in the next.
        assert max(moments.values()) <= 2

    asyncio.run(main())


def test_who_does_not_read_is_dropped() -> None:
    async def scenario(place: Peer, told: Told) -> None:
        _, writer = await connect(place)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await until(lambda: told)
        assert told == [(Trigger.SLOW_READER, "page: an answer was not read in 0.3 s")]
        writer.transport.abort()

    on_loopback(scenario, write_time=0.3)


def test_no_more_clients_than_there_is_room_for() -> None:
    async def scenario(place: Peer, told: Told) -> None:
        those = [await connect(place) for _ in range(MAX_CLIENTS)]
        for _, writer in those:
            writer.write(b"GET / HT")
        await asyncio.sleep(0)
        reader, one_more = await connect(place)
        assert await _ended(reader)
        assert [trigger for trigger, _ in told] == [Trigger.TOO_MANY_CLIENTS]
        for _, writer in those:
            writer.write(b"TP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        for reader, writer in those:
            assert parsed(await reader.read()).status == 200
            writer.close()
        one_more.close()
        assert (await fetch(place, "/")).status == 200

    on_loopback(scenario)


def test_a_unix_socket_is_for_its_owner_and_group(tmp_path: Path) -> None:
    path = tmp_path / "page.sock"

    async def main() -> None:
        async with serving(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            assert (await fetch(path, "/", host="whatever.example")).status == 200
        assert not path.exists()

    asyncio.run(main())


def test_close_ends_every_client() -> None:
    async def main() -> None:
        place = Peer(ip_address("127.0.0.1"), free_tcp_port())
        async with serving(place) as (server, _):
            reader, writer = await connect(place)
            writer.write(b"GET / HT")
            await until(lambda: server._tasks)
            await server.close()
            assert await _ended(reader)
            writer.close()
            with pytest.raises(ConnectionRefusedError):
                await connect(place)

    asyncio.run(main())
