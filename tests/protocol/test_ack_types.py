"""Types of acknowledgements, other readings of L, ID_OID, and members that are asked for none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gdoi_plugin.crypto.ack_key import ACK_PRFS, ack_hash, ack_key
from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.protocol.ack import base_key, build_ack, read_ack
from gdoi_plugin.protocol.actions import Drop, Dropped, Peer
from gdoi_plugin.protocol.forest import LkhPolicy
from gdoi_plugin.protocol.group import Group
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.policy import GroupPolicy, Kek
from gdoi_plugin.wire.header import pull_header
from gdoi_plugin.wire.oid import Oid
from gdoi_plugin.wire.payload import encode_chain
from gdoi_plugin.wire.registry import AckType, ExchangeType, IdType
from gdoi_plugin.wire.sequence import SequenceNumber
from tests.protocol.test_push import new_kek, new_tek
from tests.protocol.test_push_parts import opened
from tests.support.forge import make_ack, multicast, only_drop, push_policy
from tests.support.simnet import Wire
from tests.support.worlds import REKEY, World, group_config, member_peer, registered, sends, wired

ACK, PUSH = ExchangeType.GROUPKEY_PUSH_ACK, ExchangeType.GROUPKEY_PUSH
KEK_SHA256, LKH_SHA256, KEK_SHA512, LKH_SHA512 = AckType
GM, GM2, GM3 = (member_peer(i) for i in range(3))
LEAF = Secret(b"the key of one leaf of the tree!")


def identity(peer: Peer) -> Identity:
    return Identity.of_address(peer.host)


def ready(members: int = 1, **changes: Any) -> tuple[Wire, World]:
    config = group_config(members, **changes)
    return registered(members, group=config, member_changes={"ack_jitter": 0.0})


def page(world: World) -> Any:
    return world.group.ledger[world.group.epoch]


def with_l(kek: Kek, seq: int, peer: Peer, l_bits: int) -> bytes:
    """An ACK of type 1 by somebody who reads L in another way."""
    good = make_ack(kek, seq, peer.host)
    kind = ACK_PRFS[KEK_SHA256]
    seq_octets, id_octets = good[64:72], good[72:]
    digest = ack_hash(kind, ack_key(kind, kek.key, kek.spi, l_bits), seq_octets, id_octets)
    return good[:32] + digest + good[64:]


# -- the four types ------------------------------------------------------------------------------


@pytest.mark.parametrize("ack", [KEK_SHA256, KEK_SHA512])
@pytest.mark.parametrize("kek", [False, True])
def test_both_kek_types_between_member_and_key_server(ack: AckType, kek: bool) -> None:
    wire, world = ready(2, ack=ack)
    for _ in range(2):
        world.rekey(kek=kek)
        wire.settle()
        assert len(page(world).acknowledged) == 2
    octets = {len(send.datagram) for send in world.datagrams(ACK)}
    assert octets == {28 + 4 + ACK_PRFS[ack].octets + 8 + 12}
    assert wire.reasons == set()


@pytest.mark.parametrize("ack", [LKH_SHA256, LKH_SHA512])
def test_lkh_types_are_keyed_by_the_leaf(ack: AckType, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 8263 section 2.2: what one member alone shares with the key server."""
    monkeypatch.setattr(Group, "leaf_key", lambda *_: LEAF)
    _, world = ready(ack=ack)
    world.rekey()
    kek = world.group.current_kek().kek
    other = make_ack(kek, 1, GM.host, ack, Secret(bytes(32)))
    of_the_group = make_ack(kek, 1, GM.host, ack, kek.key)
    for forged in (other, of_the_group):
        assert only_drop(world.server.hear(forged, GM)) is Drop.ACK_BAD_HASH
    world.server.hear(make_ack(kek, 1, GM.host, ack, LEAF), GM)
    assert len(page(world).acknowledged) == 1


def test_base_keys() -> None:
    kek = new_kek()
    assert base_key(KEK_SHA256, kek, LEAF) is kek.key
    assert base_key(KEK_SHA512, kek, None) is kek.key
    assert base_key(LKH_SHA256, kek, LEAF) is LEAF
    assert base_key(LKH_SHA512, kek, LEAF) is LEAF
    assert base_key(LKH_SHA512, kek, None) is None
    assert base_key(77, kek, LEAF) is None


def test_a_member_without_a_leaf_says_so_once() -> None:
    _, world = ready(ack=LKH_SHA256)
    for number in range(3):
        tek = new_tek(0x1001 + number)
        assert sends(multicast(world, push_policy(world, GroupPolicy(None, (tek,))))) == []
        assert tek.spi in world.member.kernel.sas
    (told,) = world.member.events("ack-unsupported")
    assert told.fields["type"] == 2


def test_the_type_of_the_most_recent_sak_holds_and_that_of_the_one_before_is_accepted() -> None:
    """RFC 8263 section 7.2; the ACK of a PUSH with a new SAK may be of either."""
    wire, world = ready()
    world.group.config = replace(world.group.config, ack=KEK_SHA512)
    old = world.group.current_kek().kek
    world.rekey(kek=True)
    wire.pass_on()
    (ack,) = wire.waiting
    assert len(read_ack(pull_header(ack.datagram), ack.datagram).hash) == 64
    wire.waiting.clear()
    world.server.hear(make_ack(old, 1, GM.host, KEK_SHA256), GM)
    assert len(page(world).acknowledged) == 1
    world.rekey()
    kek = world.group.current_kek().kek
    wrong = world.server.hear(make_ack(kek, 1, GM.host, KEK_SHA256), GM)
    assert only_drop(wrong) is Drop.ACK_WRONG_TYPE
    assert isinstance(wrong[0], Dropped)
    assert "HASH of 32 octets, asked for was REKEY_ACK_KEK_SHA512" in wrong[0].detail
    wire.settle()
    assert len(page(world).acknowledged) == 1


# -- L -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("l_bits", [256, 128, 1])
def test_another_reading_of_l_counts_where_the_group_has_it(l_bits: int) -> None:
    _, world = ready(ack_l=(128, 256, 1))
    world.rekey()
    world.server.hear(with_l(world.group.current_kek().kek, 1, GM, l_bits), GM)
    (told,) = world.server.events("rekey-acked")
    assert told.fields["l"] == l_bits


def test_it_does_not_otherwise() -> None:
    _, world = ready()
    world.rekey()
    heard = world.server.hear(with_l(world.group.current_kek().kek, 1, GM, 256), GM)
    assert only_drop(heard) is Drop.ACK_BAD_HASH


def test_the_usual_reading_is_not_remarked_on() -> None:
    wire, world = ready(ack_l=(256,))
    world.rekey()
    wire.settle()
    (told,) = world.server.events("rekey-acked")
    assert "l" not in told.fields


# -- members that are asked for none -------------------------------------------------------------


def said_type(world: World, which: int = -1) -> int | None:
    """KEK_ACK_REQUESTED of the SAK in a PUSH."""
    push = opened(world, world.datagrams(PUSH))[which]
    assert push.policy is not None
    sak = push.policy[0].sak
    assert sak is not None
    return next((a.number() for a in sak.attributes if a.type == 9), None)


def test_by_unicast_each_is_told_its_own() -> None:
    wire, world = ready(3, rekey_address=None, ack_exempt=frozenset({identity(GM2)}))
    asked = [m.group.kek.kek.ack_type if m.group.kek else -1 for m in world.members]
    assert asked == [1, None, 1]
    world.rekey(kek=True)
    wire.settle()
    told = {s.destination: said_type(world, i) for i, s in enumerate(world.datagrams(PUSH))}
    assert told == {GM: 1, GM2: None, GM3: 1}
    assert {send.source for send in world.datagrams(ACK)} == {GM, GM3}
    rekey = page(world)
    assert (rekey.closed, len(rekey.acknowledged), len(rekey.expected)) == (True, 2, 2)
    assert world.converged()
    world.rekey()
    wire.settle()
    assert page(world).closed
    assert len(page(world).acknowledged) == 2


def test_by_multicast_nobody_is_asked_until_registering_again() -> None:
    """One message goes to all, and a strict RFC 6407 member must not see attribute 9."""
    wire, world = ready(2, ack_exempt=frozenset({identity(GM2)}))
    world.rekey()
    wire.settle()
    assert set(page(world).acknowledged) == {identity(GM)}, "asked in its GROUPKEY-PULL"
    world.rekey(kek=True)
    assert said_type(world) is None
    wire.settle()
    assert page(world).expected == frozenset()
    world.rekey()
    wire.settle()
    assert page(world).expected == frozenset()
    assert len(world.datagrams(ACK)) == 1
    world.server.restart()
    world.rekey()
    assert page(world).expected == frozenset(), "and that is not forgotten"
    wire.settle()
    world.member.do(world.member.group.register(world.now))
    wire.settle()
    wire.run(8)  # the phase-1 SA went with the restart: main mode again
    wire.settle()
    world.rekey()
    wire.settle()
    assert set(page(world).acknowledged) == {identity(GM)}
    assert world.converged()


def test_once_the_exempt_have_left_all_are_asked_by_multicast() -> None:
    wire, world = ready(2, ack_exempt=frozenset({identity(member_peer(9))}))
    world.rekey(kek=True)
    assert said_type(world) == 1
    wire.settle()
    assert len(page(world).acknowledged) == 2


@pytest.mark.parametrize("unicast", [False, True])
def test_exempt_members_of_a_key_tree_follow_and_stay_silent(unicast: bool) -> None:
    address = None if unicast else REKEY.host
    lkh = LkhPolicy(arity=2, members=8)
    exempt = frozenset({identity(GM2)})
    options = {"lkh": lkh, "ack_exempt": exempt, "rekey_address": address}
    wire, world = ready(3, ack=LKH_SHA256, **options)
    for kek in (True, False):
        world.rekey(kek=kek)
        wire.settle()
        assert world.converged()
        asked = {identity(GM), identity(GM3)} if unicast else set()
        assert page(world).expected == page(world).acknowledged.keys() == asked
        assert page(world).closed


# -- ID_OID --------------------------------------------------------------------------------------


def oid_world(members: int = 1) -> tuple[Wire, World]:
    named = GroupId.of_oid(Oid.parse("1.2.840.10070.61850.8.1.2"))
    config = replace(group_config(members), group_id=named)
    changes = {"group_id": named, "ack_with_oid": True, "ack_jitter": 0.0}
    wire, world = registered_as(named, members, config, changes)
    return wire, world


def registered_as(named: GroupId, members: int, config: Any, changes: Any) -> tuple[Wire, World]:
    wire, world = wired(members, group=config, member_changes=changes)
    world.start()
    wire.settle()
    assert named.key in world.server.engine.groups
    return wire, world


def rekeyed(wire: Wire, world: World, key: int) -> Any:
    world.server.do(world.server.engine.rekey(key, world.now, "operator"))
    wire.settle()
    group = world.server.engine.groups[key]
    return group.ledger[group.epoch]


def test_id_oid_names_the_group_and_the_source_the_member() -> None:
    """RFC 8263 section 3.4 has it, RFC 8052 section 2.1 says that it names groups."""
    wire, world = oid_world(2)
    (key,) = world.server.engine.groups
    rekey = rekeyed(wire, world, key)
    assert set(rekey.acknowledged) == {identity(GM), identity(GM2)}
    for send in world.datagrams(ACK):
        assert send.datagram[76] == IdType.ID_OID


@pytest.mark.parametrize("oid", ["1.2.840.10070.61850.8.1.3", "2.5"])
def test_another_oid_is_nobodys(oid: str) -> None:
    wire, world = oid_world()
    (key,) = world.server.engine.groups
    world.server.do(world.server.engine.rekey(key, world.now, "operator"))
    wire.waiting.clear()
    kek = world.server.engine.groups[key].current_kek().kek
    who = GroupId.of_oid(Oid.parse(oid)).payload()
    ack = build_ack(KEK_SHA256, kek.key, kek, 1, who)
    assert only_drop(world.server.hear(ack, GM)) is Drop.ACK_UNKNOWN_MEMBER


def test_an_oid_from_nowhere_is_nobodys() -> None:
    wire, world = oid_world()
    (key,) = world.server.engine.groups
    world.server.do(world.server.engine.rekey(key, world.now, "operator"))
    wire.pass_on()
    ack = wire.take()
    heard = world.server.hear(ack.datagram, member_peer(77))
    assert only_drop(heard) is Drop.ACK_UNKNOWN_MEMBER
    assert len(world.server.hear(ack.datagram, ack.source)) > 1


def test_an_oid_where_groups_have_numbers_is_nobodys() -> None:
    _, world = ready()
    world.rekey()
    kek = world.group.current_kek().kek
    who = GroupId.of_oid(Oid.parse("1.2.3")).payload()
    ack = build_ack(KEK_SHA256, kek.key, kek, 1, who)
    assert only_drop(world.server.hear(ack, GM)) is Drop.ACK_UNKNOWN_MEMBER


# -- what the member counts ----------------------------------------------------------------------


def test_an_ack_that_waits_is_not_counted_yet() -> None:
    wire, world = registered(member_changes={"ack_jitter": 5.0})
    world.rekey()
    wire.pass_on()
    counters = world.member.group.counters
    assert (counters.rekeys_installed, counters.acknowledged) == (1, 0)
    wire.run(5.1)
    assert (counters.rekeys_installed, counters.acknowledged) == (1, 1)


def test_seq_and_id_are_covered_with_their_headers() -> None:
    kek = new_kek()
    ack = make_ack(kek, 9, GM.host, KEK_SHA512)
    read = read_ack(pull_header(ack), ack)
    chain = encode_chain([SequenceNumber(9), identity(GM).payload()])
    assert read.seq_octets + read.id_octets == chain
    assert read.verify(KEK_SHA512, kek.key, kek)
    assert not read.verify(KEK_SHA512, kek.key, kek, 512)
