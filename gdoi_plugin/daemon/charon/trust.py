"""CAs and CRLs that charon has, for our own phase 1 with certificates.

charon lists what it was given and what it has come by: intermediate certificates that peers sent,
CRLs that it has fetched. So only certificates that are signed by themselves count as CAs to trust;
the others may stand between one of these and a peer, as if the peer had sent them. A CRL has to be
signed by one of them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import aclosing
from functools import cache
from pathlib import Path

from cryptography import x509

from gdoi_plugin.crypto.certificate import (
    UNREADABLE,
    BadCertificate,
    load_certificates,
    load_crl,
)
from gdoi_plugin.daemon.charon.client import CharonClient
from gdoi_plugin.daemon.charon.errors import CharonError
from gdoi_plugin.daemon.vici_message import octets_of

PERIOD = 5.0
"""Seconds until charon is asked again: what a CA has revoked counts after that long."""

MAX_LISTED = 1000
"""CA certificates, and CRLs, that are taken: more is no trust store but a mistake."""

Crl = x509.CertificateRevocationList
Tell = Callable[[dict[str, object]], None]


class CharonTrust:
    """The last good set. ``revision`` goes up with each change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cas: tuple[x509.Certificate, ...] = ()
        self.intermediates: tuple[x509.Certificate, ...] = ()
        self.crls: tuple[Crl, ...] = ()
        self.revision = 0

    def take(self, cas: Iterable[bytes], crls: Iterable[bytes]) -> bool:
        """What charon lists now, in DER. Whether that has changed anything.

        A charon without any CA has not been given its configuration yet: nothing is forgotten for
        that. Nor is a CRL that charon no longer has, as one that it had fetched before a restart:
        what is on it is revoked whether it is at hand or not.
        """
        found = [one for der in cas if (one := _certificate(der)) is not None]
        roots = tuple(one for one in found if one.issuer == one.subject)
        if not roots:
            return False
        newest = {_key(crl): crl for crl in self.crls}
        for der in crls:
            crl = _crl(der, found)
            if crl is not None:
                known = newest.get(_key(crl))
                if known is None or known.last_update_utc < crl.last_update_utc:
                    newest[_key(crl)] = crl
        between = tuple(one for one in found if one not in roots)
        taken = (roots, between, tuple(newest.values()))
        if taken == (self.cas, self.intermediates, self.crls):
            return False
        self.cas, self.intermediates, self.crls = taken
        self.revision += 1
        return True


@cache
def charon_trust(path: Path) -> CharonTrust:
    """One for each charon, so that it outlives a configuration that is read again."""
    return CharonTrust(path)


async def follow_trust(trust: CharonTrust, tell: Tell) -> None:
    """Without an end. ``tell``: the counts of each change, or once the ``error``."""
    client, lost = CharonClient(trust.path), ""
    while True:
        try:
            cas = await _listed(client, type="X509", flag="CA")
            crls = await _listed(client, type="X509_CRL")
        except CharonError as error:
            if not lost:
                tell({"error": str(error), "hint": "what it had before stays in force"})
            lost = str(error)
        else:
            if trust.take(cas, crls) or lost:
                counted = {"cacerts": len(trust.cas), "crls": len(trust.crls)}
                tell({**counted, "intermediates": len(trust.intermediates)})
            lost = ""
        await asyncio.sleep(PERIOD)


async def _listed(client: CharonClient, **which: str) -> list[bytes]:
    """Raises CharonError."""
    found: list[bytes] = []
    async with aclosing(client.list_certs(**which)) as certificates:
        async for message in certificates:
            data = message.get("data")
            if isinstance(data, str) and len(found) < MAX_LISTED:
                found.append(octets_of(data))
    return sorted(found)


def _certificate(der: bytes) -> x509.Certificate | None:
    try:
        (one,) = load_certificates(der)
    except (BadCertificate, ValueError):
        return None
    return one


def _crl(der: bytes, cas: Iterable[x509.Certificate]) -> Crl | None:
    """None where it is none of theirs, or not a whole one."""
    try:
        crl = load_crl(der)
        if any(extension.critical for extension in crl.extensions):
            return None
        if any(
            crl.issuer == ca.subject and crl.is_signature_valid(ca.public_key())  # type: ignore[arg-type]
            for ca in cas
        ):
            return crl
    except (BadCertificate, *UNREADABLE):
        pass
    return None


def _key(crl: Crl) -> tuple[bytes, bytes]:
    """Whose it is: a CA may have had several keys."""
    try:
        point = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
        identifier = point.value.key_identifier or b""
    except x509.ExtensionNotFound:
        identifier = b""
    return crl.issuer.public_bytes(), identifier
