"""X.509 certificates of phase-1 peers: chain, usage, validity, revocation (RFC 5280, RFC 4945)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from .phase1_signature import BadKey, method_of

# A leaf, three CAs below the root, the root. Longer chains are somebody's mistake or attack.
MAX_DEPTH = 4
# What the library raises for octets that are no good certificate, at once or when a part is read.
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


E = TypeVar("E", bound=x509.ExtensionType)


class BadCertificate(ValueError):
    """A certificate, chain or list that is not to be believed; the text says why."""


class Revocation(StrEnum):
    """swanctl's ``revocation``: when a certificate without a usable CRL is refused."""

    STRICT = "strict"  # always
    IFURI = "ifuri"  # where it names a distribution point
    RELAXED = "relaxed"  # never


@dataclass(frozen=True, slots=True)
class Names:
    """What a certificate says its subject is called."""

    subject: bytes  # DER
    addresses: frozenset[IPv4Address | IPv6Address]
    domains: frozenset[str]
    mailboxes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Leaf:
    """An end entity's certificate, read but not yet trusted."""

    certificate: x509.Certificate
    public_key: PublicKeyTypes = field(repr=False)
    names: Names


def read_leaf(der: bytes) -> Leaf:
    """Raises BadCertificate, also for a key or a usage that phase 1 cannot have."""
    certificate = _load(der)
    try:
        key = certificate.public_key()
        method_of(key)
        usage = _extension(certificate, x509.KeyUsage)
        constraints = _extension(certificate, x509.BasicConstraints)
        alternatives = _extension(certificate, x509.SubjectAlternativeName)
    except (BadKey, *UNREADABLE) as error:
        raise BadCertificate(f"{_name(certificate)}: {error}") from None
    # RFC 4945 section 5.1.3.2: digitalSignature or nonRepudiation, where there is a key usage
    if usage is not None and not (usage.digital_signature or usage.content_commitment):
        raise BadCertificate(f"{_name(certificate)}: key usage has no digitalSignature")
    if constraints is not None and constraints.ca:
        raise BadCertificate(f"{_name(certificate)}: a CA's certificate, not a host's")
    return Leaf(certificate, key, _names(certificate, alternatives))


@dataclass(frozen=True, slots=True)
class TrustStore:
    """Configured CAs, intermediate certificates and CRLs."""

    cas: tuple[x509.Certificate, ...]
    intermediates: tuple[x509.Certificate, ...] = ()
    crls: tuple[x509.CertificateRevocationList, ...] = ()
    revocation: Revocation = Revocation.RELAXED

    @property
    def ca_names(self) -> tuple[bytes, ...]:
        """DER, for certificate requests."""
        return tuple(dict.fromkeys(ca.subject.public_bytes() for ca in self.cas))

    def check(self, leaf: Leaf, others: Iterable[bytes], now: float) -> None:
        """The chain from ``leaf`` over its sender's other certificates (DER) to a CA, at ``now``
        (Unix seconds). Raises BadCertificate."""
        moment = datetime.fromtimestamp(now, UTC)
        between = [*self.intermediates, *(_load(der) for der in others)]
        try:
            policy = ExtensionPolicy.permit_all().require_present(
                x509.BasicConstraints, Criticality.AGNOSTIC, None
            )
            policy = policy.may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _signs_certificates)
            verifier = (
                PolicyBuilder()
                .store(Store(list(self.cas)))
                .time(moment.replace(tzinfo=None))
                .max_chain_depth(MAX_DEPTH)
                .extension_policies(ca_policy=policy, ee_policy=ExtensionPolicy.permit_all())
                .build_client_verifier()
            )
            chain = verifier.verify(leaf.certificate, between).chain
        except (VerificationError, *UNREADABLE) as error:
            raise BadCertificate(f"{_name(leaf.certificate)}: {error}") from None
        for certificate, issuer in pairwise(chain):
            self._check_revocation(certificate, issuer, moment)

    def _check_revocation(
        self, certificate: x509.Certificate, issuer: x509.Certificate, now: datetime
    ) -> None:
        flaws = []
        for crl in self.crls:
            if crl.issuer != issuer.subject:
                continue
            flaw = _flaw_of(crl, issuer, now)
            # An old list still tells what was revoked by then; one that is not the CA's, nothing.
            revoked = flaw in ("", STALE) and crl.get_revoked_certificate_by_serial_number(
                certificate.serial_number
            )
            if revoked:
                raise BadCertificate(f"{_name(certificate)}: revoked")
            flaws.append(flaw)
        if "" not in flaws and self._needs_crl(certificate):
            why = ", ".join(dict.fromkeys(flaws)) or "none there"
            raise BadCertificate(f"{_name(certificate)}: no usable CRL of {_name(issuer)} ({why})")

    def _needs_crl(self, certificate: x509.Certificate) -> bool:
        if self.revocation is Revocation.IFURI:
            return _extension(certificate, x509.CRLDistributionPoints) is not None
        return self.revocation is Revocation.STRICT


STALE = "out of date"


def _flaw_of(crl: x509.CertificateRevocationList, issuer: x509.Certificate, now: datetime) -> str:
    """Why a CRL does not speak for ``issuer``'s certificates; nothing where it does."""
    for extension in crl.extensions:
        # Delta CRLs and those for some reasons or points only (RFC 5280 section 5.2).
        if extension.critical:
            return f"critical extension {extension.oid.dotted_string}"
    usage = _extension(issuer, x509.KeyUsage)
    if usage is not None and not usage.crl_sign:
        return "its CA may not sign CRLs"
    try:
        if not crl.is_signature_valid(issuer.public_key()):  # type: ignore[arg-type]
            return "not signed by its CA"
    except UNREADABLE:
        return "signature of an unknown kind"
    if crl.last_update_utc > now:
        return "from the future"
    if crl.next_update_utc is None or crl.next_update_utc < now:
        return STALE
    return ""


def _signs_certificates(
    _policy: Policy, certificate: x509.Certificate, usage: x509.KeyUsage | None
) -> None:
    """RFC 5280 section 4.2.1.3. Raising is how the verifier is told no."""
    if usage is not None and not usage.key_cert_sign:
        raise ValueError(f"{_name(certificate)} may not sign certificates (key usage)")


# -- reading -------------------------------------------------------------------------------------


def load_certificates(octets: bytes) -> tuple[x509.Certificate, ...]:
    """One in DER, or all of a PEM file. Raises BadCertificate."""
    if b"-----BEGIN" not in octets:
        return (_load(octets),)
    try:
        return tuple(x509.load_pem_x509_certificates(octets))
    except UNREADABLE:
        raise BadCertificate("no certificate in PEM") from None


def load_crl(octets: bytes) -> x509.CertificateRevocationList:
    """PEM or DER. Raises BadCertificate."""
    pem = b"-----BEGIN" in octets
    try:
        return x509.load_pem_x509_crl(octets) if pem else x509.load_der_x509_crl(octets)
    except UNREADABLE:
        raise BadCertificate("no certificate revocation list in PEM or DER") from None


def _load(der: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(der)
        # The library reads names when they are asked for: here, where what is wrong has a reason.
        for name in (certificate.subject, certificate.issuer):
            name.public_bytes()
            name.rfc4514_string()
    except UNREADABLE:
        raise BadCertificate(f"{len(der)} octets are no X.509 certificate") from None
    return certificate


def _names(
    certificate: x509.Certificate, alternatives: x509.SubjectAlternativeName | None
) -> Names:
    addresses: Sequence[object] = ()
    domains: Sequence[str] = ()
    mailboxes: Sequence[str] = ()
    if alternatives is not None:
        addresses = alternatives.get_values_for_type(x509.IPAddress)
        domains = alternatives.get_values_for_type(x509.DNSName)
        mailboxes = alternatives.get_values_for_type(x509.RFC822Name)
    return Names(
        certificate.subject.public_bytes(),
        frozenset(a for a in addresses if isinstance(a, IPv4Address | IPv6Address)),
        frozenset(name.lower() for name in domains),
        frozenset(name.lower() for name in mailboxes),
    )


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    """Raises ValueError for extensions that cannot be read."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or "a certificate without a subject"
