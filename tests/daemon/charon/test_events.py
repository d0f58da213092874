"""charon's events across its deaths, standstills and returns, with a real charon."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

import pytest

from gdoi_plugin.daemon.charon.client import CharonClient
from gdoi_plugin.daemon.charon.errors import CharonLost, CharonRefused
from gdoi_plugin.daemon.charon.events import Down, Happened, News, Up, charon_events
from tests.interop.charon import charon, on_loopback

from .test_client import CONFIRM, EVENT, TUNNEL, A, B, answering

NAMES = ("ike-updown", "child-updown", "ike-rekey", "child-rekey")
PATIENCE = 60.0
T = TypeVar("T", bound=News)
Following = AsyncGenerator[News, None]


def follow(
    path: Path,
    scenario: Callable[[Following], Awaitable[None]],
    *names: str,
    time_limit: float = PATIENCE,
) -> None:
    async def main() -> None:
        events = charon_events(path, names or NAMES, time_limit=time_limit, probe=0.3)
        async with aclosing(events) as news:
            await scenario(news)

    asyncio.run(main())


async def told(news: Following, kind: type[T]) -> T:
    """The next news, which is of this kind."""
    async with asyncio.timeout(PATIENCE):
        one = await anext(news)
    assert isinstance(one, kind), one
    return one


async def quiet(news: Following, seconds: float = 0.8) -> asyncio.Future[News]:
    """Nothing comes for so long, in which there are several attempts; what comes after it."""
    waiting = asyncio.ensure_future(anext(news))
    done, _ = await asyncio.wait([waiting], timeout=seconds)
    assert not done, done
    return waiting


async def up(waiting: asyncio.Future[News]) -> None:
    async with asyncio.timeout(PATIENCE):
        assert await waiting == Up()


def test_absent_at_start_killed_and_started_again(tmp_path: Path) -> None:
    async def scenario(news: Following) -> None:
        assert "No such file" in str((await told(news, Down)).error)
        waiting = await quiet(news)
        with on_loopback(A):
            with charon(tmp_path) as daemon:
                await up(waiting)
                waiting = await quiet(news)  # also when it is asked whether it is there
                daemon.process.kill()
                async with asyncio.timeout(PATIENCE):
                    down = await waiting
                assert isinstance(down, Down)
                assert isinstance(down.error, CharonLost)
                assert (tmp_path / "vici").exists()  # nobody behind it
                waiting = await quiet(news)
            with charon(tmp_path):
                await up(waiting)

    follow(tmp_path / "vici", scenario)


def test_one_that_stands_still_is_noticed_and_its_return_too(tmp_path: Path) -> None:
    async def scenario(news: Following) -> None:
        with on_loopback(A), charon(tmp_path) as daemon:
            await told(news, Up)
            os.kill(daemon.process.pid, signal.SIGSTOP)
            try:
                assert "no answer" in (await told(news, Down)).error.why
                waiting = await quiet(news)
            finally:
                os.kill(daemon.process.pid, signal.SIGCONT)
            await up(waiting)

    follow(tmp_path / "vici", scenario, time_limit=2.0)


def test_a_snapshot_and_the_events_after_it_miss_nothing(tmp_path: Path) -> None:
    """An IKE_SA between two charons; its CHILD_SA fails where the kernel has no ESP."""

    async def scenario(news: Following) -> None:
        client = CharonClient(tmp_path / "vici", time_limit=60)
        await told(news, Up)
        await client.request("load-shared", {"type": "IKE", "data": "of two", "owners": [A, B]})
        await client.request(
            "load-conn", {"tunnel": {**TUNNEL, "remote_port": "1500", "mobike": "no"}}
        )
        await client.request("initiate", {"ike": "tunnel", "timeout": "-1"})
        event = await told(news, Happened)
        assert (event.event, event.message["up"]) == ("ike-updown", "yes")
        sa = event.message["tunnel"]
        assert isinstance(sa, dict)
        (snapshot,) = [sa async for sa in client.list_sas()]
        listed = snapshot["tunnel"]
        assert isinstance(listed, dict)
        assert (listed["uniqueid"], listed["state"]) == (sa["uniqueid"], "ESTABLISHED")
        await client.terminate(ike="tunnel", limit=60)
        gone = await told(news, Happened)
        assert gone.event == "ike-updown"
        assert "up" not in gone.message

    other = tmp_path / "other"
    with (
        on_loopback(A, B),
        charon(tmp_path),
        charon(other, "port = 1500\nport_nat_t = 1501") as far,
    ):
        far.load_psk(b"of two", A, B)
        far.load("tunnel", **{**TUNNEL, "local_addrs": [B], "remote_addrs": [A]})
        follow(tmp_path / "vici", scenario, "ike-updown")


def test_an_event_that_charon_does_not_know(tmp_path: Path) -> None:
    async def scenario(news: Following) -> None:
        down = await told(news, Down)
        assert isinstance(down.error, CharonRefused)
        assert down.error.asked == "events: coffee-ready"

    with on_loopback(A), charon(tmp_path):
        follow(tmp_path / "vici", scenario, "ike-updown", "coffee-ready")


@pytest.mark.parametrize("answers", [(), (CONFIRM,), (b"rubbish!",), (CONFIRM * 4, b"rubbish!")])
def test_who_is_no_charon(answers: tuple[bytes, ...], tmp_path: Path) -> None:
    """Silent from the start or in the middle, or talking rubbish; the last gets as far as `Up`."""

    async def scenario(news: Following) -> None:
        with answering(tmp_path / "vici", *answers) as connections:
            whole = len(answers) > 1
            for _ in range(2 if whole else 1):
                if whole:
                    await told(news, Up)
                assert isinstance((await told(news, Down)).error, CharonLost)
            if not whole:
                waiting = asyncio.ensure_future(anext(news))
                async with asyncio.timeout(PATIENCE):
                    while len(connections) < 3:  # noqa: ASYNC110 -- sockets tell nobody
                        await asyncio.sleep(0.01)
                assert not waiting.done()
                waiting.cancel()
                await asyncio.wait([waiting])

    follow(tmp_path / "vici", scenario, time_limit=0.2)


def test_events_that_come_while_others_are_registered_for_are_kept(tmp_path: Path) -> None:
    async def scenario(news: Following) -> None:
        with answering(tmp_path / "vici", CONFIRM + EVENT + EVENT + CONFIRM):
            await told(news, Up)
            for _ in range(2):
                assert (await told(news, Happened)).event == "list-sa"

    follow(tmp_path / "vici", scenario, "list-sa", "other")
