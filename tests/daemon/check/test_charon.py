"""Sockets behind which charon is gone, hangs, or is something else. One that works: test_ports."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gdoi_plugin.daemon.check import charon
from gdoi_plugin.daemon.check.charon import check_charon

from .mending import FAIL, WARN


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        yield server


def test_where_nobody_needs_it(tmp_path: Path) -> None:
    assert not list(check_charon(tmp_path / "vici", needed=False))


def test_it_is_not_there(tmp_path: Path) -> None:
    (found,) = check_charon(tmp_path / "vici", needed=True)
    assert found.verdict is FAIL
    assert "charon does not run here" in found.found
    assert found.mend.startswith("apt-get install charon-systemd ")


def test_it_has_ended(tmp_path: Path) -> None:
    with listening(tmp_path / "vici"):
        pass
    (found,) = check_charon(tmp_path / "vici", needed=False)
    assert found.verdict is WARN
    assert "Connection refused" in found.found
    assert found.mend == "systemctl restart strongswan"


def test_it_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes the connection, and nobody answers."""
    monkeypatch.setattr(charon, "LIMIT", 0.2)
    with listening(tmp_path / "vici"):
        (found,) = check_charon(tmp_path / "vici", needed=True)
    assert (found.verdict, found.mend) == (FAIL, "systemctl restart strongswan")
    assert "no answer within 0.2 s" in found.found


@pytest.mark.parametrize(
    ("octets", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "a packet of 1213486160 octets"),
        (b"\0\0\0\1\x63", "unknown packet type 99"),
        (b"\0\0\0\5\1\3", "charon closed the connection"),
    ],
    ids=["another protocol", "rubbish", "cut short"],
)
def test_something_else_answers(tmp_path: Path, octets: bytes, said: str) -> None:
    with listening(tmp_path / "vici") as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(octets)

        thread = threading.Thread(target=answer)
        thread.start()
        (found,) = check_charon(tmp_path / "vici", needed=True)
        thread.join()
    assert found.verdict is FAIL
    assert said in found.found
