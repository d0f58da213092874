"""Dead peer detection (RFC 3706) between key server and member, and what a dead one leads to."""

from __future__ import annotations

from typing import Any

import pytest

from gdoi_plugin.protocol.actions import Drop, Peer, Send
from gdoi_plugin.protocol.dpd import DpdConfig
from gdoi_plugin.protocol.registration import KeyServerEntry
from gdoi_plugin.wire.registry import NotifyType
from tests.protocol.test_phase1_life import (
    DPD,
    GM,
    INFORMATIONAL,
    deleted,
    notify,
    said,
    server_sa,
    told,
)
from tests.support.forge import only_drop
from tests.support.simnet import KeyServerHost, Network
from tests.support.worlds import (
    SERVER,
    World,
    build,
    member_peer,
    member_phase1,
    registered,
)


def watching(server: DpdConfig | None = None, member: DpdConfig | None = None) -> World:
    changes: dict[str, Any] = {}
    if member is not None:
        entry = KeyServerEntry(SERVER, member_phase1(GM), member)
        changes = {"member_changes": {"key_servers": (entry,)}}
    network = Network()
    world = build(network, **changes)
    if server is not None:
        make = world.server._make

        def with_dpd() -> Any:
            engine = make()
            engine.dpd = engine.isakmp.dpd = engine.isakmp.sessions.dpd = server
            return engine

        world.server._make = with_dpd
    world.start()
    network.run(1)
    assert world.converged()
    return world


@pytest.mark.parametrize("who", ["key server", "member"])
def test_questions_are_asked_and_answered(who: str) -> None:
    world = watching(DPD, None) if who == "key server" else watching(None, DPD)
    before = len(world.network.sent)
    world.network.run(185)
    asked = [send for _, send in world.network.sent[before:]]
    assert [told(world, send) for send in asked] == [[36136], [36137]] * 3
    first, second = (SERVER, GM) if who == "key server" else (GM, SERVER)
    assert [send.source for send in asked] == [first, second] * 3
    assert deleted(world.server) == deleted(world.member) == []


def test_nobody_asks_by_default() -> None:
    world = watching()
    before = len(world.network.sent)
    world.network.run(2000)
    assert INFORMATIONAL not in said(world, before)


def test_a_dead_member_is_marked_and_its_sa_goes() -> None:
    world = watching(DPD)
    world.member.crash()
    world.network.run(120)
    (registrant,) = world.group.members.values()
    assert registrant.dead
    assert deleted(world.server) == ["dead"]
    assert len(world.server.engine.isakmp.sessions) == 0
    world.member.start()
    world.network.run(1)
    (registrant,) = world.group.members.values()
    assert not registrant.dead


def test_an_acknowledgement_is_a_sign_of_life() -> None:
    world = watching(DPD)
    (registrant,) = world.group.members.values()
    registrant.dead = True
    world.rekey()
    world.network.run(5)
    assert not registrant.dead


def test_a_dead_key_server_leads_to_the_next_one() -> None:
    """Long before any key ends; and rekeys of the old one are still listened to."""
    dead_peer = Peer(member_peer(50).host, 848)
    entries = (
        KeyServerEntry(dead_peer, member_phase1(GM), DPD),
        KeyServerEntry(SERVER, member_phase1(GM), DPD),
    )
    for seed in range(16):
        network = Network(seed)
        world = build(network, member_changes={"key_servers": entries})
        first = KeyServerHost(network, dead_peer, world.server._make)
        network.hosts[dead_peer.host] = _Alias(first, world)
        world.start()
        network.run(1)
        if world.member.group.key_server == dead_peer:
            break  # it has begun with the first of the two
    assert world.member.group.key_server == dead_peer
    del network.hosts[dead_peer.host]
    network.run(120)
    assert deleted(world.member) == ["dead"]
    assert world.member.group.key_server == SERVER
    assert world.converged()


class _Alias:
    """A second address of the key server."""

    def __init__(self, host: KeyServerHost, world: World) -> None:
        self._address, self._world = host.address, world

    def deliver(self, send: Send) -> None:
        server = self._world.server
        actions = server.engine.receive(send.datagram, send.source, self._address, self._world.now)
        server.do(actions)


def test_a_replayed_question_is_not_answered() -> None:
    _, world = registered()
    sa = server_sa(world)
    asked = [notify(sa, NotifyType.R_U_THERE, number.to_bytes(4, "big")) for number in (5, 6)]
    for datagram in asked:
        (answer,) = world.server.hear(datagram, GM)
        assert isinstance(answer, Send)
        assert told(world, answer) == [NotifyType.R_U_THERE_ACK]
    assert only_drop(world.server.hear(asked[0], GM)) is Drop.REPLAY
    ack = notify(sa, NotifyType.R_U_THERE_ACK, bytes(4))
    assert only_drop(world.server.hear(ack, GM)) is Drop.REPLAY


def test_questions_in_clear_are_rejected() -> None:
    """RFC 3706 section 5.2: "MUST reject unencrypted R-U-THERE and R-U-THERE-ACK messages"."""
    _, world = registered()
    sealed = bytearray(notify(server_sa(world), NotifyType.R_U_THERE, bytes(4)))
    sealed[19] = 0
    assert only_drop(world.server.hear(bytes(sealed), GM)) is Drop.MALFORMED
    assert only_drop(world.member.hear(bytes(sealed), SERVER)) is Drop.CLEAR_NOTIFY
