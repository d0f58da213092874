"""A certification authority for tests: real certificates and CRLs, good and bad ones."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtensionOID, NameOID

from gdoi_plugin.crypto.certificate import Revocation, TrustStore
from gdoi_plugin.crypto.phase1_signature import load_private
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.identity_pattern import IdentityPattern
from gdoi_plugin.protocol.phase1 import Certificates, Credential, SendCertificate

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
# The moment all of it is about, Unix seconds, and the certificates' validity around it.
NOW = 1_795_000_000.0
MOMENT = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
DAY = datetime.timedelta(days=1)
CURVES = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1()}
KINDS = ("rsa2048", "rsa3072", *CURVES)


@cache
def make_key(kind: str, number: int = 0) -> Key:  # noqa: ARG001 -- a key for each number
    if kind.startswith("rsa"):
        # Small ones are there to be refused.
        return rsa.generate_private_key(65537, int(kind[3:]))
    return ec.generate_private_key(CURVES.get(kind, ec.SECP224R1()))


def usage(**allowed: bool) -> x509.KeyUsage:
    names = [
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ]
    return x509.KeyUsage(**(dict.fromkeys(names, False) | allowed))


def subject(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "CH"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def alternative(name: str) -> x509.GeneralName:
    if "@" in name:
        return x509.RFC822Name(name)
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@dataclass(frozen=True)
class Entity:
    """A certificate, its key, and the certificates between it and the root."""

    certificate: x509.Certificate
    key: Key
    between: tuple[x509.Certificate, ...] = ()

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        """Chain included."""
        return b"".join(c.public_bytes(Encoding.PEM) for c in (self.certificate, *self.between))

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def credential(self) -> Credential:
        ders = tuple(c.public_bytes(Encoding.DER) for c in (self.certificate, *self.between))
        return Credential(load_private(self.key_pem), ders)

    @property
    def identity(self) -> Identity:
        return Identity.parse(f"C=CH, O=Example, CN={common_name(self.certificate)}")


def common_name(certificate: x509.Certificate) -> str:
    (attribute,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(attribute.value)


def issue(
    name: str,
    issuer: Entity | None = None,
    *,
    kind: str = "p256",
    number: int = 0,
    ca: bool = False,
    path_length: int | None = None,
    names: Sequence[str] = (),
    key_usage: x509.KeyUsage | None = None,
    begin: datetime.datetime = MOMENT - 30 * DAY,
    end: datetime.datetime = MOMENT + 3000 * DAY,
    crl_url: str | None = None,
    named: x509.Name | None = None,
    key_identifier: bool = False,
) -> Entity:
    """``issuer`` None: signed by itself. charon finds CRLs by the key identifier of their CA."""
    key = make_key(kind, number)
    builder = (
        x509.CertificateBuilder()
        .subject_name(named or subject(name))
        .issuer_name(issuer.certificate.subject if issuer else named or subject(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(True, path_length), critical=True)
    if key_usage is not None:
        builder = builder.add_extension(key_usage, critical=True)
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([alternative(n) for n in names]), critical=False
        )
    if crl_url is not None:
        point = x509.DistributionPoint([x509.UniformResourceIdentifier(crl_url)], None, None, None)
        builder = builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
    if key_identifier:
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(identifier, critical=False)
    signer = issuer.key if issuer else key
    certificate = builder.sign(signer, hashes.SHA256())
    between: tuple[x509.Certificate, ...] = ()
    if issuer is not None and issuer.certificate.issuer != issuer.certificate.subject:
        between = (issuer.certificate, *issuer.between)
    return Entity(certificate, key, between)


def revoke(
    issuer: Entity,
    *revoked: Entity,
    signer: Entity | None = None,
    begin: datetime.datetime = MOMENT - DAY,
    end: datetime.datetime = MOMENT + 3000 * DAY,
) -> x509.CertificateRevocationList:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(begin)
        .next_update(end)
    )
    for entity in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(entity.certificate.serial_number)
            .revocation_date(begin)
            .build()
        )
    signing = (signer or issuer).key
    if any(e.oid == ExtensionOID.SUBJECT_KEY_IDENTIFIER for e in issuer.certificate.extensions):
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
        builder = builder.add_extension(identifier, critical=False)
    return builder.sign(signing, hashes.SHA256())


ROOT = issue("root", ca=True, kind="p256", number=100)
OTHER_ROOT = issue("root", ca=True, kind="p256", number=101)


def trust(*cas: Entity, **more: Any) -> TrustStore:
    return TrustStore(tuple(ca.certificate for ca in cas or (ROOT,)), **more)


def certificates(
    entity: Entity,
    remote: str = "%any",
    *,
    identity: str | None = None,
    store: TrustStore | None = None,
    send_cert: SendCertificate = SendCertificate.IFASKED,
    send_certreq: bool = True,
) -> Certificates:
    """One side's way to authenticate."""
    kept = store or trust()
    return Certificates(
        entity.identity if identity is None else Identity.parse(identity),
        IdentityPattern.parse(remote),
        entity.credential,
        lambda: kept,
        send_cert,
        send_certreq,
    )


def strictly(**more: Any) -> TrustStore:
    return trust(revocation=Revocation.STRICT, **more)
