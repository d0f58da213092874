"""Which payloads a message may have: a table by exchange and message number.

``+`` of RFC notation is a maximum above one, ``[ ]`` a minimum of zero. In GDOI's own messages the
order is the RFC's and nothing else may stand there; in main mode only the SA's place is fixed
(RFC 2409 section 5), and payloads that are not named are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..wire.buffer import DecodeError
from ..wire.message import Message
from ..wire.payload import MAX_PAYLOADS
from ..wire.registry import Flags, PayloadType, name_of

P = PayloadType
# A host with more addresses has to choose which of them it may be sending from.
MAX_NAT_D = 32


@dataclass(frozen=True, slots=True)
class Slot:
    kind: PayloadType
    minimum: int = 1
    maximum: int = 1


@dataclass(frozen=True, slots=True)
class Rule:
    """``ordered``: exactly these in this order; else these anywhere and others ignored."""

    name: str
    encrypted: bool
    slots: tuple[Slot, ...]
    ordered: bool = True


#    Initiator                          Responder
#   HDR, SA                        -->
#                                  <--    HDR, SA
#   HDR, KE, Ni                    -->
#                                  <--    HDR, KE, Nr
#   HDR*, IDii, HASH_I             -->
#                                  <--    HDR*, IDir, HASH_R
# RFC 3947 section 3.2: one NAT-D for the remote end, one for each address of the local end.
_KEYS = (Slot(P.KE), Slot(P.NONCE), Slot(P.NAT_D, 0, MAX_NAT_D))
MAIN_MODE = {
    1: Rule("main mode 1", False, (Slot(P.SA),), ordered=False),
    2: Rule("main mode 2", False, (Slot(P.SA),), ordered=False),
    3: Rule("main mode 3", False, _KEYS, ordered=False),
    4: Rule("main mode 4", False, _KEYS, ordered=False),
}
# Messages 5 and 6, by how they authenticate.
AUTH_PRE_SHARED = Rule("main mode 5 or 6", True, (Slot(P.ID), Slot(P.HASH)), ordered=False)
#   HDR*, IDii, [CERT,] SIG_I      -->
#                                  <--    HDR*, IDir, [CERT,] SIG_R
# A sender's certificate, those between it and a root, and some to spare for other encodings.
MAX_CERTIFICATES = 8
AUTH_SIGNATURE = Rule(
    "main mode 5 or 6",
    True,
    (Slot(P.ID), Slot(P.CERT, 0, MAX_CERTIFICATES), Slot(P.SIG)),
    ordered=False,
)

#        Group Member                      GCKS
#    (1) HDR*, HASH(1), Ni, ID     -->
#    (2)                           <--     HDR*, HASH(2), Nr, SA
#    (3) HDR*, HASH(3) [,GAP]      -->
#    (4)                           <--     HDR*, HASH(4), [SEQ,] KD
PULL = {
    1: Rule("GROUPKEY-PULL 1", True, (Slot(P.HASH), Slot(P.NONCE), Slot(P.ID))),
    2: Rule("GROUPKEY-PULL 2", True, (Slot(P.HASH), Slot(P.NONCE), Slot(P.SA))),
    3: Rule("GROUPKEY-PULL 3", True, (Slot(P.HASH), Slot(P.GAP, 0))),
    4: Rule("GROUPKEY-PULL 4", True, (Slot(P.HASH), Slot(P.SEQ, 0), Slot(P.KD))),
}

#    HDR*, SEQ, [D,] SA, KD, SIG; RFC 6407 section 5.9 leaves SA and KD out where there are no SAs.
PUSH = Rule(
    "GROUPKEY-PUSH",
    True,
    (Slot(P.SEQ), Slot(P.DELETE, 0, MAX_PAYLOADS), Slot(P.SA, 0), Slot(P.KD, 0), Slot(P.SIG)),
)

#    HDR, HASH, SEQ, ID
PUSH_ACK = Rule("GROUPKEY-PUSH-ACK", False, (Slot(P.HASH), Slot(P.SEQ), Slot(P.ID)))

#    HDR*, HASH(1), N/D
INFORMATIONAL = Rule(
    "Informational",
    True,
    (Slot(P.HASH), Slot(P.NOTIFY, 0, MAX_PAYLOADS), Slot(P.DELETE, 0, MAX_PAYLOADS)),
    ordered=False,
)


def check(rule: Rule, message: Message) -> None:
    """Raises DecodeError naming the payload that is missing, too many or out of place."""
    check_flags(rule, message)
    check_payloads(rule, message)


def check_flags(rule: Rule, message: Message) -> None:
    flags = Flags.ENCRYPTION if rule.encrypted else Flags.NONE
    if message.header.flags != flags:
        raise DecodeError(f"{rule.name}: flags 0x{message.header.flags:02x}", 19)


def check_payloads(rule: Rule, message: Message) -> None:
    if rule.ordered:
        _check_order(rule, message)
    else:
        _check_counts(rule, message)


def _check_order(rule: Rule, message: Message) -> None:
    kinds = list(message.kinds)
    at = 0
    for slot in rule.slots:
        count = 0
        while at < len(kinds) and kinds[at] == slot.kind and count < slot.maximum:
            at += 1
            count += 1
        if count < slot.minimum:
            found = name_of(PayloadType, kinds[at]) if at < len(kinds) else "nothing"
            raise DecodeError(
                f"{rule.name}: {found} where {slot.kind.name} must be", _at(message, at)
            )
    if at < len(kinds):
        extra = name_of(PayloadType, kinds[at])
        raise DecodeError(f"{rule.name}: {extra} has no place here", _at(message, at))


def _check_counts(rule: Rule, message: Message) -> None:
    kinds = message.kinds
    for slot in rule.slots:
        count = kinds.count(slot.kind)
        if not slot.minimum <= count <= slot.maximum:
            raise DecodeError(f"{rule.name}: {count} {slot.kind.name} payloads", _at(message, 0))
    first = rule.slots[0].kind
    # RFC 2409 section 5: SA first in phase 1, HASH first in phase 2; main mode 3 to 6 are free.
    if first in (P.SA, P.HASH) and kinds[0] != first:
        raise DecodeError(f"{rule.name}: {first.name} must come first", _at(message, 0))


def _at(message: Message, index: int) -> int:
    if index < len(message.payloads):
        return message.payloads[index].offset
    return message.header.length
