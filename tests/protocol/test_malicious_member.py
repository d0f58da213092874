"""A member with good keys that wants too much: what it can make a key server hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gdoi_plugin.crypto.certificate import BadCertificate, read_leaf
from gdoi_plugin.protocol import ack_page
from gdoi_plugin.protocol.actions import Drop, Send
from gdoi_plugin.protocol.isakmp import status_notification
from gdoi_plugin.protocol.sessions import MAX_ESTABLISHED_PER_IDENTITY, MAX_PULLS_PER_SA
from gdoi_plugin.wire.attributes import Attribute
from gdoi_plugin.wire.delete import Delete
from gdoi_plugin.wire.group_sa import GroupAssociatedPolicy
from gdoi_plugin.wire.identification import Identification
from gdoi_plugin.wire.opaque import Nonce
from gdoi_plugin.wire.payload import Body
from gdoi_plugin.wire.registry import (
    AckType,
    Doi,
    ExchangeType,
    IdType,
    NotifyType,
    Protocol,
    TekProtocol,
)
from tests.support.forge import make_ack, only_drop
from tests.support.insider import Raw, as_either, as_member_3, server_sa
from tests.support.pki import MOMENT, ROOT, issue, trust
from tests.support.worlds import group_config, member_peer, registered, wired

GM = member_peer(0)
PULL = ExchangeType.GROUPKEY_PULL


def test_pulls_by_the_hundred_that_are_never_finished_fill_no_more_than_their_table() -> None:
    _, world = registered()
    engine = world.server.engine
    payloads: list[Raw | Body] = [Nonce(bytes(range(16))), world.group.config.group_id.payload()]
    for message_id in range(1000, 1300):
        world.server.hear(as_either(server_sa(engine), PULL, message_id, payloads), GM)
    (session,) = engine.isakmp.sessions.values()
    # Room is made before the next one is begun.
    assert len(session.pulls) <= MAX_PULLS_PER_SA + 1
    assert len(world.group.members) == 1


@pytest.mark.parametrize("octets", [7, 129, 2000])
def test_a_nonce_of_a_length_that_none_has_is_refused(octets: int) -> None:
    _, world = registered()
    payloads: list[Raw | Body] = [Nonce(bytes(octets)), world.group.config.group_id.payload()]
    datagram = as_either(server_sa(world.server.engine), PULL, 1000, payloads)
    (session,) = world.server.engine.isakmp.sessions.values()
    before = dict(session.pulls)
    world.server.hear(datagram, GM)
    # It is authentic, so a notify tells the member; no exchange is begun.
    assert world.server.dropped()[-1] is Drop.UNEXPECTED
    assert session.pulls == before


def test_another_group_is_refused_and_nothing_is_begun() -> None:
    _, world = registered()
    engine = world.server.engine
    payloads: list[Raw | Body] = [Nonce(bytes(16)), Identification(IdType.ID_KEY_ID, bytes(4))]
    before = dict(next(iter(engine.isakmp.sessions.values())).pulls)
    world.server.hear(as_either(server_sa(engine), PULL, 1000, payloads), GM)
    assert world.server.dropped()[-1] is Drop.UNKNOWN_GROUP
    assert next(iter(engine.isakmp.sessions.values())).pulls == before


# -- phase 1 -------------------------------------------------------------------------------------


def test_phase_1_sas_by_the_hundred_of_one_identity_push_out_the_oldest() -> None:
    _, world = registered()
    sessions = world.server.engine.isakmp.sessions
    (session,) = sessions.values()
    for number in range(300):
        sa = replace(session.sa, cky_i=number.to_bytes(8, "big"))
        sessions.add(sa, session.responder, world.now)
    assert len(sessions) == len(sessions.of(session.sa.remote_identity))
    assert len(sessions) == MAX_ESTABLISHED_PER_IDENTITY
    assert {s.sa.cky_i[-2:] for s in sessions.values()} == {
        number.to_bytes(2, "big") for number in range(300 - MAX_ESTABLISHED_PER_IDENTITY, 300)
    }
    assert len(world.group.members) == 1


# -- GROUPKEY-PULL -------------------------------------------------------------------------------


def test_message_3_twice_registers_once() -> None:
    wire, world = wired()
    world.start()
    wire.pass_on(8)
    engine = world.server.engine
    first = as_member_3(engine, [])
    other = as_member_3(engine, [GroupAssociatedPolicy((Attribute(3, 1),))])
    world.server.hear(first, GM)
    assert len(world.group.members) == 1
    world.server.hear(first, GM)
    assert world.server.dropped()[-1] is Drop.DUPLICATE
    world.server.hear(other, GM)
    assert world.server.dropped()[-1] is Drop.UNEXPECTED
    assert len(world.server.events("member-registered")) == 1


# -- acknowledgements ----------------------------------------------------------------------------


@pytest.mark.parametrize("ack", [AckType.REKEY_ACK_KEK_SHA256, AckType.REKEY_ACK_KEK_SHA512])
def test_an_ack_in_anothers_name_does_not_count(ack: AckType) -> None:
    """Types 1 and 2 have one key for all: the source address is what tells members apart."""
    wire, world = registered(2, group=group_config(2, ack=ack))
    world.rekey()
    wire.waiting.clear()
    under = world.group.current_kek()
    forged = make_ack(under.kek, under.seq, member_peer(1).host, ack)
    assert only_drop(world.server.hear(forged, GM)) is Drop.ACK_WRONG_SOURCE
    assert world.group.ledger[world.group.epoch].acknowledged == {}
    world.server.hear(forged, member_peer(1))
    assert len(world.group.ledger[world.group.epoch].acknowledged) == 1


def test_a_storm_of_wrong_acks_is_remembered_so_far_and_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ack_page, "REMEMBERED_BAD_ACKS", 16)
    wire, world = registered()
    world.rekey()
    wire.waiting.clear()
    under = world.group.current_kek()
    good = make_ack(under.kek, under.seq, GM.host)
    for number in range(100):
        bad = good[:32] + number.to_bytes(32, "big") + good[64:]
        assert only_drop(world.server.hear(bad, GM)) is Drop.ACK_BAD_HASH
        assert only_drop(world.server.hear(bad, GM)) is Drop.ACK_DUPLICATE
    assert len(world.server.engine.ledger.gate.bad_acks) <= 16
    world.server.hear(good, GM)
    assert len(world.group.ledger[world.group.epoch].acknowledged) == 1
    for _ in range(100):
        assert only_drop(world.server.hear(good, GM)) is Drop.ACK_DUPLICATE


# -- Informational -------------------------------------------------------------------------------


def test_floods_of_notifies_leave_nothing_behind() -> None:
    _, world = registered()
    engine = world.server.engine
    sa = server_sa(engine)
    kinds = (NotifyType.NO_PROPOSAL_CHOSEN, NotifyType.CONNECTED, NotifyType.R_U_THERE_ACK)
    before = len(engine.isakmp.sessions), len(world.group.members), world.group.epoch
    for number in range(300):
        notify = status_notification(sa.cookies, kinds[number % 3], bytes(4))
        told = as_either(sa, ExchangeType.INFORMATIONAL, 5000 + number, [notify])
        actions = world.server.hear(told, GM)
        assert len(actions) == 1
        assert not any(isinstance(action, Send) for action in actions)
    assert (len(engine.isakmp.sessions), len(world.group.members), world.group.epoch) == before


def test_a_flood_of_dpd_is_answered_one_for_one_and_never_backwards() -> None:
    _, world = registered()
    sa = server_sa(world.server.engine)
    for number in (*range(100, 200), *range(100, 199)):
        notify = status_notification(sa.cookies, NotifyType.R_U_THERE, number.to_bytes(4, "big"))
        asked = as_either(sa, ExchangeType.INFORMATIONAL, 5000 + number, [notify])
        world.server.hear(asked, GM)
    assert world.server.dropped().count(Drop.REPLAY) == 99
    assert len(world.server.engine.isakmp.sessions) == 1


def test_a_delete_of_somebody_elses_sa_deletes_nothing() -> None:
    _, world = registered(2)
    engine = world.server.engine
    mine, other = engine.isakmp.sessions.values()
    delete = Delete(Doi.GDOI, Protocol.PROTO_ISAKMP, (other.sa.cookies, bytes(16)))
    teks = Delete(Doi.GDOI, TekProtocol.GDOI_PROTO_IPSEC_ESP, (bytes(4),))
    keks = Delete(Doi.GDOI, TekProtocol.KEK, (world.group.current_kek().kek.spi,))
    for number, what in enumerate((delete, teks, keks), 5000):
        told = as_either(mine.sa, ExchangeType.INFORMATIONAL, number, [what])
        world.server.hear(told, mine.sa.remote)
    assert list(engine.isakmp.sessions.values()) == [mine, other]
    assert len(world.group.members) == 2
    assert world.converged()


# -- certificates --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_a_certificate_with_any_octet_changed_is_refused_in_words() -> None:
    """The library reads parts of it late, and has several kinds of exceptions for them."""
    entity = issue("gm1", ROOT, names=("gm1.example.org", "10.0.0.2"))
    good, signed = entity.der, entity.certificate.tbs_certificate_bytes
    refused = 0
    for at in range(len(good)):
        for octet in (0, 3, 15, 0x30, 0xFF):
            der = good[:at] + bytes((octet,)) + good[at + 1 :]
            try:
                trust().check(read_leaf(der), (der,), MOMENT.timestamp())
            except BadCertificate:
                refused += 1
            else:
                assert signed in der, "nobody signed this"
    assert refused > 4 * len(good)
