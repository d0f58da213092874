"""The GDOI SA payload with SAK, GAP and SATs inside, RFC 6407 sections 5.2 to 5.5."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import ClassVar

from .attributes import Attribute, pull_attributes, push_attributes
from .buffer import Buffer
from .iec61850 import Iec61850Tek
from .payload import encode_body, pull_payload_header, push_payload
from .registry import Doi, PayloadType, TekProtocol, known

KEK_SPI_LENGTH = 16  # RFC 6407 section 5.3: the cookie pair of the PUSH header
ESP_SPI_LENGTH = 4
# 65,535 octets hold some 1,400 small SATs; no router wants more SAs than this from one message.
MAX_SATS = 256
_ENDPOINT = Struct("!BHB")  # ID type, port, length of the data


@dataclass(frozen=True, slots=True)
class Endpoint:
    """SRC or DST of an SAK or SAT: ID type, port and up to 255 octets of identification data."""

    id_type: int
    port: int
    data: bytes

    @classmethod
    def pull(cls, buf: Buffer, what: str) -> Endpoint:
        id_type = buf.pull_uint8(f"{what} ID type")
        port = buf.pull_uint16(f"{what} ID port")
        length = buf.pull_uint8(f"{what} ID data length")
        return cls(id_type, port, buf.pull_bytes(length, f"{what} identification data"))

    def push(self, buf: Buffer) -> None:
        buf.push_bytes(_ENDPOINT.pack(self.id_type, self.port, len(self.data)) + self.data)


@dataclass(frozen=True, slots=True)
class SaKek:
    """SAK, RFC 6407 section 5.3.

    The text lists a "DST ID Prot" octet that the diagram does not draw; the diagram is what
    implementations send.

    ::

        ! Next Payload  !   RESERVED    !         Payload Length        !
        !    Protocol   !  SRC ID Type  !         SRC ID Port           !
        !SRC ID Data Len!          SRC Identification Data              ~
        ! DST ID Type   !         DST ID Port           !DST ID Data Len!
        !                    DST Identification Data                    ~
        ~                              SPI (16)                         ~
        !                           RESERVED2                           !
        ~                        KEK Attributes                         ~
    """

    TYPE: ClassVar[PayloadType] = PayloadType.SAK

    protocol: int
    source: Endpoint
    destination: Endpoint
    spi: bytes
    attributes: tuple[Attribute, ...]

    @classmethod
    def pull(cls, buf: Buffer) -> SaKek:
        protocol = buf.pull_uint8("SAK protocol")
        source = Endpoint.pull(buf, "SAK SRC")
        destination = Endpoint.pull(buf, "SAK DST")
        spi = buf.pull_bytes(KEK_SPI_LENGTH, "SAK SPI")
        buf.pull_zero(4, "SAK: RESERVED2")
        return cls(protocol, source, destination, spi, pull_attributes(buf))

    def push(self, buf: Buffer) -> None:
        buf.push_uint8(self.protocol)
        self.source.push(buf)
        self.destination.push(buf)
        buf.push_bytes(self.spi)
        buf.push_uint32(0)
        push_attributes(buf, self.attributes)


@dataclass(frozen=True, slots=True)
class GroupAssociatedPolicy:
    """GAP, RFC 6407 section 5.4. In PULL message 3 it is a payload of its own."""

    TYPE: ClassVar[PayloadType] = PayloadType.GAP

    attributes: tuple[Attribute, ...]

    @classmethod
    def pull(cls, buf: Buffer) -> GroupAssociatedPolicy:
        return cls(pull_attributes(buf))

    def push(self, buf: Buffer) -> None:
        push_attributes(buf, self.attributes)


@dataclass(frozen=True, slots=True)
class EspTek:
    """The TEK Protocol-Specific payload for ESP and AH, RFC 6407 section 5.5.1.

    ::

        !    Protocol   !  SRC ID Type  !         SRC ID Port           !
        !SRC ID Data Len!          SRC Identification Data              ~
        ! DST ID Type   !         DST ID Port           !DST ID Data Len!
        ! DST Identification Data                                       ~
        ! Transform ID  !                        SPI                    !
        !      SPI      !       RFC 2407 SA Attributes                  ~
    """

    protocol: int
    source: Endpoint
    destination: Endpoint
    transform_id: int
    spi: bytes
    attributes: tuple[Attribute, ...]

    @classmethod
    def pull(cls, buf: Buffer) -> EspTek:
        protocol = buf.pull_uint8("SAT protocol")
        source = Endpoint.pull(buf, "SAT SRC")
        destination = Endpoint.pull(buf, "SAT DST")
        transform_id = buf.pull_uint8("SAT transform id")
        spi = buf.pull_bytes(ESP_SPI_LENGTH, "SAT SPI")
        return cls(protocol, source, destination, transform_id, spi, pull_attributes(buf))

    def push(self, buf: Buffer) -> None:
        buf.push_uint8(self.protocol)
        self.source.push(buf)
        self.destination.push(buf)
        buf.push_uint8(self.transform_id)
        buf.push_bytes(self.spi)
        push_attributes(buf, self.attributes)


@dataclass(frozen=True, slots=True)
class SaTek:
    """SAT, RFC 6407 section 5.5; ``tek`` stays raw octets for a protocol that is not known.

    ::

        ! Next Payload  !   RESERVED    !         Payload Length        !
        ! Protocol-ID   !       TEK Protocol-Specific Payload           ~
    """

    TYPE: ClassVar[PayloadType] = PayloadType.SAT

    protocol_id: int
    tek: EspTek | Iec61850Tek | bytes

    @classmethod
    def pull(cls, buf: Buffer) -> SaTek:
        protocol_id = known(TekProtocol, buf.pull_uint8("SAT protocol id"))
        if protocol_id in (TekProtocol.GDOI_PROTO_IPSEC_ESP, TekProtocol.GDOI_PROTO_IPSEC_AH):
            return cls(protocol_id, EspTek.pull(buf))
        if protocol_id == TekProtocol.GDOI_PROTO_IEC_61850:
            return cls(protocol_id, Iec61850Tek.pull(buf))
        return cls(protocol_id, buf.pull_rest())

    def push(self, buf: Buffer) -> None:
        buf.push_uint8(self.protocol_id)
        if isinstance(self.tek, bytes):
            buf.push_bytes(self.tek)
        else:
            self.tek.push(buf)


@dataclass(frozen=True, slots=True)
class GroupSecurityAssociation:
    """SA of GROUPKEY-PULL message 2 and of GROUPKEY-PUSH, RFC 6407 section 5.2.

    Its Payload Length covers the SA attribute payloads, which follow in the order SAK, GAP, SATs.

    ::

        ! Next Payload  !   RESERVED    !         Payload Length        !
        !                           DOI (2)                             !
        !                        Situation (0)                          !
        ! SA Attribute Next Payload     !          RESERVED2            !
    """

    TYPE: ClassVar[PayloadType] = PayloadType.SA

    sak: SaKek | None = None
    gap: GroupAssociatedPolicy | None = None
    sats: tuple[SaTek, ...] = ()

    @classmethod
    def pull(cls, buf: Buffer) -> GroupSecurityAssociation:
        if (doi := buf.pull_uint32("DOI")) != Doi.GDOI:
            raise buf.error(f"DOI {doi}, must be {int(Doi.GDOI)}")
        buf.pull_zero(4, "situation")
        following = buf.pull_uint16("SA attribute next payload")
        buf.pull_zero(2, "SA: RESERVED2")
        sak: SaKek | None = None
        gap: GroupAssociatedPolicy | None = None
        sats: list[SaTek] = []
        if following == PayloadType.SAK:
            following, body = pull_payload_header(buf, "SAK")
            sak = SaKek.pull(body)
            body.expect_end("SAK payload")
        if following == PayloadType.GAP:
            following, body = pull_payload_header(buf, "GAP")
            gap = GroupAssociatedPolicy.pull(body)
        while following == PayloadType.SAT:
            if len(sats) == MAX_SATS:
                raise buf.error(f"more than {MAX_SATS} SATs")
            following, body = pull_payload_header(buf, "SAT")
            sats.append(SaTek.pull(body))
            body.expect_end("SAT payload")
        if following != PayloadType.NONE:
            raise buf.error(f"SA attribute payload {following} unknown or out of order")
        if sak is None and not sats:
            raise buf.error("SA without SAK and without SAT")
        return cls(sak, gap, tuple(sats))

    def push(self, buf: Buffer) -> None:
        inner: list[SaKek | GroupAssociatedPolicy | SaTek] = []
        inner += [part for part in (self.sak, self.gap) if part is not None]
        inner += self.sats
        buf.push_uint32(Doi.GDOI)
        buf.push_uint32(0)
        buf.push_uint16(inner[0].TYPE if inner else PayloadType.NONE)
        buf.push_uint16(0)
        for index, part in enumerate(inner, 1):
            following = inner[index].TYPE if index < len(inner) else PayloadType.NONE
            push_payload(buf, following, encode_body(part))
