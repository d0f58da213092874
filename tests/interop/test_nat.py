"""Our `gdoi-gcks` on loopback, members written from the RFCs behind a NAT: RFC 3947, RFC 3948."""

from __future__ import annotations

import datetime
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.pki import Entity, issue, usage

from .rfc_nat import KEEPALIVE, Nat, NatMember
from .rfc_octets import PUSH
from .rfc_peer import Member
from .rfc_signatures import Certified
from .running import Daemon, Record, daemon, wait_for

NET = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}"
PORT, NAT_PORT = 5848, 5500
SERVER, INSIDE, OUTSIDE = f"{NET}.1", f"{NET}.30", f"{NET}.40"
MEMBERS = [f"{NET}.20", f"{NET}.21"]
PSK = b"one key for all behind the NAT"
GROUP = 77
NOW, DAY = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)

CONFIG = f"""
[key_server]
address = "{SERVER}"
port = {PORT}
nat_port = {NAT_PORT}
identity = "{INSIDE}"
state = "@/state.sqlite"
control = "@/control"
[[peer]]
address = "{OUTSIDE}"
identity = "{MEMBERS[0]}"
more_identities = {MEMBERS[1:]}
psk = "{PSK.decode()}"
[[group]]
name = "far"
id = {GROUP}
members = {MEMBERS}
[group.rekey]
port = {PORT}
retransmissions = 0
signature = "ecdsa256"
[[group.tek]]
destination = "239.192.1.77"
"""


def with_certificates(members: list[str]) -> str:
    """The same for members with certificates, from any address."""
    head, rest = CONFIG.split("[[peer]]")
    group = rest[rest.index("[[group]]") :].replace(str(MEMBERS), str(members))
    files = 'certificate = "@/own.pem"\nprivate_key = "@/key"\ncacerts = ["@/ca.pem"]\n'
    own = head.replace(f'identity = "{INSIDE}"\n', files)
    return f'{own}[[peer]]\naddress = "0.0.0.0/0"\nauth = "pubkey"\n{group}'


def pem(of: Entity) -> bytes:
    return of.certificate.public_bytes(Encoding.PEM)


@pytest.fixture
def gcks(tmp_path: Path) -> Iterator[Daemon]:
    with daemon("gdoi-gcks", CONFIG, tmp_path) as running:
        yield running
        assert running.events("bug") == []


@pytest.fixture
def nat() -> Iterator[Nat]:
    made = Nat(INSIDE, OUTSIDE, SERVER, (PORT, NAT_PORT))
    yield made
    made.close()


def member(number: int) -> NatMember:
    return NatMember((MEMBERS[number], PORT), (INSIDE, PORT), PSK, NAT_PORT)


def rows(gcks: Daemon) -> dict[str, Record]:
    return {row["identity"]: row for row in gcks.ctl("members", "--group", "far")}


def drops(gcks: Daemon) -> dict[str, str]:
    return dict(gcks.ctl("status")[0]["stats"]["drops"])


def rekey(gcks: Daemon, *peers: Member) -> list[str]:
    """One rekey that these and nobody else receive; who is counted for it."""
    before = len(gcks.events("rekey-acked"))
    with gcks.start_ctl("rekey", "--group", "far") as asked:
        for peer in peers:
            peer.send(peer.ack(peer.push(peer.receive(PUSH))))
        wait_for(lambda: len(gcks.events("rekey-acked")) == before + len(peers), "the ACKs")
        gcks.answer(asked)
    return [str(event["member"]) for event in gcks.events("rekey-acked")[before:]]


def test_two_members_behind_one_nat(gcks: Daemon, nat: Nat) -> None:
    """Registered, rekeyed and counted each for itself, all on the port of NAT traversal."""
    with member(0) as one, member(1) as two:
        for peer in (one, two):
            peer.repeat = True
            peer.phase1()
            assert peer.found == (True, True)
            assert peer.local[1] == peer.server[1] == NAT_PORT
            peer.pull(GROUP)
            peer.keepalive()
        wait_for(lambda: nat.keepalives == 2, "keepalives")
        registered = rows(gcks)
        assert set(registered) == set(MEMBERS)
        assert {row["behind-nat"] for row in registered.values()} == {"yes"}
        places = {row["address"] for row in registered.values()}
        assert len(places) == 2, "one address, two ports"
        assert {place.rpartition(":")[0] for place in places} == {OUTSIDE}
        assert rekey(gcks, two, one) == [MEMBERS[1], MEMBERS[0]]
    assert set(drops(gcks)) == {"duplicate"}, "keepalives are neither answered nor counted"


@pytest.mark.usefixtures("nat")
def test_two_members_with_certificates_behind_one_nat(tmp_path: Path) -> None:
    """Each has a name and a key of its own; one entry for the address of the NAT does."""
    own: dict[str, Any] = {"begin": NOW - DAY, "end": NOW + DAY, "kind": "p256"}
    ca = issue("ca", ca=True, key_usage=usage(key_cert_sign=True, crl_sign=True), number=70, **own)
    entities = [issue(f"gm{n}", ca, number=71 + n, **own) for n in range(2)]
    server = issue("gcks", ca, number=73, **own)
    for name, octets in (("ca.pem", pem(ca)), ("own.pem", pem(server)), ("key", server.key_pem)):
        (tmp_path / name).write_bytes(octets)
    names = [f"C=CH, O=Example, CN=gm{n}" for n in range(2)]
    with daemon("gdoi-gcks", with_certificates(names), tmp_path) as gcks:
        with member(0) as one, member(1) as two:
            for peer, of in zip((one, two), entities, strict=True):
                certified = Certified(of.key, of.certificate, ca.certificate)
                peer.certify(certified)
                peer.more_in_3 = [certified.request]
                peer.phase1()
                peer.pull(GROUP)
                assert peer.found == (True, True)
            assert set(rows(gcks)) == set(names)
            assert rekey(gcks, two, one) == names[::-1]
        assert set(drops(gcks)) <= {"duplicate"}


def test_a_new_mapping_is_believed_of_an_authentic_message_only(gcks: Daemon, nat: Nat) -> None:
    with member(0) as one:
        one.phase1()
        one.pull(GROUP)
        before = rows(gcks)[MEMBERS[0]]["address"]
        nat.forget()
        one.keepalive()
        # What anybody may have heard and can say again is answered, and moves nothing.
        said = one.sent[-1]
        one.ask(said, said[18])
        assert rows(gcks)[MEMBERS[0]]["address"] == before
        assert gcks.events("member-moved") == []
        one.pull(GROUP)
        after = rows(gcks)[MEMBERS[0]]["address"]
        assert after != before
        wait_for(lambda: gcks.events("member-moved"), "the key server to say so")
        (moved,) = gcks.events("member-moved")
        assert (moved["member"], moved["before"], moved["address"]) == (MEMBERS[0], before, after)
        assert rekey(gcks, one) == [MEMBERS[0]]


def test_without_the_vendor_id_nothing_moves(gcks: Daemon, nat: Nat) -> None:
    """Nor is it sent a NAT-D."""
    with Member((MEMBERS[0], PORT), (INSIDE, PORT), PSK) as plain:
        plain.phase1()
        plain.pull(GROUP)
        assert plain.server == (INSIDE, PORT)
        row = rows(gcks)[MEMBERS[0]]
        assert (row["address"], row["behind-nat"]) == (OUTSIDE, "no")
    assert nat.keepalives == 0


def test_what_comes_without_a_marker(gcks: Daemon) -> None:
    """RFC 3948 section 2.3: an SPI is no marker; and each kind of message has its own socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((OUTSIDE, 0))
        for datagram in (KEEPALIVE, b"", b"\1\2\3\4ESP"):
            sender.sendto(datagram, (SERVER, NAT_PORT))
        wait_for(lambda: drops(gcks).get("not-isakmp") == "2", "two drops")
        sender.setblocking(False)
        with pytest.raises(BlockingIOError):
            sender.recv(1)
    packed = socket.inet_aton(SERVER)[::-1].hex().upper()
    lines = Path("/proc/net/udp").read_text().splitlines()
    for port in (PORT, NAT_PORT):
        assert sum(f" {packed}:{port:04X} " in line for line in lines) == 4


def test_where_the_port_is_taken(tmp_path: Path) -> None:
    """By an IKE daemon, say: one warning, and nobody is sent there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((SERVER, NAT_PORT))
        with daemon("gdoi-gcks", CONFIG, tmp_path) as gcks:
            wait_for(lambda: gcks.events("nat-traversal-off"), "the warning")
            (warning,) = gcks.events("nat-traversal-off")
            assert f"UDP {SERVER}:{NAT_PORT}: another program has the port" in warning["error"]
            with Member((OUTSIDE, PORT), (SERVER, PORT), PSK) as direct:
                direct.identity, direct.server_identity = MEMBERS[0], INSIDE
                direct.more_in_1 = [NatMember.announced]
                direct.phase1()
                direct.pull(GROUP)
            assert set(rows(gcks)) == {MEMBERS[0]}
