"""The log in journald: a real one reads it, and one that is away or stands still harms nobody."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from gdoi_plugin.daemon.config_gcks import KeyServerDaemonConfig
from gdoi_plugin.daemon.journal import MAX_NAME, Journal
from gdoi_plugin.daemon.log import Log
from gdoi_plugin.daemon.shell import open_log
from tests.daemon.children import PATIENCE, running
from tests.daemon.configs import GCKS, PSK, gcks, swap, write
from tests.daemon.test_udp import free_port
from tests.support.journald import Journald, running_journald


@pytest.fixture(scope="module")
def journald() -> Iterator[Journald]:
    with running_journald() as process:
        yield process


def _log(journald: Journald, stream: io.StringIO | None = None) -> Log:
    return Log(stream or io.StringIO(), "debug", Journal("gdoi-test", journald.socket))


def test_fields(journald: Journald) -> None:
    stream = io.StringIO()
    log = _log(journald, stream)
    fields = {"group": "video", "member": "192.0.2.7", "rtt": 0.25, "kek-spi": "0a", "all": ["a"]}
    log.event("warning", "fields", fields)
    (entry,) = journald.wait_for("fields")
    assert (
        entry.items()
        >= {
            "MESSAGE": 'fields group=video member=192.0.2.7 rtt=0.25 kek-spi=0a all=["a"]',
            "PRIORITY": "4",
            "SYSLOG_IDENTIFIER": "gdoi-test",
            "GDOI_EVENT": "fields",
            "GDOI_GROUP": "video",
            "GDOI_MEMBER": "192.0.2.7",
            "GDOI_RTT": "0.25",
            "GDOI_KEK_SPI": "0a",
            "GDOI_ALL": '["a"]',
            "_PID": str(os.getpid()),
            "_TRANSPORT": "journal",
        }.items()
    )
    assert stream.getvalue() == ""
    assert journald.entries("GDOI_GROUP=video", "GDOI_MEMBER=192.0.2.7")
    log.close()


@pytest.mark.parametrize(("level", "priority"), [("debug", 7), ("info", 6), ("error", 3)])
def test_levels(journald: Journald, level: str, priority: int) -> None:
    log = _log(journald)
    log.event(level, f"level-{level}", {})
    (entry,) = journald.wait_for(f"level-{level}")
    assert (entry["PRIORITY"], entry["MESSAGE"]) == (str(priority), f"level-{level}")
    log.close()


EVIL = 'x"\nGDOI_EVENT=forged\nPRIORITY=0\r\n\x1b[2J\u2028\ud800\0'


def test_a_peer_writes_no_fields_of_its_own(journald: Journald) -> None:
    log = _log(journald)
    log.event("info", "evil", {"detail": EVIL, "k-ey" * 30: "long"})
    (entry,) = journald.wait_for("evil")
    assert journald.entries("GDOI_EVENT=forged") == []
    assert (entry["PRIORITY"], entry["GDOI_EVENT"]) == ("6", "evil")
    assert all(" " <= letter <= "~" for letter in entry["MESSAGE"]), "one line, and printable"
    octets = entry["GDOI_DETAIL"]  # not printable: journalctl gives an array of octets
    assert bytes(octets) == EVIL.encode("utf-8", "backslashreplace")
    assert entry[("GDOI_" + "K_EY" * 30)[:MAX_NAME]] == "long"
    log.close()


def test_what_no_datagram_has_room_for_comes_whole(journald: Journald) -> None:
    log = _log(journald)
    large = "x" * 700_000
    log.event("info", "large", {"detail": large})
    (entry,) = journald.wait_for("large")
    assert entry["GDOI_DETAIL"] == large
    log.close()


def test_a_flood_of_drops_is_bounded_here_too(journald: Journald) -> None:
    log = _log(journald)
    for _ in range(1000):
        log.dropped("malformed", "p", "d", 7.0)
    log.report(8.0)
    (more,) = journald.wait_for("dropped-more")
    assert int(more["GDOI_COUNT"]) + len(journald.entries("GDOI_EVENT=dropped")) == 1000
    log.close()


def test_without_a_journal_it_is_standard_error(tmp_path: Path) -> None:
    stream, path = io.StringIO(), tmp_path / "dead"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
    for place in (tmp_path / "none", path):
        journal = Journal("gdoi-test", place)
        Log(stream, "info", journal).event("info", place.name, {"group": "video"})
        journal.close()
    events = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert events == ["none", "dead"]


def test_a_journal_that_stands_still_is_not_waited_for(tmp_path: Path) -> None:
    """What was lost is said when there is room again."""
    path, stream = tmp_path / "journal", io.StringIO()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.setblocking(False)
        log = Log(stream, "info", Journal("gdoi-test", path))
        sent = 2000
        for number in range(sent):
            log.event("info", "one", {"number": number})
        waiting = []
        while True:
            try:
                waiting.append(sock.recv(1 << 16))
            except BlockingIOError:
                break
        assert 0 < len(waiting) < sent
        log.event("info", "two", {})
        lost, two = sock.recv(1 << 16), sock.recv(1 << 16)
    assert b"GDOI_EVENT=log-lost\nGDOI_COUNT=%d\n" % (sent - len(waiting)) in lost
    assert b"GDOI_EVENT=two\n" in two
    assert stream.getvalue() == ""
    log.close()


def _to_journal(
    monkeypatch: pytest.MonkeyPatch, place: Path | Literal["journal"] | None, stream: str
) -> bool:
    monkeypatch.setenv("JOURNAL_STREAM", stream)
    log = open_log(place, "info")
    there = log._journal is not None
    log.close()
    return there


def test_where_the_log_goes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As configured; to the journal by itself only where standard error is the journal."""
    found = os.fstat(2)
    own, other = f"{found.st_dev}:{found.st_ino}", f"{found.st_dev}:{found.st_ino + 1}"
    assert [_to_journal(monkeypatch, None, name) for name in (other, own, "rubbish")] == [
        False, True, False,
    ]  # fmt: skip
    assert not _to_journal(monkeypatch, tmp_path / "log", own)
    assert _to_journal(monkeypatch, "journal", other)
    journal = write(tmp_path, gcks("[key_server]\n", '[key_server]\nlog = "journal"\n'))
    assert KeyServerDaemonConfig(journal).settings.log == "journal"
    file = write(tmp_path, gcks("[key_server]\n", '[key_server]\nlog = "./journal"\n'))
    assert KeyServerDaemonConfig(file).settings.log == Path("journal")


def test_a_key_server_that_systemd_has_started(journald: Journald, tmp_path: Path) -> None:
    """systemd-cat connects standard error as systemd does; the shell says so as systemd does."""
    files = f'state = "{tmp_path}/gcks.sqlite"\ncontrol = "{tmp_path}/gcks.vici"'
    place = f'address = "127.0.0.1"\nport = {free_port()}\nnat_traversal = false\n{files}'
    config = write(tmp_path, swap(GCKS, 'address = "127.0.0.1"\n', f"{place}\n"))
    program = Path(sys.executable).with_name("gdoi-gcks")
    started = f'JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2) exec "{program}" --config "$0"'
    command = [*journald.inside, "systemd-cat", "--identifier=other", "sh", "-c", started, config]
    with running(command) as child:
        journald.wait_for("started")
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE) == 0
    entries = journald.entries("SYSLOG_IDENTIFIER=gdoi-gcks")
    events = [entry["GDOI_EVENT"] for entry in entries]
    assert events[-1] == "stopped"
    assert {"group-created", "started"} <= set(events)
    (created,) = journald.entries("GDOI_EVENT=group-created")
    assert (created["GDOI_GROUP"], created["PRIORITY"]) == ("video", "6")
    assert journald.entries("SYSLOG_IDENTIFIER=other") == []
    dump = [*journald.inside, "sh", "-c", "cat /run/log/journal/*/*"]
    octets = subprocess.run(dump, capture_output=True, check=True, timeout=PATIENCE).stdout
    assert b"GDOI_GROUP" in octets
    assert PSK.encode() not in octets
