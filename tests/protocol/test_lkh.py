"""Groups whose KEK is the root of a key tree: joining, evicting, losses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from gdoi_plugin.crypto import cipher
from gdoi_plugin.protocol.actions import Event, Send
from gdoi_plugin.protocol.forest import LkhPolicy
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.wire.buffer import Buffer, DecodeError
from gdoi_plugin.wire.group_sa import GroupSecurityAssociation
from gdoi_plugin.wire.header import HEADER_LENGTH, pull_header
from gdoi_plugin.wire.key_download import KeyDownload
from gdoi_plugin.wire.lkh import LkhUpdateArray
from gdoi_plugin.wire.message import pull_decrypted
from gdoi_plugin.wire.registry import (
    AckType,
    ExchangeType,
    KeyPacketType,
    LkhKeyAttribute,
    PayloadType,
)
from tests.support.simnet import MemberHost, Network, Wire
from tests.support.worlds import (
    GROUP_ID,
    World,
    bad_network,
    build,
    group_config,
    member_peer,
    registered,
    wired,
)

BINARY = LkhPolicy(arity=2, members=32)
# A push limit that has every update array leave in a PUSH of its own.
NARROW = 600


def identity(index: int) -> Identity:
    return Identity.of_address(member_peer(index).host)


def lkh_world(members: int, lkh: LkhPolicy = BINARY, **changes: Any) -> World:
    config = group_config(members, lkh=lkh, **changes)
    _, world = registered(members, group=config, member_changes={"ack_jitter": 0.0})
    return world


def settle(world: World) -> None:
    """For worlds whose network waits for the test."""
    assert isinstance(world.network, Wire)
    world.network.settle()


def evict(world: World, *gone: int) -> None:
    engine = world.server.engine
    world.server.do(engine.evict(GROUP_ID, [identity(i) for i in gone], world.now))


def stay(world: World, *gone: int) -> list[MemberHost]:
    return [member for index, member in enumerate(world.members) if index not in gone]


def in_step(world: World, members: Iterable[MemberHost]) -> bool:
    return all(world.in_step(member) for member in members)


# -- one member hears everything that was ever sent ----------------------------------------------


class Attacker:
    """Who held ``member``'s keys tries each of them on every PUSH and on every key in it.

    Handles and LKH IDs are not believed: what a key opens is taken up if it is a KEK or a node's
    key that the group really has (``right``), so nothing is missed for want of guessing well.
    """

    def __init__(self, world: World, member: MemberHost) -> None:
        self.world = world
        self.keys: set[bytes] = set()
        for held in member.group.rekey_sas.held:
            self.keys.add(held.kek.iv + held.kek.key.reveal())
            self.keys |= {node.material for node in held.kek.path}
        self.teks: set[bytes] = set()

    def right(self) -> set[bytes]:
        group = self.world.group
        found = {kek.kek.iv + kek.kek.key.reveal() for kek in group.old_keks.values()}
        for sa in group.sas:
            assert sa.tree is not None
            for member in group.members.values():
                found |= {node.material for node in sa.tree.path(member.leaf)}
            found.add(sa.tree.root.material)
        return found

    def listen(self, pushes: Iterable[Send]) -> None:
        """Until nothing opens any more."""
        heard, right = list(pushes), self.right()
        fresh = set(self.keys)
        while fresh:
            opened = {material for push in heard for material in self._open(push.datagram, fresh)}
            fresh = (opened & right) - self.keys
            self.keys |= fresh

    def _open(self, datagram: bytes, fresh: set[bytes]) -> set[bytes]:
        found: set[bytes] = set()
        for kek in self.keys:
            plain = cipher.decrypt(kek[16:], kek[:16], datagram[HEADER_LENGTH:])
            try:
                message = pull_decrypted(pull_header(datagram), plain, cipher.BLOCK)
                kds = [p.parse(KeyDownload) for p in message.all(PayloadType.KD)]
                for payload in message.all(PayloadType.SA):
                    payload.parse(GroupSecurityAssociation)
            except DecodeError:
                continue  # another KEK's
            for packet in (packet for kd in kds for packet in kd.packets):
                if packet.kd_type == KeyPacketType.TEK:
                    self.teks |= {a.octets() for a in packet.attributes}
                for attribute in packet.attributes:
                    if packet.kd_type == KeyPacketType.LKH and (
                        attribute.type == LkhKeyAttribute.LKH_UPDATE_ARRAY
                    ):
                        keys = LkhUpdateArray.pull(Buffer(attribute.octets())).keys
                        found |= {
                            cipher.decrypt(key[16:], key[:16], wrapped.key_data)
                            for key in self.keys | fresh
                            for wrapped in keys
                        }
        return found

    def has_the_group(self) -> bool:
        group = self.world.group
        current = {sa.kek.kek.iv + sa.kek.kek.key.reveal() for sa in group.sas}
        teks = {t.tek.encryption_key.reveal() for t in group.teks if t.retire_at is None}
        return bool(self.keys & current or self.teks & teks)


def test_the_attacker_keeps_up_for_as_long_as_it_is_in() -> None:
    """What it fails at below, it would notice."""
    world = lkh_world(5)
    spy = Attacker(world, world.members[2])
    evict(world, 4)
    spy.listen(world.datagrams(ExchangeType.GROUPKEY_PUSH))
    assert spy.has_the_group()


# -- in order ------------------------------------------------------------------------------------


def test_a_member_gets_its_path_with_the_registration() -> None:
    world = lkh_world(3)
    (sa,) = world.group.sas
    assert sa.tree is not None
    for index, member in enumerate(world.members):
        held = member.group.kek
        assert held is not None
        leaf = world.group.members[identity(index)].leaf
        assert held.kek.path == sa.tree.path(leaf)
        assert held.kek.key == sa.tree.root.key
    assert len({world.group.members[identity(i)].leaf for i in range(3)}) == 3


def test_who_registers_again_keeps_its_leaf() -> None:
    world = lkh_world(3)
    before = {i: world.group.members[identity(i)].leaf for i in range(3)}
    world.members[1].restart()
    world.network.run(10)
    settle(world)
    assert {i: world.group.members[identity(i)].leaf for i in range(3)} == before


@pytest.mark.parametrize("transport", ["multicast", "unicast"])
def test_an_eviction_renews_kek_and_teks_for_all_but_the_evicted(transport: str) -> None:
    changes: dict[str, Any] = {} if transport == "multicast" else {"rekey_address": None}
    world = lkh_world(6, **changes)
    old = world.group.current_kek().kek
    spies = [Attacker(world, world.members[i]) for i in (1, 4)]
    sent = len(world.network.sent)
    evict(world, 1, 4)
    settle(world)
    assert world.group.current_kek().kek.spi != old.spi
    assert set(world.group.members) == {identity(i) for i in (0, 2, 3, 5)}
    assert in_step(world, stay(world, 1, 4))
    pushes = [s for _, s in world.network.sent[sent:]]
    pushes = [s for s in pushes if s.datagram[18] == ExchangeType.GROUPKEY_PUSH]
    # the KEK under the old one, then the TEKs under the new one
    spis = list(dict.fromkeys(push.datagram[:16] for push in pushes))
    assert spis == [old.spi, world.group.current_kek().kek.spi]
    for index, spy in zip((1, 4), spies, strict=True):
        spy.listen(s for _, s in world.network.sent if s.datagram[18] == 33)
        assert not spy.has_the_group()
        assert not world.in_step(world.members[index])
    assert all(rekey.closed and not rekey.missing for rekey in world.group.ledger.values())
    world.check_ledger()


def test_the_group_goes_on_after_an_eviction() -> None:
    world = lkh_world(4)
    evict(world, 0)
    settle(world)
    for kek in (False, True, True):
        world.rekey(kek=kek)
        settle(world)
        assert in_step(world, stay(world, 0))
    evict(world, 3)
    settle(world)
    assert in_step(world, stay(world, 0, 3))


def test_the_push_that_changes_membership_brings_no_teks() -> None:
    """RFC 6407 section 7.4.1: who has the old KEK reads it."""
    world = lkh_world(4)
    old = world.group.current_kek().kek
    sent = len(world.network.sent)
    evict(world, 2)
    under_old = [s for _, s in world.network.sent[sent:] if s.datagram[:16] == old.spi]
    assert under_old
    for send in under_old:
        plain = cipher.decrypt(old.key.reveal(), old.iv, send.datagram[HEADER_LENGTH:])
        message = pull_decrypted(pull_header(send.datagram), plain, cipher.BLOCK)
        (kd,) = (p.parse(KeyDownload) for p in message.all(PayloadType.KD))
        assert [packet.kd_type for packet in kd.packets] == [KeyPacketType.LKH]
        (sa,) = (p.parse(GroupSecurityAssociation) for p in message.all(PayloadType.SA))
        assert not sa.sats


# -- joining -------------------------------------------------------------------------------------

JOINS = LkhPolicy(arity=2, members=8, rekey_on_join=True)


def test_who_joins_reads_nothing_of_what_was_before() -> None:
    """RFC 6407 section 7.4.2, for a newcomer that has recorded every datagram."""
    world = build(Network(8), 4, group=group_config(4, lkh=JOINS))
    world.server.start()
    for member in world.members[:3]:
        member.start()
    world.network.run(40)
    assert in_step(world, world.members[:3])
    before = [t.tek.encryption_key.reveal() for t in world.group.teks]
    recorded = world.datagrams(ExchangeType.GROUPKEY_PUSH)
    assert recorded
    world.members[3].start()
    world.network.run(40)
    assert world.converged()
    spy = Attacker(world, world.members[3])
    spy.listen(recorded)
    assert not spy.teks & set(before)
    assert spy.has_the_group()
    assert not any(tek in world.members[3].kernel.sas for tek in before)
    world.check_ledger()


def test_a_newcomer_whose_teks_are_lost_registers_again() -> None:
    """Nobody asks for its ACK, so nobody says them again."""
    config = group_config(1, lkh=replace(BINARY, rekey_on_join=True), ack=None)
    wire, world = wired(group=config)
    world.start()
    while len(world.datagrams(ExchangeType.GROUPKEY_PUSH)) == 0:
        wire.pass_on()
    wire.waiting.pop()
    wire.settle()
    assert world.member.group.kek is not None
    assert not world.converged()
    wire.run(30)
    wire.settle()
    assert world.converged()


def test_who_registers_again_is_no_newcomer() -> None:
    world = build(Network(9), 2, group=group_config(2, lkh=JOINS))
    world.start()
    world.network.run(40)
    assert world.converged()
    epoch = world.group.epoch
    world.members[1].restart()
    world.network.run(10)
    assert world.group.epoch == epoch
    assert world.converged()


@pytest.mark.parametrize("seed", range(3))
def test_joins_over_a_bad_network(seed: int) -> None:
    world = build(bad_network(seed), 4, group=group_config(4, lkh=JOINS, retransmissions=8))
    world.start()
    world.network.run_until(world.converged, 400)
    world.check_ledger()


# -- evicted and readmitted ----------------------------------------------------------------------


def test_an_evicted_member_cannot_register_until_it_is_admitted_again() -> None:
    world = lkh_world(3)
    evict(world, 1)
    settle(world)
    assert not any(
        session.sa.remote_identity == identity(1)
        for session in world.server.engine.isakmp.sessions.values()
    )
    world.members[1].restart()
    settle(world)
    assert identity(1) not in world.group.members
    world.server.restart()  # the denial is in the store
    world.members[1].restart()
    settle(world)
    assert identity(1) not in world.group.members
    engine = world.server.engine
    world.server.do(engine.admit(GROUP_ID, [identity(1)]))
    world.members[1].restart()
    settle(world)
    assert world.in_step(world.members[1])


def test_a_registration_under_way_does_not_outlive_the_eviction() -> None:
    world = lkh_world(2)
    late = world.members[1]
    late.restart()
    wire = world.network
    while not any(s.pulls for s in world.server.engine.isakmp.sessions.values()):
        wire.pass_on()  # type: ignore[attr-defined]
    evict(world, 1)
    settle(world)
    assert identity(1) not in world.group.members
    assert world.in_step(world.members[0])
    assert not world.in_step(late)


@pytest.mark.parametrize("lkh", [None, BINARY])
def test_evicting_who_is_not_there_only_denies(lkh: LkhPolicy | None) -> None:
    _, world = registered(1, group=group_config(2, lkh=lkh))
    epoch = world.group.epoch
    evict(world, 1)
    assert world.group.denied == {identity(1)}
    assert world.group.epoch == epoch


def test_without_lkh_a_multicast_group_registers_again_when_somebody_is_evicted() -> None:
    world = build(Network(4), 3, group=group_config(3))
    world.start()
    world.network.run(5)
    evict(world, 1)
    world.network.run(30)
    assert in_step(world, stay(world, 1))
    assert not world.in_step(world.members[1])


# -- large updates: several PUSHes, some lost ----------------------------------------------------


def test_each_member_gets_along_with_the_part_that_is_for_it() -> None:
    world = lkh_world(8, push_limit=NARROW)
    evict(world, 0)
    page = world.group.ledger[world.group.epoch - 1]
    assert page.update is not None
    assert page.parts == len(page.update.arrays) == 3
    settle(world)
    assert in_step(world, stay(world, 0))
    assert page.closed
    assert not page.missing
    acks = [
        s
        for s in world.datagrams(ExchangeType.GROUPKEY_PUSH_ACK)
        if s.datagram[:16] == page.kek_spi
    ]
    assert len(acks) == 7


def test_by_unicast_each_member_is_sent_the_part_that_is_for_it() -> None:
    world = lkh_world(8, push_limit=NARROW, rekey_address=None)
    sent = len(world.network.sent)
    evict(world, 0)
    page = world.group.ledger[world.group.epoch - 1]
    assert page.parts == 3
    parts = [s for _, s in world.network.sent[sent:] if s.datagram[:16] == page.kek_spi]
    assert sorted(s.destination for s in parts) == sorted(member_peer(i) for i in range(1, 8))
    assert len({s.datagram for s in parts}) == 3
    settle(world)
    assert in_step(world, stay(world, 0))
    assert page.closed
    assert not page.missing


@pytest.mark.parametrize("lost", range(3))
def test_a_lost_part_is_recovered_by_repetition(lost: int) -> None:
    """The members of that part alone are silent, and hear it again under a later SEQ."""
    world = build(Network(1), 8, group=group_config(8, lkh=BINARY, push_limit=NARROW))
    world.start()
    world.network.run(5)
    spi = world.group.current_kek().kek.spi
    real, seen = world.network.send, []

    def lossy(send: Send) -> None:
        if send.datagram[:16] == spi and send.datagram[18] == ExchangeType.GROUPKEY_PUSH:
            seen.append(send)
            if len(seen) == lost + 1:
                return
        real(send)

    world.network.send = lossy  # type: ignore[method-assign]
    evict(world, 0)
    world.network.run(40)
    assert in_step(world, stay(world, 0))
    world.check_ledger()


def test_who_has_missed_its_part_registers_after_a_while() -> None:
    """Without ACKs nothing is repeated: the member itself notices."""
    world = build(Network(2), 4, group=group_config(4, lkh=BINARY, push_limit=NARROW, ack=None))
    world.start()
    world.network.run(5)
    spi, real, seen = world.group.current_kek().kek.spi, world.network.send, []

    def lossy(send: Send) -> None:
        if send.datagram[:16] == spi and send.datagram[18] == ExchangeType.GROUPKEY_PUSH:
            seen.append(send)
            if len(seen) == 1:
                return
        real(send)

    world.network.send = lossy  # type: ignore[method-assign]
    evict(world, 3)
    world.network.run(1)
    assert not in_step(world, stay(world, 3))
    world.network.run(15)
    assert in_step(world, stay(world, 3))


@pytest.mark.parametrize("seed", range(6))
def test_evictions_over_a_bad_network(seed: int) -> None:
    network = bad_network(seed)
    lkh = LkhPolicy(arity=2 + seed % 3, members=12)
    config = group_config(8, lkh=lkh, push_limit=NARROW if seed % 2 else 8000, retransmissions=8)
    world = build(network, 8, group=config)
    world.start()
    network.run_until(world.converged, 200)
    spies = []
    for gone in ((2,), (5, 6)):
        spies += [Attacker(world, world.members[i]) for i in gone]
        evict(world, *gone)
        network.run(network.rng.choice((0.5, 12.0)))
    rest = stay(world, 2, 5, 6)
    network.run_until(lambda: in_step(world, rest), 300)
    for spy in spies:
        spy.listen(world.datagrams(ExchangeType.GROUPKEY_PUSH))
        assert not spy.has_the_group()
    world.check_ledger()


# -- acknowledgements by the leaf key ------------------------------------------------------------


@pytest.mark.parametrize("ack", [AckType.REKEY_ACK_LKH_SHA256, AckType.REKEY_ACK_LKH_SHA512])
def test_acks_are_keyed_by_the_leaf_that_no_other_member_knows(ack: AckType) -> None:
    world = lkh_world(4, ack=ack)
    evict(world, 1)
    settle(world)
    world.rekey(kek=True)
    settle(world)
    assert in_step(world, stay(world, 1))
    assert all(r.closed and not r.missing for r in world.group.ledger.values())


def test_the_operator_is_told_who_was_evicted_and_readmitted() -> None:
    world = lkh_world(2)
    engine = world.server.engine
    actions = engine.evict(GROUP_ID, [identity(0)], world.now)
    actions += engine.admit(GROUP_ID, [identity(0), identity(1)])
    told = [a.name for a in actions if isinstance(a, Event)]
    assert told.count("member-evicted") == 1
    assert told.count("member-readmitted") == 1


@pytest.mark.parametrize("ack", [AckType.REKEY_ACK_LKH_SHA256, AckType.REKEY_ACK_LKH_SHA512])
@pytest.mark.parametrize("restart", [False, True])
def test_a_clean_slate_is_acknowledged_by_the_leaf_keys_of_before(
    ack: AckType, restart: bool
) -> None:
    """RFC 8263 section 4: "even if the GROUPKEY-PUSH message contains a Delete payload"."""
    world = lkh_world(3, ack=ack)
    world.server.do(world.server.engine.delete_group(GROUP_ID, world.now))
    if restart:
        world.server.restart()
    settle(world)
    page = next(r for r in world.group.ledger.values() if r.reason == "delete")
    assert page.acknowledged.keys() == page.expected
    assert len(page.expected) == 3
