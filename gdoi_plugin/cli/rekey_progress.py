"""Who has acknowledged a rekey, as its events tell."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from gdoi_plugin.cli.client import Fields

ACK_WINDOW = 60.0
"""Seconds to wait for acknowledgements when the key server does not say how long it will."""

TOLD_SINGLY = 64
"""Members that there is a line for when they acknowledge; of more there is the count."""


@dataclass(slots=True)
class RekeyProgress:
    """Who has acknowledged one rekey, from the answer to `rekey` and the events after it.

    A repeated rekey has another SEQ and the same epoch, so the epoch tells which
    events belong here; an answer without one takes it from the first rekey-sent of the group.
    A group of several key trees has an epoch for each, ``others`` besides the last one.
    """

    group: str
    epoch: str | None = None
    seq: str | None = None
    expected: int | None = None
    window: float = ACK_WINDOW
    others: frozenset[str] = frozenset()
    acked: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    more: int = 0  # missing, and too many to be named by events
    counted: int = 0  # that acknowledged, as the ledger has it

    @classmethod
    def of_answer(cls, asked: str, answer: Fields) -> RekeyProgress:
        progress = cls(answer.get("group", asked), answer.get("epoch"))
        progress._update(answer)
        epochs = answer.get("epochs", [])
        progress.others = frozenset(epochs) - {progress.epoch or ""}
        return progress

    def _update(self, fields: Fields) -> None:
        self.seq = fields.get("seq", self.seq)
        if self.others:
            return  # one tree's; the answer has counted all of them
        with contextlib.suppress(ValueError):
            self.expected = int(fields.get("expected", ""))
        with contextlib.suppress(ValueError):
            self.window = float(fields.get("window", ""))

    @property
    def acknowledged(self) -> int:
        """Events can be lost; the ledger may have been read before the last of them."""
        return max(len(self.acked), self.counted)

    @property
    def large(self) -> bool:
        return (self.expected or 0) > TOLD_SINGLY

    @property
    def done(self) -> bool:
        """Everybody who should acknowledge did, or was given up."""
        if self.expected is None:
            return False
        return self.acknowledged + len(self.missing) + self.more >= self.expected

    @property
    def complete(self) -> bool:
        return self.expected is not None and self.acknowledged >= self.expected

    def feed(self, event: str, fields: Fields) -> str | None:
        """Take one event; returns the line that tells of it, None if it concerns others."""
        epoch = fields.get("epoch")
        if fields.get("group", self.group) != self.group:
            return None
        if self.epoch is None and event == "rekey-sent":
            self.epoch = epoch
        elif epoch is not None and epoch != self.epoch and epoch not in self.others:
            return None
        member = fields.get("member", "?")
        if event == "rekey-sent":
            self._update(fields)
            return self.heading()
        if event == "rekey-acked":
            self.acked[member] = fields.get("seq", "")
            self.missing.pop(member, None)
            return f"{member} acknowledged ({len(self.acked)} of {self.total()})"
        if event == "ack-missing" and member not in self.acked:
            self.missing[member] = fields.get("seq", "")
            return f"{member} did not acknowledge"
        if event == "ack-missing-more":
            with contextlib.suppress(ValueError):
                self.more += int(fields.get("count", ""))
            return f"{self.more} more did not acknowledge"
        return None

    def settle(self, pages: Sequence[Fields]) -> None:
        """What the key server's ledger says of this rekey, a page for each epoch."""
        if not pages:
            return
        self.counted = 0
        for page in pages:
            with contextlib.suppress(ValueError):
                self.counted += int(page.get("acknowledged", ""))
        missing = [name for page in pages for name in page.get("missing", [])]
        self.missing = {name: "" for name in missing if name not in self.acked}

    def total(self) -> str:
        return "?" if self.expected is None else str(self.expected)

    def heading(self) -> str:
        return (
            f"group {self.group}: rekey sent, epoch {self.epoch or '?'}, SEQ {self.seq or '?'}, "
            f"{self.total()} to acknowledge"
        )

    def summary(self) -> str:
        text = f"group {self.group}: {self.acknowledged} of {self.total()} acknowledged"
        if self.complete:
            return text
        unnamed = max((self.expected or 0) - self.acknowledged - len(self.missing), 0)
        names = [*self.missing, *([f"{unnamed} not named"] if unnamed else [])]
        return f"{text}; missing: {', '.join(names)}"

    def document(self) -> Fields:
        return {
            "group": self.group,
            "epoch": self.epoch or "",
            "seq": self.seq or "",
            "expected": str(self.expected),
            "acknowledged": str(self.acknowledged),
            "missing": list(self.missing),
        }
