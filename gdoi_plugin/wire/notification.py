"""The Notification payload, RFC 2408 section 3.14."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .buffer import Buffer
from .registry import PayloadType

MAX_NOTIFY_SPI = 16
MAX_NOTIFY_DATA = 1024


@dataclass(frozen=True, slots=True)
class Notification:
    """N.

    ::

        ! Next Payload  !   RESERVED    !         Payload Length        !
        !              Domain of Interpretation  (DOI)                  !
        !  Protocol-ID  !   SPI Size    !      Notify Message Type      !
        !                Security Parameter Index (SPI)                 !
        ~                       Notification Data                       ~
    """

    TYPE: ClassVar[PayloadType] = PayloadType.NOTIFY

    doi: int
    protocol_id: int
    spi: bytes
    notify_type: int
    data: bytes = b""

    @classmethod
    def pull(cls, buf: Buffer) -> Notification:
        doi = buf.pull_uint32("DOI")
        protocol_id = buf.pull_uint8("protocol id")
        spi_size = buf.pull_uint8("SPI size")
        notify_type = buf.pull_uint16("notify message type")
        if spi_size > MAX_NOTIFY_SPI:
            raise buf.error(f"notify: SPI of {spi_size} octets")
        spi = buf.pull_bytes(spi_size, "notify SPI")
        if buf.remaining > MAX_NOTIFY_DATA:
            raise buf.error(f"notification data of {buf.remaining} octets")
        return cls(doi, protocol_id, spi, notify_type, buf.pull_rest())

    def push(self, buf: Buffer) -> None:
        buf.push_uint32(self.doi)
        buf.push_uint8(self.protocol_id)
        buf.push_uint8(len(self.spi))
        buf.push_uint16(self.notify_type)
        buf.push_bytes(self.spi)
        buf.push_bytes(self.data)
