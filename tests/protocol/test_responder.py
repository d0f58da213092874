"""The key server's half-open exchanges and phase-1 SAs: bounded, whoever asks."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from gdoi_plugin.protocol import responder
from gdoi_plugin.protocol.actions import Drop, Peer
from gdoi_plugin.protocol.main_mode import Initiator, State
from gdoi_plugin.protocol.responder import (
    HALF_OPEN_LIFETIME,
    MAX_ESTABLISHED_PER_IDENTITY,
    MAX_HALF_OPEN_PER_HOST,
)
from gdoi_plugin.wire.header import Header
from gdoi_plugin.wire.message import encode_clear
from gdoi_plugin.wire.opaque import VendorId
from gdoi_plugin.wire.registry import ExchangeType
from tests.support.forge import only_drop
from tests.support.simnet import Wire
from tests.support.snapshot import snapshot
from tests.support.worlds import (
    SERVER,
    STRANGER,
    World,
    build,
    member_peer,
    member_phase1,
    registered,
    sends,
    server_phase1,
)


def first(number: int, source: Peer) -> bytes:
    """Message 1 of exchange ``number``."""
    cookie = number.to_bytes(8, "big")
    return Initiator(member_phase1(source), source, SERVER, cookie, bytes(32)).start()


def serving(**options: object) -> World:
    world = build(Wire(), **options)  # type: ignore[arg-type]
    world.server.start()
    return world


def test_strangers_get_silence() -> None:
    world = serving()
    before = snapshot(world.server.engine)
    assert only_drop(world.server.hear(first(1, STRANGER), STRANGER)) is Drop.UNKNOWN_PEER
    assert snapshot(world.server.engine) == before


def test_one_address_has_its_share_and_no_more() -> None:
    world = serving()
    gm = member_peer(0)
    for number in range(1, 100):
        assert len(sends(world.server.hear(first(number, gm), gm))) == 1
        held = len(world.server.engine.isakmp.half_open)
        assert held == min(number, MAX_HALF_OPEN_PER_HOST)
    kept = sorted(entry.first for entry in world.server.engine.isakmp.half_open.values())
    assert kept == [n.to_bytes(8, "big") for n in range(100 - MAX_HALF_OPEN_PER_HOST, 100)], (
        "the oldest went"
    )
    world.member.start()
    world.network.settle()  # type: ignore[attr-defined]
    assert world.converged(), "and it can still register"


def test_message_1_that_is_not_one_takes_nobodys_place() -> None:
    world = serving()
    gm = member_peer(0)
    for number in range(1, MAX_HALF_OPEN_PER_HOST + 1):
        world.server.hear(first(number, gm), gm)
    before = snapshot(world.server.engine)
    header = Header(b"\xee" * 8, bytes(8), 0, ExchangeType.MAIN_MODE)
    assert (
        only_drop(world.server.hear(encode_clear(header, [VendorId(b"x")]), gm)) is Drop.MALFORMED
    )
    assert snapshot(world.server.engine) == before


def test_all_addresses_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responder, "MAX_HALF_OPEN", 100)
    world = serving(phase1_for=server_phase1)
    peers = [Peer(IPv4Address("10.7.0.0") + i, 848) for i in range(110)]
    engine = world.server.engine.isakmp
    for peer in peers[:100]:
        world.server.hear(first(9, peer), peer)
    # The oldest has sent a message 3 from its address, which a forger cannot.
    proved = next(iter(engine.half_open.values()))
    proved.responder.state = State.SENT_KE
    answered = [world.server.hear(first(9, peer), peer) for peer in peers[100:]]
    assert all(len(sends(actions)) == 1 for actions in answered), "newcomers are heard"
    assert len(engine.half_open) == 100
    assert [entry.source for entry in engine.half_open.values()] == [peers[0], *peers[11:]]
    for entry in engine.half_open.values():
        entry.responder.state = State.SENT_KE
    assert only_drop(world.server.hear(first(9, peers[5]), peers[5])) is Drop.TOO_MANY
    world.network.run(HALF_OPEN_LIFETIME + 1)
    assert (engine.half_open, engine._by_host) == ({}, {})
    assert len(sends(world.server.hear(first(9, peers[-1]), peers[-1]))) == 1


def test_half_open_exchanges_end_after_40_seconds() -> None:
    world = serving()
    gm = member_peer(0)
    world.server.hear(first(1, gm), gm)
    world.network.run(39)
    assert len(world.server.engine.isakmp.half_open) == 1
    world.network.run(2)
    assert world.server.engine.isakmp.half_open == {}
    assert world.server.engine.isakmp._by_initiator == {}


def test_cookies_of_another_peers_exchange() -> None:
    """Message 3 from elsewhere finds nothing."""
    world = serving(members=2)
    world.member.start()
    wire = world.network
    assert isinstance(wire, Wire)
    wire.pass_on(2)
    message3 = wire.take()
    other = member_peer(1)
    assert only_drop(world.server.hear(message3.datagram, other)) is Drop.UNKNOWN_COOKIES
    assert len(sends(world.server.hear(message3.datagram, message3.source))) == 1


def test_phase_1_sas_of_one_identity_are_bounded() -> None:
    wire, world = registered()
    for number in range(2, 20):
        world.member.restart()
        wire.settle()
        kept = len(world.server.engine.isakmp.sessions)
        assert kept == min(number, MAX_ESTABLISHED_PER_IDENTITY)
    assert world.converged()


def test_phase_1_sas_end_with_their_lifetime() -> None:
    wire, world = registered(
        phase1_for=lambda p: server_phase1(p, lifetime=300),
        phase1=member_phase1(member_peer(0)),
    )
    wire.run(299)
    assert len(world.server.engine.isakmp.sessions) == 1
    wire.run(2)
    assert world.server.engine.isakmp.sessions == {}


def test_cookie_is_never_zero() -> None:
    """RFC 2408 section 3.1: zero means "none yet"."""
    octets = iter([bytes(8), bytes(8), b"\1" * 8])
    engine = responder.IsakmpResponder(server_phase1, lambda _: next(octets))
    assert engine._cookie() == b"\1" * 8
