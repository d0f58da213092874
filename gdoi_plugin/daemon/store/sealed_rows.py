"""A whole database gets another seal: its first one, or that of a new master key."""

from __future__ import annotations

import json

from sqlalchemy import Column, Connection, Table, delete, insert, select, update

from ..errors import StoreError
from .schema import groups, members, metadata, pages, sealing
from .sealing import MasterKey, Seal

# Every column with keys in it, by primary key.
_SEALED = (
    (groups.c.record, (groups.c.group,)),
    (members.c.former_leaf, (members.c.group, members.c.number)),
    (pages.c.nodes, (pages.c.group, pages.c.tree, pages.c.page)),
)


def sealed_with(connection: Connection) -> str | None:
    """The name of the master key; None where rows are not sealed."""
    name: str | None = connection.execute(select(sealing.c.key_id)).scalar()
    return name


def check_seal(connection: Connection, key: MasterKey | None, *, clear: bool = False) -> bool:
    """Whether the rows still have to be sealed. Raises StoreError where ``key`` is not theirs, and
    where there are rows in clear unless they may be: whoever can write the database could have put
    them there, with keys that he knows, and taken away what says that it was sealed.
    """
    theirs = sealed_with(connection)
    if theirs is None:
        if key is not None and not clear and _holds_something(connection):
            raise StoreError(
                "not sealed, and a master key is configured: if these are this key server's own"
                " rows, from before it had one, seal them with gdoi-gcks --seal"
            )
        _check_clear(connection)
        return key is not None
    if key is None:
        raise StoreError(f"sealed with master key {theirs}, and key_server.master_key is not set")
    if key.name != theirs:
        raise StoreError(f"sealed with master key {theirs}, the one configured is {key.name}")
    return False


def _holds_something(connection: Connection) -> bool:
    return any(
        connection.execute(select(table).limit(1)).first()
        for table in metadata.sorted_tables
        if table is not sealing
    )


def _check_clear(connection: Connection) -> None:
    """Sealed a second time, rows of which it is not known that they are would be lost."""
    for group, record in connection.execute(select(groups.c.group, groups.c.record)):
        try:
            json.loads(record)
        except (ValueError, RecursionError):
            what = "not JSON, and table sealing does not say that it is sealed"
            raise StoreError(f"table groups, group {group}: {what}") from None


def seal_again(connection: Connection, old: Seal, new: Seal) -> int:
    """Every row, within the connection's transaction. How many. Raises StoreError.

    Groups get another revision: a key server that goes on with the old key can save no more.
    """
    count = 0
    for column, keys in _SEALED:
        count += _again(connection, column, keys, old, new)
    connection.execute(update(groups).values(revision=groups.c.revision + 1))
    connection.execute(delete(sealing))
    if new.key is not None:
        connection.execute(insert(sealing).values(id=1, key_id=new.key.name, cleaned=False))
    return count


def to_be_cleaned(connection: Connection) -> bool:
    """Whether there may still be keys from before they were sealed, or under the former seal."""
    return connection.execute(select(sealing.c.cleaned)).scalar() is False


def note_cleaned(connection: Connection) -> None:
    connection.execute(update(sealing).values(cleaned=True))


def _again(
    connection: Connection,
    column: Column[bytes],
    keys: tuple[Column[int], ...],
    old: Seal,
    new: Seal,
) -> int:
    table: Table = column.table
    rows = connection.execute(select(*keys, column).where(column.is_not(None))).all()
    for *place, octets in rows:
        plain = old.open(octets, table.name, *place)
        mine = [key == value for key, value in zip(keys, place, strict=True)]
        sealed = new.seal(plain, table.name, *place)
        connection.execute(update(table).where(*mine).values({column.name: sealed}))
    return len(rows)
