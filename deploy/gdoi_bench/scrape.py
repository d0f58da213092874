"""A scrape of a key server with many members, and the status page's answer: how long each takes,
and for how long at most the daemon's loop is held up by it meanwhile.

In the middle of a rekey that half of the members have acknowledged, which is when most is to be
looked at. Seconds are those of the processor: other programs on the machine add none.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from gdoi_bench.acking import daemon_in, enrol, running
from gdoi_bench.figure import Figure
from gdoi_plugin.daemon import survey
from gdoi_plugin.daemon.metrics_gcks import metrics
from gdoi_plugin.daemon.status_page import StatusPage
from gdoi_plugin.daemon.survey import Surveyor
from gdoi_plugin.daemon.web import Request

MEMBERS, ROUNDS, PORT = 100_000, 9, 7848
# Seconds: a few registrations' time, which then wait behind it.
HELD_GOAL = 0.01
EVENTS = ("rekey-sent", "rekey-acked")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--members", type=int, default=MEMBERS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)


def measure(arguments: argparse.Namespace) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="gdoi-bench-") as folder:
        return asyncio.run(_measure(Path(folder), arguments.members, arguments.rounds))


async def _measure(folder: Path, members: int, rounds: int) -> list[Figure]:
    daemon, survey_fresh = daemon_in(folder), survey.FRESH
    survey.FRESH = 0.0  # each look is a new one
    figures = []
    try:
        async with running(daemon) as group:
            enrol(daemon, members, PORT)
            surveyor = Surveyor(daemon.engine)
            scrape, page = metrics(daemon, EVENTS, surveyor), StatusPage(daemon, surveyor).answer
            daemon.commands.rekey({"group": "many"})
            rekey, now = group.ledger[group.epoch], daemon.clock.now()
            for number in range(1, members // 2 + 1):
                rekey.acknowledged.note(number, now + 0.5)
            for name, path, ask in (("scrape", "/metrics", scrape), ("status page", "/", page)):
                what = Request(path)
                taken, held, octets = await _asked(lambda a=ask, w=what: a(w), rounds)  # type: ignore[misc]
                figures += [
                    Figure(f"a {name} of {members:,} members", taken, "s"),
                    Figure("the loop is held up by it, at most", held, "s", HELD_GOAL),
                    Figure("its size", octets, "octets"),
                ]
    finally:
        survey.FRESH = survey_fresh
    return figures


async def _asked(ask: Callable[[], Awaitable[object]], rounds: int) -> tuple[float, float, int]:
    """Medians of seconds, and of the longest turn in each; octets of the last answer."""
    taken, held, octets = [], [], 0
    for _ in range(rounds):
        turns: list[float] = []
        watching = asyncio.ensure_future(_watch(turns))
        await asyncio.sleep(0)
        began = time.thread_time()
        answer = await ask()
        taken.append(time.thread_time() - began)
        await asyncio.sleep(0)
        watching.cancel()
        held.append(max(turns))
        octets = len(getattr(answer, "body", b""))
    return statistics.median(taken), statistics.median(held), octets


async def _watch(turns: list[float]) -> None:
    """Seconds between two turns of its own."""
    before = time.thread_time()
    while True:
        await asyncio.sleep(0)
        now = time.thread_time()
        turns.append(now - before)
        before = now
