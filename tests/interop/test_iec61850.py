"""RFC 8052 between either of our two roles and the peer written from the RFCs.

As in the other files: our `gdoi-gcks` is a process, our member an engine here.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from .engine_shell import World
from .rfc_key_server import IecTek, Tek
from .rfc_octets import pack_delete, tlv, tv
from .rfc_peer import Member
from .running import Daemon, daemon, wait_for

NET = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}"
PORT = 5847
SERVER = (f"{NET}.1", PORT)
PSK = b"a pre-shared key of two readings"
MIXED = 1
# RFC 8052 appendix A: the OID with its length, and no OID-specific payload.
DER = bytes.fromhex("060b2a8648ce5683e31a080102")
GROUP = bytes([len(DER)]) + DER + bytes(2)
GOOSE = "1.2.840.10070.61850.8.1.2"

CONFIG = f"""
[key_server]
address = "{SERVER[0]}"
port = {PORT}
state = "@/state.sqlite"
control = "@/control"
[[peer]]
address = "{NET}.0/24"
psk = "{PSK.decode()}"
[[group]]
name = "goose"
id = "oid:{GOOSE}"
members = ["{NET}.2", "{NET}.3"]
[group.rekey]
port = {PORT}
signature = "ecdsa256"
[[group.iec61850]]
oid = "{GOOSE}"
auth = "hmac-sha256"
conf = "aes-cbc-256"
lifetime = "2h"
sa_atd = "10m"
sa_kda = 90
[[group.iec61850]]
oid = "{GOOSE}"
payload = "8704e9fc0001"
auth = "none"
conf = "aes-gcm-128"
[[group]]
name = "mixed"
id = {MIXED}
members = ["{NET}.2"]
[group.rekey]
port = {PORT}
signature = "ecdsa256"
[[group.tek]]
destination = "239.192.9.1"
[[group.iec61850]]
oid = "{GOOSE}"
auth = "aes-gmac-256"
"""


@pytest.fixture(scope="module")
def gcks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon("gdoi-gcks", CONFIG, tmp_path_factory.mktemp("gcks")) as running:
        yield running
        assert running.events("bug") == []


def joined(number: int, group: int | bytes) -> Member:
    member = Member((f"{NET}.{number}", PORT), SERVER, PSK)
    member.phase1()
    member.pull(group)
    return member


def answered(gcks: Daemon, group: str, peer: Member) -> None:
    """The next rekey, acknowledged and counted."""
    before = len(gcks.events("rekey-acked"))
    asked = gcks.ask("rekey", group=group)
    assert int(asked["expected"]) == 1
    peer.send(peer.ack(peer.push()))
    wait_for(lambda: len(gcks.events("rekey-acked")) > before, "the ACK to be counted")


# -- our key server --------------------------------------------------------------------------------


def test_a_group_with_keys_for_applications_alone(gcks: Daemon) -> None:
    with joined(2, GROUP) as peer:
        one, two = (sat for sat, _ in peer.applications.values())
        assert (one.oid, one.payload, one.auth, one.enc) == (DER, b"", 3, 3)
        assert (two.oid, two.payload.hex(), two.auth, two.enc) == (DER, "8704e9fc0001", 1, 4)
        assert 7100 < one.lifetime <= 7200
        assert (one.get(1), one.get(2)) == (0, 90), "the first key is not to be waited for"
        answered(gcks, "goose", peer)
        assert len(peer.applications) == 4
        new = list(peer.applications.values())[2][0]
        assert (new.get(1), new.lifetime) == (600, 7200)
        # Who comes now is told both, and what is left of the delay.
        with joined(3, GROUP) as late:
            waits = [sat.get(1) for sat, _ in late.applications.values()]
            assert len(waits) == 4
            assert 590 <= max(waits) <= 600
            assert late.applications[new.spi][1] == peer.applications[new.spi][1]


def test_deletes(gcks: Daemon) -> None:
    """RFC 6407 5.9: the SAs of RFC 8052 have a protocol of their own, SPI 0 is all of them."""
    with joined(2, MIXED) as peer:
        answered(gcks, "mixed", peer)
        assert (len(peer.teks), len(peer.applications)) == (2, 2)
        current = list(peer.applications)[-1]
        gcks.ask("delete-tek", group="mixed", spi=f"0x{current.hex()}")
        push = peer.push()
        assert [(d.protocol, d.spis) for d in push.deletions] == [(3, [current])]
        peer.send(peer.ack(push))
        assert current not in peer.applications
        gcks.ask("delete-group", group="mixed")
        kinds = [(deletion.protocol, any(deletion.spis[0])) for deletion in peer.push().deletions]
        assert kinds == [(1, False), (3, False), (0, False)]


# -- our member ------------------------------------------------------------------------------------


@pytest.fixture
def world() -> Iterator[World]:
    """Registered, with a data SA and a key for GOOSE."""
    with World(ec.generate_private_key(ec.SECP256R1())) as made:
        made.server.teks = [Tek("239.192.1.1"), IecTek(GOOSE)]
        made.register()
        yield made


def push(world: World, *teks: Tek, deletes: list[bytes] | None = None) -> bytes:
    policy = [*world.server.gap(), *(tek.sat() for tek in teks)]
    return world.server.push(policy, [tek.packet() for tek in teks], deletes=deletes)


def exported(world: World) -> dict[bytes, tuple[bytes, bytes]]:
    return {
        key.tek.spi: (
            key.tek.encryption_key.reveal(),
            key.tek.integrity_key.reveal() if key.tek.integrity_key else b"",
        )
        for key in world.agent.exported
    }


@pytest.mark.parametrize("kinds", [(2, 1), (3, 3), (4, 2), (5, 1), (1, 4), (1, 5)])
def test_keys_of_every_kind(world: World, kinds: tuple[int, int]) -> None:
    old, new = world.server.teks[1], IecTek(GOOSE, kinds=kinds, more=tv(2, 100))
    assert exported(world) == {old.spi: (old.key, old.auth)}
    world.acked(push(world, new))
    assert exported(world)[new.spi] == (new.key, new.auth)
    assert list(exported(world)) == [old.spi, new.spi]


def test_sa_atd_and_deletes_of_another_key_server(world: World) -> None:
    old, new = world.server.teks[1], IecTek(GOOSE, more=tlv(1, (5).to_bytes(4, "big")))
    world.server.quirks.gap = tv(2, 600)  # DTD
    world.acked(push(world, new))
    assert list(exported(world)) == [old.spi]
    world.agent.skew += 5.1
    world.until(lambda: len(exported(world)) == 2, "the delay to pass")
    # With a DTD in the same message what it replaces has that long; without one it goes at once.
    world.acked(push(world, new, deletes=[pack_delete(3, [old.spi])]))
    assert list(exported(world)) == [old.spi, new.spi]
    world.server.quirks.gap = None
    world.acked(push(world, new, deletes=[pack_delete(3, [old.spi])]))
    assert list(exported(world)) == [new.spi]
    world.acked(push(world, world.server.teks[0], deletes=[pack_delete(3, [bytes(4)])]))
    assert exported(world) == {}


@pytest.mark.parametrize("kinds", [(0, 1), (6, 1), (1, 2), (2, 6)])
def test_what_no_application_could_use(world: World, kinds: tuple[int, int]) -> None:
    world.silent(push(world, IecTek(GOOSE, kinds=kinds)))
    assert "rekey-refused" in world.agent.names()


def test_no_acknowledgement_where_the_export_fails(world: World) -> None:
    before = exported(world)
    world.agent.kernel = lambda _: "/run/gdoi/keys/video.json: No space left on device"
    world.silent(push(world, IecTek(GOOSE)))
    assert exported(world) == before
