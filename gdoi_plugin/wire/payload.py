"""The generic payload header and chains of payloads, RFC 2408 section 3.2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from struct import Struct
from typing import ClassVar, Protocol, Self, TypeVar

from .buffer import Buffer, DecodeError, EncodeError
from .registry import PayloadType, name_of

_GENERIC_HEADER = Struct("!BBH")  # as Payload draws it
GENERIC_HEADER_LENGTH = _GENERIC_HEADER.size
# Main mode with a dozen vendor IDs has about 20, a PUSH with many Deletes some more.
MAX_PAYLOADS = 64
MAX_PAYLOAD = 0xFFFF  # Payload Length has two octets


class Body(Protocol):
    """What every payload dataclass has: the RFC's fields, without the generic header."""

    TYPE: ClassVar[PayloadType]

    @classmethod
    def pull(cls, buf: Buffer) -> Self: ...

    def push(self, buf: Buffer) -> None: ...


B = TypeVar("B", bound=Body)


@dataclass(frozen=True, slots=True)
class Payload:
    """One payload as received: ``octets`` are all of it, generic header included.

    ::

         0                   1                   2                   3
         0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
        +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
        ! Next Payload  !   RESERVED    !         Payload Length        !
        +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

    HASH and SIG are computed over ``octets``, never over a re-encoding.
    """

    kind: int
    octets: bytes = field(repr=False)
    offset: int

    @property
    def body(self) -> bytes:
        return self.octets[GENERIC_HEADER_LENGTH:]

    def parse(self, cls: type[B]) -> B:
        """The body as ``cls``; every octet must be used up."""
        buf = Buffer(self.body, self.offset + GENERIC_HEADER_LENGTH)
        parsed = cls.pull(buf)
        buf.expect_end(f"{name_of(PayloadType, self.kind)} payload")
        return parsed


def _pull_generic_header(buf: Buffer, what: str) -> tuple[bytes, int, int]:
    """Its octets, Next Payload, and how many octets of body follow."""
    octets = buf.pull_bytes(GENERIC_HEADER_LENGTH, what)
    next_payload, reserved, length = _GENERIC_HEADER.unpack(octets)
    if reserved:
        raise DecodeError(f"{what}: RESERVED is not zero", buf.offset - 3)
    if length < GENERIC_HEADER_LENGTH:
        raise DecodeError(f"{what}: payload length {length}", buf.offset - 2)
    return octets, next_payload, length - GENERIC_HEADER_LENGTH


def pull_payload_header(buf: Buffer, what: str) -> tuple[int, Buffer]:
    """Next Payload and the body of one payload that starts here."""
    _, next_payload, length = _pull_generic_header(buf, what)
    return next_payload, buf.pull_sub(length, what)


def pull_chain(first: int, buf: Buffer) -> tuple[Payload, ...]:
    """Payloads from ``first`` until Next Payload is zero; padding after it stays in ``buf``."""
    chain: list[Payload] = []
    current = first
    while current:
        if len(chain) == MAX_PAYLOADS:
            raise buf.error(f"more than {MAX_PAYLOADS} payloads")
        offset, what = buf.offset, name_of(PayloadType, current)
        head, next_payload, length = _pull_generic_header(buf, what)
        chain.append(Payload(current, head + buf.pull_bytes(length, what), offset))
        current = next_payload
    return tuple(chain)


def push_payload(buf: Buffer, next_payload: int, body: bytes) -> None:
    length = GENERIC_HEADER_LENGTH + len(body)
    buf.push_bytes(_GENERIC_HEADER.pack(next_payload, 0, length))
    buf.push_bytes(body)


def encode_body(payload: Body) -> bytes:
    buf = Buffer()
    payload.push(buf)
    return buf.data


def encode_chain(payloads: Sequence[Body], following: int = PayloadType.NONE) -> bytes:
    """Payloads one after the other; the last one's Next Payload is ``following``.

    Raises EncodeError for a payload that is longer than its Payload Length can say.
    """
    octets: list[bytes] = []
    types = [*(p.TYPE for p in payloads[1:]), following]
    for payload, next_payload in zip(payloads, types, strict=False):  # no payloads: no octets
        body = encode_body(payload)
        length = GENERIC_HEADER_LENGTH + len(body)
        if length > MAX_PAYLOAD:
            raise EncodeError(f"{payload.TYPE.name} payload of {length} octets, {MAX_PAYLOAD} fit")
        octets += (_GENERIC_HEADER.pack(next_payload, 0, length), body)
    return b"".join(octets)
