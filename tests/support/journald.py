"""A real systemd-journald in a mount namespace of its own, with its journal in memory."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE = 90.0
ID = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
CONFIG = """\
[Journal]
Storage=volatile
ReadKMsg=no
Audit=no
ForwardToSyslog=no
ForwardToWall=no
RateLimitBurst=0
"""
SETUP = f"""\
set -e
mount -t tmpfs none /run
mkdir -p /run/log/journal
echo {ID} >/run/machine-id
mount --bind /run/machine-id /etc/machine-id
mount -t tmpfs none /etc/systemd
cat >/etc/systemd/journald.conf
exec /lib/systemd/systemd-journald
"""


@dataclass(frozen=True, slots=True)
class Journald:
    pid: int

    @property
    def root(self) -> Path:
        """Its file system, as others see it."""
        return Path(f"/proc/{self.pid}/root")

    @property
    def socket(self) -> Path:
        return self.root / "run/systemd/journal/socket"

    @property
    def inside(self) -> list[str]:
        """Before a command that is to run where the journal is the host's."""
        return ["nsenter", "--mount", f"--target={self.pid}", "--"]

    def entries(self, *matches: str) -> list[dict[str, Any]]:
        """What journalctl finds in the journal's files."""
        command = ["journalctl", f"--directory=/run/log/journal/{ID}", "--output=json", "--all"]
        found = subprocess.run(
            [*self.inside, *command, "--no-pager", *matches],
            capture_output=True, text=True, check=True, timeout=PATIENCE,
        )  # fmt: skip
        return [json.loads(line) for line in found.stdout.splitlines()]

    def wait_for(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        deadline = time.monotonic() + PATIENCE
        while len(found := self.entries(f"GDOI_EVENT={event}")) < count:
            assert time.monotonic() < deadline, f"{event} is not in the journal"
            time.sleep(0.02)
        return found


@contextmanager
def running_journald() -> Iterator[Journald]:
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", SETUP], stdin=subprocess.PIPE, text=True
    )
    try:
        assert process.stdin is not None
        process.stdin.write(CONFIG)
        process.stdin.close()
        journald = Journald(process.pid)
        deadline = time.monotonic() + PATIENCE
        while not (journald.root / "run/machine-id").exists() or not journald.socket.exists():
            assert process.poll() is None, "journald does not run"
            assert time.monotonic() < deadline, "journald does not listen"
            time.sleep(0.01)
        yield journald
    finally:
        process.kill()
        process.wait()
