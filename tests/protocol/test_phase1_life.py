"""The life of a phase-1 SA after main mode: used again, asked after, shortened, ended.

::

    GM                                   GCKS
     main mode (6), PULL (4)
     PULL (4) under the same SA, again and again
     R-U-THERE             <-->          R-U-THERE-ACK
     Delete                <-->          Delete
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest

from gdoi_plugin.protocol.actions import Action, ApplyKernel, Drop, Dropped, Event, Send
from gdoi_plugin.protocol.agent import Agent
from gdoi_plugin.protocol.dpd import DpdConfig
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.isakmp import IsakmpSa, open_informational, seal_delete, seal_notify
from gdoi_plugin.protocol.key_server import KeyServer
from gdoi_plugin.protocol.lifetime import lifetime_data
from gdoi_plugin.protocol.member import GroupMember, MemberState
from gdoi_plugin.protocol.phase1_proposal import offer
from gdoi_plugin.protocol.registration import KeyServerEntry
from gdoi_plugin.wire.delete import Delete
from gdoi_plugin.wire.header import pull_header
from gdoi_plugin.wire.notification import Notification
from gdoi_plugin.wire.opaque import Nonce
from gdoi_plugin.wire.payload import Body
from gdoi_plugin.wire.registry import Doi, ExchangeType, NotifyType, PayloadType, Protocol
from tests.support.forge import flip, only_drop, resend, seal_phase2
from tests.support.simnet import Host, Network
from tests.support.worlds import (
    SERVER,
    STRANGER,
    World,
    build,
    group_config,
    member_config,
    member_peer,
    member_phase1,
    registered,
    server_phase1,
    signers,
    wired,
)

GM = member_peer(0)
MAIN, PULL = ExchangeType.MAIN_MODE, ExchangeType.GROUPKEY_PULL
INFORMATIONAL = ExchangeType.INFORMATIONAL
DPD = DpdConfig(delay=60.0, timeout=30.0)


def server_sa(world: World, number: int = 0) -> IsakmpSa:
    return list(world.server.engine.isakmp.sessions.values())[number].sa


def member_sa(world: World) -> IsakmpSa | None:
    association = world.member.group.registrar.association
    return None if association is None else association.sa


def register(world: World) -> None:
    world.member.do(world.member.group.register(world.now))


def said(world: World, since: int = 0) -> list[int]:
    """The exchanges of what has been sent."""
    return [pull_header(send.datagram).exchange_type for _, send in world.network.sent[since:]]


def told(world: World, send: Send, sa: IsakmpSa | None = None) -> list[int]:
    """The notifies in a protected Informational message."""
    header = pull_header(send.datagram)
    opened = open_informational(sa or server_sa(world), header, send.datagram)
    return [n.notify_type for n in opened.notifications]


def last(world: World) -> Send:
    return world.network.sent[-1][1]


def notify(
    sa: IsakmpSa, kind: int, data: bytes = b"", doi: int = Doi.IPSEC, spi: bytes | None = None
) -> bytes:
    payload = Notification(
        doi, Protocol.PROTO_ISAKMP, sa.cookies if spi is None else spi, kind, data
    )
    return seal_phase2(sa, INFORMATIONAL, 77, b"", [payload])


def deleted(host: Host) -> list[str]:
    return [str(event.fields["reason"]) for event in host.events("phase1-deleted")]


# -- several PULLs under one SA ------------------------------------------------------------------


def test_the_next_registration_needs_no_main_mode() -> None:
    wire, world = registered()
    sa = server_sa(world)
    for _ in range(3):
        before = len(wire.sent)
        register(world)
        wire.settle()
        assert said(world, before) == [PULL] * 4
    assert server_sa(world) == sa == server_sa(world, -1)
    assert world.member.group.counters.registrations == 4
    assert len(world.member.events("phase1-established")) == 1


def test_an_sa_that_is_about_to_end_is_replaced() -> None:
    wire, world = registered(phase1_for=lambda p: server_phase1(p, lifetime=300))
    old = server_sa(world)
    wire.run(239)
    register(world)
    wire.settle()
    assert len(world.server.events("phase1-established")) == 1, "there was a minute left"
    wire.run(2)
    register(world)
    wire.settle()
    assert len(world.server.events("phase1-established")) == 2
    assert member_sa(world) != old
    assert list(world.server.engine.isakmp.sessions) == [server_sa(world).cookies], (
        "old one deleted"
    )
    assert deleted(world.server) == ["peer"]


def test_a_key_server_that_has_lost_the_sa_gets_a_new_main_mode() -> None:
    """It has started anew: after 7 s of silence the member begins again, in the same attempt."""
    network = Network()
    world = build(network)
    world.start()
    network.run(1)
    world.server.restart()
    register(world)
    network.run(6.5)
    assert len(world.datagrams(MAIN)) == 6
    network.run(1)
    assert len(world.datagrams(MAIN)) == 12
    assert world.converged()
    assert world.member.events("registration-failed") == []
    assert world.member.group.counters.registrations == 2
    assert Drop.CLEAR_NOTIFY in world.member.dropped(), "INVALID-COOKIE is not believed"


def test_a_refusal_under_an_old_sa_leads_to_a_new_main_mode() -> None:
    wire, world = registered()
    register(world)
    wire.take()
    world.member.hear(seal_notify(server_sa(world), 9, NotifyType.INVALID_SPI), SERVER)
    wire.settle()
    assert len(world.member.events("phase1-established")) == 2
    assert world.member.group.counters.registrations == 2
    assert world.member.events("registration-failed") == []


def test_a_delete_during_a_pull_under_an_old_sa() -> None:
    wire, world = registered()
    register(world)
    wire.take()
    world.member.hear(seal_delete(server_sa(world), 9), SERVER)
    wire.settle()
    assert len(world.member.events("phase1-established")) == 2
    assert world.member.group.counters.registrations == 2


# -- lifetimes -----------------------------------------------------------------------------------


def test_responder_lifetime_tells_of_a_shorter_life_and_is_honoured() -> None:
    """RFC 2407 section 4.6.3.1: the transform goes back as it came, message 6 says the rest."""
    _, world = registered(phase1_for=lambda p: server_phase1(p, lifetime=3600))
    association = world.member.group.registrar.association
    assert association is not None
    assert association.sa.expires - association.sa.established == 86400
    assert association.expires - association.sa.established == 3600
    (session,) = world.server.engine.isakmp.sessions.values()
    assert session.association.expires - session.sa.established == 3600


def test_no_responder_lifetime_where_ours_is_longer() -> None:
    own = member_phase1(GM, lifetime=600)
    wire, world = wired(phase1=own)
    world.start()
    wire.pass_on(5)
    assert len(wire.take().datagram) == 28 + 48, "IDir and HASH_R, nothing else"
    wire.settle()
    assert server_sa(world).expires - server_sa(world).established == 600


@pytest.mark.parametrize("seconds", [60, 10**6])
def test_responder_lifetime_in_an_informational(seconds: int) -> None:
    _, world = registered()
    association = world.member.group.registrar.association
    assert association is not None
    before = association.expires
    datagram = notify(server_sa(world), NotifyType.RESPONDER_LIFETIME, lifetime_data(seconds))
    assert world.member.hear(datagram, SERVER) == []
    assert association.expires == min(before, association.sa.established + seconds)


def test_only_the_responder_has_a_responder_lifetime() -> None:
    _, world = registered()
    (session,) = world.server.engine.isakmp.sessions.values()
    before = session.association.expires
    datagram = notify(session.sa, NotifyType.RESPONDER_LIFETIME, lifetime_data(60))
    world.server.hear(datagram, GM)
    assert session.association.expires == before


def test_an_expired_sa_is_forgotten_by_both() -> None:
    wire, world = registered(phase1_for=lambda p: server_phase1(p, lifetime=60))
    wire.run(61)
    assert member_sa(world) is None
    assert len(world.server.engine.isakmp.sessions) == 0
    assert world.member.group.kek is not None, "the group's keys have lives of their own"


# -- INITIAL-CONTACT -----------------------------------------------------------------------------


def test_a_member_that_starts_again_ends_its_old_sas() -> None:
    """RFC 2407 section 4.6.3.3, in message 5; under the IPsec DOI's number in a GDOI SA."""
    wire, world = registered()
    wire.run(1)
    world.member.crash()
    world.member.start()
    wire.settle()
    assert deleted(world.server) == ["initial-contact"]
    assert list(world.server.engine.isakmp.sessions) == [server_sa(world).cookies]
    sa = member_sa(world)
    assert sa is not None
    assert sa.cookies == server_sa(world).cookies


def test_it_is_said_once() -> None:
    wire, world = registered(phase1_for=lambda p: server_phase1(p, lifetime=60))
    lengths = [len(world.datagrams(MAIN)[4].datagram)]
    wire.run(61)
    register(world)
    wire.settle()
    lengths.append(len(world.datagrams(MAIN)[10].datagram))
    assert lengths == [28 + 80, 28 + 48]


def test_it_can_be_left_out() -> None:
    entry = KeyServerEntry(SERVER, member_phase1(GM), initial_contact=False)
    _, world = registered(member_changes={"key_servers": (entry,)})
    assert len(world.datagrams(MAIN)[4].datagram) == 28 + 48


@pytest.mark.parametrize("doi", [Doi.ISAKMP, Doi.IPSEC, Doi.GDOI])
def test_it_is_heard_in_an_informational_too(doi: Doi) -> None:
    """It ends what its sender had before: neither another's SA nor what began after its own."""
    wire, world = registered(2)
    for _ in range(2):
        wire.run(1)
        world.member.group.registrar.association = None
        register(world)
        wire.settle()
    mine = [s.sa for s in world.server.engine.isakmp.sessions.values() if s.sa.remote == GM]
    assert len(mine) == 3
    world.server.hear(notify(mine[1], NotifyType.INITIAL_CONTACT, doi=doi), GM)
    assert deleted(world.server) == ["initial-contact"]
    left = world.server.engine.isakmp.sessions
    assert mine[0].cookies not in left
    assert mine[1].cookies in left
    assert mine[2].cookies in left
    assert len(left) == 3


def test_it_must_be_about_its_own_sa() -> None:
    _, world = registered()
    datagram = notify(server_sa(world), NotifyType.INITIAL_CONTACT, spi=bytes(16))
    assert only_drop(world.server.hear(datagram, GM)) is Drop.UNEXPECTED


# -- deletes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["key server", "member"])
def test_a_delete_of_phase_1_does_not_end_the_rekeys(by: str) -> None:
    wire, world = registered()
    datagram = seal_delete(server_sa(world), 9)
    if by == "key server":
        world.member.hear(datagram, SERVER)
        assert deleted(world.member) == ["peer"]
        assert member_sa(world) is None
    else:
        world.server.hear(datagram, GM)
        assert deleted(world.server) == ["peer"]
        assert len(world.server.engine.isakmp.sessions) == 0
    world.rekey(kek=True)
    wire.settle()
    wire.run(5)
    wire.settle()
    assert world.converged()
    (rekey,) = world.group.ledger.values()
    assert len(rekey.acknowledged) == 1


def test_a_key_server_that_stops_ends_phase_1() -> None:
    wire, world = registered(2)
    world.server.do(world.server.engine.stop())
    wire.settle()
    assert [deleted(member) for member in world.members] == [["peer"], ["peer"]]
    assert all(member.group.kek is not None for member in world.members)


def test_too_many_sas_of_one_identity_the_oldest_is_deleted() -> None:
    wire, world = registered()
    first = server_sa(world)
    for _ in range(8):
        world.member.group.registrar.association = None
        register(world)
        wire.settle()
    assert deleted(world.server) == ["too-many"]
    assert first.cookies not in world.server.engine.isakmp.sessions


# -- notifies ------------------------------------------------------------------------------------


def test_quick_mode_is_refused_and_leaves_the_sa_alone() -> None:
    """Under IPsec's DOI exchange 32 is Quick Mode, which has an SA where Ni must be."""
    dois = (Doi.IPSEC,)
    own = member_phase1(GM, dois=dois)
    wire, world = registered(phase1=own, phase1_for=lambda p: server_phase1(p, dois=dois))
    sa = server_sa(world)
    payloads: list[Body] = [offer(own), Nonce(bytes(32))]
    heard = world.server.hear(seal_phase2(sa, PULL, 5, b"", payloads), GM)
    assert [type(action) for action in heard] == [Dropped, Send]
    assert told(world, last(world)) == [NotifyType.NO_PROPOSAL_CHOSEN]
    wire.waiting.clear()
    register(world)
    wire.settle()
    assert world.member.group.counters.registrations == 2


def test_an_authentic_message_that_is_malformed_is_told_so() -> None:
    _, world = registered()
    stray: list[Body] = [Delete(Doi.GDOI, Protocol.PROTO_ISAKMP, (bytes(16),))]
    heard = world.server.hear(seal_phase2(server_sa(world), PULL, 5, b"", stray), GM)
    assert [type(action) for action in heard] == [Dropped, Send]
    assert told(world, last(world)) == [NotifyType.PAYLOAD_MALFORMED]


def test_an_error_notify_after_the_registration_changes_nothing() -> None:
    _, world = registered()
    sa = member_sa(world)
    datagram = seal_notify(server_sa(world), 9, NotifyType.INVALID_SPI)
    assert world.member.hear(datagram, SERVER) == []
    assert member_sa(world) == sa


def clear(kind: ExchangeType, length: int = 200, cookies: bytes = b"\5" * 16) -> bytes:
    head = cookies + bytes((8, 0x10, kind, 1)) + b"\0\0\0\7" + length.to_bytes(4, "big")
    return head + bytes(length - len(head))


def answered(actions: Sequence[Action]) -> list[int]:
    """The notify types of answers in clear."""
    return [
        int.from_bytes(action.datagram[38:40], "big")
        for action in actions
        if isinstance(action, Send)
    ]


@pytest.mark.parametrize(
    ("kind", "notify_type"),
    [
        (ExchangeType.AGGRESSIVE, NotifyType.UNSUPPORTED_EXCHANGE_TYPE),
        (PULL, NotifyType.INVALID_COOKIE),
        (INFORMATIONAL, NotifyType.INVALID_COOKIE),
    ],
)
def test_notifies_in_clear(kind: ExchangeType, notify_type: NotifyType) -> None:
    """To whom phase 1 is allowed, no more octets than came, and not often."""
    _, world = registered()
    assert answered(world.server.hear(clear(kind), GM)) == [notify_type]
    assert answered(world.server.hear(clear(kind), STRANGER)) == []
    assert answered(world.server.hear(clear(kind, 48), GM)) == [], "it would be amplified"
    many = [answered(world.server.hear(clear(kind), GM)) for _ in range(1000)]
    assert sum(map(len, many)) < 30


def test_what_is_said_about_message_3_and_5() -> None:
    """Their senders are at their addresses: message 2's cookie says so."""
    wire, world = wired()
    world.start()
    wire.pass_on(2)
    three = bytearray(wire.take().datagram)
    three[32:96] = bytes(64)  # the public value
    assert answered(world.server.hear(bytes(three), GM)) == [NotifyType.INVALID_KEY_INFORMATION]
    three[16] = PayloadType.NONCE  # two of them, and no KE
    assert answered(world.server.hear(bytes(three), GM)) == [NotifyType.PAYLOAD_MALFORMED]

    wire, world = wired()
    world.start()
    wire.pass_on(4)
    five = wire.take().datagram
    assert answered(world.server.hear(flip(five, 28, 0), GM)) == [NotifyType.PAYLOAD_MALFORMED]
    heard = world.server.hear(flip(five, 28 + 12 + 4, 0), GM)
    assert answered(heard) == [NotifyType.INVALID_HASH_INFORMATION]
    assert len(world.server.engine.isakmp.sessions) == 0
    world.server.hear(five, GM)
    assert len(world.server.engine.isakmp.sessions) == 1, "and the right one is still welcome"


def test_a_notify_in_clear_is_not_answered_with_one() -> None:
    _, world = registered()
    question = bytearray(clear(INFORMATIONAL))
    question[19] = 0
    assert answered(world.server.hear(bytes(question), GM)) == []


def test_no_datagram_ends_an_established_sa_unless_it_is_authentic() -> None:
    _, world = registered()
    sa = server_sa(world)
    sealed = seal_delete(sa, 9)
    for kind in range(256):
        octets = bytearray(sealed)
        octets[18] = kind
        octets[19] = 0
        world.server.hear(bytes(octets), GM)
        world.member.hear(bytes(octets), SERVER)
    assert member_sa(world) is not None
    assert sa.cookies in world.server.engine.isakmp.sessions


def test_deletes_come_from_the_host_of_the_sa() -> None:
    _, world = registered()
    datagram = seal_delete(server_sa(world), 9)
    assert only_drop(world.server.hear(datagram, STRANGER)) is Drop.UNKNOWN_PEER
    assert only_drop(world.member.hear(datagram, STRANGER)) is Drop.UNKNOWN_PEER


def test_a_late_answer_of_a_registration_that_is_over() -> None:
    wire, world = registered()
    last_answer = world.datagrams(PULL)[-1]
    assert only_drop(resend(world.member, last_answer)) is Drop.DUPLICATE
    assert wire.waiting == []


def test_events_name_both_ends() -> None:
    _, world = registered(group=group_config())
    (event,) = world.member.events("phase1-established")
    assert isinstance(event, Event)
    assert event.fields["identity"] == str(SERVER.host)
    assert event.fields["doi"] == "gdoi"
    (event,) = world.server.events("phase1-established")
    assert event.fields["identity"] == str(GM.host)


# -- two groups of one agent ---------------------------------------------------------------------


def talk(server: KeyServer, agent: Agent, said: Sequence[Action], now: float) -> list[Send]:
    """Passes on what both say, and the kernel's yes, until there is silence: what was said."""
    everything: list[Send] = []
    pending = list(said)
    while pending:
        action = pending.pop(0)
        if isinstance(action, ApplyKernel):
            group = next(g for g in agent.groups.values() if action.transaction in g._pending)
            pending += group.kernel_done(action.transaction, now)
        elif isinstance(action, Send):
            everything.append(action)
            if action.destination == SERVER:
                pending += server.receive(action.datagram, action.source, SERVER, now)
            else:
                pending += agent.receive(action.datagram, SERVER, GM, now)[1]
    return everything


def test_one_groups_initial_contact_does_not_end_anothers_sa() -> None:
    """Both begin at once, with one identity; the agent says once that it has started."""
    _, world = wired()
    world.server.start()
    config = world.group.config
    other = replace(config, name="h", group_id=GroupId.of_number(7))
    server = KeyServer([config, other], lambda p: server_phase1(p), Random(1).randbytes, signers())
    server.start(world.now, {})
    groups = {
        "g": GroupMember(member_config(), Random(2).randbytes),
        "h": GroupMember(member_config(name="h", group_id=other.group_id), Random(3).randbytes),
    }
    agent = Agent(groups)
    first = [action for group in groups.values() for action in group.start(world.now)]
    said = talk(server, agent, first, world.now)
    proofs = [send.datagram for send in said if send.datagram[18:20] == bytes((MAIN, 1))]
    assert sorted(len(datagram) for datagram in proofs) == [76, 76, 76, 108]
    assert [group.state for group in groups.values()] == [MemberState.REGISTERED] * 2
    assert len(server.isakmp.sessions) == 2
    again = [action for group in groups.values() for action in group.register(world.now)]
    said = talk(server, agent, again, world.now)
    assert {pull_header(send.datagram).exchange_type for send in said} == {PULL}
    assert len(said) == 8
