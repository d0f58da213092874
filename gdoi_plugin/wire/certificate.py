"""Certificates and the wish for them: RFC 2408 sections 3.9 and 3.10."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .buffer import Buffer
from .registry import PayloadType

# RSA-4096 with a dozen alternative names has some 2,500 octets.
MAX_CERTIFICATE = 8192
MAX_AUTHORITY = 1024  # a distinguished name with a few long attributes


@dataclass(frozen=True, slots=True)
class Certificate:
    """CERT. ``encoding`` says what ``data`` is: 4, X.509 for signatures, in DER.

    ::

        ! Next Payload  !   RESERVED    !         Payload Length        !
        ! Cert Encoding !                                               !
        ~                       Certificate Data                        ~
    """

    TYPE: ClassVar[PayloadType] = PayloadType.CERT

    encoding: int
    data: bytes

    @classmethod
    def pull(cls, buf: Buffer) -> Certificate:
        encoding = buf.pull_uint8("certificate encoding")
        if not 1 <= buf.remaining <= MAX_CERTIFICATE:
            raise buf.error(f"certificate of {buf.remaining} octets")
        return cls(encoding, buf.pull_rest())

    def push(self, buf: Buffer) -> None:
        buf.push_uint8(self.encoding)
        buf.push_bytes(self.data)


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """CERTREQ. ``authority`` is a CA's distinguished name in DER, or empty for any.

    ::

        ! Next Payload  !   RESERVED    !         Payload Length        !
        !  Cert. Type   !                                               !
        ~                    Certificate Authority                      ~
    """

    TYPE: ClassVar[PayloadType] = PayloadType.CERTREQ

    encoding: int
    authority: bytes = b""

    @classmethod
    def pull(cls, buf: Buffer) -> CertificateRequest:
        encoding = buf.pull_uint8("certificate type")
        if buf.remaining > MAX_AUTHORITY:
            raise buf.error(f"certificate authority of {buf.remaining} octets")
        return cls(encoding, buf.pull_rest())

    def push(self, buf: Buffer) -> None:
        buf.push_uint8(self.encoding)
        buf.push_bytes(self.authority)
