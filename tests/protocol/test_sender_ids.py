"""Sender-IDs (RFC 6407 section 3.5): who gets which, and that no SA sees one twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from ipaddress import ip_address, ip_network
from random import Random
from typing import Any

import pytest

from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.protocol.errors import PolicyError, ProtocolError
from gdoi_plugin.protocol.forest import LkhPolicy
from gdoi_plugin.protocol.group import Group, GroupConfig
from gdoi_plugin.protocol.key_server import KeyServer, SavedGroup
from gdoi_plugin.protocol.member import GroupMember
from gdoi_plugin.protocol.policy import TEK_SUITES, Flow, GroupPolicy, Tek, encode_kd, read_policy
from gdoi_plugin.protocol.pull import PullResponder
from gdoi_plugin.protocol.push import Content
from gdoi_plugin.protocol.sender_ids import (
    MAX_SIDS,
    SenderIds,
    SidCounter,
    encode_packet,
    encode_request,
    read_packet,
    read_request,
    sids_for,
)
from gdoi_plugin.protocol.tek_policy import TekConfig
from gdoi_plugin.wire.attributes import Attribute
from gdoi_plugin.wire.buffer import Buffer, DecodeError
from gdoi_plugin.wire.group_sa import GroupAssociatedPolicy, GroupSecurityAssociation
from gdoi_plugin.wire.key_download import KeyDownload, KeyPacket
from gdoi_plugin.wire.registry import ExchangeType, KeyPacketType, NotifyType, SaDirection
from tests.support.simnet import MemberHost, Network
from tests.support.worlds import (
    GROUP_ID,
    REKEY,
    World,
    build,
    group_config,
    member_peer,
    registered,
    server_phase1,
    signers,
    wired,
)
from tests.wire.octets import octets

GCM = TEK_SUITES["aes256gcm16"]


def flow_of(member: int) -> Flow:
    return Flow(ip_network(member_peer(member).host), ip_address(f"239.192.1.{member + 1}"))


def gcm_group(members: int, senders: int | None = None, **changes: Any) -> GroupConfig:
    """A TEK in counter mode for each of the first ``senders`` members."""
    number = members if senders is None else senders
    teks = tuple(TekConfig(flow_of(index), GCM) for index in range(number))
    return group_config(members, **({"teks": teks} | changes))


# -- octets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sids", "wire"),
    [
        (SenderIds(8, (42,)), "04 00 000e 00  8001 0008  0002 0001 2a"),
        (SenderIds(12, (0, 0xABC)), "04 00 0015 00  8001 000c  0002 0002 0000  0002 0002 0abc"),
        (SenderIds(16, (0x1234,)), "04 00 000f 00  8001 0010  0002 0002 1234"),
    ],
)
def test_the_key_packet_as_section_5_6_4_has_it(sids: SenderIds, wire: str) -> None:
    buf = Buffer()
    encode_packet(sids).push(buf)
    assert buf.data == octets(wire)
    packet = KeyPacket.pull(Buffer(octets(wire)))
    assert read_packet(KeyDownload((packet,)), pull=True) == sids


def test_a_kd_without_sids_has_none() -> None:
    assert read_packet(KeyDownload(()), pull=True) is None
    assert read_packet(KeyDownload(()), pull=False) is None


def test_the_request_is_a_gap_of_one_basic_attribute() -> None:
    buf = Buffer()
    encode_request(3).push(buf)
    assert buf.data == octets("8003 0003")
    assert read_request(encode_request(0xFFFF)) == 0xFFFF


@pytest.mark.parametrize("wire", ["", "8003 0000", "8001 000a", "8001 000a 8002 0014"])
def test_a_gap_that_asks_for_nothing(wire: str) -> None:
    assert read_request(GroupAssociatedPolicy.pull(Buffer(octets(wire)))) == 0


def test_an_unknown_attribute_of_the_request_is_refused() -> None:
    with pytest.raises(ProtocolError, match=r"GAP attribute 99 \(RFC 6407 section 5.4\)") as caught:
        read_request(GroupAssociatedPolicy.pull(Buffer(octets("8003 0002 8063 0001"))))
    assert caught.value.notify is NotifyType.ATTRIBUTES_NOT_SUPPORTED
    with pytest.raises(DecodeError, match="attribute 3 twice"):
        read_request(GroupAssociatedPolicy.pull(Buffer(octets("8003 0002 8003 0002"))))


def _packet(*attributes: tuple[int, int | bytes], spi: bytes = b"") -> KeyPacket:
    return KeyPacket(KeyPacketType.SID, spi, tuple(Attribute(*each) for each in attributes))


GOOD = _packet((1, 8), (2, b"\x07"))
NONSENSE = {
    "two packets": ((GOOD, GOOD), "2 SID key packets, must be one"),
    "an SPI": ((_packet((1, 8), (2, b"\7"), spi=bytes(4)),), "an SPI of 4 octets"),
    "no bits": ((_packet((2, b"\7")),), "lacks NUMBER_OF_SID_BITS"),
    "no value": ((_packet((1, 8)),), "without SID_VALUE"),
    "zero bits": ((_packet((1, 0), (2, b"\0")),), "NUMBER_OF_SID_BITS 0, must be 1 to 63"),
    "the whole IV": ((_packet((1, 64), (2, b"\0")),), "NUMBER_OF_SID_BITS 64, must be 1 to 63"),
    "too wide": ((_packet((1, 8), (2, b"\1\0")),), "SID_VALUE 256 has more than 8 bits"),
    "twice": ((_packet((1, 8), (2, b"\7"), (2, b"\0\7")),), "the same SID_VALUE twice"),
    "unknown": ((_packet((1, 8), (2, b"\7"), (129, 1)),), "SID attribute 129 is unknown"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_in_the_key_packet_is_refused(name: str) -> None:
    packets, why = NONSENSE[name]
    with pytest.raises(PolicyError, match=why):
        read_packet(KeyDownload(packets), pull=True)


def test_the_bits_twice_are_malformed() -> None:
    with pytest.raises(DecodeError, match="SID key packet: attribute 1 twice"):
        read_packet(KeyDownload((_packet((1, 8), (1, 8), (2, b"\7")),)), pull=True)


def test_no_sid_is_taken_from_a_push() -> None:
    sa = GroupSecurityAssociation(None, None, ())
    with pytest.raises(PolicyError, match="Sender-IDs in a GROUPKEY-PUSH"):
        read_policy(sa, KeyDownload((GOOD,)))
    assert read_policy(sa, KeyDownload((GOOD,)), pull=True).sids == SenderIds(8, (7,))


def test_as_many_as_the_limit_fit_one_packet() -> None:
    most = SenderIds(16, tuple(range(MAX_SIDS)))
    kd, buf = encode_kd(GroupPolicy(None, (), sids=most)), Buffer()
    kd.push(buf)
    assert read_packet(KeyDownload.pull(Buffer(buf.data)), pull=True) == most


# -- the counter ---------------------------------------------------------------------------------


def test_the_counter_begins_at_zero_and_ends_with_the_last_number_of_so_many_bits() -> None:
    counter = SidCounter(2)
    assert counter.take(1) == SenderIds(2, (0,))
    assert counter.take(3) == SenderIds(2, (1, 2, 3))
    assert counter.has(0)
    assert not counter.has(1)
    with pytest.raises(AssertionError):
        counter.take(1)
    counter.reset(8)
    assert counter.take(2) == SenderIds(8, (0, 1))


def _tek(flow: Flow, suite: str, direction: SaDirection = SaDirection.SYMMETRIC) -> Tek:
    return Tek(bytes(4), flow, TEK_SUITES[suite], Secret(b""), None, 3600, direction=direction)


def test_only_senders_in_counter_mode_get_any() -> None:
    here, there = member_peer(0).host, member_peer(1).host
    gcm, cbc = _tek(flow_of(0), "aes128gcm8"), _tek(flow_of(0), "aes128-sha256")
    gmac = _tek(replace(flow_of(0), source=None), "aes256gmac")
    assert sids_for([cbc, gcm], here, 0, 16) == 1
    assert sids_for([cbc, gcm], here, 1, 16) == 1
    assert sids_for([cbc, gcm], here, 3, 16) == 3
    assert sids_for([cbc, gcm], here, 0xFFFF, 16) == 16
    assert sids_for([cbc, gcm], there, 3, 16) == 0
    assert sids_for([gmac], there, 0, 16) == 1, "a TEK without source is everybody's"
    assert sids_for([cbc], here, 3, 16) == 0
    assert sids_for([cbc, gcm], None, 3, 16) == 3, "behind a NAT it says so itself"
    assert sids_for([cbc, gcm], None, 0, 16) == 0
    assert sids_for([cbc], None, 3, 16) == 0
    receiver = _tek(flow_of(0), "aes128gcm16", SaDirection.RECEIVER_ONLY)
    assert sids_for([receiver], here, 3, 16) == 0


# -- pairs of engines ----------------------------------------------------------------------------


class Given:
    """Every (TEK SPI, SID) in a message 4, by the message."""

    def __init__(self) -> None:
        self.by_reply: dict[bytes, list[tuple[bytes, int]]] = {}

    def note(self, reply: bytes, kd: KeyDownload) -> None:
        sids = read_packet(kd, pull=True)
        teks = [p.spi for p in kd.packets if p.kd_type == KeyPacketType.TEK]
        self.by_reply[reply] = [
            (spi, sid) for spi in teks for sid in (sids.values if sids is not None else ())
        ]

    def check(self, world: World) -> list[tuple[bytes, int]]:
        """No pair in two of the messages that have left."""
        left = {send.datagram for _, send in world.network.sent}
        pairs = [pair for reply, pairs in self.by_reply.items() if reply in left for pair in pairs]
        assert len(set(pairs)) == len(pairs), "a Sender-ID was given twice for one data SA"
        return pairs


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    """What every key server of the test gives."""
    given, answer = Given(), PullResponder.answer_3

    def noted(self: PullResponder, datagram: bytes, seq: int | None, kd: KeyDownload) -> bytes:
        reply = answer(self, datagram, seq, kd)
        given.note(reply, kd)
        return reply

    monkeypatch.setattr(PullResponder, "answer_3", noted)
    return given


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """RFC 6407 section 5.6.4: SIDs MUST NOT be in a GROUPKEY-PUSH."""
    payloads, seen = Content.payloads, list[Any]()

    def noted(self: Content) -> Any:
        found = payloads(self)
        seen.extend(found)
        return found

    monkeypatch.setattr(Content, "payloads", noted)
    yield
    downloads = [body for body in seen if isinstance(body, KeyDownload)]
    kinds = {packet.kd_type for kd in downloads for packet in kd.packets}
    assert kinds, "no PUSH with keys in this test"
    assert KeyPacketType.SID not in kinds


def values(member: MemberHost) -> tuple[int, ...] | None:
    return None if member.group.sids is None else member.group.sids.values


def more(member: MemberHost, done: int) -> bool:
    return member.group.counters.registrations > done


def register(world: World, members: Iterable[MemberHost] | None = None) -> None:
    """Again, and until everybody has the same keys."""
    for member in world.members if members is None else members:
        done = member.group.counters.registrations
        member.do(member.group.register(world.now))
        world.network.run_until(partial(more, member, done), 200)
    world.network.run_until(world.converged, 200)


def running(members: int, *, senders: int | None = None, **changes: Any) -> World:
    asked = changes.pop("sender_ids", 0)
    group = gcm_group(members, senders, **changes)
    world = build(Network(11), members, group=group, member_changes={"sender_ids": asked})
    for host in world.hosts:
        host.start()
        world.network.run(1)
    world.network.run(5)
    assert world.converged()
    return world


def test_a_sender_gets_one_and_who_listens_none() -> None:
    world = running(3, senders=2)
    assert [values(member) for member in world.members] == [(0,), (1,), None]
    assert world.group.sids == SidCounter(16, 2)
    registered = world.server.events("member-registered")
    assert [event.fields.get("sender-ids") for event in registered] == ["0", "1", None]


def test_no_sids_in_a_group_without_counter_mode() -> None:
    _, world = registered(1, member_changes={"sender_ids": 5})
    assert values(world.member) is None
    assert world.group.sids.next == 0


def test_as_many_as_asked_for_and_new_ones_for_every_registration(given: Given) -> None:
    world = running(2, senders=1, sender_ids=3)
    assert [values(member) for member in world.members] == [(0, 1, 2), None]
    register(world)
    assert [values(member) for member in world.members] == [(3, 4, 5), None]
    assert len(given.check(world)) == 2 * 3


def test_a_request_of_65535_gets_the_limit_and_is_told() -> None:
    world = running(1, sender_ids=0xFFFF, sender_ids_limit=4)
    assert values(world.member) == (0, 1, 2, 3)
    (told,) = world.server.events("sender-ids-limited")
    assert (told.level, told.fields["asked"], told.fields["given"]) == ("warning", 65535, 4)


def test_a_repeated_message_3_gets_the_same_answer_and_no_new_sid() -> None:
    wire, world = wired(1, group=gcm_group(1), member_changes={"sender_ids": 2})
    world.start()
    wire.settle()
    assert values(world.member) == (0, 1)
    to_server = [
        s for s in world.datagrams(ExchangeType.GROUPKEY_PULL) if s.source != s.destination
    ]
    third = [send for send in to_server if send.source == member_peer(0)][-1]
    before = world.datagrams(ExchangeType.GROUPKEY_PULL)[-1]
    wire.send(third)
    wire.settle()
    assert world.datagrams(ExchangeType.GROUPKEY_PULL)[-1].datagram == before.datagram
    assert world.group.sids.next == 2


@pytest.mark.usefixtures("pushed")
def test_a_rekey_leaves_members_their_sids(given: Given) -> None:
    world = running(2, sender_ids=2)
    spis = {tek.tek.spi for tek in world.group.teks}
    for options in ({}, {"kek": True}, {"kek": True, "replace_old": True}):
        world.rekey(**options)
        world.network.run(40)
        assert world.converged()
    assert not spis & {tek.tek.spi for tek in world.group.teks}
    assert [values(member) for member in world.members] == [(0, 1), (2, 3)]
    register(world)
    assert [values(member) for member in world.members] == [(4, 5), (6, 7)]
    given.check(world)


@pytest.mark.usefixtures("pushed")
def test_a_newcomer_of_a_tree_that_is_told_no_teks_yet_gets_its_sids(given: Given) -> None:
    """With rekey_on_join the keys follow in a rekey, which must not have them."""
    lkh = LkhPolicy(4, 16, rekey_on_join=True)
    world = running(2, sender_ids=2, lkh=lkh)
    world.network.run(40)
    assert [values(member) for member in world.members] == [(0, 1), (2, 3)]
    given.check(world)


def test_a_deleted_group_begins_anew_at_zero(given: Given) -> None:
    """The TEKs that a rekey left on their way out go with the rest."""
    world = running(2, sender_ids=2)
    world.rekey()
    world.network.run(1)
    old = {tek.tek.spi for tek in world.group.teks}
    assert len(old) == 4
    world.server.do(world.server.engine.delete_group(GROUP_ID, world.now))
    assert not old & {tek.tek.spi for tek in world.group.teks}
    world.network.run(1)
    world.network.run_until(world.converged, 100)
    assert {values(member) for member in world.members} == {(0, 1), (2, 3)}
    given.check(world)


def test_a_deleted_group_takes_the_sids_of_who_does_not_come_back() -> None:
    world = running(1)
    world.server.do(world.server.engine.delete_group(GROUP_ID, world.now))
    world.network.run_until(lambda: world.member.group.kek is None, 5)
    assert world.member.group.sids is None


@pytest.mark.parametrize("rekey_address", [None, REKEY.host], ids=["unicast", "multicast"])
def test_when_the_sids_run_out_all_keys_are_made_anew(given: Given, rekey_address: Any) -> None:
    """Two bits, three senders: the fifth registration is told to come again, and all others."""
    world = running(3, sid_bits=2, rekey_address=rekey_address)
    assert [values(member) for member in world.members] == [(0,), (1,), (2,)]
    old = {tek.tek.spi: tek.tek.encryption_key for tek in world.group.teks}
    register(world, world.members[:1])
    assert values(world.member) == (3,)
    register(world, world.members[:1])
    (told,) = world.server.events("sender-ids-exhausted")
    assert (told.level, told.fields["bits"], told.fields["given"]) == ("warning", 2, 4)
    new = {tek.tek.spi: tek.tek.encryption_key for tek in world.group.teks}
    assert not old.keys() & new.keys()
    assert not any(key in old.values() for key in new.values())
    assert world.converged()
    assert {values(member) for member in world.members} == {(0,), (1,), (2,)}
    assert all(not old.keys() & member.kernel.sas.keys() for member in world.members)
    given.check(world)


def test_a_request_for_more_than_are_left_starts_anew_too(given: Given) -> None:
    world = running(1, sid_bits=2, sender_ids=3)
    register(world)
    assert world.server.events("sender-ids-exhausted")
    assert values(world.member) == (0, 1, 2)
    given.check(world)


@pytest.mark.usefixtures("pushed")
def test_through_many_registrations_no_sa_sees_a_sid_twice(given: Given) -> None:
    world = running(3, sid_bits=3, sender_ids=2)
    for turn in range(12):
        register(world, [world.members[turn % 3]])
        if turn % 4 == 1:
            world.rekey(kek=bool(turn % 8 == 1))
            world.network.run(20)
        if turn % 5 == 2:
            world.server.crash()
            world.server.restart()
    assert len(world.server.events("sender-ids-exhausted")) >= 2
    assert len(given.check(world)) > 12


# -- restarts and crashes ------------------------------------------------------------------------


def test_a_restart_goes_on_where_it_was(given: Given) -> None:
    world = running(2, sender_ids=2)
    assert world.server.store.rows("group", GROUP_ID)[0]["sids"] == {"bits": 16, "next": 4}
    world.server.crash()
    world.server.restart()
    assert world.group.sids == SidCounter(16, 4)
    register(world)
    assert [values(member) for member in world.members] == [(4, 5), (6, 7)]
    given.check(world)


def test_killed_at_every_point_of_a_registration_no_sid_is_given_twice(given: Given) -> None:
    trial = running(2, sender_ids=2)
    before = trial.server.effects
    register(trial)
    count = trial.server.effects - before
    assert count >= 2 * 3, "message 2, a transaction, message 4"
    for fuse in range(count + 1):
        world = running(2, sender_ids=2)
        world.server.fuse = fuse
        for member in world.members:
            member.do(member.group.register(world.now))
            world.network.run(2)
        world.server.restart()
        world.network.run_until(world.converged, 200)
        register(world)
        given.check(world)
        next_saved = world.server.store.rows("group", GROUP_ID)[0]["sids"]["next"]
        assert all(sid < next_saved for member in world.members for sid in values(member) or ())


def test_killed_at_every_point_of_the_exhaustion_no_sid_is_given_twice(given: Given) -> None:
    trial = running(2, sid_bits=1)
    before = trial.server.effects
    register(trial, trial.members[:1])
    count = trial.server.effects - before
    assert count >= 2 * 4, "and a transaction, the Delete and a refusal before"
    for fuse in range(count + 1):
        world = running(2, sid_bits=1)
        world.server.fuse = fuse
        world.member.do(world.member.group.register(world.now))
        world.network.run(3)
        world.server.restart()
        # Whom the Delete has not reached before the crash: a Delete is not said twice.
        register(world)
        assert world.server.events("sender-ids-exhausted")
        given.check(world)


def started_again(world: World, saved: SavedGroup, **changes: Any) -> Group:
    """A new engine from what an old one saved."""
    config = replace(world.group.config, **changes)
    engine = KeyServer([config], server_phase1, Random(1).randbytes, signers())
    engine.start(world.now, {GROUP_ID: saved})
    return engine.groups[GROUP_ID]


def test_a_record_from_before_there_were_sids_begins_at_zero() -> None:
    world = running(1)
    saved = world.server.store.load()[GROUP_ID]
    record = {key: value for key, value in saved.group.items() if key != "sids"}
    assert started_again(world, replace(saved, group=record)).sids == SidCounter(16, 0)


def test_another_length_of_sids_takes_new_sas() -> None:
    """RFC 6054 section 3: one length for each SA."""
    world = running(1)
    old = world.group.teks[0].tek.spi
    group = started_again(world, world.server.store.load()[GROUP_ID], sid_bits=8)
    assert group.sids == SidCounter(8, 0)
    assert old not in {tek.tek.spi for tek in group.teks}
    assert group.ledger[group.epoch].deletes_all


def test_a_member_remembers_its_sids() -> None:
    world = running(1, sender_ids=2)
    assert world.member.record["sids"] == {"bits": 16, "values": [0, 1]}
    world.server.crash()
    world.member.crash()
    world.member.restart()
    assert world.member.group.sids == SenderIds(16, (0, 1))


def test_a_members_record_from_before_there_were_sids_is_read() -> None:
    world = running(1)
    record = dict(world.member.record)
    del record["sids"]
    engine = GroupMember(world.member.group.config, world.member.group.random)
    engine.start(world.now, record)
    assert engine.sids is None
    assert engine.kek is not None
