"""The key server's memory: what was sent is never reused, what was counted is never lost.

SQLAlchemy Core over SQLite in WAL mode with ``synchronous=FULL``: a commit that has returned
survives a crash of the process and of the machine.
"""

from __future__ import annotations

import fcntl
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    URL,
    Column,
    Connection,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    delete,
    event,
    insert,
    inspect,
    select,
)
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import SQLAlchemyError

from ..protocol.actions import Persist
from ..protocol.group import LEDGER_LENGTH
from ..protocol.key_server import SavedGroup
from .errors import StoreError

SCHEMA_VERSION = 1

metadata = MetaData()
_version = Table("schema_version", metadata, Column("version", Integer, primary_key=True))
# KEKs, TEKs, SEQ and epoch of a group change together: one document.
_groups = Table(
    "groups",
    metadata,
    Column("group", Integer, primary_key=True, autoincrement=False),
    Column("record", JSON, nullable=False),
)
_members = Table(
    "members",
    metadata,
    Column("group", Integer, primary_key=True, autoincrement=False),
    Column("identity", String, primary_key=True),
    Column("record", JSON, nullable=False),
)
_rekeys = Table(
    "rekeys",
    metadata,
    Column("group", Integer, primary_key=True, autoincrement=False),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("record", JSON, nullable=False),
)
_acks = Table(
    "acks",
    metadata,
    Column("group", Integer, primary_key=True, autoincrement=False),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("identity", String, primary_key=True),
    Column("seq", Integer, nullable=False),
    Column("at", Float, nullable=False),
)
# The key trees of LKH groups, some nodes a row.
_pages = Table(
    "pages",
    metadata,
    Column("group", Integer, primary_key=True, autoincrement=False),
    Column("tree", Integer, primary_key=True, autoincrement=False),
    Column("page", Integer, primary_key=True, autoincrement=False),
    Column("record", JSON, nullable=False),
)
# The columns beside the document, by kind of record.
_DOCUMENTS = {
    "group": (_groups, ("group",)),
    "member": (_members, ("group", "identity")),
    "rekey": (_rekeys, ("group", "epoch")),
    "page": (_pages, ("group", "tree", "page")),
}


class Store:
    """One SQLite file, readable by its owner only: it holds keys."""

    def __init__(self, path: Path) -> None:
        """Raises StoreError naming the file."""
        self._path = path
        self._lock: int | None = _lock(path)
        # An error's text would show the parameters, and they hold keys.
        url = URL.create("sqlite", database=str(path))
        self._engine = create_engine(url, hide_parameters=True)
        event.listen(self._engine, "connect", _configure)
        try:
            with self._engine.begin() as connection:
                self._check_version(connection)
        except SQLAlchemyError as error:
            self.close()
            raise self._broken(error) from error
        except StoreError:
            self.close()
            raise

    def _check_version(self, connection: Connection) -> None:
        """A new file gets its tables; another program's, or another version's, is not touched."""
        tables = inspect(connection).get_table_names()
        if not tables:
            metadata.create_all(connection)
            connection.execute(insert(_version).values(version=SCHEMA_VERSION))
            return
        if _version.name not in tables:
            raise StoreError(f"{self._path}: a database, but not a key server's")
        found = connection.execute(select(_version.c.version)).scalar()
        if found != SCHEMA_VERSION:
            raise StoreError(
                f"{self._path}: schema version {found}, this program knows {SCHEMA_VERSION}"
            )
        metadata.create_all(connection)  # a file of the same schema from before it had key trees

    def save(self, records: Iterable[Persist]) -> None:
        """All in one durable transaction. Raises StoreError."""
        self._check_place()
        try:
            with self._engine.begin() as connection:
                for persist in records:
                    _write(connection, persist.kind, persist.record)
        except SQLAlchemyError as error:
            raise self._broken(error) from error

    def _check_place(self) -> None:
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

    def load(self) -> dict[int, SavedGroup]:
        """By group ID. Raises StoreError."""
        try:
            with self._engine.connect() as connection:
                return _load(connection)
        except (SQLAlchemyError, ValueError) as error:
            raise self._broken(error) from error

    def close(self) -> None:
        """Also twice."""
        self._engine.dispose()
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def _broken(self, error: Exception) -> StoreError:
        cause = getattr(error, "orig", None) or error
        return StoreError(f"{self._path}: {cause}")


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
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.close()


def _write(connection: Connection, kind: str, record: Mapping[str, Any]) -> None:
    if kind == "ack":
        connection.execute(upsert(_acks).values(**record).on_conflict_do_nothing())
        return
    if kind == "member-removed":
        chosen = (_members.c.group == record["group"]) & (_members.c.identity == record["identity"])
        connection.execute(delete(_members).where(chosen))
        return
    if kind == "pages-removed":
        connection.execute(delete(_pages).where(_pages.c.group == record["group"]))
        return
    table, keys = _DOCUMENTS[kind]
    values = {key: record[key] for key in keys} | {"record": dict(record)}
    statement = upsert(table).values(**values)
    connection.execute(
        statement.on_conflict_do_update(index_elements=keys, set_={"record": values["record"]})
    )
    if kind == "rekey":
        _prune(connection, record["group"], record["epoch"] - LEDGER_LENGTH)


def _prune(connection: Connection, group: int, epoch: int) -> None:
    for table in (_rekeys, _acks):
        old = (table.c.group == group) & (table.c.epoch <= epoch)
        connection.execute(delete(table).where(old))


def _load(connection: Connection) -> dict[int, SavedGroup]:
    members: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    rekeys: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    pages: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    acks: dict[int, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for group, record in connection.execute(select(_members.c.group, _members.c.record)):
        members[group].append(record)
    ordered = select(_rekeys.c.group, _rekeys.c.record).order_by(_rekeys.c.epoch)
    for group, record in connection.execute(ordered):
        rekeys[group].append(record)
    for group, record in connection.execute(select(_pages.c.group, _pages.c.record)):
        pages[group].append(record)
    for row in connection.execute(select(_acks)).mappings():
        acks[row["group"]][row["epoch"]][row["identity"]] = row["at"]
    return {
        group: SavedGroup(
            record, tuple(members[group]), tuple(rekeys[group]), acks[group], tuple(pages[group])
        )
        for group, record in connection.execute(select(_groups.c.group, _groups.c.record))
    }
