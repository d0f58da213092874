"""GROUPKEY-PUSH-ACK, both roles, RFC 8263 sections 3 to 6.

::

         GM                              GCKS
         HDR, HASH, SEQ, ID   ---->
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..crypto.ack_key import ack_hash, ack_key
from ..crypto.prf import equal
from ..crypto.secret import Secret
from ..wire.buffer import DecodeError
from ..wire.header import Header
from ..wire.identification import Identification
from ..wire.message import pull_clear, with_body
from ..wire.opaque import Hash as HashPayload
from ..wire.payload import Body, encode_chain
from ..wire.registry import AckType, ExchangeType, PayloadType
from ..wire.sequence import SequenceNumber
from . import rules
from .actions import IPAddress
from .identity import Identity
from .policy import Kek

SUPPORTED = frozenset({AckType.REKEY_ACK_KEK_SHA256})
MAX_JITTER = 5.0  # RFC 8263 section 6: "MUST NOT delay ... for more than 5 seconds"
MIN_WAIT = 10.0  # RFC 8263 section 6: missing only after "at least 10 seconds"
HASH_LENGTH = 32
# HDR, HASH, SEQ, ID with an IPv6 address: nothing longer is an ACK of a supported type.
MAX_LENGTH = 28 + 4 + HASH_LENGTH + 8 + 8 + 16


def build_ack(kek: Kek, seq: int, address: IPAddress) -> bytes:
    """``kek`` decrypted the PUSH with ``seq``; ``address`` was the source of the last PULL."""
    payloads: list[Body] = [SequenceNumber(seq), Identity.of_address(address).payload()]
    rest = encode_chain(payloads)
    split = len(rest) - len(encode_chain(payloads[1:]))
    digest = ack_hash(_key(kek), rest[:split], rest[split:])
    body = encode_chain([HashPayload(digest)], PayloadType.SEQ) + rest
    # RFC 8263 section 3.1: flags and message ID are zero.
    header = Header(kek.spi[:8], kek.spi[8:], PayloadType.HASH, ExchangeType.GROUPKEY_PUSH_ACK)
    return with_body(header, PayloadType.HASH, body)


@dataclass(frozen=True, slots=True)
class Ack:
    """A well-formed ACK, not yet verified."""

    seq: int
    identity: Identity
    hash: bytes = field(repr=False)
    seq_octets: bytes = field(repr=False)
    id_octets: bytes = field(repr=False)

    def verify(self, kek: Kek) -> bool:
        return equal(self.hash, ack_hash(_key(kek), self.seq_octets, self.id_octets))


def read_ack(header: Header, datagram: bytes) -> Ack:
    """The form only: no key is touched. Raises DecodeError."""
    if len(datagram) > MAX_LENGTH or header.message_id:
        raise DecodeError(f"ACK of {len(datagram)} octets", 24)
    message = pull_clear(header, datagram)
    rules.check(rules.PUSH_ACK, message)
    digest, seq, identification = message.payloads
    given = digest.parse(HashPayload).data
    if len(given) != HASH_LENGTH:
        raise DecodeError(f"ACK: HASH of {len(given)} octets", digest.offset)
    parsed = identification.parse(Identification)
    # RFC 8263 section 3.4: "The Protocol ID and Port fields MUST be set to 0"
    if parsed.protocol_id or parsed.port:
        raise DecodeError("ACK: ID with protocol or port", identification.offset)
    return Ack(
        seq.parse(SequenceNumber).number,
        Identity.of_payload(parsed),
        given,
        seq.octets,
        identification.octets,
    )


def _key(kek: Kek) -> Secret:
    return ack_key(kek.key, kek.spi)
