"""Every trigger of the trace has a datagram that pulls it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from gdoi_plugin.protocol.actions import Action, AskIke, Drop, Dropped, Peer
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.ike_sas import IkePolicy, IkeSa
from gdoi_plugin.protocol.isakmp import seal_notify
from gdoi_plugin.protocol.main_mode import Initiator
from gdoi_plugin.protocol.nat import Path
from gdoi_plugin.protocol.policy import GroupPolicy
from gdoi_plugin.wire.header import Header, pull_header
from gdoi_plugin.wire.message import encode_clear
from gdoi_plugin.wire.notification import Notification
from gdoi_plugin.wire.opaque import KeyExchange, Nonce
from gdoi_plugin.wire.registry import AckType, Doi, ExchangeType, NotifyType, PayloadType, Protocol
from tests.protocol.test_push import new_tek
from tests.support.forge import flip, make_ack, multicast, push_policy, resend
from tests.support.simnet import Wire
from tests.support.worlds import (
    SERVER,
    STRANGER,
    World,
    group_config,
    member_peer,
    member_phase1,
    registered,
    sends,
    server_phase1,
    wired,
)

GM = member_peer(0)
MAIN = ExchangeType.MAIN_MODE


def header_of(exchange: int, cookies: bytes = b"\1" * 16) -> bytes:
    return Header(cookies[:8], cookies[8:], 0, exchange).encode()


def message_1(**changes: Any) -> bytes:
    config = member_phase1(GM, **changes)
    return Initiator(config, Path(GM, SERVER), b"\7" * 8, bytes(32)).start()


def up_to(number: int) -> tuple[Wire, World]:
    wire, world = wired()
    world.start()
    wire.pass_on(number - 1)
    return wire, world


def acknowledging() -> tuple[World, bytes]:
    """A key server that waits for an ACK, and that ACK."""
    _, world = registered()
    world.rekey()
    return world, make_ack(world.group.current_kek().kek, 1, GM.host)


# -- one for each --------------------------------------------------------------------------------


def malformed() -> list[Action]:
    return registered()[1].server.hear(b"no ISAKMP", GM)


def not_isakmp() -> list[Action]:
    server = registered()[1].server
    esp = bytes.fromhex("c0000001 00000001") + bytes(40)
    return server.hear(esp, GM, server.nat_address)


def fragment() -> list[Action]:
    world = registered()[1]
    piece = Header(b"\1" * 8, b"\2" * 8, PayloadType.FRAGMENT, MAIN).encode()
    return world.server.hear(piece, GM) + world.member.hear(piece, SERVER)


def unknown_exchange() -> list[Action]:
    return registered()[1].server.hear(header_of(ExchangeType.AGGRESSIVE), GM)


def ignored_exchange() -> list[Action]:
    world = registered()[1]
    from_member = world.member.hear(header_of(ExchangeType.UNREGISTERED_34), SERVER)
    return from_member + world.server.hear(header_of(ExchangeType.UNREGISTERED_34), GM)


def unknown_cookies() -> list[Action]:
    world = registered()[1]
    kinds = (ExchangeType.GROUPKEY_PULL, ExchangeType.INFORMATIONAL, MAIN)
    heard = [action for kind in kinds for action in world.server.hear(header_of(kind), GM)]
    kinds_of_member = (*kinds, ExchangeType.GROUPKEY_PUSH, ExchangeType.GROUPKEY_PUSH_ACK)
    for kind in kinds_of_member:
        heard += world.member.hear(header_of(kind), SERVER)
    return heard


def unknown_peer() -> list[Action]:
    wire, world = up_to(2)
    heard = world.member.hear(wire.take().datagram, STRANGER)
    first = Initiator(member_phase1(STRANGER), Path(STRANGER, SERVER), b"\1" * 8, bytes(32)).start()
    return heard + world.server.hear(first, STRANGER)


def outside_channel() -> list[Action]:
    """From somebody else, or at another port: only the key server and UDP 848 are inside ESP."""
    world = registered(member_changes={"channel": True})[1]
    datagram = push_policy(world, GroupPolicy(None, (new_tek(),)))
    agent, config = world.member.engine, world.member.group.config
    other_port = Peer(config.local.host, 4500)
    heard = []
    for source, arrived in ((STRANGER, config.local), (SERVER, other_port)):
        heard += agent.receive(datagram, source, arrived, world.now)[1]
    return heard


def unexpected() -> list[Action]:
    world = registered()[1]
    (session,) = world.server.engine.isakmp.sessions.values()
    header = Header(session.sa.cky_i, session.sa.cky_r, 0, MAIN)
    return world.server.hear(header.encode(), GM)


def no_proposal() -> list[Action]:
    wire, world = wired(phase1_for=lambda p: server_phase1(p, suites=()))
    world.start()
    return resend(world.server, wire.take())


def bad_key_exchange() -> list[Action]:
    wire, world = up_to(3)
    spi = wire.take().datagram[:16]
    header = Header(spi[:8], spi[8:], 0, MAIN)
    return world.server.hear(encode_clear(header, [KeyExchange(bytes(64)), Nonce(bytes(16))]), GM)


def authentication() -> list[Action]:
    world = registered()[1]
    one = world.datagrams(ExchangeType.GROUPKEY_PULL)[0].datagram
    # A new exchange, and the last block of its body turned: a HASH that covers something else.
    world.server.engine.isakmp.sessions[one[:16]].pulls.clear()
    return world.server.hear(flip(one, 28 + 36 + 4 + 8, 0), GM)


def not_authorised() -> list[Action]:
    nobody = group_config(0)
    wire, world = wired(group=nobody)
    world.start()
    wire.pass_on(6)
    return resend(world.server, wire.take())


def unknown_group() -> list[Action]:
    wire, world = wired(member_changes={"group_id": GroupId.of_number(5)})
    world.start()
    wire.pass_on(6)
    return resend(world.server, wire.take())


def duplicate() -> list[Action]:
    world = registered()[1]
    heard: list[Action] = []
    for send in world.datagrams(MAIN)[4:] + world.datagrams(ExchangeType.GROUPKEY_PULL):
        if send.destination == SERVER:
            heard += [a for a in resend(world.server, send) if isinstance(a, Dropped)]
    return heard


def replay() -> list[Action]:
    world = registered()[1]
    datagram = push_policy(world, GroupPolicy(None, (new_tek(),)))
    multicast(world, datagram)
    multicast(world, push_policy(world, GroupPolicy(None, (new_tek(),))))
    return multicast(world, datagram)


def unacceptable_policy() -> list[Action]:
    world = registered()[1]
    shared = new_tek(keyword="aes256gcm16")
    heard = multicast(world, push_policy(world, GroupPolicy(None, (shared,))))
    return [action for action in heard if isinstance(action, Dropped)]


def stale_policy() -> list[Action]:
    wire, world = up_to(9)
    message3 = wire.take()
    world.rekey()
    return resend(world.server, message3)


def clear_notify() -> list[Action]:
    wire, world = up_to(2)
    spi = wire.take().datagram[:16]
    notify = Notification(Doi.GDOI, Protocol.PROTO_ISAKMP, spi, NotifyType.NO_PROPOSAL_CHOSEN)
    header = Header(spi[:8], spi[8:], 0, ExchangeType.INFORMATIONAL)
    return world.member.hear(encode_clear(header, [notify]), SERVER)


def offer_limit() -> list[Action]:
    """As many kinds of message 1 as two seconds have room for, and one more."""
    world = up_to(1)[1]
    for lifetime in range(1000, 1000 + int(2 * world.server.engine.limits.offers)):
        assert sends(world.server.hear(message_1(lifetime=lifetime), GM))
    return world.server.hear(message_1(lifetime=999), GM)


def source_limit() -> list[Action]:
    """Messages 3 of one address, each with its own cookie."""
    world = up_to(1)[1]
    heard: list[Action] = []
    for number in range(2 * world.server.engine.limits.work_per_source + 1):
        cookie = bytes([number] * 7) + b"!"
        member = Initiator(member_phase1(GM), Path(GM, SERVER), cookie, bytes(32))
        (answer,) = sends(world.server.hear(member.start(), GM))
        datagram = answer.datagram
        message3 = member.receive(pull_header(datagram), datagram, world.now)
        assert message3 is not None
        heard = world.server.hear(message3, GM)
    return heard


def ignored_notify() -> list[Action]:
    world = registered()[1]
    (session,) = world.server.engine.isakmp.sessions.values()
    datagram = seal_notify(session.sa, 5, NotifyType.REPLAY_STATUS, bytes(4))
    return world.server.hear(datagram, GM) + world.member.hear(datagram, SERVER)


def ack_not_requested() -> list[Action]:
    world = registered(group=group_config(ack=None))[1]
    return world.server.hear(make_ack(world.group.current_kek().kek, 1, GM.host), GM)


def ack_unknown_spi() -> list[Action]:
    return registered()[1].server.hear(header_of(ExchangeType.GROUPKEY_PUSH_ACK), GM)


def ack_kek_retired() -> list[Action]:
    wire, world = registered()
    kek = world.group.current_kek().kek
    world.rekey(kek=True)
    wire.waiting.clear()
    wire.run(60)
    return world.server.hear(make_ack(kek, 1, GM.host), GM)


def ack_malformed() -> list[Action]:
    world, ack = acknowledging()
    return world.server.hear(ack[:23] + b"\1" + ack[24:], GM)


def ack_wrong_source() -> list[Action]:
    world = registered(2)[1]
    world.rekey()
    kek = world.group.current_kek().kek
    return world.server.hear(make_ack(kek, 1, GM.host), member_peer(1))


def ack_member_exempt() -> list[Action]:
    exempt = frozenset({Identity.of_address(GM.host)})
    world = registered(group=group_config(ack_exempt=exempt))[1]
    world.rekey()
    return world.server.hear(make_ack(world.group.current_kek().kek, 1, GM.host), GM)


def ack_duplicate() -> list[Action]:
    world, ack = acknowledging()
    world.server.hear(ack, GM)
    return world.server.hear(ack, GM)


def ack_wrong_type() -> list[Action]:
    world, _ = acknowledging()
    kek = world.group.current_kek().kek
    return world.server.hear(make_ack(kek, 1, GM.host, AckType.REKEY_ACK_KEK_SHA512), GM)


def ack_unknown_seq() -> list[Action]:
    world, _ = acknowledging()
    return world.server.hear(make_ack(world.group.current_kek().kek, 2, GM.host), GM)


def ack_unknown_member() -> list[Action]:
    world, _ = acknowledging()
    return world.server.hear(make_ack(world.group.current_kek().kek, 1, STRANGER.host), GM)


def ack_bad_hash() -> list[Action]:
    world, ack = acknowledging()
    return world.server.hear(flip(ack, 40, 0), GM)


def asks_ike(
    *, lost: str | None = None, asked: bool = False, sas: Sequence[IkeSa] = ()
) -> list[Action]:
    """Message 1 of a GROUPKEY-PULL, for a group whose members are who IKE says they are."""
    wire, world = wired(group=group_config(ike=IkePolicy()))
    world.start()
    ike = world.server.engine.ike
    ike.take(sas, world.now, world.now)
    wire.pass_on(6)
    first = wire.take()
    if lost is not None:
        ike.lose(lost)
    if asked:
        world.server.hear(first.datagram, GM)
        ike.take(sas, world.now, world.now)
    return resend(world.server, first)


def ike_asked() -> list[Action]:
    heard = asks_ike()
    assert AskIke() in heard
    assert not sends(heard)
    return heard


def ike_not_established() -> list[Action]:
    return asks_ike(asked=True)


def ike_mismatch() -> list[Action]:
    there = [IkeSa("1", GM.host, Identity.parse(f"gm{n}.example.org")) for n in (1, 2)]
    return asks_ike(asked=True, sas=[there[0], replace(there[1], number="2")])


def ike_unknown() -> list[Action]:
    return asks_ike(lost="charon is away")


TRIGGERS: dict[Drop, Callable[[], list[Action]]] = {
    Drop.MALFORMED: malformed,
    Drop.NOT_ISAKMP: not_isakmp,
    Drop.FRAGMENT: fragment,
    Drop.UNKNOWN_EXCHANGE: unknown_exchange,
    Drop.IGNORED_EXCHANGE: ignored_exchange,
    Drop.UNKNOWN_COOKIES: unknown_cookies,
    Drop.UNKNOWN_PEER: unknown_peer,
    Drop.OUTSIDE_CHANNEL: outside_channel,
    Drop.UNEXPECTED: unexpected,
    Drop.NO_PROPOSAL: no_proposal,
    Drop.BAD_KEY_EXCHANGE: bad_key_exchange,
    Drop.AUTHENTICATION: authentication,
    Drop.NOT_AUTHORISED: not_authorised,
    Drop.IKE_NOT_ESTABLISHED: ike_not_established,
    Drop.IKE_MISMATCH: ike_mismatch,
    Drop.IKE_UNKNOWN: ike_unknown,
    Drop.IKE_ASKED: ike_asked,
    Drop.UNKNOWN_GROUP: unknown_group,
    Drop.DUPLICATE: duplicate,
    Drop.REPLAY: replay,
    Drop.UNACCEPTABLE_POLICY: unacceptable_policy,
    Drop.STALE_POLICY: stale_policy,
    Drop.CLEAR_NOTIFY: clear_notify,
    Drop.IGNORED_NOTIFY: ignored_notify,
    Drop.OFFER_LIMIT: offer_limit,
    Drop.SOURCE_LIMIT: source_limit,
    Drop.ACK_UNKNOWN_SPI: ack_unknown_spi,
    Drop.ACK_KEK_RETIRED: ack_kek_retired,
    Drop.ACK_MALFORMED: ack_malformed,
    Drop.ACK_WRONG_SOURCE: ack_wrong_source,
    Drop.ACK_MEMBER_EXEMPT: ack_member_exempt,
    Drop.ACK_DUPLICATE: ack_duplicate,
    Drop.ACK_WRONG_TYPE: ack_wrong_type,
    Drop.ACK_NOT_REQUESTED: ack_not_requested,
    Drop.ACK_UNKNOWN_SEQ: ack_unknown_seq,
    Drop.ACK_UNKNOWN_MEMBER: ack_unknown_member,
    Drop.ACK_BAD_HASH: ack_bad_hash,
}


def test_the_table_has_every_trigger() -> None:
    assert set(TRIGGERS) == set(Drop)


@pytest.mark.parametrize("reason", Drop, ids=str)
def test_trigger(reason: Drop) -> None:
    heard = TRIGGERS[reason]()
    drops = [action for action in heard if isinstance(action, Dropped)]
    assert drops
    assert {drop.reason for drop in drops} == {reason}
    assert all(drop.detail for drop in drops), "and says what about it"
