"""The key server's memory: what was sent is never reused, what was counted is never lost.

SQLAlchemy Core over SQLite in WAL mode with ``synchronous=FULL``: a commit that has returned
survives a crash of the process and of the machine.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
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
# The columns beside the document, by kind of record.
_DOCUMENTS = {
    "group": (_groups, ("group",)),
    "member": (_members, ("group", "identity")),
    "rekey": (_rekeys, ("group", "epoch")),
}


class Store:
    """One SQLite file, readable by its owner only: it holds keys."""

    def __init__(self, path: Path) -> None:
        """Raises StoreError naming the file."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            path.chmod(0o600)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error
        self._engine = create_engine(f"sqlite:///{path}")
        event.listen(self._engine, "connect", _configure)
        try:
            with self._engine.begin() as connection:
                metadata.create_all(connection)
                self._check_version(connection)
        except SQLAlchemyError as error:
            raise self._broken(error) from error

    def _check_version(self, connection: Connection) -> None:
        found = connection.execute(select(_version.c.version)).scalar()
        if found is None:
            connection.execute(insert(_version).values(version=SCHEMA_VERSION))
        elif found != SCHEMA_VERSION:
            raise StoreError(
                f"{self._path}: schema version {found}, this program knows {SCHEMA_VERSION}"
            )

    def save(self, records: Iterable[Persist]) -> None:
        """All in one durable transaction. Raises StoreError."""
        try:
            with self._engine.begin() as connection:
                for persist in records:
                    _write(connection, persist.kind, persist.record)
        except SQLAlchemyError as error:
            raise self._broken(error) from error

    def load(self) -> dict[int, SavedGroup]:
        """By group ID. Raises StoreError."""
        try:
            with self._engine.connect() as connection:
                return _load(connection)
        except (SQLAlchemyError, ValueError) as error:
            raise self._broken(error) from error

    def close(self) -> None:
        self._engine.dispose()

    def _broken(self, error: Exception) -> StoreError:
        cause = getattr(error, "orig", None) or error
        return StoreError(f"{self._path}: {cause}")


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
    acks: dict[int, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for group, record in connection.execute(select(_members.c.group, _members.c.record)):
        members[group].append(record)
    ordered = select(_rekeys.c.group, _rekeys.c.record).order_by(_rekeys.c.epoch)
    for group, record in connection.execute(ordered):
        rekeys[group].append(record)
    for row in connection.execute(select(_acks)).mappings():
        acks[row["group"]][row["epoch"]][row["identity"]] = row["at"]
    return {
        group: SavedGroup(record, tuple(members[group]), tuple(rekeys[group]), acks[group])
        for group, record in connection.execute(select(_groups.c.group, _groups.c.record))
    }
