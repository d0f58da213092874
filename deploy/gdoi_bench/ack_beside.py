"""Acknowledgements that other processes read beside the key server, and C on as many processors.

The processes stand still until their receive buffers are full: who sends takes no time of theirs.
Times are the clock's: the key server, which counts, and its processes share the machine.
"""

from __future__ import annotations

import fcntl
import os
import signal
import statistics
import struct
import termios
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from gdoi_bench.acking import KEY_SERVER, acks_of, daemon_in, enrol, packed, running, until
from gdoi_bench.bound import Bound
from gdoi_bench.figure import Figure
from gdoi_bench.in_c import drained
from gdoi_plugin.daemon.ack_workers import AckWorkers

PROCESSES = 2
LOOK = 0.005  # seconds


async def measure(folder: Path, bound: Bound, members: int, port: int, rounds: int) -> list[Figure]:
    daemon = daemon_in(folder, f"ack_processes = {PROCESSES}")
    ours, one, several = list[float](), list[float](), list[float]()
    path, parts = folder / "acks", [folder / f"acks-{n}" for n in range(PROCESSES)]
    async with running(daemon) as group:
        enrol(daemon, members, port)
        workers = daemon.acks.workers
        if workers is None:
            raise AssertionError("no process reads ACKs")
        (local,) = daemon.sockets.open
        for _ in range(rounds):
            daemon.commands.rekey({"group": "many"})
            rekey = group.ledger[group.epoch]
            acks = list(acks_of(group, rekey))
            path.write_bytes(packed(acks))
            for number, part in enumerate(parts):
                part.write_bytes(packed(acks[number::PROCESSES]))
            await until(lambda: daemon.acks._preparing is None and _told(workers))
            with _stopped(workers.pids):
                bound.run("send", KEY_SERVER, local.port, port, path, 0)
                page = daemon.engine.ledger.gate.page(group, rekey)
                began = time.monotonic()
            await until(lambda p=page: p.heard.count(1) >= members, every=LOOK)  # type: ignore[misc]
            ours.append(members / (time.monotonic() - began))
            await until(lambda r=rekey: r.closed)  # type: ignore[misc]
            one.append(drained(bound, path, group, rekey))
            with ThreadPoolExecutor(PROCESSES) as pool:
                rates = pool.map(partial(drained, bound, group=group, rekey=rekey), parts)
                several.append(sum(rates))
    rate = statistics.median(ours)
    what = f"{members:,} ACKs read by {PROCESSES} processes and counted; bound: C"
    return [
        Figure(f"{what} on one processor", rate, "ACK/s", bound=statistics.median(one)),
        Figure(f"{what} on {PROCESSES}", rate, "ACK/s", bound=statistics.median(several)),
    ]


def _told(workers: AckWorkers) -> bool:
    """All of them have taken every order."""
    return all(
        worker._end is not None and not worker._orders and not _waiting(worker._end.fileno())
        for worker in workers._workers
    )


def _waiting(fd: int) -> int:
    """Octets that the other end has not read."""
    (octets,) = struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)))
    return int(octets)


@contextmanager
def _stopped(pids: Sequence[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
