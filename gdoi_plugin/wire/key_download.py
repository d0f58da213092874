"""The Key Download payload, RFC 6407 section 5.6."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .attributes import MAX_ATTRIBUTES, Attribute, pull_attributes, push_attributes
from .buffer import Buffer
from .group_sa import MAX_SATS
from .registry import KeyPacketType, PayloadType

KEY_PACKET_HEADER_LENGTH = 5
# A packet for every SAT, and one each for KEK, LKH and SIDs.
MAX_KEY_PACKETS = MAX_SATS + 8
MAX_KEY_PACKET_SPI = 16
# A packet of type LKH has an attribute for each update array (RFC 6407 section 5.6.3): at least 64
# octets with an AES key, so that its 65,535 octets hold at most these.
MAX_KEY_PACKET_ATTRIBUTES = 1024


@dataclass(frozen=True, slots=True)
class KeyPacket:
    """One key packet. The attributes' values are keys: they do not show in ``repr``.

    ::

        !   KD Type     !   RESERVED    !            KD Length          !
        !    SPI Size   !                   SPI (variable)              ~
        ~                    Key Packet Attributes                      ~
    """

    kd_type: int
    spi: bytes
    attributes: tuple[Attribute, ...]

    @classmethod
    def pull(cls, buf: Buffer) -> KeyPacket:
        kd_type = buf.pull_uint8("KD type")
        buf.pull_zero(1, "key packet: RESERVED")
        length = buf.pull_uint16("KD length")
        if length < KEY_PACKET_HEADER_LENGTH:
            raise buf.error(f"KD length {length}")
        body = buf.pull_sub(length - 4, "key packet")
        size = body.pull_uint8("key packet SPI size")
        if size > MAX_KEY_PACKET_SPI:
            raise body.error(f"key packet: SPI of {size} octets")
        spi = body.pull_bytes(size, "key packet SPI")
        most = MAX_KEY_PACKET_ATTRIBUTES if kd_type == KeyPacketType.LKH else MAX_ATTRIBUTES
        return cls(kd_type, spi, pull_attributes(body, most))

    def push(self, buf: Buffer) -> None:
        attributes = Buffer()
        push_attributes(attributes, self.attributes)
        buf.push_uint8(self.kd_type)
        buf.push_uint8(0)
        buf.push_uint16(KEY_PACKET_HEADER_LENGTH + len(self.spi) + len(attributes.data))
        buf.push_uint8(len(self.spi))
        buf.push_bytes(self.spi)
        buf.push_bytes(attributes.data)


@dataclass(frozen=True, slots=True)
class KeyDownload:
    """KD.

    ::

        ! Next Payload  !   RESERVED    !         Payload Length        !
        ! Number of Key Packets         !            RESERVED2          !
        ~                    Key Packets                                ~
    """

    TYPE: ClassVar[PayloadType] = PayloadType.KD

    packets: tuple[KeyPacket, ...]

    @classmethod
    def pull(cls, buf: Buffer) -> KeyDownload:
        count = buf.pull_uint16("number of key packets")
        buf.pull_zero(2, "KD: RESERVED2")
        if count > MAX_KEY_PACKETS:
            raise buf.error(f"{count} key packets, at most {MAX_KEY_PACKETS}")
        return cls(tuple(KeyPacket.pull(buf) for _ in range(count)))

    def push(self, buf: Buffer) -> None:
        buf.push_uint16(len(self.packets))
        buf.push_uint16(0)
        for packet in self.packets:
            packet.push(buf)
