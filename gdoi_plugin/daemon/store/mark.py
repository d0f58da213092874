"""How far a database has come, kept beside it: an older one that was put back is found out.

Nothing in a database shows that it is a copy from yesterday, and every sequence number used since
would be used again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from ...protocol.actions import Persist
from ...protocol.key_server import SavedGroup
from ..errors import StoreError
from ..state_file import StateDirectory


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a group has come: its epoch, and the highest SEQ under each KEK that it still has.

    Of each, for the rekey that was said last need not be the newest: an older one may be repeated
    after it, under the same KEK or under another Rekey SA's.
    """

    epoch: int
    seqs: Mapping[str, int]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Of a group's record."""
        seqs = {entry["kek"]["spi"]: entry["seq"] for entry in record["keks"]}
        return cls(record["epoch"], {spi: seq for spi, seq in seqs.items() if seq})

    @classmethod
    def read(cls, saved: object) -> Self | None:
        match saved:
            case [int(epoch), dict(seqs)] if all(isinstance(seq, int) for seq in seqs.values()):
                return cls(epoch, seqs)
            case [int(epoch), int(seq), str(kek_spi)]:  # as it was written before
                return cls(epoch, {kek_spi: seq})
        return None

    def __str__(self) -> str:
        return f"epoch {self.epoch}, SEQ {max(self.seqs.values(), default=0)}"


class Mark:
    """Written after what it marks is durable: it may lag behind, and is never ahead."""

    def __init__(self, directory: StateDirectory, name: str) -> None:
        """Raises StoreError."""
        self._directory, self._name = directory, name
        self._reached: dict[int, Reached] = {}
        for group, saved in (directory.load(name) or {}).items():
            if group.isdecimal() and (reached := Reached.read(saved)) is not None:
                self._reached[int(group)] = reached

    def check(self, saved: Mapping[int, SavedGroup]) -> None:
        """Groups that are not there at all get new KEKs, which is no harm. Raises StoreError."""
        for group, reached in self._reached.items():
            if group in saved and not _has_come(saved[group].group, reached):
                raise StoreError(
                    f"group {group} is older than {self._name}.json, which knows"
                    f" {reached}: a backup that was put back? Its sequence"
                    f" numbers have been used. Put the newer database back; or, if it is lost,"
                    f" remove {self._name}.json, and have members register again"
                )

    def forget_others(self, saved: Mapping[int, SavedGroup]) -> None:
        """Of groups that the database does not have: what was known of them would be held against
        their new records. Raises StoreError."""
        self._write({g: reached for g, reached in self._reached.items() if g in saved})

    def note(self, records: Iterable[Persist]) -> None:
        """Raises StoreError."""
        found = dict(self._reached)
        for persist in records:
            record: Mapping[str, Any] = persist.record
            if persist.kind == "group" and (reached := Reached.of(record)).seqs:
                found[record["group"]] = reached
        self._write(found)

    def _write(self, found: dict[int, Reached]) -> None:
        if found != self._reached:
            lines = {str(group): [r.epoch, dict(r.seqs)] for group, r in found.items()}
            self._directory.save(self._name, lines)
            self._reached = found


def _has_come(record: Mapping[str, Any], reached: Reached) -> bool:
    """As the engine does, it takes for granted that a record is one; who takes it up looks."""
    try:
        keks = {entry["kek"]["spi"]: entry["seq"] for entry in record["keks"]}
        come = all(keks.get(spi, seq) >= seq for spi, seq in reached.seqs.items())
        return bool(record["epoch"] >= reached.epoch and come)
    except (KeyError, TypeError):
        return True
