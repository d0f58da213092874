"""What is known of the acknowledgements of one rekey, and of those that were refused."""

from __future__ import annotations

from dataclasses import dataclass, field

from .group import Group
from .page import Rekey

# RFC 8263 section 5: recently refused ACKs are known by all their octets and cost no second HMAC.
# By the HASH alone, a copy with another SEQ or ID would have the true one refused.
REMEMBERED_BAD_ACKS = 4096


@dataclass(slots=True)
class Page:
    """A rekey whose ACKs come in. ``heard``: by number, whether a member has acknowledged it, saved
    or not; members with greater numbers came later."""

    group: Group
    rekey: Rekey
    heard: bytearray
    # Not on its way to the store yet: number, SEQ, time.
    fresh: list[tuple[int, int, float]] = field(default_factory=list)
    # Another reading of L that a member's ACK was made with.
    lengths: dict[int, int] = field(default_factory=dict)

    def has(self, number: int) -> bool:
        return number < len(self.heard) and bool(self.heard[number])

    def note(self, number: int) -> None:
        if number >= len(self.heard):
            self.heard.extend(
                bytes(max(number + 1, self.group.roster.next_number) - len(self.heard))
            )
        self.heard[number] = 1


@dataclass(slots=True)
class BadAcks:
    """The last ACKs with a wrong HASH: half of :data:`REMEMBERED_BAD_ACKS` at least."""

    # By all octets. Once there are enough they take the place of those that did so before.
    _latest: set[bytes] = field(default_factory=set)
    _before: set[bytes] = field(default_factory=set)

    def add(self, datagram: bytes) -> None:
        self._latest.add(datagram)
        if len(self._latest) >= REMEMBERED_BAD_ACKS // 2:
            self._latest, self._before = set(), self._latest

    def __contains__(self, datagram: bytes) -> bool:
        return datagram in self._latest or datagram in self._before

    def __len__(self) -> int:
        return len(self._latest) + len(self._before)
