"""A page of the ledger: one rekey, whom it was said to, and who has acknowledged it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ..crypto.lkh import Update
from .member_set import AckTimes, MemberSet
from .rounds import Round, Wave


@dataclass(slots=True)
class Rekey:
    """A ledger page: one policy epoch and who has acknowledged it."""

    epoch: int
    reason: str
    kek_spi: bytes
    seqs: list[int]
    first_sent: float
    sent_at: float
    expected: MemberSet
    acknowledged: AckTimes
    missing: MemberSet
    attempts: int = 1
    deadline: float = 0.0
    closed: bool = False
    # The Rekey SA it goes to, by its place in the forest.
    sa: int = 0
    # With LKH: how its members get the KEK with the SPI ``brings``, and nothing else.
    update: Update | None = None
    brings: bytes = b""
    # What a repetition must say again: ``bare`` is Delete payloads and nothing else, ``asks``
    # whether its SAK asks for ACKs.
    deletes_all: bool = False
    with_kek: bool = False
    deleted: tuple[tuple[int, bytes], ...] = ()  # protocol and SPI of single data SAs
    bare: bool = False
    asks: bool = True
    # KEK_ACK_REQUESTED of the SAK that members had, and of the one that this rekey brings.
    ack_types: tuple[int, ...] = ()
    # A policy may fill several PUSHes. Each time it is said, ``seqs`` grows by a SEQ for each part,
    # the first time by ``first_seqs`` in all.
    # Of the first ``update_parts`` a member needs the one that has its own LKH update.
    parts: int = 1
    update_parts: int = 0
    first_seqs: int = 1
    # Not saved: after a crash all parts are said again. The same octets are said again only where
    # members have given up the KEK they would need for others.
    partial: dict[int, set[int]] = field(default_factory=dict)
    said: list[bytes] = field(default_factory=list, repr=False, compare=False)
    teks: tuple[bytes, ...] = field(default=(), compare=False)
    # How far the first round has come, saved a little ahead: the members up to this number have
    # been told, all where it is None.
    told: int | None = None
    # Not saved: when each round said what to whom, the waves of the last one, and those to come.
    rounds: list[Round] = field(default_factory=list, repr=False, compare=False)
    waves: list[Wave] = field(default_factory=list, repr=False, compare=False)
    waiting: deque[Wave] = field(default_factory=deque, repr=False, compare=False)

    @property
    def silent(self) -> MemberSet:
        return self.expected.without(self.acknowledged.members)

    @property
    def all_heard(self) -> bool:
        """Everybody is told, and nobody silent; without a look at thousands for each ACK."""
        if self.waiting and self.attempts <= 1:
            return False
        return len(self.acknowledged) >= len(self.expected) and not self.silent

    @property
    def was_said(self) -> bool:
        """To anybody; as far as that is known."""
        return bool(self.seqs) and (not self.rounds or any(self.rounds))

    @property
    def deletes_its_kek(self) -> bool:
        return self.deletes_all and self.with_kek

    def sent_to(self, number: int, seq: int) -> float:
        """When this SEQ left for the member with this number, as far as that is known."""
        return self.departures(seq)(number)

    def departures(self, seq: int) -> Callable[[int], float]:
        """The same for many members."""
        if seq not in self.seqs:
            return lambda _: self.first_sent  # of another division: see split_into
        place = self.seqs.index(seq)
        usual = self.first_sent if place < self.first_seqs else self.sent_at
        said_in = next((r for r in reversed(self.rounds) if r.first <= place), None)
        if said_in is None:
            return lambda _: usual
        if (told_all_at := said_in.told_all_at) is not None:
            return lambda _: told_all_at
        told_at = said_in.told_at

        def departure(number: int) -> float:
            at = told_at(number)
            return usual if at is None else at

        return departure

    def _part(self, seq: int) -> int:
        """Update parts stand for one another: whoever reads one has no use for the others."""
        return max(self.seqs.index(seq) % self.parts, self.update_parts - 1)

    def has_acknowledged(self, number: int, seq: int) -> bool:
        """By the member's number."""
        return self.acknowledged.has(number) or self._part(seq) in self.partial.get(number, ())

    @property
    def parts_wanted(self) -> int:
        """How many of its parts a member has to acknowledge."""
        return self.parts - max(self.update_parts - 1, 0)

    def hear(self, number: int, seq: int) -> bool:
        """An ACK of the member with this number; True where it has now acknowledged every part."""
        if self.parts_wanted > 1:
            heard = self.partial.setdefault(number, set())
            heard.add(self._part(seq))
            if len(heard) < self.parts_wanted:
                return False
            del self.partial[number]
        return True

    def split_into(self, parts: int, update_parts: int, teks: tuple[bytes, ...]) -> None:
        """Before it is said, with these TEKs: what was acknowledged of another division, or of
        parts with other TEKs, counts no longer. Halves of two make no whole."""
        others = parts > 1 and teks != self.teks
        if others or (parts, update_parts) != (self.parts, self.update_parts):
            self.seqs.clear()
            self.rounds.clear()
            self.partial.clear()
        self.parts, self.update_parts, self.teks = parts, update_parts, teks
