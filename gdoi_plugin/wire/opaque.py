"""Payloads of one string of octets: KE, HASH, SIG, NONCE, VID (RFC 2408 sections 3.7 to 3.16),
NAT-D (RFC 3947 section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Self

from .buffer import Buffer
from .registry import PayloadType

NONCE_MIN, NONCE_MAX = 8, 128  # RFC 6407 section 5.8; the same 8 to 256 in RFC 2409 section 5


@dataclass(frozen=True, slots=True)
class _Opaque:
    TYPE: ClassVar[PayloadType]
    MINIMUM: ClassVar[int] = 1
    MAXIMUM: ClassVar[int] = 2048

    data: bytes = field(repr=False)

    @classmethod
    def pull(cls, buf: Buffer) -> Self:
        if not cls.MINIMUM <= buf.remaining <= cls.MAXIMUM:
            raise buf.error(
                f"{cls.TYPE.name} payload of {buf.remaining} octets,"
                f" must be {cls.MINIMUM} to {cls.MAXIMUM}"
            )
        return cls(buf.pull_rest())

    def push(self, buf: Buffer) -> None:
        buf.push_bytes(self.data)


@dataclass(frozen=True, slots=True)
class KeyExchange(_Opaque):
    """KE: the public Diffie-Hellman value, RFC 2408 section 3.7."""

    TYPE = PayloadType.KE
    MAXIMUM = 1024  # MODP-8192, twice what is offered


@dataclass(frozen=True, slots=True)
class Hash(_Opaque):
    """HASH: the output of the prf, RFC 2408 section 3.11."""

    TYPE = PayloadType.HASH
    MAXIMUM = 64  # HMAC-SHA2-512


@dataclass(frozen=True, slots=True)
class Signature(_Opaque):
    """SIG, RFC 2408 section 3.12."""

    TYPE = PayloadType.SIG
    MAXIMUM = 1024  # RSA-8192


@dataclass(frozen=True, slots=True)
class Nonce(_Opaque):
    """Ni or Nr, RFC 2408 section 3.13."""

    TYPE = PayloadType.NONCE
    MINIMUM = NONCE_MIN
    MAXIMUM = 256  # RFC 2409 section 5; GROUPKEY-PULL checks its own 128


@dataclass(frozen=True, slots=True)
class VendorId(_Opaque):
    """VID, RFC 2408 section 3.16. Unknown ones are ignored."""

    TYPE = PayloadType.VENDOR_ID
    MAXIMUM = 4096


@dataclass(frozen=True, slots=True)
class NatDiscovery(_Opaque):
    """NAT-D: a hash of an address and a port, RFC 3947 section 3.2."""

    TYPE = PayloadType.NAT_D
    MAXIMUM = 64  # SHA2-512
