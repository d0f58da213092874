"""What both daemons share: the order of a step, a store that fails, bugs, and a clean stop."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from gdoi_plugin.daemon.control import ControlError, ControlServer, Message, Trigger
from gdoi_plugin.daemon.errors import BugError, DaemonError, StartError, StoreError
from gdoi_plugin.daemon.keylog import KeyLogFile
from gdoi_plugin.daemon.log import DROPS_PER_SECOND, Log
from gdoi_plugin.daemon.shell import Shell
from gdoi_plugin.daemon.tasks import ended
from gdoi_plugin.daemon.udp import UdpSockets
from gdoi_plugin.protocol.actions import (
    ApplyKernel,
    Drop,
    Dropped,
    Event,
    KeyLog,
    Peer,
    Persist,
    Send,
)

PATIENCE = 90.0
THERE = Peer(ip_address("192.0.2.9"), 848)
HERE = Peer(ip_address("127.0.0.1"), 848)
SEND = Send(b"datagram", THERE, HERE)
EVENT = Event("told", {"n": 1})
KERNEL = ApplyKernel(1)


def record(number: int, **more: Any) -> Persist:
    return Persist("group", {"group": number, **more})


class Kept(io.StringIO):
    """Still to be read when the daemon has closed its log."""

    def close(self) -> None:
        pass


class Trial(Shell):
    """A daemon whose effects are written down, and whose parts fail when told to."""

    def __init__(self, folder: Path, keylog: KeyLogFile | None = None) -> None:
        self.stream = Kept()
        super().__init__(Log(self.stream, "debug"), keylog)
        self.done: list[str] = []
        self.saved: list[list[Persist]] = []
        self.broken: str | None = None
        self.bugs: dict[str, Exception] = {}
        self.due: float | None = None
        self.ticks = 0
        self.heard: list[bytes] = []
        self._control = ControlServer(
            folder / "c.vici",
            {"bug": self._command},
            None,
            ("told",),
            trace=self.trace_control,
        )

    @property
    def control(self) -> ControlServer:
        return self._control

    def _do(self, what: str) -> None:
        self.done.append(what)
        if what in self.bugs:
            raise self.bugs[what]

    def _command(self, _: Message) -> Message:
        self._do("command")
        return {}

    def begin(self) -> None:
        self._do("begin")

    def end(self) -> None:
        self._do("end")

    def close(self) -> None:
        self._do("close")

    def deadline(self) -> float | None:
        if "deadline" in self.bugs:
            raise self.bugs["deadline"]
        return self.due

    def tick(self, now: float) -> None:
        self.ticks += 1
        self.due = None
        self._do("tick")
        assert now > 0

    def receive(self, datagram: bytes, source: Peer, arrived: Peer) -> None:
        self.heard.append(datagram)
        if datagram == b"bug":
            raise self.bugs["receive"]
        self.perform([Dropped(Drop.MALFORMED, source, str(arrived))])

    def persist(self, records: Sequence[Persist]) -> None:
        if self.broken is not None:
            raise StoreError(self.broken)
        self.saved.append(list(records))
        self.done.append("saved")

    def _send(self, sends: list[Send]) -> None:
        assert all(send.datagram for send in sends)
        self.done += ["sent"] * len(sends)

    def _tell(self, action: Event) -> None:
        assert action.name
        self.done.append("told")

    @property
    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.log_lines if line["event"] == event]


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    made = Trial(tmp_path)
    made._begun = True
    return made


# -- one step ------------------------------------------------------------------------------------


def test_records_first_and_in_one_transaction(trial: Trial) -> None:
    first, second = record(1), record(2)
    assert trial.perform([SEND, first, EVENT, KERNEL, second]) == [KERNEL]
    assert trial.done == ["saved", "sent", "told"]
    assert trial.saved == [[first, second]]


def test_a_step_without_records_does_not_touch_the_store(trial: Trial) -> None:
    trial.perform([SEND, EVENT])
    assert trial.done == ["sent", "told"]


def test_a_failing_store_lets_nothing_out(trial: Trial) -> None:
    trial.broken = "/s: disk full"
    drop = Dropped(Drop.DUPLICATE, THERE, "x")
    # The kernel's work goes on: an engine waits for its answer.
    assert trial.perform([record(1), SEND, drop, EVENT, KERNEL]) == [KERNEL]
    assert trial.done == []
    assert trial.log.drops == {"duplicate": 1}
    assert [line["error"] for line in trial.logged("store-failed")] == ["/s: disk full"]
    assert trial.store_failure == "/s: disk full"


def test_nothing_leaves_until_what_failed_is_saved(trial: Trial) -> None:
    """An ACK that was held back, or an answer repeated, would promise what is not saved."""
    trial.broken = "/s: disk full"
    trial.perform([record(1), SEND])
    for _ in range(100):
        trial.perform([SEND, EVENT])
    assert trial.done == []
    assert len(trial.logged("store-failed")) == 1
    trial.broken = None
    trial.perform([SEND])
    assert trial.done == ["saved", "sent"]
    assert trial.saved == [[record(1)]]
    assert trial.store_failure is None
    assert len(trial.logged("store-recovered")) == 1
    trial.perform([SEND])
    assert len(trial.saved) == 1


def test_what_is_said_only_once_waits_for_the_store(trial: Trial) -> None:
    """A deleted group's Delete: nobody would ask for it again."""
    trial.broken = "/s: disk full"
    once = replace(SEND, once=True)
    trial.perform([record(1), once, SEND, EVENT])
    trial.perform([record(1, seq=2), once])
    assert trial.done == []
    trial.broken = None
    trial.perform([record(2)])
    assert trial.done == ["saved", "sent", "sent"]
    trial.perform([record(2)])
    assert trial.done == ["saved", "sent", "sent", "saved"]


def test_a_store_that_is_slow_to_fail_is_left_alone_for_as_long(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a database that is locked would take up all the time there is."""
    now = [100.0]
    tries: list[float] = []

    def locked(_: Sequence[Persist]) -> None:
        tries.append(now[0])
        now[0] += 5.0
        raise StoreError("/s: database is locked")

    monkeypatch.setattr("gdoi_plugin.daemon.shell.monotonic", lambda: now[0])
    with monkeypatch.context() as patch:
        patch.setattr(trial, "persist", locked)
        trial.perform([record(1), SEND])
        for step in range(2, 21):
            now[0] += 0.5
            trial.perform([record(step), SEND])
        assert tries == [100.0, 110.0]
    assert (trial.done, trial.store_failure) == ([], "/s: database is locked")
    now[0] += 5.0
    trial.perform([SEND])
    assert trial.done == ["saved", "sent"]
    assert trial.saved == [[record(step) for step in range(1, 21)]]


def test_of_unsaved_records_the_newest_of_each_counts(trial: Trial) -> None:
    trial.broken = "/s: disk full"
    for seq in range(50):
        trial.perform([record(1, seq=seq), record(2, seq=seq), SEND])
    other = Persist("member", {"group": 1, "identity": "a"})
    trial.perform([other, SEND])
    trial.broken = None
    trial.perform([record(2, seq=50), SEND])
    assert trial.saved == [[record(1, seq=49), other, record(2, seq=50)]]


def test_at_the_start_a_failing_store_is_the_end(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    trial.broken = "/s: disk full"
    with pytest.raises(StoreError, match="/s: disk full"):
        trial.perform([record(1), SEND])
    assert trial.done == []


def test_what_cannot_be_sent_is_logged_at_a_bounded_rate(trial: Trial) -> None:
    for _ in range(10 * DROPS_PER_SECOND):
        Shell._send(trial, [SEND])
    lines = trial.logged("send-failed")
    assert 1 <= len(lines) <= 3 * DROPS_PER_SECOND  # the second may turn meanwhile
    assert lines[0]["to"] == "192.0.2.9:848"
    assert lines[0]["error"] == "no socket bound to 127.0.0.1:848"


def test_what_is_true_once_sent_is_told_only_then(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ACK that could not leave was not given, and is not counted."""
    left: list[Send] = []
    monkeypatch.setattr(trial, "left", left.append)
    send = replace(SEND, told=Event("rekey-acknowledged", {}))
    Shell._send(trial, [send])
    assert (trial.done, left) == ([], [])
    monkeypatch.setattr(trial.sockets, "send", lambda *_: None)
    Shell._send(trial, [send])
    assert (trial.done, left) == (["told"], [send])


def test_a_key_log_that_is_full(tmp_path: Path) -> None:
    trial = Trial(tmp_path, KeyLogFile(Path("/dev/full")))
    trial.perform([KeyLog(bytes(8), b"k" * 16), SEND])
    assert trial.done == ["sent"]
    (line,) = trial.logged("keylog-failed")
    assert line["error"] == "No space left on device"


def test_keys_are_not_logged_unasked(trial: Trial) -> None:
    trial.perform([KeyLog(bytes(8), b"k" * 16)])
    assert trial.log_lines == []


# -- a whole life --------------------------------------------------------------------------------


def live(trial: Trial, then: Callable[[], Any]) -> None:
    """Runs until it stops by itself or ``then``, called once it has started, has stopped it."""

    async def main() -> None:
        running = asyncio.ensure_future(trial.run())
        deadline = time.monotonic() + PATIENCE
        while not trial.logged("started") and not running.done():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.002)
        if not running.done():
            result = then()
            if asyncio.iscoroutine(result):
                await result
        async with asyncio.timeout(PATIENCE):
            await running

    asyncio.run(main())


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_order_of_a_stop(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(tmp_path)
    for part, name in ((trial.sockets, "sockets closed"), (trial.control, "control closed")):
        close = part.close

        def noted(close: Any = close, name: str = name) -> Any:
            trial.done.append(name)
            return close()

        monkeypatch.setattr(part, "close", noted)
    live(trial, lambda: os.kill(os.getpid(), number))
    assert trial.done == ["begin", "end", "sockets closed", "control closed", "close"]
    assert [line["event"] for line in trial.log_lines] == ["started", "stopped"]
    assert not trial.control.path.exists()


@pytest.mark.parametrize("error", [StartError("no ESP"), StoreError("/s: not JSON")])
def test_a_start_that_fails(tmp_path: Path, error: DaemonError) -> None:
    trial = Trial(tmp_path)
    trial.bugs["begin"] = error
    with pytest.raises(type(error), match=str(error)):
        live(trial, terminate)
    assert trial.done == ["begin", "close"]
    assert trial.log_lines == []
    assert not trial.control.path.exists()


def test_another_daemon_has_the_control_socket(tmp_path: Path) -> None:
    first, second = Trial(tmp_path), Trial(tmp_path)

    async def start_second() -> None:
        with pytest.raises(ControlError, match="another daemon is serving it") as caught:
            await second.run()
        assert isinstance(caught.value, DaemonError)
        assert second.done == ["close"]
        assert first.control.path.exists()
        # The signal handlers are the second's now.
        first._stop.set()

    live(first, start_second)


def test_ticks_come_at_their_time(tmp_path: Path) -> None:
    trial = Trial(tmp_path)

    async def wait() -> None:
        start = trial.clock.now()
        trial.due = start + 0.05
        trial.perform([])  # an action may move the deadline: the timer looks again
        deadline = time.monotonic() + PATIENCE
        while not trial.ticks:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.002)
        assert trial.clock.now() >= start + 0.05
        terminate()

    live(trial, wait)
    assert trial.ticks == 1


# -- bugs ----------------------------------------------------------------------------------------

BUG = ZeroDivisionError("a bug")


@pytest.mark.parametrize("place", ["begin", "tick", "deadline", "end"])
def test_a_bug_ends_the_daemon_and_says_where(tmp_path: Path, place: str) -> None:
    trial = Trial(tmp_path)
    trial.bugs[place] = BUG
    trial.due = 1.0
    with pytest.raises(BugError) as caught:
        live(trial, terminate)
    assert str(caught.value) == "stopped by a bug, ZeroDivisionError; the log says where"
    assert caught.value.exit_code == 70
    assert trial.done[-1] == "close"
    assert ("end" in trial.done) == (place == "end")
    (line,) = trial.logged("bug")
    assert (line["level"], line["error"]) == ("error", "ZeroDivisionError: a bug")
    assert any(where.startswith("test_shell.py:") for where in line["where"])
    assert not trial.control.path.exists()


def test_a_bug_in_a_callback_of_the_loop_ends_the_daemon(tmp_path: Path) -> None:
    """asyncio alone would print it and go on, blind."""
    trial = Trial(tmp_path)

    def fail() -> None:
        raise BUG

    with pytest.raises(BugError):
        live(trial, lambda: asyncio.get_running_loop().call_soon(fail))
    assert len(trial.logged("bug")) == 1
    assert trial.done == ["begin", "close"]


def test_trouble_of_the_host_does_not(tmp_path: Path) -> None:
    """asyncio reports "no more file descriptors" in accept() the same way, and tries again."""
    trial = Trial(tmp_path)

    def report() -> None:
        context = {"message": "socket.accept()", "exception": OSError(24, "Too many open files")}
        asyncio.get_running_loop().call_exception_handler(context)
        asyncio.get_running_loop().call_exception_handler({"message": "no exception"})
        terminate()

    live(trial, report)
    assert [line["message"] for line in trial.logged("loop")] == ["socket.accept()", "no exception"]
    assert trial.done == ["begin", "end", "close"]


def test_a_task_that_ends_is_the_end_whatever_ended_it(tmp_path: Path) -> None:
    """Nobody begins it again."""
    trial = Trial(tmp_path)

    async def watch() -> None:
        raise OSError(24, "Too many open files")

    def begin() -> None:
        asyncio.get_running_loop().create_task(watch()).add_done_callback(ended)

    with pytest.raises(BugError):
        live(trial, begin)
    (bug,) = trial.logged("bug")
    assert "Too many open files" in bug["error"]
    assert any("watch" in place for place in bug["where"])


def test_a_datagram_that_meets_a_bug_is_counted_and_the_next_is_heard(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    trial.bugs["receive"] = BUG
    count = 5 * DROPS_PER_SECOND

    async def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        local = Peer(ip_address("127.0.0.1"), port)
        trial.sockets.bind(local, "lo")
        other = UdpSockets(lambda *_: None)
        source = Peer(ip_address("127.0.0.2"), port)
        other.bind(source, "lo")
        for _ in range(count):
            other.send(b"bug", local, source)
        other.send(b"good", local, source)
        deadline = time.monotonic() + PATIENCE
        while b"good" not in trial.heard:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.002)
        other.close()
        terminate()

    live(trial, send)
    assert trial.log.drops == {"bug": count, "malformed": 1}
    lines = trial.logged("bug")
    first, last = (datetime.fromisoformat(lines[n]["time"]) for n in (0, -1))
    seconds = (last - first).total_seconds()
    assert DROPS_PER_SECOND <= len(lines) <= DROPS_PER_SECOND * (2 + seconds)
    assert lines[0]["peer"].startswith("127.0.0.2:")
    assert lines[0]["error"] == "ZeroDivisionError: a bug"
    assert trial.done == ["begin", "end", "close"]


def test_a_bug_in_a_command_is_no_detail_for_debugging(trial: Trial) -> None:
    trial.trace_control(Trigger.HANDLER_FAILED, "x")
    trial.trace_control(Trigger.BAD_PACKET, "y")
    assert [line["level"] for line in trial.logged("control")] == ["error", "debug"]


def test_no_text_of_a_cause_reaches_the_log(tmp_path: Path) -> None:
    """What wrapped an error may quote a record; only the last error's own words are told."""
    trial = Trial(tmp_path)
    trial.bugs["tick"] = BUG
    BUG.__cause__ = ValueError("5ec2e75ec2e7")
    trial.due = 1.0
    try:
        with pytest.raises(BugError):
            live(trial, terminate)
    finally:
        BUG.__cause__ = None
    assert "5ec2e7" not in trial.stream.getvalue()


def test_a_log_that_cannot_be_opened_anew_says_so_and_goes_on(trial: Trial, tmp_path: Path) -> None:
    folder, gone = tmp_path / "logs", tmp_path / "gone"
    folder.mkdir()
    trial.log = Log.open(folder / "log")
    folder.rename(gone)
    with trial.reloading():
        pass
    line = json.loads((gone / "log").read_text())
    assert (line["event"], line["error"]) == ("log-not-reopened", "No such file or directory")
    trial.log.close()
