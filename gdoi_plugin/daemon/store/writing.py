"""The records of an engine's step, written as rows in one transaction."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, MutableMapping, Sequence
from itertools import groupby
from struct import Struct
from typing import Any

from sqlalchemy import Connection, Table, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ...protocol.actions import Persist
from ...protocol.group import LEDGER_LENGTH
from ...protocol.group_record import MEMBER_COLUMNS
from ..errors import StaleError
from .schema import ack_batches, groups, members, pages, rekeys, standings

Records = Sequence[Mapping[str, Any]]
ACK = Struct(">IId")  # number, SEQ, time
# What another key server may write without having seen what this one did.
_UNORDERED = ("acks",)
# After these nobody else may go on from what was before.
_CHANGES = ("group", "page", "pages-removed")


class Writer:
    """One transaction. ``revisions``: of each group, what this process saw or wrote last."""

    def __init__(self, connection: Connection, revisions: Mapping[int, int]) -> None:
        self._connection = connection
        self._known = revisions
        dialect = connection.dialect.name
        self._upsert = (sqlite if dialect == "sqlite" else postgresql).insert
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
            if group in changed:
                self.revisions[group] = 1 if known is None else known + 1
            if known is None:
                continue  # inserted below, where nobody else has
            mine = (groups.c.group == group) & (groups.c.revision == known)
            if group in changed:
                statement = update(groups).where(mine).values(revision=known + 1)
                matched = self._connection.execute(statement).rowcount
            else:
                locked = select(groups.c.group).where(mine).with_for_update(read=True)
                matched = len(self._connection.execute(locked).all())
            if matched != 1:
                raise StaleError(group, known)

    def _groups(self, records: Records) -> None:
        for record in records:
            group = record["group"]
            document = json.dumps(record).encode()
            values = {"group": group, "revision": self.revisions[group], "record": document}
            if group in self._known:
                statement = update(groups).where(groups.c.group == group).values(values)
            else:
                statement = self._upsert(groups).values(values).on_conflict_do_nothing()
            if self._connection.execute(statement).rowcount != 1:
                raise StaleError(group, None)

    def _members(self, records: Records) -> None:
        statement = self._upsert(members)
        names = [name for name in MEMBER_COLUMNS if name not in ("number", "identity")]
        statement = statement.on_conflict_do_update(
            index_elements=["group", "number"],
            set_={name: statement.excluded[name] for name in names},
            # Another key server has given this number to somebody else.
            where=members.c.identity == statement.excluded.identity,
        )
        rows = [{name: record[name] for name in ("group", *MEMBER_COLUMNS)} for record in records]
        if self._connection.execute(statement, rows).rowcount != len(rows):
            raise StaleError(rows[0]["group"], None)

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
                "entries": b"".join(ACK.pack(*entry) for entry in record["entries"]),
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
            self._put(pages, keys, {"nodes": record["nodes"]})

    def _remove_pages(self, records: Records) -> None:
        for record in records:
            self._connection.execute(delete(pages).where(pages.c.group == record["group"]))

    def _put(self, table: Table, keys: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        statement = self._upsert(table).values({**keys, **values})
        self._connection.execute(
            statement.on_conflict_do_update(index_elements=list(keys), set_=dict(values))
        )


def _group(persist: Persist) -> int:
    group = persist.record["group"]
    if not isinstance(group, int):
        raise TypeError(f"group {group!r}")
    return group


def _newest(persists: Iterable[Persist]) -> Sequence[Persist]:
    """Of each slot, in the order in which these came."""
    slots: dict[Hashable, Persist] = {}
    for persist in persists:
        slots.pop(persist.slot, None)
        slots[persist.slot] = persist
    return list(slots.values())
