"""What a key server starts from, read from the rows."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

from sqlalchemy import ColumnElement, Connection, False_, Row, Select, Table, select

from ...protocol.group_record import MEMBER_COLUMNS, AckEntries
from ...protocol.key_server import SavedGroup
from ..errors import StoreError
from .schema import ack_batches, groups, members, pages, rekeys, standings
from .sealed_rows import check_seal
from .sealing import Seal
from .touched import everything
from .writing import ACK

Rows = Callable[[Table], ColumnElement[bool]]


def load(
    connection: Connection, seal: Seal, rows_of: Rows = everything
) -> tuple[dict[int, SavedGroup], dict[int, int]]:
    """By group: what was saved, and its revision; of ``rows_of`` each table, if that is not all.

    Raises StoreError naming table and key.
    """
    check_seal(connection, seal.key)  # another key server may have sealed it anew
    saved, revisions = {}, {}
    ledger, acks = _rekeys(connection, rows_of), _acks(connection, rows_of)
    trees, standing = _pages(connection, seal, rows_of), _standings(connection, rows_of)
    wanted = select(groups.c.group, groups.c.revision, groups.c.record).where(rows_of(groups))
    for group, revision, record in connection.execute(wanted).all():
        document = _document(f"table groups, group {group}", seal.open(record, groups.name, group))
        saved[group] = SavedGroup(
            document,
            _members(connection, group, seal, rows_of),
            ledger[group],
            acks[group],
            trees[group],
            standing[group],
        )
        revisions[group] = revision
    return saved, revisions


def _rows(
    connection: Connection, statement: Select[Any], chosen: ColumnElement[bool]
) -> Sequence[Row[Any]]:
    """The database is not asked for none."""
    if isinstance(chosen, False_):
        return ()
    return connection.execute(statement.where(chosen)).all()


def _members(
    connection: Connection, group: int, seal: Seal, rows_of: Rows
) -> Sequence[Sequence[Any]]:
    columns = [members.c[name] for name in MEMBER_COLUMNS]
    chosen = select(*columns).where(members.c.group == group).order_by(members.c.number)
    rows: Sequence[Sequence[Any]]
    if rows_of is everything:
        text = chosen.compile(connection.engine, compile_kwargs={"literal_binds": True})
        # The driver's own rows: half of the time of a hundred thousand went into making others.
        with closing(connection.connection.cursor()) as cursor:
            cursor.execute(str(text))
            rows = cursor.fetchall()
    else:
        rows = _rows(connection, chosen, rows_of(members))
    # The key of a former leaf comes last. Few have one.
    with_keys = {place: row for place, row in enumerate(rows) if row[-1] is not None}
    if seal.key is not None and with_keys:
        opened = list(rows)
        for place, row in with_keys.items():
            opened[place] = (*row[:-1], seal.open(row[-1], members.name, group, row[0]))
        return opened
    return rows


def _document(where: str, octets: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(octets)
    except (ValueError, RecursionError):
        raise StoreError(f"{where}: not JSON") from None
    if not isinstance(document, dict):
        raise StoreError(f"{where}: not a JSON object")
    return document


def _rekeys(connection: Connection, rows_of: Rows) -> Mapping[int, Sequence[Mapping[str, Any]]]:
    found: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in _rows(connection, select(rekeys).order_by(rekeys.c.epoch), rows_of(rekeys)):
        octets = {name: getattr(row, name) for name in ("expected", "acknowledged", "missing")}
        if not isinstance(row.record, dict):
            raise StoreError(f"table rekeys, group {row.group}, epoch {row.epoch}: no JSON object")
        found[row.group].append(row.record | octets)
    return found


def _acks(connection: Connection, rows_of: Rows) -> Mapping[int, Sequence[tuple[int, AckEntries]]]:
    found: dict[int, list[tuple[int, AckEntries]]] = defaultdict(list)
    ordered = select(ack_batches).order_by(ack_batches.c.serial)
    for row in _rows(connection, ordered, rows_of(ack_batches)):
        if len(row.entries) % ACK.size:
            raise StoreError(f"table ack_batches, serial {row.serial}: {len(row.entries)} octets")
        found[row.group].append((row.epoch, list(ACK.iter_unpack(row.entries))))
    return found


def _pages(
    connection: Connection, seal: Seal, rows_of: Rows
) -> Mapping[int, Sequence[Mapping[str, Any]]]:
    found: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in _rows(connection, select(pages), rows_of(pages)):
        nodes = seal.open(row.nodes, pages.name, row.group, row.tree, row.page)
        found[row.group].append({"tree": row.tree, "page": row.page, "nodes": nodes})
    return found


def _standings(connection: Connection, rows_of: Rows) -> Mapping[int, Sequence[Mapping[str, Any]]]:
    found: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in _rows(connection, select(standings), rows_of(standings)):
        found[row.group].append({"at": row.at, "entries": row.entries})
    return found
