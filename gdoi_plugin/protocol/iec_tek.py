"""Keys for IEC 61850 applications: the SAT of GDOI_PROTO_IEC_61850, RFC 8052 section 2.2.

The kernel knows nothing of them. What protects GOOSE and sampled values with them is a program.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from typing import ClassVar

from ..crypto.secret import Secret
from ..wire import attributes as attr
from ..wire.attributes import Attribute
from ..wire.group_sa import SaTek
from ..wire.iec61850 import SPI_LENGTH, Iec61850Tek
from ..wire.oid import Oid
from ..wire.registry import (
    IecAttribute,
    IecAuthentication,
    IecConfidentiality,
    TekProtocol,
    name_of,
)
from .actions import Random
from .errors import PolicyError

# RFC 8052 section 2.3, octets; those of GMAC and GCM are the key and four octets of salt.
_INTEGRITY_OCTETS = {
    IecAuthentication.NONE: 0,
    IecAuthentication.HMAC_SHA256_128: 32,
    IecAuthentication.HMAC_SHA256: 32,
    IecAuthentication.AES_GMAC_128: 20,
    IecAuthentication.AES_GMAC_256: 36,
}
_ENCRYPTION_OCTETS = {
    IecConfidentiality.NONE: 0,
    IecConfidentiality.AES_CBC_128: 16,
    IecConfidentiality.AES_CBC_256: 32,
    IecConfidentiality.AES_GCM_128: 20,
    IecConfidentiality.AES_GCM_256: 36,
}
_AUTHENTICATED = (IecConfidentiality.AES_GCM_128, IecConfidentiality.AES_GCM_256)
NO_EXPIRY = 0  # RFC 8052 section 2.2: a lifetime of zero
MAX_SA_ATD = 0xFFFFFFFF  # seconds; appendix A has four octets
MAX_SA_KDA = 100  # RFC 8052 section 2.2.4.2


def _keyword(kind: IecAuthentication | IecConfidentiality) -> str:
    """The registry's name: ``hmac-sha256-128``."""
    return kind.name.lower().replace("_", "-")


AUTHENTICATIONS = {_keyword(kind): kind for kind in IecAuthentication}
CONFIDENTIALITIES = {_keyword(kind): kind for kind in IecConfidentiality}


@dataclass(frozen=True, slots=True)
class IecSuite:
    """Auth Alg and Enc Alg, RFC 8052 sections 2.2.2 and 2.2.3."""

    authentication: IecAuthentication
    confidentiality: IecConfidentiality

    def check(self) -> None:
        """Raises ValueError for what the RFC does not let go together."""
        none = self.authentication is IecAuthentication.NONE
        if self.confidentiality in _AUTHENTICATED and not none:
            # Section 2.2.3: it "is used with a NONE authentication algorithm".
            raise ValueError(f"{self.conf} authenticates by itself, auth must be none")
        encrypts = self.confidentiality is not IecConfidentiality.NONE
        if encrypts and none and self.confidentiality not in _AUTHENTICATED:
            # Section 2.2.3: "MUST NOT be used with the NONE authentication algorithm"
            raise ValueError(f"{self.conf} must not be used without authentication")

    @property
    def auth(self) -> str:
        return _keyword(self.authentication)

    @property
    def conf(self) -> str:
        return _keyword(self.confidentiality)

    @property
    def keyword(self) -> str:
        return f"{self.auth}/{self.conf}"

    @property
    def integrity_octets(self) -> int:
        return _INTEGRITY_OCTETS[self.authentication]

    @property
    def encryption_octets(self) -> int:
        return _ENCRYPTION_OCTETS[self.confidentiality]


@dataclass(frozen=True, slots=True)
class IecTek:
    """One SA for an application. ``lifetime`` in seconds from now on, NO_EXPIRY for ever.

    ``selector`` is what it protects. ``sa_atd`` (seconds) and ``sa_kda`` (per cent) are None where
    the attribute is not there. A key that the algorithm does not need is empty or None.
    """

    spi: bytes
    selector: Oid
    suite: IecSuite
    encryption_key: Secret
    integrity_key: Secret | None
    lifetime: int
    sa_atd: int | None = None
    sa_kda: int | None = None

    protocol: ClassVar[TekProtocol] = TekProtocol.GDOI_PROTO_IEC_61850

    @property
    def flow(self) -> Oid:
        """One of several SAs with the same takes another's place."""
        return self.selector

    @property
    def name(self) -> str:
        """For logs."""
        return f"0x{self.spi.hex()}"

    def later(self, seconds: float, lifetime: int) -> IecTek:
        """As it is told ``seconds`` after it was made, with ``lifetime`` left.

        RFC 8052 section 2.2.4.1 counts SA_ATD from when it is received.
        """
        wait = 0 if self.sa_atd is None else int(self.sa_atd - seconds)
        return replace(self, lifetime=lifetime, sa_atd=wait if 0 < wait < lifetime else None)


@dataclass(frozen=True, slots=True)
class IecTekConfig:
    """What a key server's operator wants of it. ``lifetime`` and ``sa_atd`` in seconds."""

    selector: Oid
    suite: IecSuite
    lifetime: int = 3600
    sa_atd: int | None = None
    sa_kda: int | None = None

    protocol: ClassVar[TekProtocol] = TekProtocol.GDOI_PROTO_IEC_61850

    @property
    def flow(self) -> Oid:
        return self.selector

    def make(self, random: Random, taken: Container[bytes]) -> IecTek:
        """A new SA with an SPI that is not ``taken``."""
        while not any(spi := random(SPI_LENGTH)) or spi in taken:
            pass
        integrity = self.suite.integrity_octets
        return IecTek(
            spi=spi,
            selector=self.selector,
            suite=self.suite,
            encryption_key=Secret(random(self.suite.encryption_octets)),
            integrity_key=Secret(random(integrity)) if integrity else None,
            lifetime=self.lifetime,
            sa_atd=self.sa_atd,
            sa_kda=self.sa_kda,
        )

    def made(self, tek: object) -> bool:
        """Whether ``tek`` is what :meth:`make` makes, but for SA_ATD: the first has none."""
        if not isinstance(tek, IecTek):
            return False
        told = (tek.selector, tek.suite, tek.sa_kda)
        return told == (self.selector, self.suite, self.sa_kda)


def encode_iec_sat(tek: IecTek) -> SaTek:
    attributes = []
    if tek.sa_atd is not None:
        attributes.append(attr.uint32(IecAttribute.SA_ATD, tek.sa_atd))
    if tek.sa_kda is not None:
        attributes.append(Attribute(IecAttribute.SA_KDA, tek.sa_kda))
    body = Iec61850Tek(
        tek.selector,
        tek.spi,
        tek.suite.authentication,
        tek.suite.confidentiality,
        tek.lifetime,
        tuple(attributes),
    )
    return SaTek(tek.protocol, body)


def read_iec_sat(body: Iec61850Tek) -> IecTek:
    """The policy of one SAT, with empty keys. Raises PolicyError."""
    name = f"SAT 0x{body.spi.hex()}"
    if not any(body.spi):
        raise PolicyError("SAT SPI 0 stands for all in Delete payloads")
    if body.auth_algorithm not in set(IecAuthentication):
        raise PolicyError(f"{name}: authentication algorithm {body.auth_algorithm} is unknown")
    if body.enc_algorithm not in set(IecConfidentiality):
        raise PolicyError(f"{name}: confidentiality algorithm {body.enc_algorithm} is unknown")
    suite = IecSuite(IecAuthentication(body.auth_algorithm), IecConfidentiality(body.enc_algorithm))
    try:
        suite.check()
    except ValueError as error:
        raise PolicyError(f"{name}: {error} (RFC 8052 section 2.2.3)") from None
    sa_atd, sa_kda = _read_attributes(body, name)
    lifetime = body.remaining_lifetime
    if sa_atd is not None and lifetime != NO_EXPIRY and sa_atd >= lifetime:
        raise PolicyError(f"{name}: SA_ATD {sa_atd} s is not less than its lifetime {lifetime} s")
    return IecTek(body.spi, body.selector, suite, Secret(b""), None, lifetime, sa_atd, sa_kda)


def _read_attributes(body: Iec61850Tek, name: str) -> tuple[int | None, int | None]:
    """SA_ATD and SA_KDA, RFC 8052 section 2.2.4."""
    found = attr.unique(body.attributes, name)
    limits = {IecAttribute.SA_ATD: MAX_SA_ATD, IecAttribute.SA_KDA: MAX_SA_KDA}
    values: list[int | None] = []
    for kind, limit in limits.items():
        attribute = found.pop(kind, None)
        value = None if attribute is None else attribute.number()
        if value is not None and value > limit:
            raise PolicyError(f"{name}: {kind.name} {value}, at most {limit}")
        values.append(value)
    if found:
        raise PolicyError(f"{name}: attribute {name_of(IecAttribute, min(found))} is unknown")
    return values[0], values[1]
