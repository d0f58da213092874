"""Hosts with charon for tests of ``authorise = "ike"``: the members' and the key server's.

::

    charon, and members of the protocol's engine,   --- veth ---   10.79.0.2, 2001:db8:79::2
    at 10.79.0.11 and so on, 2001:db8:79::11                       charon and gdoi-gcks

An IKE_SA comes up without a CHILD_SA (RFC 6023), so that no kernel needs ESP.
"""

from __future__ import annotations

import datetime
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import vici
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.protocol.actions import Action, Peer, Send
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.isakmp import SUITES
from gdoi_plugin.protocol.nat import Traversal
from gdoi_plugin.protocol.phase1 import Authentication, Phase1Config, PreSharedKey
from gdoi_plugin.protocol.registration import KeyServerEntry, Registration
from gdoi_plugin.wire.header import pull_header
from tests.kernel.namespaces import Namespace, ip
from tests.support.pki import Entity, certificates, issue, trust, usage

from .charon import Charon, Refused, charon
from .running import Daemon, daemon, wait_for

GCKS, GCKS6 = "10.79.0.2", "2001:db8:79::2"
PSK = "a key that the whole network knows"
NAME = "gcks.example.org"
# charon believes the machine's clock.
NOW = datetime.datetime.now(datetime.UTC)
BEGIN, END = NOW - datetime.timedelta(days=1), NOW + datetime.timedelta(days=1)
CA = issue(
    "members' and key servers'",
    ca=True,
    key_usage=usage(key_cert_sign=True, crl_sign=True),
    number=70,
    begin=BEGIN,
    end=END,
)


def entity(name: str, number: int, named: x509.Name | None = None) -> Entity:
    return issue(
        name,
        CA,
        number=number,
        names=[f"{name}.example.org"],
        key_usage=usage(digital_signature=True),
        begin=BEGIN,
        end=END,
        named=named,
    )


SERVER = entity("gcks", 71)

REFUSED = "key server answered AUTHENTICATION_FAILED"
VIDEO, STRICT, NAMED, PLAIN = 1, 2, 3, 4
CONFIG = f"""
[key_server]
address = "{GCKS}"
state = "@/state.sqlite"
control = "@/control"
charon = "%"
ike_connections = ["members"]
nat_traversal = false
proposals = ["aes128-sha256-ecp256"]
certificate = "@/gcks.pem"
private_key = "@/gcks.key"
cacerts = ["@/ca.pem"]
[[peer]]
address = "10.79.0.0/25"
psk = "{PSK}"
[[peer]]
address = "2001:db8:79::/64"
psk = "{PSK}"
[[peer]]
address = "10.79.0.128/25"
auth = "pubkey"
[[group]]
name = "video"
id = {VIDEO}
members = ["*.example.org"]
authorise = "ike"
rekey.signature = "ecdsa256"
[[group.tek]]
destination = "239.192.1.1"
[[group]]
name = "strict"
id = {STRICT}
members = ["*.example.org"]
authorise = "ike"
on_ike_down = "evict"
ike_grace = "1s"
rekey.signature = "ecdsa256"
rekey.kek_management = "lkh"
[[group.tek]]
destination = "239.192.1.2"
[[group]]
name = "named"
id = {NAMED}
members = ["C=CH, O=Example, CN=*"]
authorise = "ike"
rekey.signature = "ecdsa256"
[[group.tek]]
destination = "239.192.1.3"
[[group]]
name = "plain"
id = {PLAIN}
members = ["10.79.0.0/24"]
rekey.signature = "ecdsa256"
[[group.tek]]
destination = "239.192.1.4"
"""


def pem(of: Entity) -> bytes:
    return of.certificate.public_bytes(Encoding.PEM)


@dataclass
class Hosts:
    """``here``: the members'; ``there``: the key server's."""

    folder: Path
    here: Namespace
    there: Namespace
    ike: Charon
    _connections: int = 0

    def connect(
        self, of: Entity, address: str, name: str | None = None, *, encap: str = "no"
    ) -> str:
        """An IKE_SA from this address with a certificate, as ``name`` or its subject."""
        self._connections += 1
        connection = f"member-{self._connections}"
        self.ike.load_key(of.key_pem)
        local = {"auth": "pubkey", "certs": [pem(of)]} | ({"id": name} if name else {})
        self.ike.load(
            connection,
            version="2",
            childless="force",
            unique="never",
            encap=encap,
            local_addrs=[address],
            remote_addrs=[GCKS6 if ":" in address else GCKS],
            local=local,
            remote={"auth": "pubkey", "id": NAME},
            children={"group": {"mode": "transport"}},
        )
        self.again(connection)
        return connection

    def again(self, connection: str) -> None:
        def up() -> bool:
            try:
                self.ike.initiate(connection)
            except Refused:  # the key server's charon may have been busy, or away
                return False
            return True

        wait_for(up, f"the IKE_SA of {connection}")

    def end(self, connection: str) -> None:
        """Whatever is left of it, without waiting for the other end."""
        for sa in self.ike.sas(connection):
            which = {"ike-id": sa["uniqueid"], "force": "yes", "timeout": "1"}
            with suppress(vici.exception.CommandException):
                list(self.ike._session.terminate(which))
        wait_for(lambda: not self.ike.sas(connection), f"the end of {connection}")

    @contextmanager
    def key_servers_charon(self, folder: str = "there") -> Iterator[Charon]:
        with self.there.entered(), charon(self.folder / folder) as ike:
            ike.load_authority(pem(CA))
            ike.load_key(SERVER.key_pem)
            ike.load(
                "members",
                version="2",
                childless="allow",
                unique="never",
                local={"auth": "pubkey", "id": NAME, "certs": [pem(SERVER)]},
                remote={"auth": "pubkey"},
            )
            yield ike

    @property
    def vici(self) -> Path:
        return self.folder / "there" / "vici"

    def applicant(self, address: str, group: int, of: Entity | None = None) -> Applicant:
        return Applicant(self.here, address, group, of)


@contextmanager
def hosts(folder: Path, *addresses: str) -> Iterator[Hosts]:
    with Namespace() as here, Namespace() as there, here.entered():
        ip("link add net0 type veth peer name net1")
        there.take("net1")
        for address in addresses:
            _add(address, "net0")
        ip("link set net0 up")
        with there.entered():
            _add(GCKS, "net1")
            _add(GCKS6, "net1")
            ip("link set net1 up")
        with charon(folder / "here") as ike:
            ike.load_authority(pem(CA))
            yield Hosts(folder, here, there, ike)


def _add(address: str, interface: str) -> None:
    ip(f"address add {address}" + ("/64 nodad" if ":" in address else "/24") + f" dev {interface}")


class Applicant:
    """A member that registers once, with the network's key or, ``of``, a certificate."""

    def __init__(self, here: Namespace, address: str, group: int, of: Entity | None) -> None:
        host = ip_address(address)
        server = Peer(ip_address(GCKS6 if ":" in address else GCKS), 848)
        way: Authentication = PreSharedKey(
            Identity.of_address(host), Identity.of_address(server.host), Secret(PSK.encode())
        )
        if of is not None:
            name = f"{of.certificate.subject.rfc4514_string().split('CN=')[1].split(',')[0]}"
            way = certificates(of, identity=f"{name}.example.org", store=trust(CA))
        phase1 = Phase1Config((way,), (SUITES["aes128-sha256-ecp256"],), nat=Traversal.OFF)
        with here.entered():
            family = socket.AF_INET6 if host.version == 6 else socket.AF_INET
            self._socket = socket.socket(family, socket.SOCK_DGRAM)
            self._socket.bind((address, 0))
        local = Peer(host, self._socket.getsockname()[1])
        entry = KeyServerEntry(server, phase1)
        self.attempt = Registration(entry, GroupId.of_number(group), local, os.urandom)
        self._started = False

    def run(self, *, limit: float = 60.0) -> str | None:
        """None once it is registered, or why it is not."""
        deadline = time.monotonic() + limit
        while not (self.over or self.step()):
            assert time.monotonic() < deadline, "a registration without an end"
        self.close()
        return None if self.attempt.result is not None else self.attempt.failure

    def close(self) -> None:
        self._socket.close()

    def step(self) -> bool:
        """One datagram, or a moment of waiting. Whether it is over."""
        if not self._started:
            self._started = True
            self._send(self.attempt.start(time.time()))
        self._socket.settimeout(0.05)
        try:
            datagram, (host, port, *_) = self._socket.recvfrom(65535)
        except (TimeoutError, ConnectionRefusedError):
            self._send(self.attempt.tick(time.time()))
        else:
            header = pull_header(datagram)
            if self.attempt.owns(header):
                source = Peer(ip_address(host), port)
                self._send(self.attempt.receive(header, datagram, source, time.time()))
        return self.over

    @property
    def over(self) -> bool:
        return self.attempt.result is not None or self.attempt.failure is not None

    def _send(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                target = (str(action.destination.host), action.destination.port)
                self._socket.sendto(action.datagram, target)


@contextmanager
def key_server(site: Hosts, name: str, config: str = CONFIG) -> Iterator[Daemon]:
    folder = site.folder / name
    folder.mkdir()
    (folder / "gcks.pem").write_bytes(pem(SERVER))
    (folder / "gcks.key").write_bytes(SERVER.key_pem)
    (folder / "ca.pem").write_bytes(pem(CA))
    text = config.replace("%", str(site.vici))
    with site.there.entered(), daemon("gdoi-gcks", text, folder) as running:
        yield running
        assert running.events("bug") == []


def listed(gcks: Daemon, group: str) -> dict[str, str]:
    """The members of a group, and what is known of their IKE_SAs."""
    rows = gcks.ctl("members", "--group", group)
    return {row["identity"]: row.get("ike", "") for row in rows}


def refusals(gcks: Daemon) -> list[str]:
    return [event["error"] for event in gcks.events("member-refused")]
