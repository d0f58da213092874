"""charon as the other end of phase 1 with certificates: RSA and ECDSA, in both roles.

One namespace and its loopback, as in test_charon::

    10.77.0.1:500          10.77.0.2:848              10.77.0.3:848
    charon  <---- UDP ---> gdoi-gcks, a process
       ^--------- UDP ------------------------------> a group member's engine, in this process
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from gdoi_plugin.protocol.actions import Peer
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.isakmp import SUITES
from gdoi_plugin.protocol.member import GroupMember
from gdoi_plugin.protocol.member_config import MemberConfig
from gdoi_plugin.protocol.phase1 import Phase1Config
from gdoi_plugin.protocol.registration import KeyServerEntry
from gdoi_plugin.wire.registry import Doi
from tests.support.pki import Entity, certificates, issue, revoke, trust, usage

from .charon import PORT, Charon, Record, Refused, charon, on_loopback
from .engine_shell import Agent
from .running import Daemon, daemon, wait_for
from .test_charon import established, run_until

CHARON, GCKS, GM = "10.77.0.1", "10.77.0.2", "10.77.0.3"
PROPOSAL = "aes256-sha256-ecp256"
# charon believes the machine's clock.
NOW = datetime.datetime.now(datetime.UTC)
BEGIN, END = NOW - datetime.timedelta(days=1), NOW + datetime.timedelta(days=1)
KINDS = ("rsa2048", "rsa3072", "p256", "p384", "p521")
CA = issue(
    "charon's and ours",
    ca=True,
    key_usage=usage(key_cert_sign=True, crl_sign=True),
    kind="rsa2048",
    number=50,
    begin=BEGIN,
    end=END,
)


def entity(name: str, kind: str, number: int = 51) -> Entity:
    """``name``.example.org; its key usage is what RFC 4945 section 5.1.3.2 wants."""
    return issue(
        name,
        CA,
        kind=kind,
        number=number,
        names=[f"{name}.example.org"],
        key_usage=usage(digital_signature=True),
        begin=BEGIN,
        end=END,
    )


def pem(of: Entity) -> bytes:
    return of.certificate.public_bytes(Encoding.PEM)


ROUTERS = {kind: entity(f"router-{kind}", kind) for kind in KINDS}
REVOKED = entity("revoked", "rsa2048", 53)
SERVERS = {kind: entity("gcks", kind, 52) for kind in ("rsa2048", "p256", "p384", "p521")}
MEMBERS = {kind: entity("gm", kind, 54) for kind in ("rsa2048", "p256")}
# The key server's key and charon's. RFC 2409 has one method for RSA of any size, RFC 4754 one for
# each curve.
PAIRS = [("rsa2048", "rsa2048"), ("rsa2048", "rsa3072"), *((k, k) for k in SERVERS if "p" in k)]


CONFIG = f"""
[key_server]
address = "{GCKS}"
identity = "gcks.example.org"
state = "@/state.sqlite"
control = "@/control"
certificate = "@/gcks.pem"
private_key = "@/gcks.key"
cacerts = ["@/ca.pem"]
crls = ["@/ca.crl"]
[[peer]]
address = "{CHARON}"
auth = "pubkey"
phase1_doi = "ipsec"
[[group]]
name = "video"
id = 1234
members = ["*.example.org"]
rekey.signature = "ecdsa256"
[[group.tek]]
destination = "239.192.1.1"
"""


@pytest.fixture(scope="module", autouse=True)
def _network() -> Iterator[None]:
    with on_loopback(CHARON, GCKS, GM):
        yield


@pytest.fixture(scope="module")
def ike(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Charon]:
    with charon(tmp_path_factory.mktemp("charon")) as running:
        running.load_authority(pem(CA))
        for one in (*ROUTERS.values(), REVOKED):
            running.load_key(one.key_pem)
        yield running


@pytest.fixture(scope="module")
def gcks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """gdoi-gcks with a certificate of the kind asked for; the CRL names one router."""
    folder = tmp_path_factory.mktemp("gcks")
    own = SERVERS[request.param]
    (folder / "gcks.pem").write_bytes(pem(own))
    (folder / "gcks.key").write_bytes(own.key_pem)
    (folder / "ca.pem").write_bytes(pem(CA))
    crl = revoke(CA, REVOKED, begin=BEGIN, end=END)
    (folder / "ca.crl").write_bytes(crl.public_bytes(Encoding.PEM))
    with daemon("gdoi-gcks", CONFIG, folder) as running:
        yield running
        assert running.events("bug") == []


def connection(own: Entity, name: str, remote: str, remote_name: str) -> Record:
    return {
        "local_addrs": [CHARON],
        "remote_addrs": [remote],
        "remote_port": "848",
        "proposals": [PROPOSAL],
        "local": {"auth": "pubkey", "id": name, "certs": [pem(own)]},
        "remote": {"auth": "pubkey", "id": remote_name},
    }


@pytest.mark.parametrize(("gcks", "kind"), PAIRS, indirect=["gcks"])
def test_charon_initiates(ike: Charon, gcks: Daemon, kind: str) -> None:
    name = f"router-{kind}.example.org"
    ike.load("to-gcks", **connection(ROUTERS[kind], name, GCKS, "gcks.example.org"))
    ike.initiate("to-gcks")
    (sa,) = ike.established("to-gcks")
    cookies = sa["initiator-spi"] + sa["responder-spi"]

    def said() -> list[Record]:
        return [e for e in gcks.events("phase1-established") if e["cookies"] == cookies]

    wait_for(said, "the key server to call phase 1 established")
    assert said()[0]["identity"] == name
    ike.terminate("to-gcks")


@pytest.mark.parametrize("gcks", ["rsa2048"], indirect=True)
def test_a_revoked_certificate(ike: Charon, gcks: Daemon) -> None:
    settings = connection(REVOKED, "revoked.example.org", GCKS, "gcks.example.org")
    ike.load("revoked", **settings)
    with pytest.raises(Refused, match=r"parsed INFORMATIONAL_V1 request 0 \[ N\(INVAL_CERT\) \]"):
        ike.initiate("revoked", timeout=500)
    wait_for(
        lambda: any("revoked" in drop["detail"] for drop in gcks.events("dropped")),
        "the key server to say why",
    )
    assert ike.established("revoked") == []
    ike.terminate("revoked")


@pytest.mark.parametrize("kind", MEMBERS)
def test_charon_answers(ike: Charon, kind: str) -> None:
    """Our member is the initiator; charon insists on its certificate."""
    name = f"router-{kind}.example.org"
    ike.load("from-gm", **connection(ROUTERS[kind], name, GM, "gm.example.org"))
    local, server = Peer(ip_address(GM), 848), Peer(ip_address(CHARON), PORT)
    way = certificates(MEMBERS[kind], name, identity="gm.example.org", store=trust(CA))
    phase1 = Phase1Config((way,), (SUITES[PROPOSAL],), dois=(Doi.IPSEC,))
    servers = (KeyServerEntry(server, phase1),)
    member = Agent(
        GroupMember(MemberConfig("video", GroupId.of_number(1234), local, servers), os.urandom)
    )
    try:
        member.start()
        run_until(member, lambda: established(member), "main mode with charon")
        (event,) = established(member)
        (sa,) = ike.established("from-gm")
        assert event.fields["cookies"] == sa["initiator-spi"] + sa["responder-spi"]
        assert event.fields["identity"] == name
        assert sa["remote-id"] == "gm.example.org"
        member.perform(member.engine.stop())
        wait_for(lambda: not ike.sas("from-gm"), "charon to take our Delete")
    finally:
        member.socket.close()
