"""Workers side by side, what they report in a live table, and what they leave behind."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from rich.live import Live
from rich.table import Table

from tests.fuzz import corpus
from tests.fuzz.target import Target

CHECKOUT = Path(__file__).parents[2]
# libFuzzer: "#4096  NEW    cov: 137 ft: 301 corp: 42/1234b lim: 53 exec/s: 2048 rss: 44Mb ..."
_STATUS = re.compile(rb"#(\d+)\s+\w+.*?cov: (\d+).*?corp: (\d+)/.*?exec/s: (\d+)")
_DONE = re.compile(rb"stat::number_of_executed_units: (\d+)")
POLL = 0.5
# Python and the instrumentation take a second or two to start.
MIN_SECONDS = 5


@dataclass(slots=True)
class Worker:
    """One libFuzzer process; its log is read as it grows."""

    target: Target
    folder: Path
    seconds: int
    runs: int = 0
    edges: int = 0
    inputs: int = 0
    rate: int = 0
    state: str = "waiting"
    process: subprocess.Popen[bytes] | None = None
    _log: IO[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        inputs = self.folder / "corpus"
        corpus.unpack(self.target, inputs)
        path = self.folder / "log"
        options = [f"-max_total_time={self.seconds}", "-print_final_stats=1", "-timeout=20"]
        options += [f"-artifact_prefix={self.folder}/", "-rss_limit_mb=2048", str(inputs)]
        command = [sys.executable, "-m", "tests.fuzz.worker", self.target.name, *options]
        with path.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=CHECKOUT, stdout=log, stderr=log)
        self._log = path.open("rb")
        self.state = "running"

    def poll(self) -> bool:
        """True while it runs."""
        if self.process is None or self._log is None:
            return False
        code = self.process.poll()
        told = self._log.read()
        if found := _STATUS.findall(told):
            self.runs, self.edges, self.inputs, self.rate = map(int, found[-1])
        if done := _DONE.findall(told):
            self.runs = int(done[-1])
        if code is None:
            return True
        self._log.close()
        self.state = "done" if code == 0 else "FINDING" if self.findings else f"exit {code}"
        return False

    @property
    def findings(self) -> list[Path]:
        kinds = ("crash-*", "timeout-*", "oom-*", "slow-unit-*")
        return sorted(path for kind in kinds for path in self.folder.glob(kind))


def run(targets: Sequence[Target], seconds: float, jobs: int, folder: Path) -> list[Worker]:
    """Every target gets an equal part of ``seconds`` times ``jobs``."""
    each = max(MIN_SECONDS, int(seconds * jobs / len(targets)))
    workers = [Worker(target, folder / target.name, each) for target in targets]
    for worker in workers:
        worker.folder.mkdir(parents=True, exist_ok=True)
    waiting, running = list(workers), list[Worker]()
    try:
        with Live(table(workers), refresh_per_second=2) as live:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(waiting.pop(0))
                    running[-1].start()
                running = [worker for worker in running if worker.poll()]
                live.update(table(workers))
                time.sleep(POLL)
    finally:
        for worker in running:
            if worker.process is not None:
                worker.process.terminate()
                worker.process.wait()
    return workers


def table(workers: Sequence[Worker]) -> Table:
    made = Table("target", "runs", "exec/s", "edges", "corpus", "findings", "state")
    for w in workers:
        numbers = (w.runs, w.rate, w.edges, w.inputs, len(w.findings))
        made.add_row(w.target.name, *(f"{n:,}" for n in numbers), w.state)
    total = sum(w.runs for w in workers), sum(len(w.findings) for w in workers)
    made.add_section()
    made.add_row("all", f"{total[0]:,}", "", "", "", f"{total[1]:,}", "")
    return made


def keep(worker: Worker) -> int:
    """What libFuzzer kept, for each input reaches something that no other does: the shortest of
    them go into the repository."""
    found = (path.read_bytes() for path in (worker.folder / "corpus").iterdir())
    return corpus.keep(worker.target, found)
