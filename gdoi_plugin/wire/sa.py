"""The phase-1 Security Association payload with its proposals, RFC 2408 sections 3.4 to 3.6."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .attributes import Attribute, pull_attributes, push_attributes
from .buffer import Buffer, DecodeError
from .payload import pull_payload_header, push_payload
from .registry import Doi, PayloadType

# One proposal is what phase 1 needs. Transforms are counted by one octet (Cisco offers some 30).
MAX_PROPOSALS = 8
MAX_SPI = 16  # RFC 2408 section 3.5: in phase 1 the SPI is empty or the cookie pair


@dataclass(frozen=True, slots=True)
class Transform:
    """RFC 2408 section 3.6.

    ::

        ! NP = 3 or 0   !   RESERVED    !         Payload Length        !
        !  Transform #  !  Transform-Id !           RESERVED2           !
        ~                        SA Attributes                          ~
    """

    number: int
    transform_id: int
    attributes: tuple[Attribute, ...]

    @classmethod
    def pull(cls, buf: Buffer) -> Transform:
        number = buf.pull_uint8("transform number")
        transform_id = buf.pull_uint8("transform id")
        buf.pull_zero(2, "transform: RESERVED2")
        return cls(number, transform_id, pull_attributes(buf))

    def push(self, buf: Buffer) -> None:
        buf.push_uint8(self.number)
        buf.push_uint8(self.transform_id)
        buf.push_uint16(0)
        push_attributes(buf, self.attributes)


@dataclass(frozen=True, slots=True)
class Proposal:
    """RFC 2408 section 3.5.

    ::

        ! NP = 2 or 0   !   RESERVED    !         Payload Length        !
        !  Proposal #   !  Protocol-Id  !    SPI Size   !# of Transforms!
        !                        SPI (variable)                         !
    """

    number: int
    protocol_id: int
    spi: bytes
    transforms: tuple[Transform, ...]

    @classmethod
    def pull(cls, buf: Buffer) -> Proposal:
        number = buf.pull_uint8("proposal number")
        protocol_id = buf.pull_uint8("protocol id")
        spi_size = buf.pull_uint8("spi size")
        count = buf.pull_uint8("number of transforms")
        if spi_size > MAX_SPI:
            raise buf.error(f"proposal: SPI of {spi_size} octets")
        if not count:
            # RFC 2408 section 4.2: a proposal implies one or more transforms.
            raise buf.error("proposal without a transform")
        spi = buf.pull_bytes(spi_size, "proposal SPI")
        transforms = []
        for left in range(count, 0, -1):
            start = buf.offset
            following, body = pull_payload_header(buf, "transform")
            _expect_next(following, PayloadType.TRANSFORM, last=left == 1, offset=start)
            transforms.append(Transform.pull(body))
        buf.expect_end("proposal")
        return cls(number, protocol_id, spi, tuple(transforms))

    def push(self, buf: Buffer) -> None:
        buf.push_uint8(self.number)
        buf.push_uint8(self.protocol_id)
        buf.push_uint8(len(self.spi))
        buf.push_uint8(len(self.transforms))
        buf.push_bytes(self.spi)
        for index, transform in enumerate(self.transforms, 1):
            inner = Buffer()
            transform.push(inner)
            more = index < len(self.transforms)
            push_payload(buf, PayloadType.TRANSFORM if more else PayloadType.NONE, inner.data)


@dataclass(frozen=True, slots=True)
class SecurityAssociation:
    """SA in phase 1, RFC 2408 section 3.4. ``situation`` has 4 octets (RFC 2407 section 4.2).

    ::

        ! Next Payload  !   RESERVED    !         Payload Length        !
        !              Domain of Interpretation  (DOI)                  !
        !                           Situation                           !
        ~                           Proposals                           ~
    """

    TYPE: ClassVar[PayloadType] = PayloadType.SA

    doi: int
    situation: int
    proposals: tuple[Proposal, ...]

    @classmethod
    def pull(cls, buf: Buffer) -> SecurityAssociation:
        doi = buf.pull_uint32("DOI")
        if doi not in (Doi.GDOI, Doi.IPSEC):
            # RFC 2408 section 3.4: only the DOI knows how long its Situation is.
            raise buf.error(f"DOI {doi}")
        situation = buf.pull_uint32("situation")
        proposals: list[Proposal] = []
        following = int(PayloadType.PROPOSAL)
        while following != PayloadType.NONE:
            if len(proposals) == MAX_PROPOSALS:
                raise buf.error(f"more than {MAX_PROPOSALS} proposals")
            start = buf.offset
            following, body = pull_payload_header(buf, "proposal")
            if following not in (PayloadType.NONE, PayloadType.PROPOSAL):
                raise DecodeError(f"proposal: next payload {following}", start)
            proposals.append(Proposal.pull(body))
        return cls(doi, situation, tuple(proposals))

    def push(self, buf: Buffer) -> None:
        buf.push_uint32(self.doi)
        buf.push_uint32(self.situation)
        for index, proposal in enumerate(self.proposals, 1):
            inner = Buffer()
            proposal.push(inner)
            more = index < len(self.proposals)
            push_payload(buf, PayloadType.PROPOSAL if more else PayloadType.NONE, inner.data)


def _expect_next(following: int, kind: PayloadType, *, last: bool, offset: int) -> None:
    """The count of transforms and the chain of Next Payload fields must tell the same."""
    wanted = PayloadType.NONE if last else kind
    if following != wanted:
        what = f"{kind.name}: next payload {following}, must be {int(wanted)}"
        raise DecodeError(what, offset)
