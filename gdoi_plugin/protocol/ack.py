"""GROUPKEY-PUSH-ACK, both roles, RFC 8263 sections 3 to 6.

::

         GM                              GCKS
         HDR, HASH, SEQ, ID   ---->
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..crypto.ack_key import ACK_PRFS, ack_hash, ack_key
from ..crypto.prf import equal
from ..crypto.secret import Secret
from ..wire.buffer import DecodeError
from ..wire.header import Header
from ..wire.identification import MAX_ID, Identification
from ..wire.message import pull_clear, with_body
from ..wire.opaque import Hash as HashPayload
from ..wire.payload import Body, encode_chain
from ..wire.registry import ExchangeType, PayloadType
from ..wire.sequence import SequenceNumber
from . import rules
from .policy import Kek

MAX_JITTER = 5.0  # RFC 8263 section 6: "MUST NOT delay ... for more than 5 seconds"
MIN_WAIT = 10.0  # RFC 8263 section 6: missing only after "at least 10 seconds"
HASH_LENGTHS = frozenset(kind.octets for kind in ACK_PRFS.values())
# HDR, HASH, SEQ, ID with the longest ID there may be: nothing longer is an ACK of any type.
MAX_LENGTH = 28 + 4 + max(HASH_LENGTHS) + 8 + 8 + MAX_ID


def base_key(ack_type: int, kek: Kek, leaf: Secret | None) -> Secret | None:
    """RFC 8263 section 2: the KEK that decrypted the PUSH, or the member's ``leaf`` key of the LKH;
    both without IV. None where the type is unknown, or wants a leaf key and there is none."""
    kind = ACK_PRFS.get(ack_type)
    if kind is None:
        return None
    return leaf if kind.leaf else kek.key


def build_ack(ack_type: int, base: Secret, kek: Kek, seq: int, who: Identification) -> bytes:
    """``kek`` decrypted the PUSH with ``seq``; ``base`` as :func:`base_key` gives it."""
    payloads: list[Body] = [SequenceNumber(seq), who]
    rest = encode_chain(payloads)
    split = len(rest) - len(encode_chain(payloads[1:]))
    kind = ACK_PRFS[ack_type]
    digest = ack_hash(kind, ack_key(kind, base, kek.spi), rest[:split], rest[split:])
    body = encode_chain([HashPayload(digest)], PayloadType.SEQ) + rest
    # RFC 8263 section 3.1: flags and message ID are zero.
    header = Header(kek.spi[:8], kek.spi[8:], PayloadType.HASH, ExchangeType.GROUPKEY_PUSH_ACK)
    return with_body(header, PayloadType.HASH, body)


@dataclass(frozen=True, slots=True)
class Ack:
    """A well-formed ACK, not yet verified."""

    seq: int
    who: Identification
    hash: bytes = field(repr=False)
    seq_octets: bytes = field(repr=False)
    id_octets: bytes = field(repr=False)

    def verify(self, ack_type: int, base: Secret, kek: Kek, l_bits: int | None = None) -> bool:
        kind = ACK_PRFS[ack_type]
        key = ack_key(kind, base, kek.spi, l_bits)
        return equal(self.hash, ack_hash(kind, key, self.seq_octets, self.id_octets))


def read_ack(header: Header, datagram: bytes) -> Ack:
    """The form only: no key is touched. Raises DecodeError."""
    if len(datagram) > MAX_LENGTH or header.message_id:
        raise DecodeError(f"ACK of {len(datagram)} octets", 24)
    message = pull_clear(header, datagram)
    rules.check(rules.PUSH_ACK, message)
    digest, seq, identification = message.payloads
    given = digest.parse(HashPayload).data
    if len(given) not in HASH_LENGTHS:
        raise DecodeError(f"ACK: HASH of {len(given)} octets", digest.offset)
    who = identification.parse(Identification)
    # RFC 8263 section 3.4: "The Protocol ID and Port fields MUST be set to 0"
    if who.protocol_id or who.port:
        raise DecodeError("ACK: ID with protocol or port", identification.offset)
    number = seq.parse(SequenceNumber).number
    return Ack(number, who, given, seq.octets, identification.octets)
