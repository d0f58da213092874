"""The Rekey SAs that a member holds: the current KEK and the ones it has just replaced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..crypto.signature import VerifyKey, load_public
from ..wire.delete import Delete
from ..wire.registry import TekProtocol
from .policy import GroupPolicy, Kek
from .record import Record, kek_record, read_kek

# A PUSH under the KEK before the last one may still be on its way, or be repeated to members that
# missed it, while the key server waits for ACKs.
KEK_GRACE = 60.0
# One every four seconds: a key server that replaces its KEK faster than that is out of its mind.
MAX_PREVIOUS = 16


@dataclass(slots=True)
class HeldKek:
    """A Rekey SA in use. ``seq`` is the last one accepted."""

    kek: Kek
    verify_key: VerifyKey
    seq: int
    expires: float


@dataclass(slots=True)
class RekeySas:
    """``current`` is the KEK in use, ``previous`` those before it, by SPI, until their grace is
    over."""

    current: HeldKek | None = None
    previous: dict[bytes, HeldKek] = field(default_factory=dict)

    def of(self, spi: bytes) -> HeldKek | None:
        if self.current is not None and self.current.kek.spi == spi:
            return self.current
        return self.previous.get(spi)

    @property
    def held(self) -> list[HeldKek]:
        """All of them, the current one last."""
        return [*self.previous.values(), *([self.current] if self.current else [])]

    # -- what a policy brings --------------------------------------------------------------------

    def read_new(self, policy: GroupPolicy, seq: int, now: float) -> HeldKek | None:
        """The KEK a policy brings, ready for use; None where this member has it already.

        Raises BadSignatureKey.
        """
        kek = policy.kek
        if kek is None or (self.current is not None and self.of(kek.spi) is not None):
            # In use, or replaced already: what brings it again was overtaken on its way.
            return None
        if kek.spi in self.previous:
            seq = max(seq, self.previous[kek.spi].seq)
        return HeldKek(kek, load_public(kek.scheme, kek.public_der), seq, now + kek.lifetime)

    def replace(self, new: HeldKek, now: float) -> None:
        if self.current is not None:
            old = self.current
            old.expires = min(old.expires, now + KEK_GRACE)
            self.previous[old.kek.spi] = old
            while len(self.previous) > MAX_PREVIOUS:
                del self.previous[next(iter(self.previous))]
        self.current = new

    def note_ack_type(self, policy: GroupPolicy | None) -> None:
        """RFC 8263 section 7.2: what the most recently received SAK asks for holds from then on."""
        told = policy.kek if policy is not None else None
        if told is not None and self.current is not None and self.current.kek.spi == told.spi:
            self.current.kek = replace(self.current.kek, ack_type=told.ack_type)

    # -- the end of a KEK ------------------------------------------------------------------------

    def deleted_by(self, deletes: Sequence[Delete]) -> frozenset[bytes]:
        """RFC 6407 section 5.9: protocol 0 deletes the KEK, SPI zero every one we hold."""
        held = {h.kek.spi for h in self.held}
        gone: set[bytes] = set()
        for delete in deletes:
            if delete.protocol_id == TekProtocol.KEK:
                for spi in set(delete.spis):
                    gone |= {spi} if any(spi) else held
        return frozenset(gone & held)

    def delete(self, spis: Iterable[bytes]) -> None:
        for spi in spis:
            self.previous.pop(spi, None)
            if self.current is not None and self.current.kek.spi == spi:
                self.current = None

    def expire(self, now: float) -> bool:
        """Forgets what has come to its end. True where that was the KEK in use."""
        self.previous = {spi: held for spi, held in self.previous.items() if held.expires > now}
        if self.current is None or self.current.expires > now:
            return False
        self.current = None
        return True

    # -- the saved state -------------------------------------------------------------------------

    def record(self) -> Record:
        return {
            "keks": [
                {"kek": kek_record(h.kek), "seq": h.seq, "expires": h.expires} for h in self.held
            ],
            "current": self.current is not None,
        }

    @classmethod
    def read(cls, saved: Mapping[str, Any], now: float) -> RekeySas:
        """What ``record`` gave. Raises KeyError, ValueError or TypeError for anything else."""
        keks = [_read_held(entry, now) for entry in saved["keks"]]
        current = keks.pop() if saved.get("current") and keks else None
        sas = cls(current, {h.kek.spi: h for h in keks})
        sas.expire(now)
        return sas


def _read_held(entry: Mapping[str, Any], now: float) -> HeldKek:
    kek = read_kek(entry["kek"])
    expires = min(float(entry["expires"]), now + kek.lifetime)
    return HeldKek(kek, load_public(kek.scheme, kek.public_der), int(entry["seq"]), expires)
