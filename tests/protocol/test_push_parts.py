"""A policy that fills several PUSHes, and acknowledgements of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdoi_plugin.crypto.signature import SCHEMES, load_public
from gdoi_plugin.protocol.actions import Send
from gdoi_plugin.protocol.policy import TEK_SUITES, Flow, GroupPolicy
from gdoi_plugin.protocol.push import (
    DEFAULT_PUSH_LIMIT,
    Content,
    Push,
    open_push,
    push_length,
    split_content,
    spread,
)
from gdoi_plugin.protocol.tek_policy import TekConfig
from gdoi_plugin.wire.header import pull_header
from gdoi_plugin.wire.registry import ExchangeType, PayloadType, TekProtocol
from tests.protocol.test_push import new_kek, new_tek
from tests.support.forge import resend
from tests.support.simnet import Network, Wire
from tests.support.worlds import FLOW, World, build, group_config, member_peer, registered

PUSH, ACK = ExchangeType.GROUPKEY_PUSH, ExchangeType.GROUPKEY_PUSH_ACK
ECDSA = SCHEMES["ecdsa256"]


def flows(count: int) -> tuple[TekConfig, ...]:
    suite = TEK_SUITES["aes256-sha256"]
    return tuple(TekConfig(Flow(None, FLOW.destination + i), suite) for i in range(count))


def ready(members: int = 1, **changes: Any) -> tuple[Wire, World]:
    """Twenty data SAs, and members that acknowledge without jitter."""
    config = group_config(members, teks=flows(20), **changes)
    wire, world = registered(members, group=config, member_changes={"ack_jitter": 0.0})
    wire.sent.clear()
    return wire, world


def opened(world: World, sends: Sequence[Send]) -> list[Push]:
    keks = {kek.kek.spi: kek.kek for kek in world.group.old_keks.values()}
    keks[world.group.current_kek().kek.spi] = world.group.current_kek().kek
    pushes = []
    for send in sends:
        header = pull_header(send.datagram)
        kek = keks[header.spi]
        key = load_public(kek.scheme, kek.public_der)
        pushes.append(open_push(kek, key, 0, header, send.datagram))
    return pushes


def page(world: World) -> Any:
    return world.group.ledger[world.group.epoch]


# -- the division --------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 400), max_size=40),
    st.integers(-100, 1000),
    st.integers(1, 1000),
    st.booleans(),
)
def test_spread(sizes: list[int], first: int, others: int, alone: bool) -> None:
    ranges = spread(sizes, first, others, alone=alone)
    assert [i for r in ranges for i in r] == list(range(len(sizes)))
    for number, indexes in enumerate(ranges):
        room = others if number else first
        assert len(indexes) <= 1 or sum(sizes[i] for i in indexes) <= room
        assert indexes or not number or not sizes, "only the first may have nothing"
        if number:
            # No part could have taken the first item of the next one too.
            before = ranges[number - 1]
            room = others if number > 1 else first
            assert sum(sizes[i] for i in before) + sizes[indexes[0]] > room
    if alone and sizes:
        assert ranges[0]


@pytest.mark.parametrize("limit", [512, 600, 1232, 1400, 4000])
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_no_part_is_larger_than_the_limit_where_that_can_be(scheme: Any, limit: int) -> None:
    kek = new_kek(scheme=scheme)
    teks = tuple(new_tek(0x1000 + i) for i in range(30))
    policy = GroupPolicy(kek, teks, 10, 30)
    parts = split_content(scheme, Content(policy), limit)
    assert [t for p in parts if p.policy for t in p.policy.teks] == list(teks)
    assert [p.policy.kek for p in parts if p.policy] == [kek] + [None] * (len(parts) - 1)
    for part in parts:
        assert part.policy is not None
        assert part.policy.deactivation_delay == 30
        length = push_length(scheme, part)
        padded = 28 + -(-(length - 28) // 16) * 16
        few = len(part.policy.teks) == (0 if part.policy.kek else 1)
        assert padded <= limit or few


def test_lkh_updates_come_first_and_each_part_has_the_sak() -> None:
    updates = tuple(bytes([i]) * 150 for i in range(20))
    teks = (new_tek(0x1000), new_tek(0x1001))
    policy = GroupPolicy(new_kek(), teks, 1, 2, updates=updates)
    *heads, last = split_content(ECDSA, Content(policy), 1232)
    assert len(heads) > 2
    assert [u for p in heads if p.policy for u in p.policy.updates] == list(updates)
    assert all(p.policy and p.policy.kek and not p.policy.teks for p in heads)
    assert all(push_length(ECDSA, part) <= 1232 for part in heads)
    assert last.policy is not None
    assert (last.policy.kek, last.policy.updates, last.policy.teks) == (None, (), teks)


def test_more_lkh_updates_than_one_message_could_say_at_all() -> None:
    """A key packet's length has 16 bits; who evicts hundreds at once makes more than that."""
    updates = tuple(i.to_bytes(2, "big") * 130 for i in range(600))
    content = Content(GroupPolicy(new_kek(), (), 1, 2, updates=updates))
    parts = split_content(ECDSA, content, DEFAULT_PUSH_LIMIT)
    assert [u for p in parts if p.policy for u in p.policy.updates] == list(updates)
    assert max(push_length(ECDSA, part) for part in parts) <= DEFAULT_PUSH_LIMIT


def test_what_fits_one_message_is_one() -> None:
    content = Content(GroupPolicy(new_kek(), (new_tek(),), 10, 30))
    assert split_content(ECDSA, content, DEFAULT_PUSH_LIMIT) == [content]
    alone = Content(None)
    assert split_content(ECDSA, alone, 64) == [alone]


# -- said and acknowledged -----------------------------------------------------------------------


def test_every_part_is_complete_and_signed_and_has_its_own_seq() -> None:
    wire, world = ready()
    world.rekey()
    sends = world.datagrams(PUSH)
    assert len(sends) > 2
    assert all(len(send.datagram) <= DEFAULT_PUSH_LIMIT for send in sends)
    pushes = opened(world, sends)
    assert [push.seq for push in pushes] == list(range(1, len(sends) + 1))
    for push in pushes:
        assert push.policy is not None
        sa, kd = push.policy
        assert {sat.tek.spi for sat in sa.sats} == {p.spi for p in kd.packets}  # type: ignore[union-attr]
        assert sa.gap is not None
    wire.settle()
    assert world.converged()
    assert len(world.datagrams(ACK)) == len(sends)
    rekey = page(world)
    assert (rekey.parts, rekey.closed, rekey.missing) == (len(sends), True, frozenset())
    assert len(rekey.acknowledged) == 1


def test_a_member_that_misses_a_part_has_not_acknowledged() -> None:
    wire, world = ready()
    world.rekey()
    lost = wire.waiting.pop(1)
    wire.settle()
    rekey = page(world)
    assert (rekey.closed, rekey.acknowledged) == (False, {})
    parts = world.server.events("rekey-part-acked")
    assert len(parts) == rekey.parts - 1
    assert world.server.events("rekey-acked") == []
    wire.run(10.5)
    assert len(wire.waiting) == rekey.parts, "all of it again"
    assert lost.datagram not in {send.datagram for send in wire.waiting}
    wire.settle()
    wire.run(0)
    assert rekey.closed
    assert set(rekey.acknowledged) == set(world.group.members)
    assert world.converged()
    (acked,) = world.server.events("rekey-acked")
    assert acked.fields["rtt"] == pytest.approx(0.5), "since the repetition after 10 s"


def test_parts_acknowledged_in_different_rounds_count_together() -> None:
    wire, world = ready(rekey_address=None)
    world.rekey()
    count = page(world).parts
    wire.pass_on(count)
    acks = list(wire.waiting)
    assert len(acks) == count
    wire.waiting.clear()
    for ack in acks[1:]:
        resend(world.server, ack)
    wire.run(10.5)
    first_again = wire.waiting[0]
    wire.waiting.clear()
    world.member.deliver(first_again)
    (ack,) = wire.waiting
    assert page(world).acknowledged == {}
    resend(world.server, ack)
    assert len(page(world).acknowledged) == 1
    assert page(world).closed


def test_parts_with_other_teks_make_no_whole() -> None:
    """A member that has one part of each round has not all of either."""
    wire, world = ready()
    world.rekey(kek=True)
    first = page(world)
    parts = first.parts
    del wire.waiting[1:]
    wire.settle()  # the first part and its ACK
    assert first.partial
    world.rekey()
    wire.waiting.clear()
    wire.run(10.5)
    again = [send for send in wire.waiting if send.datagram[:16] == first.kek_spi]
    assert len(again) == parts
    wire.waiting[:] = again[1:]
    wire.settle()
    assert not first.acknowledged
    assert first.silent


def test_a_crash_between_two_parts_repeats_them() -> None:
    wire, world = ready()
    world.rekey()
    wire.pass_on(page(world).parts)
    world.server.deliver(wire.take())
    wire.waiting.clear()
    world.server.restart()
    assert len(wire.waiting) == page(world).parts
    wire.settle()
    assert page(world).closed
    assert len(page(world).acknowledged) == 1


def test_over_a_network_that_loses_everybody_ends_with_everything() -> None:
    network = Network(7)
    config = group_config(4, teks=flows(20), retransmissions=20, rekey_address=None)
    world = build(network, 4, group=config)
    world.start()
    network.run(60)
    network.link = replace(network.link, drop=0.25, jitter=0.5)
    for kek in (False, True):
        world.rekey(kek=kek)
        network.run(250)
        assert page(world).closed
        assert page(world).missing == frozenset()
        assert world.converged()
    world.check_ledger()


# -- a PUSH that deletes its own KEK -------------------------------------------------------------


def deletes(push: Push) -> list[tuple[int, bytes]]:
    return [(d.protocol_id, spi) for d in push.deletes for spi in d.spis]


def test_replacing_everything_deletes_the_kek_with_the_last_part() -> None:
    wire, world = ready()
    old = world.group.current_kek().kek.spi
    world.rekey(kek=True, replace_old=True)
    pushes = opened(world, world.datagrams(PUSH))
    assert len(pushes) > 2
    assert deletes(pushes[0]) == [(TekProtocol.GDOI_PROTO_IPSEC_ESP, bytes(4))]
    assert [deletes(push) for push in pushes[1:-1]] == [[]] * (len(pushes) - 2)
    assert deletes(pushes[-1]) == [(TekProtocol.KEK, old)]
    wire.settle()
    assert world.converged()
    assert world.member.group.previous == {}
    assert page(world).closed
    assert len(page(world).acknowledged) == 1
    assert old in world.group.old_keks, "until the window for ACKs is over"


@pytest.mark.parametrize("lost", ["the PUSH", "the ACK"])
def test_it_is_repeated_in_the_same_octets(lost: str) -> None:
    """Who has acted on it has not the KEK any more, but knows what it has heard."""
    config = group_config(2, rekey_address=None)
    wire, world = registered(2, group=config)
    world.rekey(kek=True, replace_old=True)
    said = wire.waiting[0].datagram
    second = member_peer(1)
    at = next(i for i, send in enumerate(wire.waiting) if send.destination == second)
    push = wire.waiting.pop(at)
    if lost == "the ACK":
        world.members[1].deliver(push)
        wire.waiting.pop()
    wire.settle()
    assert len(page(world).acknowledged) == 1
    wire.run(10.5)
    assert [(s.datagram, s.destination) for s in wire.waiting] == [(said, second)]
    wire.settle()
    assert page(world).closed
    assert len(page(world).acknowledged) == 2
    assert page(world).seqs == [1]
    assert world.converged()


# -- one data SA ---------------------------------------------------------------------------------


def delete_tek(world: World, spi: bytes) -> list[Any]:
    before = len(world.network.sent)
    actions = world.server.engine.delete_tek(world.group.config.group_id.key, spi, world.now)
    assert actions is not None
    world.server.do(actions)
    return opened(world, [send for _, send in world.network.sent[before:]])


def test_one_data_sa_is_deleted_and_its_flow_gets_another() -> None:
    wire, world = registered(group=group_config(teks=flows(3)))
    kernel = world.member.kernel
    kept = {spi for spi, tek in kernel.sas.items() if tek.flow != FLOW}
    (gone,) = (spi for spi in kernel.sas if spi not in kept)
    (push,) = delete_tek(world, gone)
    assert deletes(push) == [(TekProtocol.GDOI_PROTO_IPSEC_ESP, gone)]
    assert push.policy is not None
    wire.settle()
    wire.run(6)
    wire.settle()
    assert gone not in kernel.sas
    assert kept <= set(kernel.sas)
    sending = kernel.sending(FLOW)
    assert sending is not None
    assert sending.spi != gone, "at once, there is nothing to wait for"
    assert page(world).closed
    assert len(page(world).acknowledged) == 1
    assert page(world).reason == "delete-tek"


@pytest.mark.parametrize("how", ["one", "all"])
def test_deletes_name_the_protocol(how: str) -> None:
    """RFC 6407 section 5.9: "only one protocol ID value can be defined in a Delete payload"."""
    esp, other = flows(2)
    ah = replace(other, suite=TEK_SUITES["sha256"])
    wire, world = registered(group=group_config(teks=(esp, ah)))
    kernel = world.member.kernel
    before = set(kernel.sas)
    (gone,) = (spi for spi, tek in kernel.sas.items() if tek.flow == ah.flow)
    if how == "one":
        (push,) = delete_tek(world, gone)
        assert deletes(push) == [(TekProtocol.GDOI_PROTO_IPSEC_AH, gone)]
    else:
        world.rekey(replace_old=True)
        (push,) = opened(world, world.datagrams(PUSH))
        assert deletes(push) == [(1, bytes(4)), (2, bytes(4))]
    wire.settle()
    assert gone not in kernel.sas
    assert len(kernel.sas) == 2
    assert len(before & set(kernel.sas)) == (1 if how == "one" else 0)


def test_one_that_is_replaced_already_is_deleted_without_more() -> None:
    """RFC 6407 section 5.9: "If a GCKS has no further SAs to send [...] MUST be omitted"."""
    wire, world = registered()
    (gone,) = world.member.kernel.sas
    world.rekey()
    wire.settle()
    assert gone in world.member.kernel.sas
    (push,) = delete_tek(world, gone)
    assert push.message.kinds == (PayloadType.SEQ, PayloadType.DELETE, PayloadType.SIG)
    wire.settle()
    assert gone not in world.member.kernel.sas
    assert len(world.member.kernel.sas) == 1
    assert world.member.group.kek is not None


def test_a_delete_is_repeated_to_who_missed_it() -> None:
    wire, world = registered(group=group_config(rekey_address=None))
    (gone,) = world.member.kernel.sas
    delete_tek(world, gone)
    wire.waiting.clear()
    wire.run(10.5)
    wire.settle()
    assert gone not in world.member.kernel.sas
    assert len(page(world).acknowledged) == 1
    assert page(world).seqs == [1, 2]


def test_a_spi_that_nobody_knows_deletes_nothing() -> None:
    _, world = registered()
    engine, key = world.server.engine, world.group.config.group_id.key
    assert engine.delete_tek(key, b"\xff" * 4, world.now) is None


# -- the same PUSH once more ---------------------------------------------------------------------


def test_the_same_push_is_acknowledged_again_once_a_second() -> None:
    """To whom it was acknowledged, wherever the copy comes from."""
    wire, world = registered(group=group_config(rekey_address=None))
    world.rekey()
    push = wire.take()
    world.member.deliver(push)
    ack = wire.take()
    times = []
    for _ in range(40):
        wire.run(0.1)
        world.member.hear(push.datagram, member_peer(200))
        times += [world.now] * len(wire.waiting)
        assert all(again == ack for again in wire.waiting)
        wire.waiting.clear()
    assert 3 <= len(times) <= 4
    assert all(after - before > 0.99 for before, after in pairwise(times))
    assert world.member.group.counters.acknowledged == 1 + len(times)
    assert world.member.group.counters.rekeys_received == 1


def test_the_other_way_round_an_old_push_is_a_replay() -> None:
    wire, world = registered(group=group_config(rekey_address=None))
    world.rekey()
    first = wire.waiting[0]
    wire.settle()
    world.rekey()
    wire.settle()
    wire.run(5)
    before = len(wire.sent)
    world.member.hear(first.datagram, first.source)
    assert len(wire.sent) == before
