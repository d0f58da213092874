"""Certificates: what they are good for, and for how long."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shlex import quote

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ...crypto.certificate import (
    UNREADABLE,
    BadCertificate,
    Revocation,
    TrustStore,
    load_certificates,
    load_crl,
    read_leaf,
)
from ..config_common import CredentialsSection
from ..credentials import files_in
from ..errors import ConfigError
from .account import as_root, daemon_user, making
from .finding import Area, Finding

CERTIFICATES = Area("certificates")
SOON = timedelta(days=30)
EC_KEY = "-algorithm EC -pkeyopt ec_paramgen_curve:P-256"


def check_certificates(
    config: Path, section: CredentialsSection, moment: float
) -> Iterator[Finding]:
    """Of a configuration that has been read, so every file is there and can be read; at a moment,
    Unix seconds."""
    if section.certificate is None or section.private_key is None:
        return
    folder, now = config.parent, datetime.fromtimestamp(moment, UTC)
    path = folder / section.certificate
    chain = load_certificates(path.read_bytes())
    renewal = f"openssl req -new -key {folder / section.private_key} -subj / -out new.csr"
    yield _validity("certificate", path, chain[0], now, f"{renewal}   # for the CA to sign")
    cas: list[x509.Certificate] = []
    for place in (file for name in section.cacerts for file in files_in(folder / name)):
        for ca in load_certificates(place.read_bytes()):
            cas.append(ca)
            mend = f"# get the CA's next certificate into {place}"
            yield _validity("CA", place, ca, now, mend)
    lists = list(_lists(folder, section))
    crls = [crl for _, crl in lists]
    # The CRLs of charon are not known before it is asked: no more is said of such a chain.
    if not section.charon_trust:
        yield _chain(
            path,
            chain,
            TrustStore(tuple(cas), tuple(chain[1:]), tuple(crls), Revocation(section.revocation)),
            now,
        )
    strict = section.revocation == "strict"
    for name, crl in lists:
        yield _freshness(name, crl, now, _points(chain[0]), strict=strict)
    if strict and not section.charon_trust:
        yield from _covered(cas, crls, folder, section)


def _validity(
    what: str, path: Path, certificate: x509.Certificate, now: datetime, mend: str
) -> Finding:
    test, end = f"{what} {path}", certificate.not_valid_after_utc
    if now < certificate.not_valid_before_utc:
        found = (
            f"valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on, which is to come"
        )
        return CERTIFICATES.fail(test, found, "timedatectl status   # is the clock right?")
    if now > end:
        return CERTIFICATES.fail(test, f"it has expired on {end:%Y-%m-%d}", mend)
    # Of a certificate for a few days, a month is always the rest.
    whole = end - certificate.not_valid_before_utc
    if end - now < min(SOON, whole / 5):
        found = f"it expires on {end:%Y-%m-%d}, in {(end - now).days} days"
        return CERTIFICATES.warn(test, found, mend)
    return CERTIFICATES.ok(test, f"valid until {end:%Y-%m-%d}")


def _chain(
    path: Path, chain: tuple[x509.Certificate, ...], trust: TrustStore, now: datetime
) -> Finding:
    """Peers have the same CAs, as a rule; what they would say of this host's certificate."""
    test = f"chain of {path}"
    try:
        leaf = read_leaf(chain[0].public_bytes(Encoding.DER))
        trust.check(leaf, (), now.timestamp())
    except BadCertificate as error:
        mend = f"openssl verify -untrusted {path} -CAfile CA {path}"
        if "revoked" in str(error):
            mend = f"openssl genpkey {EC_KEY} -out NEW.key"
        return CERTIFICATES.fail(test, str(error), mend)
    return CERTIFICATES.ok(test, "leads to a CA of this configuration, and is not revoked")


def _lists(
    folder: Path, section: CredentialsSection
) -> Iterator[tuple[Path, x509.CertificateRevocationList]]:
    for name in section.crls:
        for path in files_in(folder / name):
            yield path, load_crl(path.read_bytes())


def _freshness(
    path: Path,
    crl: x509.CertificateRevocationList,
    now: datetime,
    points: str,
    *,
    strict: bool,
) -> Finding:
    test, end = f"CRL {path}", crl.next_update_utc
    mend = f"curl --output {path} {points or 'THE-URL-OF-THE-CA'}"
    if crl.last_update_utc > now:
        return CERTIFICATES.fail(
            test,
            f"made at {crl.last_update_utc:%Y-%m-%d %H:%M} UTC, which is to come",
            "timedatectl status   # is the clock right?",
        )
    if end is None or end < now:
        said = "it does not say until when" if end is None else f"out of date since {end:%Y-%m-%d}"
        if strict:
            found = f'{said}: with revocation = "strict" nobody of this CA gets in'
            return CERTIFICATES.fail(test, found, mend)
        return CERTIFICATES.warn(test, f"{said}: who was revoked since then gets in", mend)
    return CERTIFICATES.ok(test, f"good until {end:%Y-%m-%d %H:%M} UTC")


def _covered(
    cas: list[x509.Certificate],
    crls: list[x509.CertificateRevocationList],
    folder: Path,
    section: CredentialsSection,
) -> Iterator[Finding]:
    """Strict: without a list of its CA nobody gets in."""
    for ca in cas:
        if not any(crl.issuer == ca.subject for crl in crls):
            name = ca.subject.rfc4514_string()
            where = folder / (section.crls[0] if section.crls else "crls")
            found = (
                f'no list of {name} in crls, and revocation = "strict": none of its peers gets in'
            )
            yield CERTIFICATES.fail(
                f"CRL of {name}", found, f"curl --output {where} THE-URL-OF-THE-CA"
            )


def _points(certificate: x509.Certificate) -> str:
    """Where the certificate says that its CA's list is."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints)
    except (x509.ExtensionNotFound, *UNREADABLE):
        return ""
    for point in found.value:
        for name in point.full_name or ():
            if isinstance(name, x509.UniformResourceIdentifier):
                return name.value
    return ""


def mend_of(error: ConfigError) -> str:
    """What is to be done about a file that a configuration names."""
    option, path = error.key.rpartition(".")[2], error.about
    if isinstance(error.__cause__, PermissionError):
        return as_root()
    if path is None:
        return f"# edit {error.file}"
    if option == "psk_file":
        make = making("openssl rand -base64 32", path, daemon_user())
        return f"{make}   # and the same at the other end"
    file = quote(str(path))
    steps = {
        "certificate": f"openssl x509 -noout -subject -dates -in {file}   # and get a current one",
        "private_key": f"openssl pkey -noout -in {file}   # not encrypted, and the certificate's",
        "cacerts": f"openssl x509 -noout -subject -in {file}   # the CA's certificate",
        "crls": f"openssl crl -noout -issuer -nextupdate -in {file}",
        "netns": f"ip netns add {path.name}   # or another name: ip netns list",
    }
    if not path.exists():
        key = making(f"openssl genpkey {EC_KEY}", path, daemon_user())
        steps |= {
            "certificate": f"openssl req -new -key KEY -subj / -out new.csr   # signed, to {file}",
            "private_key": f"{key}   # and a certificate for it",
            "cacerts": f"# get the CA's certificate into {file}",
            "crls": f"curl --output {file} THE-URL-OF-THE-CA",
        }
    return steps.get(option, f"# edit {error.file}")
