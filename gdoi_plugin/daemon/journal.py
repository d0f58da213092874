"""journald's native protocol: an event of the log as a datagram of fields.

Source: systemd's "Native Journal Protocol". A field is ``NAME=value`` and a newline; a value that
has newlines itself comes as the name, a newline, its length in 64 bits, little-endian, and the
value. What is too large for a datagram is handed over in a sealed memfd.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
from array import array
from collections.abc import Iterator, Mapping
from json import JSONEncoder
from pathlib import Path

SOCKET = Path("/run/systemd/journal/socket")
# syslog(3)'s
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3}
# Octets of a field's name; journald ignores longer ones.
MAX_NAME = 64
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_TOO_LARGE = (errno.EMSGSIZE, errno.ENOBUFS)
# What needs no quotes in a line for people.
_PLAIN = re.compile(r"[\w.,:;/@*+=()\[\]<>-]+", re.ASCII)
_encode = JSONEncoder(ensure_ascii=True, default=str).encode


def is_stderr() -> bool:
    """Whether systemd has connected standard error to the journal, see systemd.exec(5)."""
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


class Journal:
    """``identifier`` is what ``journalctl -t`` asks for."""

    def __init__(self, identifier: str, path: Path = SOCKET) -> None:
        self._identifier, self._path = identifier, str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        # Events for which a journal that stands still had no room.
        self._lost = 0

    def send(self, level: str, name: str, fields: Mapping[str, object]) -> bool:
        """False where there is no journal. Never waits: what it has no room for is counted, and
        told when there is room again."""
        error = 0
        if self._lost:
            error = self._try("warning", "log-lost", {"count": self._lost})
            self._lost = self._lost if error else 0
        error = error or self._try(level, name, fields)
        if error == errno.EAGAIN:
            self._lost += 1
        return error in (0, errno.EAGAIN)

    def close(self) -> None:
        self._socket.close()

    def _try(self, level: str, name: str, fields: Mapping[str, object]) -> int:
        """errno, or 0."""
        octets = b"".join(_fields(self._identifier, level, name, fields))
        try:
            try:
                self._socket.sendto(octets, self._path)
            except OSError as error:
                if error.errno not in _TOO_LARGE:
                    raise
                self._hand_over(octets)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _hand_over(self, octets: bytes) -> None:
        file = os.memfd_create("gdoi-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with os.fdopen(os.dup(file), "wb") as out:
                out.write(octets)
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [file]))
            self._socket.sendmsg([], [rights], 0, self._path)
        finally:
            os.close(file)


def _fields(
    identifier: str, level: str, name: str, fields: Mapping[str, object]
) -> Iterator[bytes]:
    yield _field("MESSAGE", _line(name, fields))
    yield _field("PRIORITY", str(PRIORITIES[level]))
    yield _field("SYSLOG_IDENTIFIER", identifier)
    yield _field("GDOI_EVENT", name)
    for key, value in fields.items():
        yield _field(_name(key), value if isinstance(value, str) else _encode(value))


def _name(key: str) -> str:
    return f"GDOI_{re.sub('[^A-Z0-9]', '_', key.upper())}"[:MAX_NAME]


def _field(name: str, value: str) -> bytes:
    octets = value.encode("utf-8", "backslashreplace")
    if b"\n" not in octets:
        return b"%s=%s\n" % (name.encode(), octets)
    return b"%s\n%s%s\n" % (name.encode(), len(octets).to_bytes(8, "little"), octets)


def _line(name: str, fields: Mapping[str, object]) -> str:
    """One line, whatever a peer has put into a value."""
    return " ".join((name, *(f"{key}={_shown(value)}" for key, value in fields.items())))


def _shown(value: object) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    return _encode(value)
