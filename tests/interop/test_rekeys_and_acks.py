"""Rekeys in parts, deletes, every kind of acknowledgement: both daemons' engines against the peer.

As in the two files for one role each: our `gdoi-gcks` is a process, our member an engine here.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from .engine_shell import World
from .rfc_key_server import Tek
from .rfc_octets import Violation, pack_delete
from .rfc_peer import Member, Push
from .running import Daemon, daemon, wait_for

NET = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}"
PORT = 5848
SERVER = (f"{NET}.1", PORT)
PSK = b"a pre-shared key of two readings"
SHA512, OTHER_L, STRICT, PARTS, DELETES, BY_OID = range(1, 7)
# RFC 8052 appendix A.2: the OID's length, the OID, no OID-specific payload.
OID = bytes.fromhex("0d 060b 2a8648ce5683e31a080102 0000".replace(" ", ""))


def host(number: int) -> tuple[str, int]:
    return f"{NET}.{number}", PORT


def group(name: str, number: int | str, rekey: str, teks: int = 1) -> str:
    text = f"""
[[group]]
name = "{name}"
id = {f'"{number}"' if isinstance(number, str) else number}
members = {[host(n)[0] for n in range(2, 6)]}
[group.rekey]
port = {PORT}
signature = "ecdsa256"
{rekey}
"""
    return text + "".join(f'[[group.tek]]\ndestination = "239.192.9.{n}"\n' for n in range(teks))


CONFIG = f"""
[key_server]
address = "{SERVER[0]}"
port = {PORT}
state = "@/state.sqlite"
control = "@/control"
[[peer]]
address = "{NET}.0/24"
psk = "{PSK.decode()}"
{group("sha512", SHA512, 'ack = "kek-sha512"')}
{group("other-l", OTHER_L, "ack_l = [256]")}
{group("strict", STRICT, f'ack_exempt = ["{host(3)[0]}"]')}
{group("parts", PARTS, "push_limit = 700", teks=20)}
{group("deletes", DELETES, "", teks=2)}
{group("oid", "oid:1.2.840.10070.61850.8.1.2", "")}
"""


@pytest.fixture(scope="module")
def gcks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon("gdoi-gcks", CONFIG, tmp_path_factory.mktemp("gcks")) as running:
        yield running
        assert running.events("bug") == []


def joined(number: int, group_id: int | bytes, *, strict: bool = False) -> Member:
    member = Member(host(number), SERVER, PSK)
    member.strict = strict
    member.phase1()
    member.pull(group_id)
    return member


def acked(gcks: Daemon, name: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """What the log says about this rekey's acknowledgements, once it is closed."""
    epoch = int(asked["epoch"])

    def of(*events: str) -> list[dict[str, Any]]:
        return [r for r in gcks.events(*events) if (r["group"], r["epoch"]) == (name, epoch)]

    wait_for(lambda: of("rekey-closed"), "the rekey to be closed")
    (closed,) = of("rekey-closed")
    assert closed["expected"] == closed["acknowledged"] == len(of("rekey-acked"))
    return of("rekey-acked", "rekey-part-acked")


# -- our key server --------------------------------------------------------------------------------


def test_sha512(gcks: Daemon) -> None:
    """RFC 8263 2.3: HASH of 64 octets; one of 32 does not count."""
    with joined(2, SHA512) as peer:
        for kek in ("no", "yes", "no"):
            asked = gcks.ask("rekey", group="sha512", kek=kek)
            push = peer.push()
            assert push.ack == 3
            if kek == "no":
                peer.send(peer.ack(replace(push, ack=1)))
            peer.send(peer.ack(push))
            assert len(acked(gcks, "sha512", asked)) == 1
        reasons = [record["reason"] for record in gcks.events("dropped")]
        assert "ack-wrong-type" in reasons


def test_another_reading_of_l(gcks: Daemon) -> None:
    with joined(2, OTHER_L) as peer:
        for bits in (256, 512):
            asked = gcks.ask("rekey", group="other-l")
            peer.send(peer.ack(peer.push(), bits=bits))
            (told,) = acked(gcks, "other-l", asked)
            assert told.get("l") == (256 if bits == 256 else None)


def test_a_member_that_knows_rfc_6407_alone(gcks: Daemon) -> None:
    """It never sees attribute 9 and nobody waits for it; the other one is asked each time."""
    with joined(2, STRICT) as knowing, joined(3, STRICT, strict=True) as strict:
        for kek in ("yes", "no", "yes"):
            asked = gcks.ask("rekey", group="strict", kek=kek)
            push = knowing.push()
            assert push.ack == 1
            assert strict.push().ack == 0
            strict.send(knowing.ack(push, identity=host(3)[0]))
            knowing.send(knowing.ack(push))
            (told,) = acked(gcks, "strict", asked)
            assert told["member"] == host(2)[0]
        wait_for(
            lambda: "ack-member-exempt" in [r["reason"] for r in gcks.events("dropped")],
            "the ACK that nobody asked for to be dropped by name",
        )
        assert strict.keks.keys() & knowing.keks.keys()


def test_parts(gcks: Daemon) -> None:
    """Complete PUSHes of 700 octets at most; acknowledged is who has acknowledged all of them."""
    with joined(2, PARTS) as peer:
        before = set(peer.teks)
        asked = gcks.ask("rekey", group="parts", kek="yes")
        pushes: list[Push] = []
        while not pushes or pushes[-1].seq < int(asked["seq"]):
            datagram = peer.receive(33)
            assert len(datagram) <= 700
            pushes.append(peer.push(datagram))
        assert len(pushes) > 4
        assert [bool(p.sa and p.sa.sak) for p in pushes] == [True] + [False] * (len(pushes) - 1)
        assert all(push.sa is not None and push.sa.gap is not None for push in pushes)
        assert len(set(peer.teks) - before) == 20
        for push in pushes:
            peer.send(peer.ack(push))
        told = acked(gcks, "parts", asked)
        assert [t["event"] for t in told][-1] == "rekey-acked"
        assert len(told) == len(pushes)
        listed = gcks.ctl("rekeys", "--group", "parts")[-1]
        assert int(listed["parts"]) == len(pushes)


def test_deletes(gcks: Daemon) -> None:
    """RFC 6407 5.9: one TEK with and without another in its place; the KEK of the PUSH itself."""
    with joined(2, DELETES) as peer:
        gone, kept = peer.teks
        asked = gcks.ask("delete-tek", group="deletes", spi=f"0x{gone.hex()}")
        push = peer.push()
        assert [(d.protocol, d.spis) for d in push.deletions] == [(1, [gone])]
        assert gone not in peer.teks
        assert kept in peer.teks
        assert len(peer.teks) == 2
        assert push.sa is not None
        assert push.sa.gap is not None
        assert [a.value for a in push.sa.gap] == [0, 0]
        peer.send(peer.ack(push))
        acked(gcks, "deletes", asked)

        gcks.ask("rekey", group="deletes")
        peer.send(peer.ack(peer.push()))
        asked = gcks.ask("delete-tek", group="deletes", spi=f"0x{kept.hex()}")
        push = peer.push()
        assert push.sa is None
        assert [(d.protocol, d.spis) for d in push.deletions] == [(1, [kept])]
        peer.send(peer.ack(push))
        acked(gcks, "deletes", asked)

        old = push.kek.spi
        asked = gcks.ask("rekey", group="deletes", kek="yes", replace="yes")
        push = peer.push()
        assert [(d.protocol, d.spis) for d in push.deletions] == [(1, [bytes(4)]), (0, [old])]
        assert old not in peer.keks
        # RFC 8263 4 and 6: acknowledged under the KEK that it deletes.
        peer.send(peer.ack(push))
        acked(gcks, "deletes", asked)


def test_id_oid(gcks: Daemon) -> None:
    """RFC 8263 3.4: the OID that named the group, from the address that the member pulled from."""
    with joined(2, OID) as peer:
        for oid in (OID, b""):
            asked = gcks.ask("rekey", group="oid")
            peer.send(peer.ack(peer.push(), oid=oid))
            (told,) = acked(gcks, "oid", asked)
            assert told["member"] == host(2)[0]


# -- our member ------------------------------------------------------------------------------------


@pytest.fixture
def world() -> Iterator[World]:
    with World(ec.generate_private_key(ec.SECP256R1())) as made:
        made.server.teks = [Tek("239.192.1.1")]
        made.register()
        yield made


def test_the_same_push_again(world: World) -> None:
    """The same octets are acknowledged again in the same octets, but not twice in a second."""
    tek = Tek("239.192.1.1")
    datagram = world.server.push([*world.server.gap(), tek.sat()], [tek.packet()])
    world.acked(datagram)
    world.silent(datagram)
    world.agent.skew += 1.1
    world.acked(datagram)
    first, second = world.received[-2:]
    assert first == second
    assert world.agent.names().count("rekey-received") == 1


def test_a_policy_in_several_pushes(world: World) -> None:
    teks = [Tek(f"239.192.1.{n}") for n in range(1, 6)]
    server = world.server
    new = server.new_kek()
    for number, tek in enumerate(teks):
        sak = [server.sak(new)] if number == 0 else []
        keys = [server.kek_packet(new)] if number == 0 else []
        world.acked(server.push([*sak, *server.gap(), tek.sat()], [*keys, tek.packet()]))
    assert {tek.spi for tek in teks} <= world.agent.held.keys()
    server.old_keks.append(server.kek)
    server.kek = new
    world.acked(server.push([*server.gap(), teks[0].sat()], [teks[0].packet()]))


def test_one_tek_deleted_without_and_with_another(world: World) -> None:
    first, second = world.server.teks[0], Tek("239.192.1.1")
    world.acked(
        world.server.push([second.sat()], [second.packet()], deletes=[pack_delete(1, [first.spi])])
    )
    assert set(world.agent.held) == {second.spi}
    world.acked(world.server.push(None, deletes=[pack_delete(1, [second.spi])]))
    assert world.agent.held == {}
    third = Tek("239.192.1.1")
    world.acked(world.server.push([third.sat()], [third.packet()]))
    assert set(world.agent.held) == {third.spi}


def test_asked_by_a_pull_after_a_rekey_that_did_not(world: World) -> None:
    """RFC 8263 7.2: the most recently received SA KEK, be it of a GROUPKEY-PULL."""
    server = world.server
    tek = Tek("239.192.1.1")
    world.silent(
        server.push([server.sak(ack=0), tek.sat()], [server.kek_packet(server.kek), tek.packet()])
    )
    server.teks = [tek]
    world.agent.perform(world.agent.engine.register(world.agent.now()))
    world.until(lambda: world.agent.names().count("registered") == 2, "registered again")
    another = Tek("239.192.1.1")
    world.acked(server.push([another.sat()], [another.packet()]))


@pytest.mark.usefixtures("gcks")
def test_who_knows_rfc_6407_only_aborts_where_acks_are_asked_for() -> None:
    """So the peer says; a member in ``ack_exempt`` is one."""
    with Member(host(4), SERVER, PSK) as peer:
        peer.strict = True
        peer.phase1()
        with pytest.raises(Violation, match="MUST abort"):
            peer.pull(SHA512)
