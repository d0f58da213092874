"""Registration by certificate with gdoi-gcks as a process, and a certificate revoked meanwhile.

::

    gcks.pem, ca.pem, crls/          gm1.pem, ca.pem
    gdoi-gcks, a process  <-- UDP -- a group member's engine, in this process
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from gdoi_plugin.protocol.actions import Peer
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.isakmp import SUITES
from gdoi_plugin.protocol.member import GroupMember
from gdoi_plugin.protocol.member_config import MemberConfig
from gdoi_plugin.protocol.phase1 import Phase1Config
from gdoi_plugin.protocol.registration import KeyServerEntry
from tests.support.pki import ROOT, Entity, certificates, issue, revoke

from .engine_shell import Agent
from .running import Daemon, daemon, wait_for

SERVER, HERE = "127.77.1.1", "127.77.1.2"
CONFIG = f"""
[key_server]
address = "{SERVER}"
port = 5850
state = "@/state.sqlite"
control = "@/control"
certificate = "gcks.pem"
private_key = "gcks.key"
cacerts = ["ca.pem"]
crls = ["crls"]
[[peer]]
address = "0.0.0.0/0"
auth = "pubkey"
[[group]]
name = "video"
id = 1234
members = ["C=CH, O=Example, CN=*"]
rekey.signature = "ecdsa256"
[[group.tek]]
destination = "239.192.1.1"
"""


def lay_out(folder: Path, kind: str) -> None:
    own = issue("gcks", ROOT, kind=kind, number=2, names=["gcks.example.org"])
    (folder / "gcks.pem").write_bytes(own.pem)
    (folder / "gcks.key").write_bytes(own.key_pem)
    (folder / "ca.pem").write_bytes(ROOT.pem)
    (folder / "crls").mkdir()


@pytest.fixture(params=["rsa2048", "p384"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def gcks(tmp_path: Path, kind: str) -> Iterator[Daemon]:
    lay_out(tmp_path, kind)
    with daemon("gdoi-gcks", CONFIG, tmp_path) as running:
        yield running
        assert running.events("bug") == []


def agent(entity: Entity) -> Agent:
    me, its = Peer(ip_address(HERE), 5850), Peer(ip_address(SERVER), 5850)
    way = certificates(entity, "C=CH, O=Example, CN=gcks")
    phase1 = Phase1Config((way,), (SUITES["aes256-sha256-ecp256"],))
    config = MemberConfig("video", GroupId.of_number(1234), me, (KeyServerEntry(its, phase1),))
    return Agent(GroupMember(config, os.urandom))


def run_until(member: Agent, condition: Callable[[], object], what: str) -> None:
    def step() -> object:
        if select.select([member.socket], [], [], 0.02)[0]:
            member.arrived()
        member.tick()
        return condition()

    wait_for(step, what)


def test_registered_and_after_revocation_not_again(tmp_path: Path, kind: str, gcks: Daemon) -> None:
    entity = issue("gm1", ROOT, kind=kind, number=1)
    member = agent(entity)
    try:
        member.start()
        run_until(member, lambda: "registered" in member.names(), "the registration")
        wait_for(lambda: gcks.events("member-registered"), "the key server to say so")
        (said,) = gcks.events("member-registered")
        assert said["member"] == "C=CH, O=Example, CN=gm1"
    finally:
        member.socket.close()
    octets = revoke(ROOT, entity).public_bytes(Encoding.PEM)
    (tmp_path / "crls" / "root.crl").write_bytes(octets)
    again = agent(entity)
    try:
        again.start()
        run_until(again, lambda: refused(gcks), "the refusal")
        assert "registered" not in again.names()
    finally:
        again.socket.close()
    assert refused(gcks)[-1].endswith("CN=gm1,O=Example,C=CH: revoked")
    assert len(gcks.events("member-registered")) == 1


def refused(gcks: Daemon) -> list[str]:
    dropped = gcks.events("dropped")
    return [str(d["detail"]) for d in dropped if d["reason"] == "authentication-failed"]
