"""Phase 1 under attack: what the key server remembers and computes for whoever asks is bounded."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Sequence
from ipaddress import IPv4Address, ip_address

import pytest

from gdoi_plugin.crypto import groups
from gdoi_plugin.protocol import limits, offers
from gdoi_plugin.protocol.actions import Action, Drop, Dropped, Peer
from gdoi_plugin.protocol.cookies import SECRET_LIFETIME
from gdoi_plugin.protocol.limits import Limits
from gdoi_plugin.protocol.main_mode import Initiator
from gdoi_plugin.protocol.nat import Path
from gdoi_plugin.protocol.responder import REFUSALS
from gdoi_plugin.protocol.sessions import MAX_ESTABLISHED_PER_IDENTITY
from gdoi_plugin.wire.header import Header, pull_header
from gdoi_plugin.wire.message import encode_clear
from gdoi_plugin.wire.opaque import VendorId
from gdoi_plugin.wire.registry import ExchangeType, Group
from tests.support.forge import flip, only_drop
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
    wired,
)

GM = member_peer(0)
LIMITS = Limits()


def initiator(number: int, source: Peer = GM, **changes: object) -> Initiator:
    """The member's side of exchange ``number``."""
    cookie = number.to_bytes(8, "big")
    return Initiator(member_phase1(source, **changes), Path(source, SERVER), cookie, bytes(32))


def first(number: int, source: Peer = GM, **changes: object) -> bytes:
    """Message 1 of exchange ``number``."""
    return initiator(number, source, **changes).start()


def answer_to(actions: Sequence[Action]) -> bytes:
    (send,) = sends(actions)
    return send.datagram


def third(world: World, number: int, source: Peer = GM) -> bytes:
    """Message 3 of exchange ``number``, after its message 1."""
    member = initiator(number, source)
    answer = answer_to(world.server.hear(member.start(), source))
    message3 = member.receive(pull_header(answer), answer, world.now)
    assert message3 is not None
    return message3


def serving(**options: object) -> World:
    world = build(Wire(), **options)  # type: ignore[arg-type]
    world.server.start()
    return world


def responder_with(bounds: Limits) -> World:
    """Everybody is known there."""
    return serving(phase1_for=server_phase1, limits=bounds)


def hosts(count: int) -> list[Peer]:
    return [Peer(IPv4Address("10.7.0.0") + i, 848) for i in range(count)]


# -- message 1 -----------------------------------------------------------------------------------


def test_strangers_get_silence() -> None:
    world = serving()
    before = snapshot(world.server.engine)
    heard = world.server.hear(first(1, STRANGER), STRANGER)
    assert only_drop(heard) is Drop.UNKNOWN_PEER
    assert snapshot(world.server.engine) == before


def test_message_1_is_answered_and_forgotten() -> None:
    """A hundred thousand of them, from forged addresses, the member's own included."""
    sources = [GM, *hosts(999)]
    policies = {source: server_phase1(source) for source in sources}
    world = serving(phase1_for=policies.get)
    engine = world.server.engine
    rest = first(1)[8:]

    def flood(numbers: range) -> None:
        for number in numbers:
            datagram = number.to_bytes(8, "big") + rest
            assert len(engine.receive(datagram, sources[number % 1000], SERVER, world.now)) == 1

    flood(range(1, 2))
    before = snapshot(engine)
    flood(range(2, 90_000))
    tracemalloc.start()
    try:
        held, _ = tracemalloc.get_traced_memory()
        flood(range(90_000, 100_001))
        now, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now - held < 5_000
    assert most - held < 20_000
    assert snapshot(engine) == before
    world.member.start()
    world.network.settle()  # type: ignore[attr-defined]
    assert world.converged(), "and it can still register"


def test_repeated_message_1_gets_the_same_answer_and_another_one_another() -> None:
    world = serving()
    answers = [answer_to(world.server.hear(first(1), GM)) for _ in range(3)]
    assert len(set(answers)) == 1
    assert answer_to(world.server.hear(first(2), GM))[8:16] != answers[0][8:16]
    elsewhere = Peer(GM.host, GM.port + 1)
    assert answer_to(world.server.hear(first(1), elsewhere))[8:16] != answers[0][8:16]


def test_message_1_that_is_not_one_leaves_nothing() -> None:
    world = serving()
    before = snapshot(world.server.engine)
    header = Header(b"\xee" * 8, bytes(8), 0, ExchangeType.MAIN_MODE)
    no_sa = encode_clear(header, [VendorId(b"x")])
    no_cookie = bytes(8) + first(1)[8:]
    another_version = first(1)[:17] + b"\x20" + first(1)[18:]
    huge = first(1)[:24] + (9000).to_bytes(4, "big") + first(1)[28:] + bytes(9000 - len(first(1)))
    with_id = first(1)[:20] + b"\0\0\0\1" + first(1)[24:]
    for datagram in (no_sa, no_cookie, another_version, huge, with_id, first(1)[:-1]):
        assert only_drop(world.server.hear(datagram, GM)) is Drop.MALFORMED
        if datagram != no_cookie:
            assert snapshot(world.server.engine) == before
            assert len(world.server.engine.isakmp.offers) == 0
        else:
            world = serving()
            before = snapshot(world.server.engine)


def test_new_offers_are_parsed_at_a_bounded_rate_and_known_ones_answered_at_any() -> None:
    world = serving()
    world.server.hear(first(1), GM)
    burst = int(limits.BURST_SECONDS * LIMITS.offers)
    heard = [world.server.hear(first(1, lifetime=900 + n), GM) for n in range(2 * burst)]
    assert [bool(sends(actions)) for actions in heard] == [n < burst - 1 for n in range(2 * burst)]
    assert only_drop(heard[-1]) is Drop.OFFER_LIMIT
    assert answer_to(world.server.hear(first(2), GM)), "a known one"
    world.network.run(1.0)
    heard = [world.server.hear(first(1, lifetime=9000 + n), GM) for n in range(2 * LIMITS.offers)]
    assert sum(len(sends(actions)) for actions in heard) == LIMITS.offers


def test_a_broken_message_1_is_read_once_however_often_it_comes() -> None:
    world = serving()
    broken = bytearray(first(1))
    broken[28 + 15] = 200  # more transforms than there are
    for _ in range(3 * LIMITS.offers):
        assert only_drop(world.server.hear(bytes(broken), GM)) is Drop.MALFORMED
    assert answer_to(world.server.hear(first(2), GM))


def test_offers_nobody_completed_go_round_and_the_others_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(offers, "MAX_UNPROVED", 20)
    wire, world = registered()
    table = world.server.engine.isakmp.offers
    assert (len(table), table.proved) == (1, 1)
    numbers = set()
    for lifetime in range(1000, 1100):
        answer = answer_to(world.server.hear(first(1, lifetime=lifetime), GM))
        numbers.add(int.from_bytes(answer[8:10], "big") & 0x7FFF)
        assert len(table) <= 21
    assert (len(table), table.proved) == (21, 1)
    assert numbers == set(range(2, 22))
    world.member.restart()
    wire.settle()
    assert world.converged()


def test_an_offer_that_went_takes_its_cookies_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offers, "MAX_UNPROVED", 1)
    world = serving()
    message3 = third(world, 1)
    world.server.hear(first(2, lifetime=1000), GM)
    assert only_drop(world.server.hear(message3, GM)) is Drop.UNKNOWN_COOKIES


def test_no_proposal_chosen_is_said_a_few_times_a_second() -> None:
    world = serving(phase1_for=lambda p: server_phase1(p, suites=()))
    heard = [world.server.hear(first(n), GM) for n in range(1, 100)]
    drops = [a.reason for actions in heard for a in actions if isinstance(a, Dropped)]
    assert drops == [Drop.NO_PROPOSAL] * 99
    assert sum(len(sends(actions)) for actions in heard) == limits.BURST_SECONDS * REFUSALS


# -- message 3 -----------------------------------------------------------------------------------


def test_any_other_cookie_is_none() -> None:
    world = serving()
    message3 = third(world, 1)
    before = snapshot(world.server.engine)
    for offset in range(8 * 8):
        forged = flip(message3, 8 + offset // 8, offset % 8)
        assert only_drop(world.server.hear(forged, GM)) is Drop.UNKNOWN_COOKIES
    for source in (member_peer(1), Peer(GM.host, 4500)):
        assert only_drop(world.server.hear(message3, source)) is Drop.UNKNOWN_COOKIES
    assert snapshot(world.server.engine) == before
    assert answer_to(world.server.hear(message3, GM))


def test_a_cookie_lives_one_to_two_times_a_secret() -> None:
    world = serving()
    message3 = third(world, 1)
    world.network.run(SECRET_LIFETIME)
    assert answer_to(world.server.hear(message3, GM))
    message3 = third(world, 2)
    world.network.run(2 * SECRET_LIFETIME)
    assert only_drop(world.server.hear(message3, GM)) is Drop.UNKNOWN_COOKIES


def test_message_3_computes_so_often_for_one_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeats are answered from memory; another source has a share of its own."""
    world = serving(members=2)
    computed = []
    ours = groups.generate

    def counting(group: Group) -> groups.PrivateValue:
        computed.append(group)
        return ours(group)

    burst = int(limits.BURST_SECONDS * LIMITS.work_per_source)
    messages = [third(world, number) for number in range(1, 3 * burst)]
    other = third(world, 1, member_peer(1))
    monkeypatch.setattr(groups, "generate", counting)
    for _ in range(3):
        for message in messages:
            world.server.hear(message, GM)
    assert len(computed) == burst
    assert answer_to(world.server.hear(other, member_peer(1)))
    world.network.run(1.0)
    for message in messages:
        world.server.hear(message, GM)
    assert len(computed) == burst + 1 + LIMITS.work_per_source


def test_message_5_is_checked_so_often_for_one_source() -> None:
    """By somebody who reads the traffic: nobody else knows the cookies."""
    wire, world = wired()
    world.start()
    wire.pass_on(4)
    message5 = wire.take().datagram
    burst = int(limits.BURST_SECONDS * LIMITS.work_per_source)
    forged = [flip(message5, 28 + n, bit) for n in range(20) for bit in range(8)]
    heard = [only_drop(world.server.hear(datagram, GM)) for datagram in forged]
    assert Drop.SOURCE_LIMIT not in heard[: burst - 1]
    assert set(heard[burst - 1 :]) == {Drop.SOURCE_LIMIT}
    wire.run(1.0)
    assert answer_to(world.server.hear(message5, GM)), "and the true one is still taken"


def test_an_ipv6_site_is_one_source() -> None:
    """Somebody with a /64 has more addresses than there could be entries."""
    bounds = Limits(work_per_source=5)
    world = responder_with(bounds)
    site = [Peer(ip_address("2001:db8::") + n, 848) for n in range(20)]
    messages = [third(world, 1, source) for source in site]
    answered = [bool(sends(world.server.hear(m, s))) for m, s in zip(messages, site, strict=True)]
    assert answered == [True] * 10 + [False] * 10
    other = Peer(ip_address("2001:db8:0:1::1"), 848)
    assert answer_to(world.server.hear(third(world, 1, other), other))


def test_budgets_are_kept_for_so_many_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SOURCES", 10)
    world = responder_with(LIMITS)
    for source in hosts(30):
        world.server.hear(third(world, 1, source), source)
    assert len(world.server.engine.isakmp._work) == 10


# -- half-open exchanges -------------------------------------------------------------------------


def opened(world: World, number: int, source: Peer = GM) -> bytes:
    """Cookies of a half-open exchange."""
    return answer_to(world.server.hear(third(world, number, source), source))[:16]


def test_one_source_has_its_share_and_no_more() -> None:
    bounds = Limits(half_open_per_source=8, work_per_source=1000)
    world = responder_with(bounds)
    engine = world.server.engine.isakmp
    other = opened(world, 1, member_peer(1))
    mine = [opened(world, number) for number in range(1, 30)]
    assert list(engine.half_open) == [other, *mine[-8:]], "the oldest of the same source went"
    assert engine.evicted == {"source": 21}


def test_a_full_table_makes_room_at_the_cost_of_who_has_most() -> None:
    bounds = Limits(half_open=10, half_open_per_source=6, work_per_source=1000)
    world = responder_with(bounds)
    engine = world.server.engine.isakmp
    peers = hosts(20)
    greedy = [opened(world, number) for number in range(1, 7)]
    modest = [opened(world, 1, peer) for peer in peers[:4]]
    assert list(engine.half_open) == greedy + modest
    modest += [opened(world, 1, peer) for peer in peers[4:9]]
    assert list(engine.half_open) == greedy[5:] + modest, "five for five newcomers"
    modest += [opened(world, 1, peer) for peer in peers[9:12]]
    assert list(engine.half_open) == modest[-10:], "where all have one, the oldest"
    assert engine.evicted == {"total": 8}
    world.network.run(LIMITS.half_open_lifetime + 1)
    assert (engine.half_open, engine._by_source) == ({}, {})


def test_half_open_exchanges_end_after_their_time() -> None:
    world = serving()
    opened(world, 1)
    world.network.run(39)
    assert len(world.server.engine.isakmp.half_open) == 1
    world.network.run(2)
    assert world.server.engine.isakmp.half_open == {}
    assert world.server.engine.isakmp._by_source == {}


def test_a_message_3_replayed_after_its_exchange_was_forgotten() -> None:
    """It opens another one, with a nonce and a public value of its own: nothing comes back."""
    world = serving()
    world.network.run(1.0)
    message3 = third(world, 1)
    one = answer_to(world.server.hear(message3, GM))
    world.network.run(LIMITS.half_open_lifetime + 1)
    assert world.server.engine.isakmp.half_open == {}
    two = answer_to(world.server.hear(message3, GM))
    assert one[:16] == two[:16]
    assert one[32:] != two[32:]
    assert world.server.engine.isakmp.sessions == {}


def test_a_message_3_replayed_after_phase_1_gets_the_old_answer() -> None:
    wire, world = registered()
    message3, answer = (wire.sent[n][1] for n in (2, 3))
    before = snapshot(world.server.engine)
    assert answer_to(world.server.hear(message3.datagram, GM)) == answer.datagram
    assert snapshot(world.server.engine) == before


def test_a_message_3_of_64_kilobytes_is_not_kept() -> None:
    wire, world = wired()
    world.start()
    wire.pass_on(2)
    message3 = wire.take().datagram
    long = message3[:24] + (60_000).to_bytes(4, "big") + message3[28:]
    chain = encode_clear(pull_header(message3), [VendorId(bytes(60_000 - 32))])[28:]
    spliced = long[: 28 + 0] + long[28:] + chain
    # The last payload of message 3 is followed by a vendor ID.
    last = 28 + int.from_bytes(message3[30:32], "big")
    octets = bytearray(spliced)
    octets[last] = 43
    octets[24:28] = len(octets).to_bytes(4, "big")
    gc.collect()
    tracemalloc.start()
    try:
        answer_to(world.server.engine.receive(bytes(octets), GM, SERVER, world.now))
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 20_000


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


# -- phase-1 SAs ---------------------------------------------------------------------------------


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


def test_half_open_is_left_by_the_member_that_registers_at_the_same_time() -> None:
    """An address that is being forged, by somebody who is not there, costs its owner nothing."""
    wire, world = wired()
    world.server.start()
    for number in range(1, 2000):
        world.server.hear(first(number), GM)
    wire.waiting.clear()
    world.member.start()
    wire.settle()
    assert world.converged()
    assert world.server.engine.isakmp.evicted == {}
