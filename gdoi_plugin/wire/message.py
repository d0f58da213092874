"""Whole messages: header and payload chain, in clear or around an encrypted body."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .buffer import Buffer, EncodeError
from .header import HEADER_LENGTH, MAX_SENT, Header
from .payload import Body, Payload, encode_chain, pull_chain
from .registry import ExchangeType, PayloadType, name_of

ALIGNMENT = 4  # RFC 2408 section 3.6


@dataclass(frozen=True, slots=True)
class Message:
    """A header and its payloads as received."""

    header: Header
    payloads: tuple[Payload, ...]

    @property
    def kinds(self) -> tuple[int, ...]:
        return tuple([p.kind for p in self.payloads])

    def first(self, kind: PayloadType) -> Payload:
        """The first payload of a kind that the message rules have found present."""
        return next(p for p in self.payloads if p.kind == kind)

    def all(self, kind: PayloadType) -> tuple[Payload, ...]:
        return tuple([p for p in self.payloads if p.kind == kind])


def pull_clear(header: Header, datagram: bytes) -> Message:
    """A message that is not encrypted: the chain, then zeros if they make its length 4-aligned.

    RFC 2408 sections 3.5 and 3.6: "any padding will be added at the end of the message". An aligned
    chain must end where the datagram ends.
    """
    buf = Buffer(datagram[HEADER_LENGTH:], HEADER_LENGTH)
    payloads = pull_chain(header.next_payload, buf)
    if buf.remaining >= ALIGNMENT or len(datagram) % ALIGNMENT:
        buf.expect_end("message")
    buf.pull_zero(buf.remaining, "padding")
    return Message(header, payloads)


def pull_decrypted(header: Header, plaintext: bytes, block: int) -> Message:
    """A decrypted body: the chain, then zero padding, one block at most.

    Some implementations add a whole block to what is aligned already.
    RFC 2409 appendix B and RFC 2408 section 3.1; the padding is inside the header's Length and
    outside every HASH and SIG, so anything but zeros in it would go unauthenticated.
    """
    buf = Buffer(plaintext, HEADER_LENGTH)
    payloads = pull_chain(header.next_payload, buf)
    if buf.remaining > block:
        raise buf.error(f"{buf.remaining} octets of padding")
    buf.pull_zero(buf.remaining, "padding")
    return Message(header, payloads)


def encode_clear(header: Header, payloads: Sequence[Body]) -> bytes:
    """Datagram of a message in clear; Next Payload and Length are filled in."""
    body = encode_chain(payloads)
    return with_body(header, payloads[0].TYPE if payloads else PayloadType.NONE, body)


def with_body(header: Header, next_payload: int, body: bytes) -> bytes:
    """The datagram. IP may fragment it, ISAKMP does not: raises EncodeError for one too large."""
    length = HEADER_LENGTH + len(body)
    if length > MAX_SENT:
        kind = name_of(ExchangeType, header.exchange_type).replace("_", "-")
        raise EncodeError(f"{kind} message of {length} octets, {MAX_SENT} fit a UDP datagram")
    return header.encode(length, next_payload) + body
