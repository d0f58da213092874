"""What the members of a killed key server have received, and what of it must never be.

An entry is kept for each number that may be used once: who finds another thing under it has found
a number that was used twice.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from gdoi_plugin.crypto.cookie import fingerprint
from gdoi_plugin.protocol.policy import GroupPolicy, Tek

# Group and epoch.
Page = tuple[str, int]


@dataclass
class Evidence:
    """Of all members together, over all lives of the key server."""

    # KEK's SPI and SEQ: the PUSH, whose signature is another one each time it is made.
    pushes: dict[tuple[bytes, int], bytes] = field(default_factory=dict)
    keks: dict[bytes, bytes] = field(default_factory=dict)
    teks: dict[tuple[int, bytes], bytes] = field(default_factory=dict)
    sids: dict[tuple[str, int], str] = field(default_factory=dict)
    # What the key server has said it counted, by event or answer.
    counted: dict[Page, set[str]] = field(default_factory=lambda: defaultdict(set))
    acks_counted: int = 0
    violations: list[str] = field(default_factory=list)

    def push(self, spi: bytes, seq: int, datagram: bytes) -> None:
        """By unicast every member gets the same octets under one SEQ."""
        before = self.pushes.setdefault((spi, seq), fingerprint(datagram))
        if before != fingerprint(datagram):
            self.violations.append(f"SEQ {seq} under KEK {spi.hex()} with two contents")

    def policy(self, policy: GroupPolicy) -> None:
        if (kek := policy.kek) is not None:
            told = kek.iv + kek.key.reveal() + kek.public_der
            if self.keks.setdefault(kek.spi, told) != told:
                self.violations.append(f"SPI {kek.name} of two KEKs")
        for tek in policy.teks:
            if isinstance(tek, Tek):
                key = tek.encryption_key.reveal()
                if self.teks.setdefault((tek.protocol, tek.spi), key) != key:
                    self.violations.append(f"SPI {tek.name} of two TEKs")

    def sender_ids(self, group: str, policy: GroupPolicy, whose: str) -> None:
        """Of one registration: each gets Sender-IDs that nobody had before, not even itself."""
        for sid in policy.sids.values if policy.sids is not None else ():
            before = self.sids.setdefault((group, sid), whose)
            if before != whose:
                self.violations.append(f"SID {sid} given to {before} and to {whose}")

    def reported(self, page: Page, member: str) -> None:
        """The key server has said that it counted this member's acknowledgement."""
        if member not in self.counted[page]:
            self.counted[page].add(member)
            self.acks_counted += 1

    def compare(self, group: str, ledger: dict[int, set[str]]) -> None:
        """With the ledger of a key server that has started again. It may have let go of its oldest
        pages, of no others."""
        oldest = min(ledger, default=0)
        for page in [page for page in self.counted if page[0] == group]:
            if page[1] < oldest:
                del self.counted[page]
                continue
            forgotten = self.counted[page] - ledger.get(page[1], set())
            if forgotten:
                self.violations.append(f"{group}, epoch {page[1]}: ACKs of {forgotten} forgotten")
