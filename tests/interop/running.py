"""Starting our daemons as processes for the interop tests, and asking them through gdoictl."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import vici

BIN = Path(sys.executable).parent
PATIENCE = 60.0

Record = dict[str, Any]


def wait_for(condition: Callable[[], object], what: str, limit: float = PATIENCE) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit:g} s for {what}"
        time.sleep(0.01)


class Daemon:
    """A daemon that has said it started, its log and its control socket."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, control: Path) -> None:
        self.process, self.log, self.control = process, log, control

    def events(self, *names: str) -> list[Record]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        found = [json.loads(line) for line in lines if line.endswith("}")]
        return [record for record in found if not names or record.get("event") in names]

    def ctl(self, *argv: str) -> Any:
        """What ``gdoictl --json`` says."""
        with self.start_ctl(*argv) as asked:
            return self.answer(asked)

    def start_ctl(self, *argv: str) -> subprocess.Popen[bytes]:
        command = [str(BIN / "gdoictl"), "--socket", str(self.control), "--json", *argv]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def ask(self, command: str, **request: str | list[str]) -> dict[str, Any]:
        """The same without a process: vici's protocol at the control socket."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
            control.settimeout(10)
            control.connect(str(self.control))
            return dict(vici.Session(control).request(command, request))

    @staticmethod
    def answer(asked: subprocess.Popen[bytes]) -> Any:
        with asked:
            said, _ = asked.communicate(timeout=60)
        return json.loads(said)


@contextmanager
def daemon(
    program: str, config: str, folder: Path, *, before: tuple[str, ...] = ()
) -> Iterator[Daemon]:
    """Our daemon `program` with this configuration; `before` stands ahead of its command line."""
    folder.mkdir(parents=True, exist_ok=True)
    path, log, control = folder / "config.toml", folder / "log", folder / "control"
    path.write_text(config.replace("@", str(folder)))
    path.chmod(0o600)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*before, str(BIN / program), "--config", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Daemon(process, log, control)
    try:
        wait_for(
            lambda: running.events("started") or process.poll() is not None, f"{program} to start"
        )
        assert process.poll() is None, log.read_text()
        yield running
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
