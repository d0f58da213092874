"""The Sequence Number payload, RFC 6407 section 5.7."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .buffer import Buffer
from .registry import PayloadType


@dataclass(frozen=True, slots=True)
class SequenceNumber:
    """SEQ.

    ::

        ! Next Payload  !   RESERVED    !     Payload Length (8)        !
        !                      Sequence Number                          !
    """

    TYPE: ClassVar[PayloadType] = PayloadType.SEQ

    number: int

    @classmethod
    def pull(cls, buf: Buffer) -> SequenceNumber:
        return cls(buf.pull_uint32("sequence number"))

    def push(self, buf: Buffer) -> None:
        buf.push_uint32(self.number)
