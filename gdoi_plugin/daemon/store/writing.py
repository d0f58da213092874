"""The records of an engine's step, written as rows in one transaction."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, MutableMapping, Sequence
from functools import cache
from itertools import groupby, starmap
from struct import Struct
from typing import Any

from sqlalchemy import (
    Connection,
    Executable,
    Insert,
    Table,
    and_,
    bindparam,
    delete,
    insert,
    or_,
    select,
    update,
)

from ...protocol.actions import Persist
from ...protocol.group import LEDGER_LENGTH
from ...protocol.group_record import MEMBER_COLUMNS
from ..errors import StaleError
from .schema import ack_batches, groups, members, pages, rekeys, standings
from .sealing import Seal

Records = Sequence[Mapping[str, Any]]
ACK = Struct(">IId")  # number, SEQ, time
# What another key server may write without having seen what this one did.
_UNORDERED = ("acks",)
# After these nobody else may go on from what was before.
_CHANGES = ("group", "page", "pages-removed")


class Writer:
    """One transaction, ``step``. ``revisions``: of each group, what this process saw or wrote last;
    or it is one of the ``doubtful`` steps, of which it has not heard."""

    def __init__(
        self,
        connection: Connection,
        seal: Seal,
        revisions: Mapping[int, int],
        step: str,
        doubtful: Sequence[str],
    ) -> None:
        self._connection = connection
        self._seal = seal
        self._known = revisions
        self._step = step
        self._doubtful = doubtful
        self._dialect = connection.dialect.name
        # Those of the groups that this transaction changes.
        self.revisions: MutableMapping[int, int] = {}

    def write(self, persists: Iterable[Persist]) -> None:
        """Raises StaleError where another key server has changed a group since."""
        steps = _newest(persists)
        self._claim(steps)
        write: dict[str, Callable[[Records], None]] = {
            "group": self._groups,
            "member": self._members,
            "member-removed": self._members,
            "rekey": self._rekeys,
            "acks": self._acks,
            "standing": self._standings,
            "page": self._pages,
            "pages-removed": self._remove_pages,
        }
        for kind, alike in groupby(steps, key=lambda persist: persist.kind):
            write[kind]([persist.record for persist in alike])

    def _claim(self, steps: Sequence[Persist]) -> None:
        """Compare and swap: the rows of these groups are locked until the end."""
        changed = {_group(persist) for persist in steps if persist.kind in _CHANGES}
        touched = {_group(persist) for persist in steps if persist.kind not in _UNORDERED}
        for group in sorted(touched):
            known = self._known.get(group)
            claim = {"mine": group, "doubtful": list(self._doubtful), "known": known or 0}
            if group in changed:
                claim["next"] = self._step
            found = self._connection.execute(_claim(changing=group in changed), claim).scalar()
            if found is not None:
                self.revisions[group] = found
            elif known is not None:
                raise StaleError(group, known)
            # else it is inserted below, where nobody else has

    def _groups(self, records: Records) -> None:
        for record in records:
            group = record["group"]
            document = self._seal.seal(json.dumps(record).encode(), groups.name, group)
            if group in self.revisions:
                mine = groups.c.group == group
                self._connection.execute(update(groups).where(mine).values(record=document))
                continue
            values = {"group": group, "revision": 1, "step": self._step, "record": document}
            statement = _upsert(self._dialect)(groups).values(values).on_conflict_do_nothing()
            if self._count(statement) != 1:
                raise StaleError(group, None)
            self.revisions[group] = 1

    def _members(self, records: Records) -> None:
        statement = _put_members(self._dialect)
        rows = [self._member(record) for record in records]
        if self._count(statement, rows) != len(rows):
            raise StaleError(rows[0]["group"], None)

    def _member(self, record: Mapping[str, Any]) -> dict[str, Any]:
        row = {name: record[name] for name in ("group", *MEMBER_COLUMNS)}
        former = row["former_leaf"]
        if former is not None:
            place = (members.name, row["group"], row["number"])
            row["former_leaf"] = self._seal.seal(former, *place)
        return row

    def _rekeys(self, records: Records) -> None:
        octets = ("expected", "acknowledged", "missing")
        for record in records:
            group, epoch = record["group"], record["epoch"]
            document = {k: v for k, v in record.items() if k not in octets}
            values = {name: record[name] for name in octets} | {"record": document}
            self._put(rekeys, {"group": group, "epoch": epoch}, values)
            if record["closed"]:
                chosen = (ack_batches.c.group == group) & (ack_batches.c.epoch == epoch)
                self._connection.execute(delete(ack_batches).where(chosen))
            self._prune(group, epoch - LEDGER_LENGTH)

    def _prune(self, group: int, epoch: int) -> None:
        """Pages that are too old, and who is named in none that is left."""
        if epoch < 0:
            return
        for table in (rekeys, ack_batches):
            old = (table.c.group == group) & (table.c.epoch <= epoch)
            self._connection.execute(delete(table).where(old))
        gone = (members.c.group == group) & (members.c.removed <= epoch)
        self._connection.execute(delete(members).where(gone))

    def _acks(self, records: Records) -> None:
        rows = [
            {
                "group": record["group"],
                "epoch": record["epoch"],
                "entries": b"".join(starmap(ACK.pack, record["entries"])),
            }
            for record in records
        ]
        self._connection.execute(insert(ack_batches), rows)

    def _standings(self, records: Records) -> None:
        for record in records:
            values = {"at": record["at"], "entries": record["entries"]}
            self._put(standings, {"group": record["group"], "sa": record["sa"]}, values)

    def _pages(self, records: Records) -> None:
        for record in records:
            keys = {name: record[name] for name in ("group", "tree", "page")}
            nodes = self._seal.seal(record["nodes"], pages.name, *keys.values())
            self._put(pages, keys, {"nodes": nodes})

    def _remove_pages(self, records: Records) -> None:
        for record in records:
            self._connection.execute(delete(pages).where(pages.c.group == record["group"]))

    def _count(self, statement: Insert, rows: list[dict[str, Any]] | None = None) -> int:
        """Executes it; how many rows were written."""
        options = {"preserve_rowcount": True}
        return self._connection.execute(statement, rows, execution_options=options).rowcount

    def _put(self, table: Table, keys: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        statement = _put(self._dialect, table, tuple(keys), tuple(values))
        self._connection.execute(statement, {**keys, **values})


def _group(persist: Persist) -> int:
    group = persist.record["group"]
    if not isinstance(group, int):
        raise TypeError(f"group {group!r}")
    return group


def _upsert(dialect: str) -> Callable[[Table], Any]:
    """The statement is the same; a dialect that is not used need not be read."""
    if dialect == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert
    from sqlalchemy.dialects import postgresql

    return postgresql.insert


# Statements are made once: to make one takes longer than to carry it out.


@cache
def _claim(*, changing: bool) -> Executable:
    """The row of the group ``mine`` as this process knows it: its revision, or the ``next`` one."""
    doubtful = groups.c.step.in_(bindparam("doubtful", expanding=True))
    seen = or_(doubtful, groups.c.revision == bindparam("known"))
    mine = and_(groups.c.group == bindparam("mine"), seen)
    if not changing:
        return select(groups.c.revision).where(mine).with_for_update(read=True)
    values = {"revision": groups.c.revision + 1, "step": bindparam("next")}
    return update(groups).where(mine).values(values).returning(groups.c.revision)


@cache
def _put(dialect: str, table: Table, keys: tuple[str, ...], values: tuple[str, ...]) -> Insert:
    statement = _upsert(dialect)(table)
    put: Insert = statement.on_conflict_do_update(
        index_elements=keys, set_={name: statement.excluded[name] for name in values}
    )
    return put


@cache
def _put_members(dialect: str) -> Insert:
    statement = _upsert(dialect)(members)
    names = [name for name in MEMBER_COLUMNS if name not in ("number", "identity")]
    put: Insert = statement.on_conflict_do_update(
        index_elements=["group", "number"],
        set_={name: statement.excluded[name] for name in names},
        # Another key server has given this number to somebody else.
        where=members.c.identity == statement.excluded.identity,
    )
    return put


def _newest(persists: Iterable[Persist]) -> Sequence[Persist]:
    """Of each slot, in the order in which these came."""
    slots: dict[Hashable, Persist] = {}
    for persist in persists:
        slots.pop(persist.slot, None)
        slots[persist.slot] = persist
    return list(slots.values())
