"""The client of charon's control socket: with a real charon, a stopped one, a killed one, and with
sockets behind which nobody answers or somebody writes rubbish."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import pytest

from gdoi_plugin.daemon.charon.client import CharonClient, CharonError, CharonLost, CharonRefused
from gdoi_plugin.daemon.vici_message import (
    Message,
    Packet,
    PacketType,
    encode_segment,
    octets_of,
    text_of,
)
from tests.interop.charon import Charon, charon, on_loopback
from tests.support.pki import issue

A, B = "10.77.0.1", "10.77.0.2"
SOON = 0.3  # a time limit that runs out in a test
TUNNEL: Message = {
    "version": "2",
    "local_addrs": [A],
    "remote_addrs": [B],
    "local": {"auth": "psk"},
    "remote": {"auth": "psk"},
    "children": {"inner": {"mode": "transport", "local_ts": ["dynamic[udp/848]"]}},
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Charon, CharonClient]]:
    folder = tmp_path_factory.mktemp("charon")
    with on_loopback(A), charon(folder) as daemon:
        yield daemon, CharonClient(folder / "vici")


@contextmanager
def answering(path: Path, *segments: bytes) -> Iterator[list[socket.socket]]:
    """A socket whose clients are all told the same, whatever they ask."""
    connections: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        async def serve() -> None:
            while True:
                connection, _ = await asyncio.get_running_loop().sock_accept(listener)
                connections.append(connection)
                for segment in segments:
                    await asyncio.get_running_loop().sock_sendall(connection, segment)

        listener.setblocking(False)
        server = asyncio.ensure_future(serve())
        try:
            yield connections
        finally:
            server.cancel()
            for connection in connections:
                connection.close()


def in_company(scenario: Callable[[], Awaitable[None]]) -> None:
    """Runs the scenario beside a task that wants its turns, too."""

    async def main() -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        company = asyncio.create_task(other())
        await scenario()
        company.cancel()
        assert turns > 10

    asyncio.run(main())


def test_commands_answer(running: tuple[Charon, CharonClient]) -> None:
    _, client = running

    async def scenario() -> None:
        version = await client.request("version")
        assert version["daemon"] == "charon-systemd"
        assert await client.request("get-conns") == {"conns": []}

    asyncio.run(scenario())


def test_a_connection_is_loaded_listed_and_unloaded(running: tuple[Charon, CharonClient]) -> None:
    _, client = running

    async def scenario() -> None:
        await client.request("load-conn", {"tunnel": TUNNEL})
        listed = [found async for found in client.list_conns(ike="tunnel")]
        (found,) = listed
        connection = found["tunnel"]
        assert isinstance(connection, dict)
        assert connection["remote_addrs"] == [B]
        assert connection["version"] == "IKEv2"
        assert [sa async for sa in client.list_sas(ike="tunnel")] == []
        await client.request("unload-conn", {"name": "tunnel"})
        assert [found async for found in client.list_conns()] == []

    asyncio.run(scenario())


def test_a_refusal_says_what_was_asked_and_why(running: tuple[Charon, CharonClient]) -> None:
    _, client = running

    async def scenario() -> None:
        with pytest.raises(CharonRefused, match=r"charon: unload-conn: .*not found") as refused:
            await client.request("unload-conn", {"name": "absent"})
        assert refused.value.asked == "unload-conn"
        with pytest.raises(CharonRefused, match=r"charon: brew-coffee: .*does not know"):
            await client.request("brew-coffee")
        with pytest.raises(CharonRefused, match=r"charon: list-sas: .*event"):
            [_ async for _ in client.stream("list-sas", "no-such-event")]

    asyncio.run(scenario())


def test_an_initiate_that_fails_comes_with_what_charon_logged(
    running: tuple[Charon, CharonClient],
) -> None:
    _, client = running

    async def scenario() -> None:
        await client.request("load-conn", {"tunnel": TUNNEL})
        try:
            with pytest.raises(CharonRefused, match="charon: initiate: ") as refused:
                await client.initiate("tunnel", "inner", limit=SOON)
            assert any("initiating IKE_SA tunnel" in line for line in refused.value.log)
            (left,) = [sa async for sa in client.list_sas(ike="tunnel")]
            sa = left["tunnel"]
            assert isinstance(sa, dict)
            assert sa["state"] == "CONNECTING"
            log = await client.terminate(ike="tunnel", force=True, limit=5)
            assert log
            assert [sa async for sa in client.list_sas()] == []
        finally:
            await client.request("unload-conn", {"name": "tunnel"})

    asyncio.run(scenario())


def test_certificates_and_secrets_are_octets(running: tuple[Charon, CharonClient]) -> None:
    _, client = running
    authority = issue("charon", ca=True)
    secret = bytes(range(256))

    async def scenario() -> None:
        pem = authority.pem.decode()
        await client.request("load-cert", {"type": "X509", "flag": "CA", "data": pem})
        (found,) = [found async for found in client.list_certs(flag="CA")]
        data = found["data"]
        assert isinstance(data, str)
        assert octets_of(data) == authority.der
        await client.request(
            "load-shared", {"id": "odd", "type": "IKE", "data": text_of(secret), "owners": [A]}
        )
        assert (await client.request("get-shared"))["keys"] == ["odd"]
        await client.request("unload-shared", {"id": "odd"})

    asyncio.run(scenario())


def test_a_value_too_long_is_refused_without_being_told(
    running: tuple[Charon, CharonClient],
) -> None:
    _, client = running

    async def scenario() -> None:
        with pytest.raises(CharonError) as refused:
            await client.request("load-shared", {"type": "IKE", "data": "secret" * 20_000})
        assert "secret" not in str(refused.value)
        assert "load-shared" in str(refused.value)

    asyncio.run(scenario())


def test_nobody_there(tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(CharonLost, match=r"version: .*No such file"):
            await CharonClient(tmp_path / "absent").request("version")
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / "stale"))
        with pytest.raises(CharonLost, match=r"version: .*Connection refused"):
            await CharonClient(tmp_path / "stale").request("version")
        with pytest.raises(CharonLost, match=r"version: .*too long"):
            await CharonClient(tmp_path / ("x" * 200)).request("version")

    asyncio.run(scenario())


def test_a_charon_that_stands_still_runs_into_the_time_limit(tmp_path: Path) -> None:
    """Also when so many have asked that its backlog is full and connecting says EAGAIN."""
    with on_loopback(A), charon(tmp_path) as daemon:
        client = CharonClient(tmp_path / "vici", time_limit=SOON)

        async def asked() -> str:
            with pytest.raises(CharonLost) as lost:
                await client.request("version")
            return lost.value.why

        async def scenario() -> None:
            why = await asyncio.gather(*[asked() for _ in range(8)])
            assert any("no answer" in text for text in why)
            assert any("accepted nothing" in text for text in why)

        os.kill(daemon.process.pid, signal.SIGSTOP)
        try:
            in_company(scenario)
        finally:
            os.kill(daemon.process.pid, signal.SIGCONT)
        patient = CharonClient(tmp_path / "vici", time_limit=60)
        assert asyncio.run(patient.request("version"))["daemon"] == "charon-systemd"


def test_a_charon_that_is_killed_in_the_middle(tmp_path: Path) -> None:
    with on_loopback(A), charon(tmp_path) as daemon:
        client = CharonClient(tmp_path / "vici", time_limit=60)

        async def scenario() -> None:
            await client.request("load-conn", {"tunnel": TUNNEL})
            waiting = asyncio.create_task(client.initiate("tunnel", "inner", limit=60))
            await until(client, 1)
            daemon.process.kill()
            with pytest.raises(CharonLost, match=r"charon: initiate: .*clos|ended"):
                await waiting

        asyncio.run(scenario())


async def until(client: CharonClient, count: int) -> None:
    """There are so many IKE_SAs."""
    async with asyncio.timeout(60):
        while len([sa async for sa in client.list_sas()]) != count:  # noqa: ASYNC110 -- it asks
            await asyncio.sleep(0.01)


async def gathered(client: CharonClient, seen: list[Message]) -> None:
    """What came before an error is in ``seen``."""
    async for message in client.list_sas():
        seen.append(message)  # noqa: PERF401


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


EVENT = encode_segment(Packet(PacketType.EVENT, "list-sa", {"a": {"b": "c"}}))
CONFIRM = encode_segment(Packet(PacketType.EVENT_CONFIRM))
RUBBISH = {
    "too large": (b"\xff\xff\xff\xff", "packet of 4294967295 octets"),
    "empty": (b"\x00\x00\x00\x00", "packet of 0 octets"),
    "no type": (b"\x00\x00\x00\x01\x2a", "no vici"),
    "cut": (b"\x00\x00\x00\x04\x01\x03\x01a", "no vici"),
    "web server": (b"HTTP/1.1 400 Bad Request\r\n", "packet of"),
    "event": (EVENT, "answered with EVENT"),
    "confirmation": (CONFIRM, "answered with EVENT_CONFIRM"),
}


@pytest.mark.parametrize("name", RUBBISH)
def test_rubbish_is_told_as_such(name: str, tmp_path: Path) -> None:
    segment, told = RUBBISH[name]

    async def scenario() -> None:
        client = CharonClient(tmp_path / "vici", time_limit=60)
        with answering(tmp_path / "vici", segment), pytest.raises(CharonLost, match=told):
            await client.request("version")

    asyncio.run(scenario())


def test_half_an_answer_and_a_list_without_an_end(tmp_path: Path) -> None:
    client = CharonClient(tmp_path / "vici", time_limit=SOON)

    async def scenario() -> None:
        with answering(tmp_path / "vici", CONFIRM, *[EVENT] * 3):
            seen: list[Message] = []
            with pytest.raises(CharonLost, match="nothing for"):
                await gathered(client, seen)
            assert seen == [{"a": {"b": "c"}}] * 3
        (tmp_path / "vici").unlink()
        half = answering(tmp_path / "vici", CONFIRM, EVENT[:-2])
        with half, pytest.raises(CharonLost, match="in the middle"):
            await gathered(client, [])

    asyncio.run(scenario())


def test_a_flood_ends_with_its_time_and_holds_up_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        flood = answering(tmp_path / "vici", CONFIRM, *[EVENT * 1000] * 10_000)
        stream = CharonClient(tmp_path / "vici").stream("list-sas", "list-sa", whole=SOON)
        with flood, pytest.raises(CharonLost, match="no end within"):
            assert all([message async for message in stream])

    in_company(scenario)


def test_who_stops_reading_leaves_no_connection(running: tuple[Charon, CharonClient]) -> None:
    _, client = running

    async def scenario() -> None:
        await client.request("load-conn", {"one": TUNNEL})
        await client.request("load-conn", {"two": TUNNEL})
        before = descriptors()
        async with aclosing(client.list_conns()) as listed:
            async for _ in listed:
                assert descriptors() == before + 1
                break
        assert descriptors() == before
        for name in ("one", "two"):
            await client.request("unload-conn", {"name": name})

    asyncio.run(scenario())
