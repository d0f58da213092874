"""The ISAKMP header, RFC 2408 section 3.1."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from .buffer import Buffer, DecodeError
from .encapsulation import NON_ESP_MARKER
from .registry import VERSION_1_0, Flags

HEADER_LENGTH = 28
COOKIE_LENGTH = 8
NO_COOKIE = bytes(COOKIE_LENGTH)
# The largest UDP payload over IPv4: nothing longer can arrive or be sent.
MAX_MESSAGE = 65507
# What we send may have to go to port 4500, behind the non-ESP marker.
MAX_SENT = MAX_MESSAGE - len(NON_ESP_MARKER)
# As drawn below.
_DRAWING = Struct("!8s8sBBBBII")
# As ints: the complement of an IntFlag holds its own members only, no unknown bit.
_ENCRYPTION = int(Flags.ENCRYPTION)
KNOWN_FLAGS = int(Flags.ENCRYPTION | Flags.COMMIT | Flags.AUTH_ONLY)


@dataclass(frozen=True, slots=True)
class Header:
    """HDR.

    ::

         0                   1                   2                   3
         0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
        +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
        !                          Initiator                            !
        !                            Cookie                             !
        +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
        !                          Responder                            !
        !                            Cookie                             !
        +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
        !  Next Payload ! MjVer ! MnVer ! Exchange Type !     Flags     !
        +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
        !                          Message ID                           !
        +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
        !                            Length                             !
        +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    """

    cky_i: bytes
    cky_r: bytes
    next_payload: int
    exchange_type: int
    flags: int = 0
    message_id: int = 0
    length: int = HEADER_LENGTH
    version: int = VERSION_1_0

    @property
    def spi(self) -> bytes:
        """The cookie pair: the SPI of a Rekey SA (RFC 6407 section 4.2) or of an ISAKMP SA."""
        return self.cky_i + self.cky_r

    @property
    def encrypted(self) -> bool:
        return bool(self.flags & _ENCRYPTION)

    @classmethod
    def pull(cls, buf: Buffer) -> Header:
        cky_i, cky_r, following, version, exchange, flags, message_id, length = _DRAWING.unpack(
            buf.pull_bytes(HEADER_LENGTH, "header")
        )
        return cls(cky_i, cky_r, following, exchange, flags, message_id, length, version)

    def encode(self, length: int | None = None, next_payload: int | None = None) -> bytes:
        """With another Length or Next Payload, where they are given."""
        return _DRAWING.pack(
            self.cky_i,
            self.cky_r,
            self.next_payload if next_payload is None else next_payload,
            self.version,
            self.exchange_type,
            self.flags,
            self.message_id,
            self.length if length is None else length,
        )


def pull_header(datagram: bytes) -> Header:
    """The header of a whole datagram: version 1.0, no unknown flag, Length as received.

    RFC 2408 section 5.2 wants each of these checked before anything else is looked at.
    """
    if len(datagram) > MAX_MESSAGE:
        raise DecodeError(f"message of {len(datagram)} octets", 0)
    header = Header.pull(Buffer(datagram))
    if header.version != VERSION_1_0:
        raise DecodeError(f"version {header.version >> 4}.{header.version & 15}", 17)
    if header.flags & ~KNOWN_FLAGS:
        raise DecodeError(f"flags 0x{header.flags:02x}", 19)
    if header.length != len(datagram):
        raise DecodeError(f"length {header.length} in a message of {len(datagram)} octets", 24)
    if header.cky_i == NO_COOKIE:
        raise DecodeError("initiator cookie is zero", 0)
    return header
