"""What gdoictl shows: a group's policy, and lists that are looked at again and again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gdoi_plugin.daemon.control import Message, to_message
from tests.cli.test_gdoictl import PATIENCE, PROGRAM, Daemon, one, run

POLICY: dict[str, object] = {
    "group": "substation",
    "epoch": 4,
    "silence": {"log": 1, "alert": 3},
    "members": ["gm1", "gm2"],
    "rekey-sas": {"0102": {"algorithm": "aes256", "seq": 12, "lifetime": 86400}},
    "data-sas": {
        "0x00000100": {"destination": "239.1.1.1", "algorithm": "aes256-sha256", "lifetime": 3600}
    },
}


class WithPolicy(Daemon):
    def serve(self, path: Path) -> Any:
        server = super().serve(path)
        server._commands["get-policy"] = self.policy
        return server

    def policy(self, request: Message) -> Message:
        self.asked.append(("get-policy", request))
        return to_message(POLICY)


def test_policy(tmp_path: Path) -> None:
    gcks = WithPolicy()
    result = one(tmp_path, "policy", "--group", "7", gcks=gcks)
    assert (result.code, result.err) == (0, "")
    lines = [re.sub(r" {2,}", " | ", line.strip()) for line in result.out.splitlines()]
    assert lines == [
        "group: substation",
        "epoch: 4",
        "silence.log: 1",
        "silence.alert: 3",
        "members: gm1, gm2",
        "",
        "Rekey SA | algorithm | seq | lifetime",
        "0102 | aes256 | 12 | 1d 0h",
        "",
        "data SA | destination | algorithm | lifetime",
        "0x00000100 | 239.1.1.1 | aes256-sha256 | 1h 0m",
    ]
    assert gcks.asked == [("get-policy", {"group": "7"})]
    (shown,) = one(tmp_path, "--json", "policy", gcks=WithPolicy()).json
    assert shown == json.loads(json.dumps(to_message(POLICY)))


@contextlib.asynccontextmanager
async def watching(folder: Path, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """gdoictl that looks again and again, interrupted in the end."""
    command = [sys.executable, "-c", PROGRAM, str(folder), *words]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    try:
        yield process
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), PATIENCE)
        assert process.returncode == 0
        assert b"Traceback" not in err
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), PATIENCE)).decode()


def test_a_list_is_looked_at_until_interrupted(tmp_path: Path) -> None:
    gcks = Daemon()

    async def scenario() -> None:
        async with watching(tmp_path, "members", "--watch", "0.05", "--json") as process:
            assert len(json.loads(await line(process))["items"]) == 3
            gcks.members.pop()
            while len(json.loads(await line(process))["items"]) != 2:
                pass
        async with watching(tmp_path, "members", "--watch", "0.05") as process:
            assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\n", await line(process))
            assert (await line(process)).split()[:2] == ["group", "identity"]

    run(tmp_path, scenario, gcks=gcks)


def test_a_daemon_that_is_away_is_waited_for(tmp_path: Path) -> None:
    first = Daemon()

    async def scenario() -> None:
        async with watching(tmp_path, "status", "--watch", "0.05", "--json") as process:
            assert json.loads(await line(process))["items"][0]["version"]["daemon"] == "gdoi-gcks"
            assert first.server is not None
            await first.server.close()
            assert process.stderr is not None
            said = await asyncio.wait_for(process.stderr.readline(), PATIENCE)
            assert b"gcks.vici" in said
            second = Daemon("gdoi-gcks", members=[])
            server = second.serve(tmp_path / "gcks.vici")
            await server.start()
            while b"gcks.vici" in await asyncio.wait_for(process.stdout.readline(), PATIENCE):  # type: ignore[union-attr]
                break
            await server.close()

    run(tmp_path, scenario, gcks=first)


@pytest.mark.parametrize("command", ["status", "members", "rekeys", "sas"])
def test_on_a_terminal_the_screen_is_drawn_anew(tmp_path: Path, command: str) -> None:
    """And the terminal is as before when it ends."""
    gcks = Daemon()
    shown = bytearray()

    async def scenario() -> None:
        parent, child = pty.openpty()
        words = [sys.executable, "-c", PROGRAM, str(tmp_path), command, "--watch", "0.05"]
        process = await asyncio.create_subprocess_exec(
            *words, stdin=child, stdout=child, stderr=child, env={**os.environ, "TERM": "xterm"}
        )
        os.close(child)
        os.set_blocking(parent, False)
        deadline = time.monotonic() + PATIENCE
        while shown.count(b"Ctrl-C ends") < 3:
            assert time.monotonic() < deadline, shown
            with contextlib.suppress(BlockingIOError):
                shown.extend(os.read(parent, 65536))
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), PATIENCE) == 0
        with contextlib.suppress(OSError):
            shown.extend(os.read(parent, 65536))
        os.close(parent)

    run(tmp_path, scenario, gcks=gcks)
    assert shown.index(b"\x1b[?1049h") < shown.rindex(b"\x1b[?1049l")
    assert b"Traceback" not in shown
