"""A gdoi-gcks of its own process for a benchmark, and what it costs the processor."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdoi_lab.checkout import CHECKOUT, VENV, lab_environment

from gdoi_plugin.cli.client import Client, ClientError

START_LIMIT, STOP_LIMIT, ANSWER_LIMIT = 120.0, 120.0, 300.0
# What is measured does not outlive who measures, however that ends.
WITH_US = ("setpriv", "--pdeathsig", "KILL")


class NotRunning(Exception):
    """A program that is measured has not started, or has ended."""


def processor_seconds(pid: int) -> float:
    """What a process has used so far, all its threads: the clock that clock_getcpuclockid(3)
    names."""
    return time.clock_gettime((~pid << 3) | 2)


@dataclass(frozen=True, slots=True)
class RunningKeyServer:
    process: subprocess.Popen[bytes]
    control: Path
    log: Path
    started_in: float  # seconds from its start until it serves

    @property
    def processor(self) -> float:
        return processor_seconds(self.process.pid)

    @property
    def memory(self) -> float:
        """Megabytes of it that are in memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / 1e6

    def ask(self, command: str, **fields: str) -> dict[str, Any]:
        with Client(self.control, ANSWER_LIMIT) as client:
            return client.request(command, fields)

    def list(self, command: str, event: str, **fields: str) -> list[dict[str, Any]]:
        with Client(self.control, ANSWER_LIMIT) as client:
            return client.stream(command, event, fields)

    def check(self) -> None:
        """Raises NotRunning."""
        if self.process.poll() is not None:
            raise NotRunning(f"gdoi-gcks has ended: {_last_words(self.log)}")


@contextmanager
def key_server(config: Path, control: Path, log: Path) -> Iterator[RunningKeyServer]:
    """Until the end of the block. ``control`` and ``log`` are those that ``config`` names."""
    began = time.monotonic()
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*WITH_US, VENV / "bin" / "gdoi-gcks", "--config", config],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=CHECKOUT,
            env=lab_environment(),
        )
    try:
        _await(process, control, log)
        yield RunningKeyServer(process, control, log, time.monotonic() - began)
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await(process: subprocess.Popen[bytes], control: Path, log: Path) -> None:
    """Its control socket answers once it has taken its state up."""
    deadline = time.monotonic() + START_LIMIT
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            raise NotRunning(f"gdoi-gcks does not start: {_last_words(log)}")
        try:
            with Client(control, START_LIMIT) as client:
                client.request("version")
            return
        except ClientError:
            time.sleep(0.01)


def _last_words(log: Path) -> str:
    return log.read_text(errors="replace")[-1000:]
