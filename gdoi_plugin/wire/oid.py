"""An object identifier with its OID-specific payload, RFC 8052 sections 2.1 and 2.2.

It names a group (ID_OID) and selects traffic (GDOI_PROTO_IEC_61850). Both parts are DER; the
payload's own structure is IEC 61850's and stays octets here (RFC 8052 appendix B.1).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .buffer import Buffer

_TAG = 0x06  # OBJECT IDENTIFIER, ITU-T X.690 section 8.19
_TEXT = re.compile(r"[0-2](\.(0|[1-9][0-9]{0,38}))+")
MAX_OID = 129  # tag, length and 127 octets: what DER's short form of length can say
# A selector is an address or two; the ID payload that carries it ends at 1,024 octets.
MAX_OID_PAYLOAD = 512


@dataclass(frozen=True, slots=True)
class Oid:
    """``oid`` with its DER tag and length; ``payload`` empty where the OID needs none.

    ::

        !  OID Length   !                       OID                     ~
        !  OID-Specific Payload Length  !     OID-Specific Payload      ~
    """

    oid: bytes
    payload: bytes = b""

    @classmethod
    def parse(cls, text: str) -> Oid:
        """``1.2.840.10070`` or, with a payload in hexadecimal, ``1.2.840.10070:8704e9fc0001``.

        Raises ValueError.
        """
        dotted, colon, payload = text.partition(":")
        if not _TEXT.fullmatch(dotted):
            raise ValueError(f"{dotted!r} is no OID; write it as 1.2.840.10070")
        octets = bytes.fromhex(payload)
        if len(octets) > MAX_OID_PAYLOAD or (colon and not octets):
            raise ValueError(f"OID payload of {len(octets)} octets, must be 1 to {MAX_OID_PAYLOAD}")
        return cls(_encode([int(arc) for arc in dotted.split(".")]), octets)

    @classmethod
    def pull(cls, buf: Buffer) -> Oid:
        """Raises DecodeError where the OID is no DER."""
        oid = buf.pull_bytes(buf.pull_uint8("OID length"), "OID")
        size = buf.pull_uint16("OID-specific payload length")
        if size > MAX_OID_PAYLOAD:
            raise buf.error(f"OID-specific payload of {size} octets, at most {MAX_OID_PAYLOAD}")
        try:
            _arcs(oid)
        except ValueError as error:
            raise buf.error(str(error)) from None
        return cls(oid, buf.pull_bytes(size, "OID-specific payload"))

    def push(self, buf: Buffer) -> None:
        buf.push_uint8(len(self.oid))
        buf.push_bytes(self.oid)
        buf.push_uint16(len(self.payload))
        buf.push_bytes(self.payload)

    @property
    def dotted(self) -> str:
        return ".".join(map(str, _arcs(self.oid)))

    def __str__(self) -> str:
        """As :meth:`parse` reads it."""
        return f"{self.dotted}:{self.payload.hex()}" if self.payload else self.dotted


def _encode(arcs: list[int]) -> bytes:
    """X.690 section 8.19: the first two arcs share a number, each number is base 128."""
    first, second, *rest = arcs
    if first < 2 and second > 39:
        raise ValueError(f"OID {first}.{second}: the second number is at most 39")
    body = b"".join(_base128(number) for number in (40 * first + second, *rest))
    if len(body) + 2 > MAX_OID:
        raise ValueError(f"OID of {len(body)} octets, at most {MAX_OID - 2}")
    return bytes((_TAG, len(body))) + body


def _base128(number: int) -> bytes:
    octets = [number & 0x7F]
    while number := number >> 7:
        octets.append(0x80 | number & 0x7F)
    return bytes(reversed(octets))


def _arcs(oid: bytes) -> list[int]:
    """Raises ValueError for what is not the DER of an object identifier."""
    body = oid[2:]
    if len(oid) > MAX_OID or not body or oid[:2] != bytes((_TAG, len(body))):
        raise ValueError("OID is not a DER object identifier")
    numbers, number, fresh = [], 0, True
    for octet in body:
        if fresh and octet == 0x80:
            raise ValueError("OID with a leading zero, which DER does not allow")
        number = number << 7 | octet & 0x7F
        fresh = not octet & 0x80
        if fresh:
            numbers.append(number)
            number = 0
    if not fresh:
        raise ValueError("OID ends inside a number")
    first = min(numbers[0] // 40, 2)
    return [first, numbers[0] - 40 * first, *numbers[1:]]
