"""A key server's daemon under the acknowledgements of all its members at once, until durable.

Real sockets, the real database (SQLite, WAL, synchronous=FULL) in the folder of --state, which
should lie on the disk that counts. Needs CAP_NET_ADMIN for the receive buffer.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sqlite3
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from gdoi_lab.checkout import CHECKOUT

from gdoi_bench.acking import KEY_SERVER, acks_of, daemon_in, enrol, packed, running, until
from gdoi_bench.bound import Bound, compiled
from gdoi_bench.figure import Figure
from gdoi_plugin.daemon.gcks import KeyServerDaemon
from gdoi_plugin.protocol.group import Group
from gdoi_plugin.protocol.page import Rekey

MEMBERS, ROUNDS, PORT = 100_000, 3, 7848
# Seconds between two looks at what is counted, which cost the daemon's own time.
LOOK = 0.005
VERIFIED_GOAL, DURABLE_GOAL = 0.5, 1.0  # seconds
RATE_GOAL = 100_000.0  # ACK/s
# What the store writes of one: number, SEQ, time.
ENTRY, BATCH = 16, 1000


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--members", type=int, default=MEMBERS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--state", type=Path, default=CHECKOUT)


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds, and members that were not counted."""

    verified: float
    durable: float
    lost: int


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """Raises BoundError."""
    with (
        tempfile.TemporaryDirectory(prefix="gdoi-bench-", dir=arguments.state) as folder,
        compiled("ack", "crypto") as bound,
    ):
        return asyncio.run(_measure(Path(folder), bound, arguments.members, arguments.rounds))


async def _measure(folder: Path, bound: Bound, members: int, rounds: int) -> list[Figure]:
    daemon = daemon_in(folder)
    waiting: list[Round] = []
    live: list[Round] = []
    bare: list[float] = []
    async with running(daemon) as group:
        enrol(daemon, members, PORT)
        for _ in range(rounds):
            waiting.append(await _storm(daemon, group, bound, folder, live=False))
            live.append(await _storm(daemon, group, bound, folder, live=True))
            bare.append(_bare(folder / "bare.sqlite", members))
        dropped = daemon.acks.facts()["dropped"]
    goal = members / MEMBERS
    durable = statistics.median(each.durable for each in live)
    sqlite = statistics.median(bare)
    return [
        Figure(
            f"{members:,} ACKs that wait in the socket, verified",
            statistics.median(each.verified for each in waiting),
            "s",
            VERIFIED_GOAL * goal,
            why="Python: read, judged and counted by one thread (deploy/bench ack has the parts)",
        ),
        Figure(
            "the same, durable; bound: their rows written by sqlite3 alone",
            statistics.median(each.durable for each in waiting),
            "s",
            DURABLE_GOAL * goal,
            sqlite,
            why="most is verifying them, see above; the rest is the thread that saves them",
        ),
        Figure(
            "durable while they are sent, without a pause",
            members / durable,
            "ACK/s",
            RATE_GOAL,
            members / sqlite,
            at_least=True,
            why="who sends, judges and saves them share the same processors",
        ),
        Figure("of them not counted", sum(each.lost for each in (*waiting, *live)), "ACKs", 0),
        Figure("dropped by the kernel", dropped, "ACKs", 0),
    ]


async def _storm(
    daemon: KeyServerDaemon, group: Group, bound: Bound, folder: Path, *, live: bool
) -> Round:
    daemon.commands.rekey({"group": "many"})
    rekey = group.ledger[group.epoch]
    path = folder / "acks"
    path.write_bytes(packed(list(acks_of(group, rekey))))
    (local,) = daemon.sockets.open
    arguments = ("send", KEY_SERVER, local.port, PORT, path, 0)
    if live:
        began = time.monotonic()
        sending = asyncio.get_running_loop().run_in_executor(None, bound.run, *arguments)
        verified, durable = await _counted(daemon, group, rekey, began)
        await sending
    else:
        bound.run(*arguments)  # and the loop stands still meanwhile
        verified, durable = await _counted(daemon, group, rekey, time.monotonic())
    lost = len(rekey.expected) - len(rekey.acknowledged)
    return Round(verified, durable, lost)


async def _counted(
    daemon: KeyServerDaemon, group: Group, rekey: Rekey, began: float
) -> tuple[float, float]:
    """Seconds until all are verified, and durable; or until the rekey is given up."""
    page = daemon.engine.ledger.gate.page(group, rekey)
    wanted = len(rekey.expected)
    await until(lambda: page.heard.count(1) >= wanted or rekey.closed, every=LOOK)
    verified = time.monotonic() - began
    await until(lambda: len(rekey.acknowledged) >= wanted or rekey.closed, every=LOOK)
    return verified, time.monotonic() - began


def _bare(path: Path, members: int) -> float:
    """As many octets in as durable transactions, and nothing else: seconds."""
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("CREATE TABLE IF NOT EXISTS batches (serial INTEGER PRIMARY KEY, x BLOB)")
    began = time.monotonic()
    for start in range(0, members, BATCH):
        octets = os.urandom(ENTRY * min(BATCH, members - start))
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO batches (x) VALUES (?)", (octets,))
        connection.execute("COMMIT")
    taken = time.monotonic() - began
    connection.close()
    return taken
