"""The TEK Protocol-Specific payload of GDOI_PROTO_IEC_61850, RFC 8052 section 2.2."""

from __future__ import annotations

from dataclasses import dataclass

from .attributes import Attribute, pull_attributes, push_attributes
from .buffer import Buffer
from .oid import Oid

SPI_LENGTH = 4  # RFC 8052 section 2.2.5: a key identifier


@dataclass(frozen=True, slots=True)
class Iec61850Tek:
    """``remaining_lifetime`` in seconds; zero: the TEK does not expire.

    ::

        !  OID Length   !                       OID                     ~
        !  OID-Specific Payload Length  !     OID-Specific Payload      ~
        !                              SPI                              !
        !           Auth Alg            !            Enc Alg            !
        !                    Remaining Lifetime Value                   !
        !                      SA Data Attributes                       ~
    """

    selector: Oid
    spi: bytes
    auth_algorithm: int
    enc_algorithm: int
    remaining_lifetime: int
    attributes: tuple[Attribute, ...] = ()

    @classmethod
    def pull(cls, buf: Buffer) -> Iec61850Tek:
        selector = Oid.pull(buf)
        spi = buf.pull_bytes(SPI_LENGTH, "SAT SPI")
        auth_algorithm = buf.pull_uint16("SAT Auth Alg")
        enc_algorithm = buf.pull_uint16("SAT Enc Alg")
        lifetime = buf.pull_uint32("SAT Remaining Lifetime Value")
        return cls(selector, spi, auth_algorithm, enc_algorithm, lifetime, pull_attributes(buf))

    def push(self, buf: Buffer) -> None:
        self.selector.push(buf)
        buf.push_bytes(self.spi)
        buf.push_uint16(self.auth_algorithm)
        buf.push_uint16(self.enc_algorithm)
        buf.push_uint32(self.remaining_lifetime)
        push_attributes(buf, self.attributes)
