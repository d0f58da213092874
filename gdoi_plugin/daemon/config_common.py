"""What the configurations of member and key server have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ..crypto.certificate import Revocation
from ..crypto.secret import Secret
from ..protocol.actions import IPAddress, Peer
from ..protocol.identity import Identity
from ..protocol.identity_pattern import IdentityPattern
from ..protocol.nat import Traversal
from ..protocol.phase1 import SendCertificate
from ..wire.registry import GDOI_PORT, NAT_PORT, Doi
from .charon.client import SOCKET
from .charon.trust import charon_trust
from .config_values import FileName, PatternText, Port, ReadableAt, Section
from .credentials import CredentialFiles, Credentials
from .errors import ConfigError

# ECP groups first: finite-field groups are on their way out of the crypto library.
DEFAULT_PROPOSALS = (
    "aes256-sha256-ecp256",
    "aes256-sha384-ecp384",
    "aes128-sha256-ecp256",
    "aes256-sha256-modp3072",
    "aes256-sha256-modp2048",
    "aes128-sha256-modp2048",
)
# RFC 6407 section 2.1: phase 1 has GDOI's own number. IKE daemons know IPsec's only.
DOIS = {"gdoi": (Doi.GDOI,), "ipsec": (Doi.IPSEC,), "any": (Doi.GDOI, Doi.IPSEC)}


class Authenticated(Section):
    """How a peer authenticates in phase 1: ``psk`` or ``psk_file`` for one, neither for pubkey."""

    auth: Literal["psk", "pubkey"] = "psk"
    psk: str | None = Field(default=None, repr=False, min_length=1)
    psk_file: FileName | None = None
    identity: PatternText | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        given = (self.psk is not None) + (self.psk_file is not None)
        if self.auth == "pubkey" and given:
            raise ValueError("auth pubkey is by certificate: take psk and psk_file out")
        if self.auth == "psk" and given != 1:
            raise ValueError("give psk or psk_file, one of the two, or auth = 'pubkey'")
        wild = self.identity is not None and IdentityPattern.parse(self.identity).exact is None
        if self.auth == "psk" and wild:
            raise ValueError("a pre-shared key is one peer's: identity must be without wildcards")
        return self

    def secret(self, config: Path, key: str) -> Secret:
        """Relative files are looked for beside the configuration. Raises ConfigError."""
        if self.psk is not None:
            return Secret(self.psk.encode())
        path = config.parent / str(self.psk_file)
        try:
            octets = path.read_bytes().strip()
        except OSError as error:
            what = f"{path}: {error.strerror}"
            raise ConfigError(config, f"{key}.psk_file", what, path) from error
        if not octets:
            raise ConfigError(config, f"{key}.psk_file", f"{path} is empty", path)
        return Secret(octets)


class CredentialsSection(Section):
    """What ``auth = "pubkey"`` takes; names are swanctl's."""

    certificate: FileName | None = None
    private_key: FileName | None = None
    cacerts: list[FileName] = []
    crls: list[FileName] = []
    # charon's control socket, and what of its counts besides those files.
    charon: FileName = SOCKET
    charon_trust: Annotated[list[Literal["crls"]], Field(max_length=1)] = []
    revocation: Literal["strict", "ifuri", "relaxed"] = "relaxed"
    send_cert: Literal["always", "ifasked", "never"] = "ifasked"
    send_certreq: bool = True

    @model_validator(mode="after")
    def _all_or_none(self) -> Self:
        given = (self.certificate is not None, self.private_key is not None, bool(self.cacerts))
        if any(given) and not all(given):
            raise ValueError("certificate, private_key and cacerts go together")
        if self.charon_trust and not all(given):
            raise ValueError("charon_trust is for a certificate and private_key of our own")
        return self

    def credentials(self, config: Path, key: str) -> Credentials | None:
        """Raises ConfigError."""
        if self.certificate is None or self.private_key is None:
            return None
        revocation = Revocation(self.revocation)
        files = CredentialFiles(
            config,
            key,
            self.certificate,
            self.private_key,
            self.cacerts,
            self.crls,
            revocation,
            charon_trust(self.charon) if self.charon_trust else None,
        )
        return Credentials(files, SendCertificate(self.send_cert), send_certreq=self.send_certreq)


def needed(credentials: Credentials | None, path: Path, key: str, section: str) -> Credentials:
    if credentials is None:
        what = f"pubkey needs certificate, private_key and cacerts in [{section}]"
        raise ConfigError(path, f"{key}.auth", what)
    return credentials


class Ports(Section):
    """Our own. RFC 3947: there is a second one, where messages go that a NAT has translated."""

    port: Port = GDOI_PORT
    nat_traversal: bool = True
    nat_port: Port = NAT_PORT

    @model_validator(mode="after")
    def _two_of_them(self) -> Self:
        if self.nat_traversal and self.nat_port == self.port:
            raise ValueError(f"nat_port and port are both {self.port}")
        return self

    def nat_local(self, host: IPAddress) -> Peer | None:
        """Our endpoint for NAT traversal, None where that is off."""
        return Peer(host, self.nat_port) if self.nat_traversal else None

    def traversal(self, *, encap: bool, bound: bool = True) -> Traversal:
        if not (self.nat_traversal and bound):
            return Traversal.OFF
        return Traversal.FORCED if encap else Traversal.ON


class Served(Section):
    """Sockets for others, and whose they are: who may command is not who may only look."""

    control_group: str | None = "gdoi"
    metrics: ReadableAt | None = None
    metrics_group: str | None = None

    @property
    def scrapers(self) -> str | None:
        """The group of ``metrics``, where that is a Unix socket."""
        return self.metrics_group or self.control_group


def identity_or(text: str | None, address: IPAddress) -> Identity:
    return Identity.of_address(address) if text is None else Identity.parse(text)
