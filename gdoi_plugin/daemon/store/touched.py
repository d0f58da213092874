"""Which rows steps of other key servers have touched: those alone are read anew."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Self

from sqlalchemy import ColumnElement, Table, false, true, tuple_

from .schema import ack_batches, groups, members, pages, rekeys, standings

# Of a record's kind: its table, and the columns that its slot names.
_KEYS = {
    "group": (groups, ("group",)),
    "member": (members, ("group", "number")),
    "member-removed": (members, ("group", "number")),
    "rekey": (rekeys, ("group", "epoch")),
    "standing": (standings, ("group", "sa")),
    "page": (pages, ("group", "tree", "page")),
}


def everything(_: Table) -> ColumnElement[bool]:
    return true()


class Touched:
    """``acks``: whether there are new ones, after the one with the number ``serial``."""

    def __init__(self, serial: int) -> None:
        self.acks = False
        self._serial = serial
        self._keys: dict[Table, set[Sequence[int]]] = defaultdict(set)
        self._groups: set[int] = set()

    @classmethod
    def of(cls, slots: Iterable[Sequence[object]], serial: int) -> Self | None:
        """None where whole tables are to be read: rows are gone, or may be."""
        touched = cls(serial)
        for kind, *key in slots:
            if kind != "acks" and kind not in _KEYS:
                return None
            numbers = tuple(int(str(part)) for part in key)
            touched._groups.add(numbers[0])
            if kind == "acks":
                touched.acks = True
            else:
                touched._keys[_KEYS[str(kind)][0]].add(numbers)
        return touched

    def __call__(self, table: Table) -> ColumnElement[bool]:
        """Which rows of this table; of groups all that anything has been touched of."""
        if table is groups:
            return groups.c.group.in_(self._groups)
        if table is ack_batches:
            return ack_batches.c.serial > self._serial if self.acks else false()
        names = next(columns for found, columns in _KEYS.values() if found is table)
        keys = self._keys.get(table)
        return tuple_(*(table.c[name] for name in names)).in_(keys) if keys else false()
