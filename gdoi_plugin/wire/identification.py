"""Identification payload: RFC 2408 section 3.8, RFC 2407 section 4.6.2, RFC 6407 section 5.1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .buffer import Buffer
from .registry import PayloadType

MAX_ID = 1024  # a distinguished name with a few long attributes


@dataclass(frozen=True, slots=True)
class Identification:
    """ID. ``protocol_id`` and ``port`` are zero unless a phase-1 peer restricts itself to one port.

    ::

        ! Next Payload  !   RESERVED    !        Payload Length         !
        !   ID Type     !  Protocol ID  !             Port              !
        ~                     Identification Data                       ~
    """

    TYPE: ClassVar[PayloadType] = PayloadType.ID

    id_type: int
    data: bytes
    protocol_id: int = 0
    port: int = 0

    @classmethod
    def pull(cls, buf: Buffer) -> Identification:
        id_type = buf.pull_uint8("ID type")
        protocol_id = buf.pull_uint8("ID protocol")
        port = buf.pull_uint16("ID port")
        if not 1 <= buf.remaining <= MAX_ID:
            raise buf.error(f"identification data of {buf.remaining} octets")
        return cls(id_type, buf.pull_rest(), protocol_id, port)

    def push(self, buf: Buffer) -> None:
        buf.push_uint8(self.id_type)
        buf.push_uint8(self.protocol_id)
        buf.push_uint16(self.port)
        buf.push_bytes(self.data)
