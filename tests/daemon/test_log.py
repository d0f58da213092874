"""One JSON object a line, whatever is in it; a flood fills neither disk nor screen."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdoi_plugin.daemon.errors import StartError
from gdoi_plugin.daemon.keylog import KeyLogFile
from gdoi_plugin.daemon.log import DROPS_PER_SECOND, LEVELS, MAX_DETAIL, Log
from gdoi_plugin.daemon.shell import open_log

EVIL = 'x"}\n{"level": "info", "event": "registered"}\r\n\x1b[2J\x7f\x85\u2028\ud800\0'


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def test_a_line(stream: io.StringIO) -> None:
    Log(stream).event("warning", "ack-missing", {"seq": 3, "rtt": 0.5, "list": ["a"], "at": Path()})
    (line,) = lines(stream)
    moment = datetime.fromisoformat(line.pop("time"))
    assert abs(datetime.now(UTC) - moment) < timedelta(minutes=1)
    assert line == {
        "level": "warning", "event": "ack-missing", "seq": 3, "rtt": 0.5, "list": ["a"], "at": ".",
    }  # fmt: skip
    assert stream.getvalue().endswith("}\n")


@pytest.mark.parametrize("threshold", LEVELS)
def test_levels(stream: io.StringIO, threshold: str) -> None:
    log = Log(stream, threshold)
    for level in LEVELS:
        log.event(level, "e", {})
    order = list(LEVELS)
    assert [line["level"] for line in lines(stream)] == order[order.index(threshold) :]


@given(st.text() | st.just(EVIL), st.text(max_size=MAX_DETAIL) | st.just(EVIL))
def test_a_peer_writes_no_lines_of_its_own(peer: str, detail: str) -> None:
    stream = io.StringIO()
    Log(stream).dropped("malformed", peer, detail, 5.0)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert all(" " <= character <= "~" for character in text[:-1])
    (line,) = lines(stream)
    assert (line["event"], line["peer"], line["detail"]) == ("dropped", peer, detail)


def test_a_long_detail_is_cut(stream: io.StringIO) -> None:
    Log(stream).dropped("unknown-group", "p", "x" * 100_000, 5.0)
    assert len(lines(stream)[0]["detail"]) == MAX_DETAIL


def test_a_flood_of_drops(stream: io.StringIO) -> None:
    log = Log(stream)
    for _ in range(1000):
        log.dropped("malformed", "p", "d", 7.1)
    log.dropped("replay", "p", "d", 7.9)
    assert len(lines(stream)) == DROPS_PER_SECOND + 1
    log.report(7.99)
    assert len(lines(stream)) == DROPS_PER_SECOND + 1
    log.report(8.0)
    assert lines(stream)[-1].items() >= {
        "event": "dropped-more", "reason": "malformed", "count": 1000 - DROPS_PER_SECOND,
    }.items()  # fmt: skip
    log.dropped("malformed", "p", "d", 8.1)
    assert lines(stream)[-1]["event"] == "dropped"
    assert log.drops == {"malformed": 1001, "replay": 1}


def test_drops_below_the_threshold_are_counted(stream: io.StringIO) -> None:
    log = Log(stream, "error")
    for _ in range(50):
        log.dropped("malformed", "p", "d", 7.0)
    log.report(9.0)
    assert log.drops == {"malformed": 50}
    assert stream.getvalue() == ""


def test_closing_tells_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log.open(path)
    for _ in range(DROPS_PER_SECOND + 5):
        log.dropped("malformed", "p", "d", 7.0)
    log.close()
    assert json.loads(path.read_text().splitlines()[-1])["count"] == 5


def test_a_file_is_appended_to_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    log = open_log(path, "info")
    log.event("info", "one", {})
    assert [line[:6] for line in path.read_text().splitlines()] == ["before", '{"time']
    log.close()


def test_standard_error_stays_open(capsys: pytest.CaptureFixture[str]) -> None:
    log = open_log(None, "info")
    log.event("info", "one", {})
    log.close()
    assert not sys.stderr.closed
    assert '"one"' in capsys.readouterr().err


def test_a_full_disk_does_not_end_the_daemon() -> None:
    log = Log.open(Path("/dev/full"))
    log.event("info", "one", {})
    log.event("info", "two", {"fill": "x" * 100_000})
    log.dropped("malformed", "p", "d", 7.0)
    assert log.drops == {"malformed": 1}, "counted even so"
    log.close()


def test_a_log_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(StartError) as caught:
        open_log(tmp_path, "info")
    assert str(caught.value) == f"log {tmp_path}: Is a directory"


# -- the key log ---------------------------------------------------------------------------------


def test_key_log(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("0011223344556677,aa\n")
    path.chmod(0o644)
    mask = os.umask(0)
    try:
        log = KeyLogFile(path)
    finally:
        os.umask(mask)
    log.write(bytes(range(8)), bytes(range(16)))
    log.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    # Wireshark's ikev1_decryption_table: cookie of the initiator, key; hexadecimal, no quotes.
    assert path.read_text().splitlines() == [
        "0011223344556677,aa",
        "0001020304050607,000102030405060708090a0b0c0d0e0f",
    ]


def test_a_key_log_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(StartError) as caught:
        KeyLogFile(tmp_path)
    assert str(caught.value) == f"key log {tmp_path}: Is a directory"


# -- rotation ------------------------------------------------------------------------------------


def _events(path: Path) -> list[str]:
    return [json.loads(line)["event"] for line in path.read_text().splitlines()]


def test_a_file_that_was_renamed_is_opened_anew(tmp_path: Path) -> None:
    path, older = tmp_path / "log", tmp_path / "log.1"
    log = Log.open(path)
    log.event("info", "first", {})
    path.rename(older)
    log.event("info", "second", {})
    log.reopen()
    log.event("info", "third", {})
    log.reopen()  # nobody has renamed it
    log.event("info", "fourth", {})
    log.close()
    assert (_events(older), _events(path)) == (["first", "second"], ["third", "fourth"])


def test_a_file_that_cannot_be_opened_anew_is_kept(tmp_path: Path) -> None:
    path, older = tmp_path / "there" / "log", tmp_path / "gone" / "log"
    path.parent.mkdir()
    log = Log.open(path)
    path.parent.rename(older.parent)
    with pytest.raises(OSError, match="No such file"):
        log.reopen()
    log.event("info", "still", {})
    log.close()
    assert _events(older) == ["still"]


def test_a_pipe_without_a_reader_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = Log.open(path)
    os.close(reader)
    log.reopen()
    log.event("info", "nobody reads it", {})
    log.close()


def test_standard_error_stays(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log.open(None)
    log.reopen()
    log.event("info", "here", {})
    assert json.loads(capsys.readouterr().err)["event"] == "here"
