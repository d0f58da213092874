"""CRLs that charon has, for our own phase 1 with certificates.

No CAs: charon's list of certificates has no mark of trust. With those that it was given it names
those that it has come by, as the certificate of a peer that it has just refused, which may well be
signed by itself. So what is listed here says only who may have signed a CRL; a CRL counts for
certificates of that very key, in a chain to a CA of our own configuration.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

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
"""Certificates, and CRLs, that are looked at: more is no trust store but a mistake."""

Crl = x509.CertificateRevocationList
Tell = Callable[[dict[str, object]], None]


class CharonTrust:
    """The newest CRL of each key that has signed one. ``revision`` goes up with each change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.revision = 0
        self._newest: dict[tuple[bytes, bytes], Crl] = {}
        self._listed: tuple[list[bytes], list[bytes]] = [], []

    @property
    def crls(self) -> tuple[Crl, ...]:
        return tuple(self._newest.values())

    def take(self, cas: Iterable[bytes], crls: Iterable[bytes]) -> bool:
        """What charon lists now, in DER. Whether that has changed anything.

        A CRL that charon no longer has, as one that it had fetched before a restart, is not
        forgotten: what is on it is revoked whether it is at hand or not.
        """
        listed = list(cas), list(crls)
        if listed == self._listed:
            return False  # no signature is verified for nothing, every few seconds
        self._listed = listed
        signers = [one for der in listed[0] if (one := _certificate(der)) is not None]
        newest = dict(self._newest)
        for der in listed[1]:
            for key, crl in _crls(der, signers):
                known = newest.get(key)
                if known is None or known.last_update_utc < crl.last_update_utc:
                    newest[key] = crl
        if newest == self._newest:
            return False
        self._newest = newest
        self.revision += 1
        return True


@cache
def charon_trust(path: Path) -> CharonTrust:
    """One for each charon, so that it outlives a configuration that is read again."""
    return CharonTrust(path)


async def follow_trust(trust: CharonTrust, tell: Tell) -> None:
    """Without an end. ``tell``: the count of each change, or once the ``error``."""
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
                tell({"crls": len(trust.crls)})
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


def _crls(
    der: bytes, signers: Iterable[x509.Certificate]
) -> Iterator[tuple[tuple[bytes, bytes], Crl]]:
    """The CRL, and whose it is: the name and the key. Nothing where it is none of theirs, or not a
    whole one. Another CA of the same name has another key, and takes no CRL's place."""
    try:
        crl = load_crl(der)
        if any(extension.critical for extension in crl.extensions):
            return
        name = crl.issuer.public_bytes()
        for one in signers:
            key = one.public_key()
            if crl.issuer == one.subject and crl.is_signature_valid(key):  # type: ignore[arg-type]
                yield (name, key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)), crl
    except (BadCertificate, *UNREADABLE):
        pass
