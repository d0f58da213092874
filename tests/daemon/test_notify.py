"""What systemd is told, on datagram sockets as it has them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gdoi_plugin.daemon.errors import StartError
from gdoi_plugin.daemon.notify import MAX_STATUS, Notifier
from tests.daemon.children import PATIENCE, eventually, finished, running
from tests.daemon.test_processes import BIN, Server
from tests.daemon.test_shell import Trial, live, record, terminate


class Manager:
    """The service manager's end."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.said: list[str] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(address.replace("@", "\0", 1))
        self._sock.setblocking(False)

    def hear(self) -> list[str]:
        """All that has come since the last time."""
        new: list[str] = []
        while True:
            try:
                new += self._sock.recv(1 << 16).decode().split("\n")
            except BlockingIOError:
                self.said += new
                return new

    def heard(self, word: str) -> bool:
        self.hear()
        return word in self.said

    def close(self) -> None:
        self._sock.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    path = str(tmp_path / "notify")
    made = Manager(path if request.param == "path" else f"@{path}")
    yield made
    made.close()


def environment(manager: Manager, watchdog: float | None = None) -> dict[str, str]:
    there = {"NOTIFY_SOCKET": manager.address}
    if watchdog is not None:
        there["WATCHDOG_USEC"] = str(round(watchdog * 1e6))
    return there


def test_each_word_as_systemd_reads_it(manager: Manager) -> None:
    notifier = Notifier.of(environment(manager))
    notifier.ready("2 groups")
    assert manager.hear() == ["READY=1", "STATUS=2 groups"]
    notifier.status("2 groups")
    assert manager.hear() == []
    notifier.status("3 groups")
    assert manager.hear() == ["STATUS=3 groups"]
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    word, moment = manager.hear()
    name, _, value = moment.partition("=")
    assert (word, name) == ("RELOADING=1", "MONOTONIC_USEC")
    assert before <= int(value) <= time.monotonic_ns() // 1000
    notifier.stopping()
    assert manager.hear() == ["STOPPING=1", "STATUS=stopping"]
    assert notifier.alive() is None
    assert manager.hear() == []


def test_a_status_is_one_line_of_bounded_length(manager: Manager) -> None:
    """It may quote a configuration: nobody's text says READY for us."""
    notifier = Notifier.of(environment(manager))
    notifier.failed("key\nREADY=1\n\udcff" + "é" * MAX_STATUS)
    (line,) = manager.hear()
    assert line.startswith("STATUS=key READY=1 ")
    assert len(line.encode()) <= MAX_STATUS + len("STATUS=")


@pytest.mark.parametrize("address", ["", "notify", "@", "vsock:2:1", "/nowhere/notify", "@nobody"])
def test_nobody_listens(address: str) -> None:
    notifier = Notifier.of({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    notifier.ready("a")
    notifier.reloading()
    notifier.stopping()
    assert notifier.listened == (address in ("/nowhere/notify", "@nobody"))
    assert Notifier.of({}).alive() is None


def test_a_manager_that_does_not_read_holds_nobody_up(manager: Manager) -> None:
    notifier = Notifier.of(environment(manager))
    for number in range(10_000):
        notifier.status(str(number))
    assert len(manager.hear()) < 10_000


def test_what_a_full_queue_had_no_room_for_is_said_again(manager: Manager) -> None:
    """Without READY=1 systemd would kill a daemon that serves."""
    notifier = Notifier.of(environment(manager))

    def fill() -> None:
        for number in range(10_000):
            notifier.status(str(number))

    fill()
    notifier.ready("serving")
    notifier.status("serving")
    assert "READY=1" not in manager.hear()
    notifier.status("serving")
    assert manager.hear() == ["READY=1", "STATUS=serving"]
    fill()
    for _ in range(3):
        notifier.reloading()
        notifier.ready("reloaded")
    words = [word.partition("=")[0] for word in manager.hear()]
    assert set(words) == {"STATUS"}
    notifier.status("reloaded")
    words = [word.partition("=")[0] for word in manager.hear()]
    assert words == ["RELOADING", "MONOTONIC_USEC", "READY", "STATUS"]
    notifier.status("reloaded")
    assert manager.hear() == []


@pytest.mark.parametrize(
    ("more", "every"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_who_is_waited_for(manager: Manager, more: dict[str, str], every: float | None) -> None:
    notifier = Notifier.of(environment(manager) | more)
    assert notifier.watchdog == every
    left = notifier.alive()
    assert (left is None) == (every is None)
    assert manager.hear() == (["WATCHDOG=1"] if every else [])
    notifier.alive()
    assert manager.hear() == []


# -- the shell -----------------------------------------------------------------------------------


@pytest.fixture
def trial(manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    for name, value in environment(manager, 0.02).items():
        monkeypatch.setenv(name, value)
    return Trial(tmp_path)


async def _heard(manager: Manager, word: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while not manager.heard(word):  # noqa: ASYNC110 -- a socket, not the loop's
            await asyncio.sleep(0.002)


def test_a_life(trial: Trial, manager: Manager) -> None:
    async def check() -> None:
        assert trial.done == ["begin"]
        assert trial.control.path.exists()
        await _heard(manager, "READY=1")
        await _heard(manager, "WATCHDOG=1")
        terminate()

    live(trial, check)
    manager.hear()
    assert manager.said[:2] == ["READY=1", "STATUS=running"]
    assert manager.said[-2:] == ["STOPPING=1", "STATUS=stopping"]


def test_a_start_that_fails_is_never_ready(trial: Trial, manager: Manager) -> None:
    trial.bugs["begin"] = StartError("no ESP")
    with pytest.raises(StartError):
        live(trial, terminate)
    assert manager.hear() == []


def test_a_loop_that_hangs_gives_no_sign_of_life(trial: Trial, manager: Manager) -> None:
    async def hang() -> None:
        await _heard(manager, "WATCHDOG=1")
        manager.hear()
        time.sleep(0.2)  # noqa: ASYNC251 -- ten times as long as the watchdog waits
        assert manager.hear() == []
        await asyncio.sleep(0)
        manager.said.clear()
        await _heard(manager, "WATCHDOG=1")
        terminate()

    live(trial, hang)


def test_timers_that_hang_give_none_either(
    trial: Trial, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the loop turns, but no deadline is kept any more."""
    stuck, entered = asyncio.Event(), asyncio.Event()

    async def wait(*_: object, **__: object) -> None:
        entered.set()
        await stuck.wait()

    async def hang() -> None:
        await _heard(manager, "WATCHDOG=1")
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "wait", wait)
            async with asyncio.timeout(PATIENCE):
                await entered.wait()
            manager.hear()
            for _ in range(10):
                await asyncio.sleep(0.02)
                assert manager.hear() == []
        manager.said.clear()
        stuck.set()
        await _heard(manager, "WATCHDOG=1")
        terminate()

    live(trial, hang)


def test_what_cannot_be_saved_is_shown(
    trial: Trial, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gdoi_plugin.daemon.shell.STATUS_EVERY", 0.01)

    async def fail() -> None:
        trial.broken = "/s: disk full"
        trial.perform([record(1)])
        await _heard(manager, "STATUS=nothing can be saved: /s: disk full")
        trial.broken = None
        trial.perform([record(2)])
        manager.said.clear()
        await _heard(manager, "STATUS=running")
        terminate()

    live(trial, fail)


# -- the daemons ---------------------------------------------------------------------------------


def test_a_key_server_reloads_pauses_and_ends(tmp_path: Path) -> None:
    manager, server = Manager(str(tmp_path / "notify")), Server(tmp_path)
    there = os.environ | environment(manager, 0.5)
    command = [BIN / "gdoi-gcks", "--config", server.config]
    try:
        with running(command, env=there) as child:
            eventually(lambda: manager.heard("READY=1"), "it is ready")
            assert "STATUS=1 groups, 0 members" in manager.said
            assert server.group()["members"] == "0"
            eventually(lambda: manager.heard("WATCHDOG=1"), "it is alive")
            for text in (server.config.read_text(), "rubbish"):
                server.config.write_text(text)
                manager.said.clear()
                child.send_signal(signal.SIGHUP)
                eventually(lambda: manager.heard("READY=1"), "it has been reloaded")
                words = [word.partition("=")[0] for word in manager.said]
                assert words.index("RELOADING") < words.index("MONOTONIC_USEC")
                assert words.index("MONOTONIC_USEC") < words.index("READY")
            child.send_signal(signal.SIGSTOP)
            stat = Path(f"/proc/{child.pid}/stat")
            eventually(lambda: ") T " in stat.read_text(), "it stands still")
            manager.hear()
            time.sleep(1.5)
            assert manager.hear() == []
            child.send_signal(signal.SIGCONT)
            manager.said.clear()
            eventually(lambda: manager.heard("WATCHDOG=1"), "it goes on")
            child.terminate()
            assert child.wait(PATIENCE) == 0
            assert manager.hear()[-2:] == ["STOPPING=1", "STATUS=stopping"]
    finally:
        manager.close()


@pytest.mark.parametrize("program", ["gdoi-gm", "gdoi-gcks"])
def test_why_it_did_not_start_is_the_units_status(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = Manager(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    done = finished([BIN / program, "--config", tmp_path / "none.toml"])
    assert done.returncode == 2
    assert manager.hear() == [f"STATUS={tmp_path}/none.toml: No such file or directory"]
    manager.close()
