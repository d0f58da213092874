"""charon, strongSwan's IKE daemon, a process of its own that is told by vici what to do.

It runs in the network namespace of the calling thread, or where ``before`` takes it, with its own
configuration, log and vici socket, and binds UDP 500 and 4500 there. Nothing it does needs ESP in
the kernel as long as no CHILD_SA comes up.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import vici

from tests.kernel.namespaces import Namespace, ip

from .running import wait_for

PROGRAM = "/usr/sbin/charon-systemd"
PORT, NAT_PORT = 500, 4500
PLUGINS = (
    "random nonce openssl pem x509 pubkey pkcs1 pkcs8 constraints revocation hmac sha1 sha2 aes gcm"
    " kdf kernel-netlink socket-default vici"
)
# Milliseconds that charon may take over an initiate or terminate.
TIMEOUT = 5000

Record = dict[str, Any]


class Refused(Exception):
    """charon could not do it; the text is what it logged meanwhile."""


class Charon:
    """A running charon. Connections and secrets are named as in swanctl.conf."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, session: Any) -> None:
        self.process, self._log, self._session = process, log, session

    def load(self, name: str, **connection: object) -> None:
        """A connection, of IKEv1 unless its ``version`` says otherwise; ``local`` and ``remote``
        are its authentication rounds."""
        self._session.load_conn({name: {"version": "1", **connection}})

    def load_psk(self, secret: bytes, *owners: str) -> None:
        self._session.load_shared({"type": "IKE", "data": secret, "owners": owners})

    def load_key(self, pem: bytes) -> None:
        self._session.load_key({"type": "any", "data": pem})

    def load_authority(self, pem: bytes) -> None:
        """A CA certificate to trust."""
        self._session.load_cert({"type": "x509", "flag": "CA", "data": pem})

    def load_crl(self, pem: bytes) -> None:
        self._session.load_cert({"type": "x509_crl", "data": pem})

    def initiate(self, name: str, child: str | None = None, *, timeout: int = TIMEOUT) -> list[str]:
        """Main mode, with ``child`` quick mode as well: what charon says. Raises Refused."""
        request = {"ike": name, "timeout": timeout, **({} if child is None else {"child": child})}
        return self._streamed(self._session.initiate(request))

    def terminate(
        self, name: str, child: str | None = None, *, timeout: int = TIMEOUT
    ) -> list[str]:
        """Deletes the IKE_SA, or a CHILD_SA of it alone. Raises Refused."""
        which = {"ike": name, **({} if child is None else {"child": child})}
        return self._streamed(self._session.terminate({**which, "timeout": timeout}))

    def rekey(self, child: str) -> None:
        """A CHILD_SA; returns before that is done."""
        self._session.rekey({"child": child})

    def children(self, name: str) -> list[Record]:
        """The CHILD_SAs of a connection that carry packets."""
        found = [child for sa in self.established(name) for child in sa["child-sas"].values()]
        return [child for child in found if child["state"] == "INSTALLED"]

    def connection(self, name: str) -> Record:
        """As ``swanctl --list-conns --raw`` shows it."""
        (found,) = self._session.list_conns({"ike": name})
        return dict(_text(found[name]))

    def sas(self, name: str) -> list[Record]:
        """The IKE_SAs of a connection, as ``swanctl --list-sas --raw`` shows them."""
        found = self._session.list_sas({"ike": name})
        return [_text(entry[name]) for entry in found if name in entry]

    def established(self, name: str) -> list[Record]:
        return [sa for sa in self.sas(name) if sa["state"] == "ESTABLISHED"]

    def log(self) -> str:
        return self._log.read_text()

    def wait_for_log(self, text: str, start: int = 0) -> None:
        """From this octet of the log on."""
        wait_for(lambda: text in self.log()[start:], f"charon to log {text!r}")

    @staticmethod
    def _streamed(messages: Iterator[Record]) -> list[str]:
        said: list[str] = []
        try:
            for message in messages:
                said.append(_text(message.get("msg", b"")))  # noqa: PERF401 -- kept on an error
        except vici.exception.CommandException as error:
            raise Refused("\n".join([*said, str(error)])) from error
        return said


@contextmanager
def on_loopback(*addresses: str) -> Iterator[None]:
    """In a network namespace whose only interface has these addresses."""
    with Namespace() as namespace, namespace.entered():
        for address in addresses:
            ip(f"address add {address}/32 dev lo")
        yield


@contextmanager
def charon(folder: Path, settings: str = "", *, before: tuple[str, ...] = ()) -> Iterator[Charon]:
    """charon in the current network namespace; ``settings``: more for its strongswan.conf;
    ``before`` stands ahead of its command line."""
    folder.mkdir(parents=True, exist_ok=True)
    configuration, log, control = folder / "strongswan.conf", folder / "log", folder / "vici"
    configuration.write_text(
        f"""charon-systemd {{
  load = {PLUGINS}
  install_routes = no
  plugins {{ vici {{ socket = unix://{control} }} }}
  filelog {{ all {{
    path = {log}
    default = 1
    flush_line = yes
  }} }}
  {settings}
}}
"""
    )
    environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [*before, PROGRAM],
            env=environment | {"STRONGSWAN_CONF": str(configuration)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        with _connected(process, control) as session:
            yield Charon(process, log, session)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _connected(process: subprocess.Popen[bytes], control: Path) -> Iterator[Any]:
    with socket.socket(socket.AF_UNIX) as connection:

        def answered() -> bool:
            assert process.poll() is None, f"charon exited with {process.returncode}"
            with suppress(OSError):
                connection.connect(str(control))
                return True
            return False

        wait_for(answered, "charon's vici socket")
        yield vici.Session(connection)


def _text(value: Any) -> Any:
    """vici's octets as text, in lists and sections too."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {key: _text(inner) for key, inner in value.items()}
    return [_text(inner) for inner in value]
