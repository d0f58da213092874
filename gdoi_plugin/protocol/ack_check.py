"""Whether the HASH of an acknowledgement is right, and nothing else: for processes that read them
beside the key server, which tells them whose there may be, and decides what follows from one
(:mod:`.ack_gate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..crypto.ack_key import ACK_PRFS
from ..crypto.prf import KeyedPrf, equal, keyed_prf
from ..wire.header import COOKIE_LENGTH, HEADER_LENGTH
from ..wire.payload import GENERIC_HEADER_LENGTH
from ..wire.registry import VERSION_1_0, ExchangeType, PayloadType

SPI_LENGTH = 2 * COOKIE_LENGTH
# Octets before HASH.
PREFIX = HEADER_LENGTH + GENERIC_HEADER_LENGTH
# Next payload HASH, version 1.0, GROUPKEY-PUSH-ACK, no flags, message ID 0.
USUAL = bytes((PayloadType.HASH, VERSION_1_0, ExchangeType.GROUPKEY_PUSH_ACK, 0, 0, 0, 0, 0))
SEQ_LENGTH = 8
SEQ_HEAD = bytes((PayloadType.ID, 0, 0, SEQ_LENGTH))

# Which PUSH and which member's number: what the key server knows the ACK of.
Claim = tuple[int, int]
NO_CLAIM: Claim = (0, 0)


def prefix(spi: bytes, octets: int, rest: int) -> bytes:
    """All before HASH, which has ``octets``, of an ACK with ``rest`` octets behind that."""
    length = PREFIX + octets + rest
    generic = bytes((PayloadType.SEQ, 0, 0, GENERIC_HEADER_LENGTH + octets))
    return spi + USUAL + length.to_bytes(4, "big") + generic


def seq_payload(seq: int) -> bytes:
    return SEQ_HEAD + seq.to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class Row:
    """A member: its ID payload, and its own ack_key where not all have the same."""

    number: int
    who: bytes
    key: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Portion:
    """Some members that are to acknowledge a PUSH. ``place``: its number, from 1 on, among those
    that other processes are told of; ``key``: the ack_key, empty where each member has its own."""

    place: int
    ack_type: int
    spi: bytes
    seq: int
    key: bytes = field(repr=False)
    rows: Sequence[Row] = field(repr=False)


@dataclass(slots=True, eq=False)
class _Awaited:
    """By what stands behind HASH: SEQ and ID."""

    octets: int
    members: dict[bytes, tuple[int, KeyedPrf]] = field(default_factory=dict, repr=False)


@dataclass(slots=True)
class AckCheck:
    """What open rekeys wait for."""

    _places: dict[int, tuple[_Awaited, set[bytes]]] = field(default_factory=dict)
    # By all before HASH and the SEQ payload.
    _forms: dict[bytes, tuple[int, _Awaited]] = field(default_factory=dict)

    def expect(self, portion: Portion) -> None:
        kind = ACK_PRFS[portion.ack_type]
        shared = keyed_prf(kind.hash, portion.key) if portion.key else None
        awaited, forms = self._places.setdefault(portion.place, (_Awaited(kind.octets), set()))
        said = seq_payload(portion.seq)
        for row in portion.rows:
            rest = said + row.who
            form = prefix(portion.spi, kind.octets, len(rest)) + said
            if form not in forms:
                forms.add(form)
                self._forms[form] = portion.place, awaited
            awaited.members[rest] = row.number, shared or keyed_prf(kind.hash, row.key)

    def forget(self, place: int) -> None:
        """With its keys."""
        _, forms = self._places.pop(place, (None, ()))
        for form in forms:
            if self._forms[form][0] == place:
                del self._forms[form]

    def __len__(self) -> int:
        return len(self._places)

    def claim(self, datagram: bytes) -> Claim:
        """Whose it is, if it is an ACK that is waited for, octet by octet."""
        octets = datagram[PREFIX - 1 : PREFIX]  # of the HASH payload, of at most 68 octets
        end = PREFIX + octets[0] - GENERIC_HEADER_LENGTH if octets else PREFIX
        found = self._forms.get(datagram[:PREFIX] + datagram[end : end + SEQ_LENGTH])
        if found is None:
            return NO_CLAIM
        place, awaited = found
        # What is longer than its Length, or shorter, has another ID behind its SEQ.
        member = awaited.members.get(datagram[end:])
        if member is None or int.from_bytes(datagram[24:28], "big") != len(datagram):
            return NO_CLAIM
        number, state = member
        mac = state.copy()
        mac.update(datagram[end:])
        return (place, number) if equal(mac.finalize(), datagram[PREFIX:end]) else NO_CLAIM
