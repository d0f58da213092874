"""``channel = "ike"``: the connection of charon that carries UDP 848, by name or as it is to be.

What is not charon's own affair is checked here; algorithms are, so charon refuses those it does
not know, and the log says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import Field, model_validator

from ..crypto.certificate import BadCertificate, load_certificates
from ..protocol.actions import Peer
from ..wire.registry import GDOI_PORT
from .charon.channel import ChannelOptions, Request
from .config_values import ConnectionName, Duration, FileName, IdentityText, Section, span
from .errors import ConfigError
from .vici_message import MAX_VALUE, Message, text_of

MAX_PROPOSALS = 16
DEFAULT_IKE = ("aes256-sha256-ecp256", "aes256-sha384-ecp384", "aes256-sha256-modp3072")
DEFAULT_ESP = ("aes256gcm16", "aes128gcm16", "aes256-sha256")


Proposals = Annotated[list[str], Field(min_length=1, max_length=MAX_PROPOSALS)]


class IkeSection(Section):
    """``[group.key_server.ike]``; names are swanctl's."""

    connection: ConnectionName | None = None
    child: ConnectionName = "gdoi"
    auth: Literal["psk", "pubkey"] = "psk"
    psk: str | None = Field(default=None, repr=False, min_length=1)
    psk_file: FileName | None = None
    certificate: FileName | None = None
    private_key: FileName | None = None
    cacerts: list[FileName] = []
    revocation: Literal["strict", "ifuri", "relaxed"] = "relaxed"
    local_id: IdentityText | None = None
    remote_id: IdentityText | None = None
    proposals: Proposals = list(DEFAULT_IKE)
    esp_proposals: Proposals = list(DEFAULT_ESP)
    dpd_delay: Annotated[Duration, span(0, 3600)] = 10.0
    reauth_time: Annotated[Duration, span(0, 30 * 86400)] = 0.0

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        own = self.model_fields_set - {"connection", "child"}
        if self.connection is not None:
            if own:
                raise ValueError(
                    f"connection {self.connection} is swanctl.conf's: take {min(own)} out"
                )
            return self
        given = (self.psk is not None) + (self.psk_file is not None)
        files = (self.certificate is not None, self.private_key is not None, bool(self.cacerts))
        if self.auth == "psk" and (given != 1 or any(files)):
            raise ValueError(
                "give connection, the name of one in swanctl.conf; or psk or psk_file, one of the"
                " two; or auth = 'pubkey' with certificate, private_key and cacerts"
            )
        if self.auth == "pubkey" and (given or not all(files)):
            raise ValueError("auth pubkey goes with certificate, private_key and cacerts, no psk")
        return self


def channel_options(
    section: IkeSection, config: Path, key: str, local: Peer, remote: Peer
) -> ChannelOptions:
    """``key``: of the section, for errors. Raises ConfigError."""
    if section.connection is not None:
        return ChannelOptions(remote, local, section.connection, section.child)
    name = f"gdoi-{remote.host}"
    if remote.port != GDOI_PORT:
        name += f"-{remote.port}"
    reader = _Reader(config, key)
    credentials, mine, theirs = _authentication(section, reader, name, local, remote)
    child: Message = {
        "mode": "transport",
        "local_ts": [f"dynamic[udp/{local.port}]"],
        "remote_ts": [f"dynamic[udp/{remote.port}]"],
        "esp_proposals": list(section.esp_proposals),
        "dpd_action": "clear",
        "close_action": "none",
        "start_action": "none",
    }
    connection: Message = {
        "version": "2",
        "local_addrs": [str(local.host)],
        "remote_addrs": [str(remote.host)],
        "proposals": list(section.proposals),
        "mobike": "no",
        "keyingtries": "1",
        "unique": "replace",
        "dpd_delay": f"{section.dpd_delay:g}s",
        "reauth_time": f"{section.reauth_time:g}s",
        "local": mine,
        "remote": theirs,
        "children": {section.child: child},
    }
    loading: tuple[Request, ...] = (*credentials, ("load-conn", {name: connection}))
    return ChannelOptions(remote, local, name, section.child, loading)


def _authentication(
    section: IkeSection, reader: _Reader, name: str, local: Peer, remote: Peer
) -> tuple[list[Request], Message, Message]:
    """The requests that load credentials, and the connection's two ends."""
    ids = (section.local_id or str(local.host), section.remote_id or str(remote.host))
    mine: Message = {"auth": section.auth, "id": ids[0]}
    theirs: Message = {"auth": section.auth, "id": ids[1]}
    if section.auth == "psk":
        secret = section.psk
        if secret is None:
            secret = text_of(reader.read("psk_file", section.psk_file).strip())
            if not secret:
                raise reader.error("psk_file", section.psk_file, " is empty")
        shared: Message = {"id": name, "type": "IKE", "data": secret, "owners": list(ids)}
        return [("load-shared", shared)], mine, theirs
    chain = reader.certificates("certificate", section.certificate)
    mine["certs"] = chain[:1]
    authorities = [ca for path in section.cacerts for ca in reader.certificates("cacerts", path)]
    theirs |= {"cacerts": authorities, "revocation": section.revocation}
    key = text_of(reader.read("private_key", section.private_key))
    between: list[Request] = [
        ("load-cert", {"type": "X509", "flag": "NONE", "data": data}) for data in chain[1:]
    ]
    return [*between, ("load-key", {"type": "any", "data": key})], mine, theirs


class _Reader:
    """Files of a section; relative ones are looked for beside the configuration."""

    def __init__(self, config: Path, key: str) -> None:
        self._config, self._key = config, key

    def error(self, name: str, path: Path | None, what: str) -> ConfigError:
        """``what`` comes after the file's name."""
        where = self._config.parent / str(path)
        return ConfigError(self._config, f"{self._key}.{name}", f"{where}{what}", where)

    def read(self, name: str, path: Path | None) -> bytes:
        try:
            data = (self._config.parent / str(path)).read_bytes()
        except OSError as error:
            raise self.error(name, path, f": {error.strerror}") from error
        if len(data) > MAX_VALUE:
            raise self.error(name, path, f" has {len(data)} octets, at most {MAX_VALUE}")
        return data

    def certificates(self, name: str, path: Path | None) -> list[str]:
        """The DER of each in a file, as charon takes them."""
        try:
            found = load_certificates(self.read(name, path))
        except BadCertificate as error:
            raise self.error(name, path, f": {error}") from error
        return [text_of(certificate.public_bytes(Encoding.DER)) for certificate in found]
