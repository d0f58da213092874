"""The ISAKMP header, RFC 2408 section 3.1."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
# As an int: the complement of an IntFlag holds its own members only, no unknown bit.
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
        return bool(self.flags & Flags.ENCRYPTION)

    @classmethod
    def pull(cls, buf: Buffer) -> Header:
        cky_i = buf.pull_bytes(COOKIE_LENGTH, "initiator cookie")
        cky_r = buf.pull_bytes(COOKIE_LENGTH, "responder cookie")
        next_payload = buf.pull_uint8("next payload")
        version = buf.pull_uint8("version")
        exchange_type = buf.pull_uint8("exchange type")
        flags = buf.pull_uint8("flags")
        message_id = buf.pull_uint32("message id")
        length = buf.pull_uint32("length")
        return cls(cky_i, cky_r, next_payload, exchange_type, flags, message_id, length, version)

    def push(self, buf: Buffer) -> None:
        buf.push_bytes(self.cky_i)
        buf.push_bytes(self.cky_r)
        buf.push_uint8(self.next_payload)
        buf.push_uint8(self.version)
        buf.push_uint8(self.exchange_type)
        buf.push_uint8(self.flags)
        buf.push_uint32(self.message_id)
        buf.push_uint32(self.length)

    def encode(self, length: int | None = None) -> bytes:
        buf = Buffer()
        (self if length is None else replace(self, length=length)).push(buf)
        return buf.data


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
