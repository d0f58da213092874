"""Certificates, keys and CRLs from files; an error names the configuration's file and key."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ..crypto.certificate import (
    BadCertificate,
    Leaf,
    Revocation,
    TrustStore,
    load_certificates,
    load_crl,
    read_leaf,
)
from ..crypto.phase1_signature import BadKey, load_private
from ..protocol.identity import Identity
from ..protocol.identity_pattern import IdentityPattern
from ..protocol.phase1 import Certificates, Credential, SendCertificate, is_named
from ..wire.registry import IdType
from .charon.trust import CharonTrust
from .errors import ConfigError

Crl = x509.CertificateRevocationList
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CredentialFiles:
    """What the configuration says; relative names are looked for beside ``config``."""

    config: Path
    key: str  # of the section
    certificate: Path
    private_key: Path
    cacerts: Sequence[Path]
    crls: Sequence[Path] = ()
    revocation: Revocation = Revocation.RELAXED
    # Besides: the CRLs that charon has.
    charon: CharonTrust | None = None

    def read(self, name: str, path: Path, load: Callable[[bytes], T]) -> T:
        """Raises ConfigError."""
        where = self.config.parent / path
        try:
            return load(where.read_bytes())
        except OSError as error:
            raise self._bad(name, where, str(error.strerror)) from error
        except (BadCertificate, BadKey) as error:
            raise self._bad(name, where, str(error)) from None

    def of(self, name: str, path: Path) -> list[Path]:
        """The files of a folder, or the file. Raises ConfigError."""
        where = self.config.parent / path
        try:
            return files_in(where)
        except OSError as error:
            raise self._bad(name, where, str(error.strerror)) from error

    def _bad(self, name: str, where: Path, what: str) -> ConfigError:
        return ConfigError(self.config, f"{self.key}.{name}", f"{where}: {what}", where)


def files_in(place: Path) -> list[Path]:
    """Of a folder, or the file itself. Raises OSError."""
    return sorted(place.iterdir()) if place.is_dir() else [place]


class _TrustStore(TrustStore):
    """Dates of certificates and CRLs go by the time of day.

    An engine's time is that of a clock which never steps, not even to where it should have been.
    """

    def check(self, leaf: Leaf, others: Iterable[bytes], _now: float) -> None:
        super().check(leaf, others, time.time())


class TrustFiles:
    """The configured CAs, and the CRLs as their files have them at the time.

    A CRL file that cannot be read any more leaves what it last held in force, and ``report`` is
    told, once for each new problem.
    """

    def __init__(self, files: CredentialFiles, intermediates: Sequence[x509.Certificate]) -> None:
        """Raises ConfigError."""
        self.report: Callable[[str], None] = lambda _: None
        self._files = files
        self._cas = tuple(
            ca
            for name in files.cacerts
            for path in files.of("cacerts", name)
            for ca in files.read("cacerts", path, load_certificates)
        )
        if files.cacerts and not self._cas:
            raise ConfigError(files.config, f"{files.key}.cacerts", "no CA in these folders")
        self._intermediates = tuple(intermediates)
        self._crls: dict[Path, tuple[tuple[int, int], Crl]] = {}
        self._problem = ""
        self._revision = 0  # of what charon has
        problem = self._refresh()
        if problem:
            raise ConfigError(files.config, f"{files.key}.crls", problem)
        self._store = self._make()

    def __call__(self) -> TrustStore:
        before = self._state()
        problem = self._refresh()
        if self._state() != before:
            self._store = self._make()
        if problem and problem != self._problem:
            self.report(problem)
        self._problem = problem
        return self._store

    def _state(self) -> tuple[object, ...]:
        return self._revision, {path: stamp for path, (stamp, _) in self._crls.items()}

    def _make(self) -> TrustStore:
        crls = tuple(crl for _, crl in self._crls.values())
        if self._files.charon is not None:
            crls += self._files.charon.crls
        return _TrustStore(self._cas, self._intermediates, crls, self._files.revocation)

    def _refresh(self) -> str:
        """Reads what has changed. The problem, if there is one."""
        self._revision = 0 if self._files.charon is None else self._files.charon.revision
        found: list[Path] = []
        problem = ""
        for name in self._files.crls:
            path = self._files.config.parent / name
            try:
                found += files_in(path)
            except OSError as error:
                problem = f"{path}: {error.strerror}"
        for path in found:
            try:
                status = path.stat()
                stamp = (status.st_mtime_ns, status.st_size)
                if path not in self._crls or self._crls[path][0] != stamp:
                    self._crls[path] = (stamp, load_crl(path.read_bytes()))
            except OSError as error:
                problem = f"{path}: {error.strerror}"
            except BadCertificate as error:
                problem = f"{path}: {error}"
        return problem


class Credentials:
    """One daemon's certificate, key and trust: what ``auth = "pubkey"`` uses."""

    def __init__(
        self, files: CredentialFiles, send_cert: SendCertificate, *, send_certreq: bool
    ) -> None:
        """Raises ConfigError."""
        self._files = files
        self.charon = files.charon
        self._send_cert, self._send_certreq = send_cert, send_certreq
        key = files.read("private_key", files.private_key, load_private)
        chain, self._leaf = files.read("certificate", files.certificate, _load_chain)
        if key.public_key != self._leaf.public_key:
            self._refuse("private_key", "is not the key of the certificate")
        self._check_validity(chain[0])
        self._credential = Credential(key, tuple(c.public_bytes(Encoding.DER) for c in chain))
        self.trust = TrustFiles(files, chain[1:])

    def _check_validity(self, certificate: x509.Certificate) -> None:
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not begin.timestamp() <= time.time() <= end.timestamp():
            self._refuse("certificate", f"is valid from {begin} to {end}")

    def _refuse(self, name: str, what: str) -> None:
        path = self._files.config.parent / getattr(self._files, name)
        raise ConfigError(self._files.config, f"{self._files.key}.{name}", f"{path} {what}", path)

    def towards(self, remote: IdentityPattern, identity: Identity | None, key: str) -> Certificates:
        """How to authenticate to peers called ``remote``, as ``identity`` (default: the subject).

        Raises ConfigError for an identity that the certificate does not have; ``key`` names it.
        """
        names = self._leaf.names
        subject = Identity(IdType.ID_DER_ASN1_DN, names.subject)
        if identity is None or identity.canonical == subject.canonical:
            identity = subject
        elif not is_named(names, identity.canonical):
            what = f"{identity} is no name of the certificate of {subject}"
            raise ConfigError(self._files.config, key, what)
        return Certificates(
            identity, remote, self._credential, self.trust, self._send_cert, self._send_certreq
        )


def _load_chain(octets: bytes) -> tuple[Sequence[x509.Certificate], Leaf]:
    """The file's certificates, and the first of them read as our own. Raises BadCertificate."""
    chain = load_certificates(octets)
    return chain, read_leaf(chain[0].public_bytes(Encoding.DER))
