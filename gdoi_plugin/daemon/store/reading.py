"""What a key server starts from, read from the rows."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select

from ...protocol.group_record import MEMBER_COLUMNS, AckEntries
from ...protocol.key_server import SavedGroup
from ..errors import StoreError
from .schema import ack_batches, groups, members, pages, rekeys, standings
from .writing import ACK


def load(connection: Connection) -> tuple[dict[int, SavedGroup], dict[int, int]]:
    """By group: what was saved, and its revision. Raises StoreError naming table and key."""
    saved, revisions = {}, {}
    ledger, acks = _rekeys(connection), _acks(connection)
    trees, standing = _pages(connection), _standings(connection)
    columns = [members.c[name] for name in MEMBER_COLUMNS]
    for group, revision, record in connection.execute(select(groups)).all():
        chosen = select(*columns).where(members.c.group == group).order_by(members.c.number)
        rows = connection.execute(chosen).all()
        document = _document(f"table groups, group {group}", record)
        saved[group] = SavedGroup(
            document, rows, ledger[group], acks[group], trees[group], standing[group]
        )
        revisions[group] = revision
    return saved, revisions


def _document(where: str, octets: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(octets)
    except (ValueError, RecursionError):
        raise StoreError(f"{where}: not JSON") from None
    if not isinstance(document, dict):
        raise StoreError(f"{where}: not a JSON object")
    return document


def _rekeys(connection: Connection) -> Mapping[int, Sequence[Mapping[str, Any]]]:
    found: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in connection.execute(select(rekeys).order_by(rekeys.c.epoch)):
        octets = {name: getattr(row, name) for name in ("expected", "acknowledged", "missing")}
        if not isinstance(row.record, dict):
            raise StoreError(f"table rekeys, group {row.group}, epoch {row.epoch}: no JSON object")
        found[row.group].append(row.record | octets)
    return found


def _acks(connection: Connection) -> Mapping[int, Sequence[tuple[int, AckEntries]]]:
    found: dict[int, list[tuple[int, AckEntries]]] = defaultdict(list)
    for row in connection.execute(select(ack_batches).order_by(ack_batches.c.serial)):
        if len(row.entries) % ACK.size:
            raise StoreError(f"table ack_batches, serial {row.serial}: {len(row.entries)} octets")
        found[row.group].append((row.epoch, list(ACK.iter_unpack(row.entries))))
    return found


def _pages(connection: Connection) -> Mapping[int, Sequence[Mapping[str, Any]]]:
    found: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in connection.execute(select(pages)):
        found[row.group].append({"tree": row.tree, "page": row.page, "nodes": row.nodes})
    return found


def _standings(connection: Connection) -> Mapping[int, Sequence[Mapping[str, Any]]]:
    found: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in connection.execute(select(standings)):
        found[row.group].append({"at": row.at, "entries": row.entries})
    return found
