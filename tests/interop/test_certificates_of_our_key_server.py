"""Our `gdoi-gcks` with certificates, a process, against the member written from the RFCs.

::

    127.x.y.1:5851                        127.x.y.2:5851
    gdoi-gcks (ours) <---- UDP ----> rfc_peer.Member with rfc_signatures, in this process
"""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.pki import Entity, issue, revoke, usage

from .rfc_octets import Suite
from .rfc_peer import Member, Notified, Silence
from .rfc_signatures import Certified
from .running import Daemon, daemon, wait_for

NET = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}"
SERVER, HERE = (f"{NET}.1", 5851), (f"{NET}.2", 5851)
GROUP = 1234
SHORT = 0.4  # seconds of silence that count as no answer
NOW = datetime.datetime.now(datetime.UTC)
BEGIN, END = NOW - datetime.timedelta(days=1), NOW + datetime.timedelta(days=1)
# Each with the hash that RFC 4754 4 gives its curve, so that every reading of it is the same.
SUITES = {
    "rsa2048": Suite(256, "sha256", 19),
    "p256": Suite(128, "sha256", 19),
    "p384": Suite(256, "sha384", 20),
    "p521": Suite(256, "sha512", 14),
}
PROPOSALS = [
    "aes256-sha256-ecp256",
    "aes128-sha256-ecp256",
    "aes256-sha384-ecp384",
    "aes256-sha512-modp2048",
]
CA = issue(
    "interop",
    ca=True,
    key_usage=usage(key_cert_sign=True, crl_sign=True),
    kind="p256",
    number=60,
    begin=BEGIN,
    end=END,
)


def entity(name: str, kind: str, number: int) -> Entity:
    return issue(name, CA, kind=kind, number=number, begin=BEGIN, end=END)


MEMBERS = {kind: entity(f"gm-{kind}", kind, 61) for kind in SUITES}
REVOKED = {kind: entity(f"revoked-{kind}", kind, 62) for kind in SUITES}
CONFIG = f"""
[key_server]
address = "{SERVER[0]}"
port = {SERVER[1]}
state = "@/state.sqlite"
control = "@/control"
proposals = {PROPOSALS}
certificate = "@/gcks.pem"
private_key = "@/gcks.key"
cacerts = ["@/ca.pem"]
crls = ["@/ca.crl"]
revocation = "strict"
[[peer]]
address = "0.0.0.0/0"
auth = "pubkey"
[[group]]
name = "video"
id = {GROUP}
members = ["C=CH, O=Example, CN=*"]
rekey.signature = "ecdsa256"
[[group.tek]]
destination = "239.192.1.1"
"""


def pem(of: Entity) -> bytes:
    return of.certificate.public_bytes(Encoding.PEM)


@pytest.fixture(scope="module", params=list(SUITES))
def gcks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Daemon]]:
    folder: Path = tmp_path_factory.mktemp("gcks")
    own = entity("gcks", request.param, 63)
    (folder / "gcks.pem").write_bytes(pem(own))
    (folder / "gcks.key").write_bytes(own.key_pem)
    (folder / "ca.pem").write_bytes(pem(CA))
    crl = revoke(CA, *REVOKED.values(), begin=BEGIN, end=END)
    (folder / "ca.crl").write_bytes(crl.public_bytes(Encoding.PEM))
    with daemon("gdoi-gcks", CONFIG, folder) as running:
        yield request.param, running
        assert running.events("bug") == []


def member(kind: str, own: Entity | None = None) -> Member:
    """It asks for the key server's certificate in message 3."""
    of = own or MEMBERS[kind]
    peer = Member(HERE, SERVER, b"", SUITES[kind])
    peer.certify(Certified(of.key, of.certificate, CA.certificate))
    assert peer.certified is not None
    peer.more_in_3 = [peer.certified.request]
    return peer


def registered(running: Daemon) -> list[str]:
    return [event["member"] for event in running.events("member-registered")]


def test_registers(gcks: tuple[str, Daemon]) -> None:
    kind, running = gcks
    with member(kind) as peer:
        peer.repeat = True
        peer.phase1()
        assert peer.pull(GROUP).sa.sats
    name = f"C=CH, O=Example, CN=gm-{kind}"
    wait_for(lambda: name in registered(running), "the key server to say so")


def test_the_request_for_a_certificate_may_come_with_the_signature(
    gcks: tuple[str, Daemon],
) -> None:
    with member(gcks[0]) as peer:
        peer.more_in_5, peer.more_in_3 = peer.more_in_3, []
        peer.phase1()
        assert peer.server_certificate is not None


def test_who_does_not_ask_is_not_sent_a_certificate(gcks: tuple[str, Daemon]) -> None:
    with member(gcks[0]) as first:
        first.phase1()
        known = first.server_certificate
        first.delete()
    with member(gcks[0]) as peer:
        peer.more_in_3 = []
        with pytest.raises(AssertionError, match="no certificate of the key server"):
            peer.phase1()
    with member(gcks[0]) as peer:
        peer.more_in_3, peer.server_certificate = [], known
        peer.phase1()


def test_the_hash_hashed_again(gcks: tuple[str, Daemon]) -> None:
    """RFC 4754 can be read so; RFC 2409 5.1 cannot: no OID of a hash around RSA's."""
    kind, _ = gcks
    with member(kind) as peer:
        assert peer.certified is not None
        peer.certified.hashes_again = True
        if kind == "rsa2048":
            peer.patience = SHORT
            with pytest.raises((Silence, Notified)):
                peer.phase1()
        else:
            peer.phase1()
            assert peer.pull(GROUP).sa.sats


def _no_certificate(peer: Member) -> None:
    assert peer.certified is not None
    peer.certified.sends_certificate = False


def _last_bit(peer: Member) -> None:
    peer.spoil_signature = lambda signature: signature[:-1] + bytes((signature[-1] ^ 1,))


def _short(peer: Member) -> None:
    peer.spoil_signature = lambda signature: signature[1:]


def _other_key(peer: Member) -> None:
    assert peer.certified is not None
    peer.certified.key = entity("other", peer_kind(peer), 64).key


def peer_kind(peer: Member) -> str:
    return next(kind for kind, suite in SUITES.items() if suite == peer.suite)


@pytest.mark.parametrize("spoil", [_no_certificate, _last_bit, _short, _other_key])
def test_refused(gcks: tuple[str, Daemon], spoil: Callable[[Member], None]) -> None:
    with member(gcks[0]) as peer:
        spoil(peer)
        peer.patience = SHORT
        with pytest.raises((Silence, Notified)):
            peer.phase1()


def test_a_revoked_member_is_refused(gcks: tuple[str, Daemon]) -> None:
    kind, running = gcks
    with member(kind, REVOKED[kind]) as peer:
        peer.patience = SHORT
        with pytest.raises((Silence, Notified)):
            peer.phase1()
    assert f"C=CH, O=Example, CN=revoked-{kind}" not in registered(running)
