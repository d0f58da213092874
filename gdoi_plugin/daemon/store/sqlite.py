"""The SQLite file: WAL mode with ``synchronous=FULL``, so a commit that has returned survives a
crash of the process and of the machine."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event

from ..errors import StoreError


class SqliteFile:
    """Readable by its owner only: it holds keys. Locked for this process."""

    def __init__(self, path: Path) -> None:
        """Raises StoreError naming the file."""
        self.name = str(path)
        self._path = path
        self._lock: int | None = _lock(path)

    def engine(self) -> Engine:
        url = URL.create("sqlite", database=str(self._path))
        # An error's text would show the parameters, and they hold keys.
        engine = create_engine(url, hide_parameters=True)
        event.listen(engine, "connect", _configure)
        event.listen(engine, "begin", _begin)
        return engine

    def prepare(self, connection: Connection) -> None:
        """It is locked already."""

    def clean(self, engine: Engine) -> None:
        """Neither in the log nor in free pages. Raises StoreError."""
        try:
            with closing(engine.raw_connection()) as connection:
                cursor = connection.cursor()
                cursor.execute("VACUUM")
                busy, *_ = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: {error}") from error
        if busy:
            what = "another process reads it, so what it held before it was sealed is still there"
            raise StoreError(f"{self._path}: {what}")

    def check(self) -> None:
        """A file that was deleted or replaced takes every commit, and keeps none of them."""
        if self._lock is None:
            raise StoreError(f"{self._path}: closed")
        mine = os.fstat(self._lock)
        try:
            there = self._path.stat()
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}") from error
        if (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino):
            raise StoreError(f"{self._path}: another file has taken its place")

    def close(self) -> None:
        """Also twice; after the engine is disposed of."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)


def _lock(path: Path) -> int:
    """The file, made if need be, for one process alone: two would give the same SEQ out twice.

    flock(2), which SQLite's own locks (fcntl) do not touch. The descriptor stays open until SQLite
    has let go of the file: closing it earlier would drop those.
    """
    descriptor = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        os.fchmod(descriptor, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        taken = isinstance(error, BlockingIOError)
        reason = "another key server is using it" if taken else error.strerror
        raise StoreError(f"{path}: {reason}") from error
    return descriptor


def _configure(connection: Any, _: object) -> None:
    # Python's module would begin transactions by itself, too late for tables that are changed.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.execute("PRAGMA secure_delete=ON")
    cursor.close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
