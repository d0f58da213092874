"""The Delete payload, RFC 2408 section 3.15, RFC 6407 section 5.9."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .buffer import Buffer
from .registry import PayloadType

# A KEK SPI has 16 octets, ESP and AH have 4.
MAX_DELETE_SPI_SIZE = 16
# 1,024 ESP SPIs fill three Ethernet frames; a group with more is deleted by SPI 0.
MAX_DELETE_SPIS = 1024


@dataclass(frozen=True, slots=True)
class Delete:
    """D. ``protocol_id`` is a TEK protocol, or 0 for the KEK; an SPI of zero stands for all.

    ::

        ! Next Payload  !   RESERVED    !         Payload Length        !
        !              Domain of Interpretation  (DOI)                  !
        !  Protocol-Id  !   SPI Size    !           # of SPIs           !
        ~               Security Parameter Index(es) (SPI)              ~
    """

    TYPE: ClassVar[PayloadType] = PayloadType.DELETE

    doi: int
    protocol_id: int
    spis: tuple[bytes, ...]

    @classmethod
    def pull(cls, buf: Buffer) -> Delete:
        doi = buf.pull_uint32("DOI")
        protocol_id = buf.pull_uint8("protocol id")
        size = buf.pull_uint8("SPI size")
        count = buf.pull_uint16("number of SPIs")
        if not 1 <= size <= MAX_DELETE_SPI_SIZE:
            raise buf.error(f"delete: SPI size {size}")
        if not 1 <= count <= MAX_DELETE_SPIS:
            raise buf.error(f"delete: {count} SPIs")
        octets = buf.pull_bytes(size * count, "SPIs")
        spis = tuple(octets[at : at + size] for at in range(0, len(octets), size))
        return cls(doi, protocol_id, spis)

    def push(self, buf: Buffer) -> None:
        buf.push_uint32(self.doi)
        buf.push_uint8(self.protocol_id)
        buf.push_uint8(len(self.spis[0]))
        buf.push_uint16(len(self.spis))
        for spi in self.spis:
            buf.push_bytes(spi)
