"""ACKs judged many at a time: what comes of each is what :mod:`ack_ledger` says of it alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdoi_plugin.protocol import ack_gate, ack_ledger
from gdoi_plugin.protocol.ack import base_key, build_ack
from gdoi_plugin.protocol.actions import Action, Drop, Dropped, Event, Peer, Persist
from gdoi_plugin.protocol.forest import LkhPolicy
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.key_server import KeyServer
from gdoi_plugin.protocol.policy import TEK_SUITES
from gdoi_plugin.protocol.roster import ack_id, endpoint_octets, peer_of
from gdoi_plugin.protocol.tek_policy import TekConfig
from gdoi_plugin.wire.identification import Identification
from gdoi_plugin.wire.registry import AckType, IdType
from tests.protocol.test_push import new_kek
from tests.support.clone import clone
from tests.support.forge import flip, make_ack
from tests.support.worlds import (
    FLOW,
    GROUP_ID,
    SERVER,
    STRANGER,
    World,
    group_config,
    member_peer,
    registered,
)

KEK_SHA256, LKH_SHA256, KEK_SHA512, LKH_SHA512 = AckType
MEMBERS = 5
OUTSIDE, INSIDE = ip_address("198.51.100.9"), ip_address("192.168.1.5")
EXEMPT = Identity.of_address(member_peer(4).host)
# Policies that ACKs are judged by, each in its own way.
VARIANTS: dict[str, dict[str, Any]] = {
    "kek-sha256": {},
    "kek-sha512": {"ack": KEK_SHA512},
    "lkh-sha256": {"ack": LKH_SHA256, "lkh": LkhPolicy(members=16)},
    "lkh-sha512": {"ack": LKH_SHA512, "lkh": LkhPolicy(members=16)},
    "another-l": {"ack_l": (256, 128)},
    "exempt": {"ack_exempt": frozenset({EXEMPT})},
    "not-asked": {"ack": None},
    "unicast": {"rekey_address": None},
    "nat": {},
    "new-kek": {},
    "second-attempt": {},
    "parts": {"push_limit": 700},
}
Arrived = tuple[bytes, Peer]


def world_of(variant: str) -> World:
    """Everybody registered, a rekey said, no ACK delivered."""
    config = group_config(MEMBERS, **VARIANTS[variant])
    if variant == "parts":
        flows = [replace(FLOW, destination=FLOW.destination + n) for n in range(12)]
        teks = tuple(TekConfig(flow, TEK_SUITES["aes256-sha256"]) for flow in flows)
        config = replace(config, teks=teks)
    wire, world = registered(MEMBERS, group=config, member_changes={"ack_jitter": 0.0})
    if variant == "nat":
        _move_behind_nat(world)
    world.rekey(kek=variant == "new-kek")
    if variant == "second-attempt":
        wire.waiting.clear()
        wire.run(11)
    return world


def _move_behind_nat(world: World) -> None:
    """Two members behind one address, one of them with the inner address of a third elsewhere."""
    roster = world.group.roster
    for number, (index, outside) in enumerate(((1, OUTSIDE), (2, OUTSIDE), (3, STRANGER.host))):
        known = roster.members[Identity.of_address(member_peer(index).host)]
        moved = replace(known, address=Peer(outside, 4500 + number), behind_nat=True)
        roster.add(moved)


def ack_types(world: World) -> list[int]:
    config = world.group.config
    return [config.ack] if config.ack is not None else [KEK_SHA256]


def pool_of(world: World) -> list[Arrived]:
    """Good ACKs, copies from elsewhere, and what nobody should have sent."""
    group, pool = world.group, list[Arrived]()
    rekey = group.ledger[group.epoch]
    under = group.kek_of(rekey.kek_spi)
    assert under is not None
    kinds = [*ack_types(world), KEK_SHA512]
    for member in group.members.values():
        leaf = group.leaf_key(member.identity)
        for kind in kinds:
            base = base_key(kind, under.kek, leaf)
            if base is None:
                continue
            who = [Identity.of_address(host).payload() for host in sorted(member.claims, key=str)]
            who.append(Identity.of_address(INSIDE).payload())
            who.append(group.config.group_id.payload())
            who.append(Identification(IdType.ID_FQDN, b"gm.x"))
            for payload in who:
                for seq in (*rekey.seqs, 77):
                    pool.append((build_ack(kind, base, under.kek, seq, payload), member.address))
    good = pool[0][0]
    pool += [(good, peer) for peer in (STRANGER, member_peer(1), Peer(member_peer(0).host, 9))]
    pool += [(good[:n], member_peer(0)) for n in range(len(good))]
    pool += [(good + bytes(n), member_peer(0)) for n in (1, 4, 1200)]
    pool += [(flip(good, n, n % 8), member_peer(0)) for n in range(len(good))]
    pool += [(flip(good, n, bit), STRANGER) for n in range(16, 32) for bit in range(8)]
    pool += [(flip(good, n, bit), member_peer(0)) for n in range(64, len(good)) for bit in range(8)]
    pool.append((make_ack(new_kek(), 1, member_peer(0).host), member_peer(0)))
    pool.append((make_ack(under.kek, 1, ip_address("2001:db8::1")), member_peer(0)))
    return pool


@dataclass
class Prepared:
    engine: KeyServer
    pool: list[Arrived]
    now: float


@cache
def prepared(variant: str) -> Prepared:
    world = world_of(variant)
    return Prepared(world.server.engine, pool_of(world), world.now + 1)


def one_by_one(engine: KeyServer, arrived: Sequence[Arrived], now: float) -> list[Drop | None]:
    """What the ledger says of each alone; None: it counted."""
    return [_verdict(engine.receive(datagram, peer, SERVER, now)) for datagram, peer in arrived]


def _verdict(actions: Sequence[Action]) -> Drop | None:
    drops = [action.reason for action in actions if isinstance(action, Dropped)]
    return drops[0] if drops else None


def each_through_the_gate(
    engine: KeyServer, arrived: Sequence[Arrived], now: float
) -> list[Drop | None]:
    verdicts: list[Drop | None] = []
    for datagram, peer in arrived:
        refused, actions = engine.acks([datagram], [endpoint_octets(peer)], SERVER, now)
        verdicts.append(next(iter(refused), None) or _verdict(actions))
    return verdicts


def all_at_once(engine: KeyServer, arrived: Sequence[Arrived], now: float) -> Counter[Drop]:
    endpoints = [endpoint_octets(peer) for _, peer in arrived]
    refused, actions = engine.acks([datagram for datagram, _ in arrived], endpoints, SERVER, now)
    reasons = Counter({reason: len(places) for reason, places in refused.items()})
    reasons.update(action.reason for action in actions if isinstance(action, Dropped))
    return reasons


def ledger_of(engine: KeyServer) -> list[Any]:
    group = engine.groups[GROUP_ID]
    pages = [(r.epoch, dict(r.acknowledged), r.partial, r.closed) for r in group.ledger.values()]
    return [pages, sorted(map(repr, group.members.values()))]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_gate_and_the_ledger_agree_on_every_datagram(variant: str) -> None:
    start = prepared(variant)
    alone, gate, many, ready = (clone(start.engine) for _ in range(4))
    twice = start.pool * 2
    said = one_by_one(alone, twice, start.now)
    each = each_through_the_gate(gate, twice, start.now)
    differing = [
        (place, twice[place], a, b)
        for place, (a, b) in enumerate(zip(said, each, strict=True))
        if a != b
    ]
    assert differing == []
    # Several ACKs of one member in a row are all counted before any is undecided.
    while ready.ledger.gate.prepare(3):
        pass
    for engine in (many, ready):
        all_at_once(engine, twice, start.now)
        assert ledger_of(engine)[0] == ledger_of(alone)[0]
    assert ledger_of(gate) == ledger_of(alone)
    assert (None in said) is (variant != "not-asked"), "some of them were good"


@pytest.mark.parametrize("variant", ["kek-sha256", "lkh-sha256", "nat", "exempt"])
@given(st.data())
def test_the_same_in_any_order(variant: str, data: st.DataObject) -> None:
    start = prepared(variant)
    places = st.integers(0, len(start.pool) - 1)
    chosen = [start.pool[n] for n in data.draw(st.lists(places, max_size=40))]
    alone, gate = clone(start.engine), clone(start.engine)
    if data.draw(st.booleans()):
        gate.ledger.gate.prepare(1 << 20)
    assert each_through_the_gate(gate, chosen, start.now) == one_by_one(alone, chosen, start.now)
    assert ledger_of(gate) == ledger_of(alone)


@cache
def counted_first(variant: str) -> list[Arrived]:
    """Good ACKs of the usual length."""
    start = prepared(variant)
    said = one_by_one(clone(start.engine), start.pool, start.now)
    found = [a for a, drop in zip(start.pool, said, strict=True) if drop is None]
    return [arrived for arrived in found if len(arrived[0]) == len(found[0][0])]


def said_of_each(engine: KeyServer, arrived: Sequence[Arrived], now: float) -> list[Drop | None]:
    """By the gate; None: it counted or is not decided."""
    verdicts = judged(engine, arrived, now)
    said: list[Drop | None] = [None] * len(arrived)
    for drop, places in verdicts.refused.items():
        for place in places:
            said[place] = drop
    assert all(said[place] is None for place in verdicts.undecided)
    return said


@pytest.mark.parametrize("variant", ["kek-sha256", "lkh-sha256", "nat", "another-l", "exempt"])
@settings(max_examples=60)
@given(st.data())
def test_acks_of_one_push_are_judged_together_as_each_alone(
    variant: str, data: st.DataObject
) -> None:
    """Where all are as long as the first, and that is one of a PUSH that is known already."""
    start = prepared(variant)
    together, singly = clone(start.engine), clone(start.engine)
    good = counted_first(variant)
    pool = [arrived for arrived in start.pool if len(arrived[0]) == len(good[0][0])]
    bent = [(flip(ack, octet, 1), peer) for ack, peer in good[:3] for octet in (3, 17, 40, 70, 83)]
    some = st.sampled_from(good) | st.sampled_from(bent) | st.sampled_from(pool)
    chosen = [good[0], *data.draw(st.lists(some, min_size=1, max_size=30))]
    limit = data.draw(st.sampled_from([0, 2, 100]))
    for engine in (together, singly):
        engine.ledger.gate.prepare(limit)
        judged(engine, [good[0]], start.now)
    each = [said_of_each(singly, [arrived], start.now)[0] for arrived in chosen]
    assert said_of_each(together, chosen, start.now) == each
    pages = [engine.ledger.gate.pages for engine in (together, singly)]
    assert pages[0].keys() == pages[1].keys()
    for key, page in pages[0].items():
        assert (page.fresh, page.heard) == (pages[1][key].fresh, pages[1][key].heard)


def good_acks(engine: KeyServer) -> list[Arrived]:
    group = engine.groups[GROUP_ID]
    rekey = group.ledger[group.epoch]
    under = group.kek_of(rekey.kek_spi)
    assert under is not None
    return [
        (make_ack(under.kek, rekey.seqs[-1], m.address.host), m.address)
        for m in group.members.values()
    ]


def judged(engine: KeyServer, arrived: Sequence[Arrived], now: float = 1e9) -> Any:
    return engine.ledger.gate.judge(
        [datagram for datagram, _ in arrived], [endpoint_octets(p) for _, p in arrived], now
    )


def test_usual_acks_are_decided_by_the_gate_alone() -> None:
    for variant in ("kek-sha256", "unicast", "second-attempt"):
        engine = clone(prepared(variant).engine)
        verdicts = judged(engine, good_acks(engine) * 2)
        assert verdicts.undecided == []
        assert verdicts.refused == {Drop.ACK_DUPLICATE: list(range(MEMBERS, 2 * MEMBERS))}
        (persist,) = engine.ledger.unsaved()
        assert len(persist.record["entries"]) == MEMBERS  # type: ignore[arg-type]
        assert engine.ledger.unsaved() == []


def test_a_bad_hash_costs_one_hmac_and_spoils_nothing() -> None:
    engine = clone(prepared("kek-sha256").engine)
    first, (good, peer), *_ = good_acks(engine)
    judged(engine, [first])
    bad = (flip(good, 40, 1), peer)
    verdicts = judged(engine, [first, bad, bad, (good, peer)])
    assert verdicts.refused == {Drop.ACK_DUPLICATE: [0, 2], Drop.ACK_BAD_HASH: [1]}
    assert verdicts.undecided == []
    (page,) = engine.ledger.gate.pages.values()
    assert len(page.fresh) == 2


def test_what_was_computed_before_needs_no_prf(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = clone(prepared("kek-sha256").engine)
    while engine.ledger.gate.prepare(2):
        pass
    monkeypatch.setattr(ack_gate.AckGate, "_look_up", None)
    assert judged(engine, good_acks(engine)).refused == {}
    assert len(engine.ledger.unsaved()) == 1


def test_nothing_is_kept_for_a_rekey_that_is_closed() -> None:
    engine = clone(prepared("kek-sha256").engine)
    gate = engine.ledger.gate
    gate.prepare(100)
    assert len(gate._expected_acks) == MEMBERS
    engine.tick(prepared("kek-sha256").now + 1000)
    for rekey in engine.groups[GROUP_ID].ledger.values():
        rekey.closed = True
    judged(engine, [])
    assert gate._expected_acks == {}


def test_an_ack_is_told_of_when_it_is_saved() -> None:
    """And counted, and its rekey closed."""
    engine = clone(prepared("kek-sha256").engine)
    engine.ledger.deferred, now = True, prepared("kek-sha256").now
    group = engine.groups[GROUP_ID]
    rekey = group.ledger[group.epoch]
    arrived = good_acks(engine)
    _, actions = engine.acks(
        [d for d, _ in arrived], [endpoint_octets(p) for _, p in arrived], SERVER, now
    )
    assert actions == []
    assert len(rekey.acknowledged) == 0
    assert engine.receive(*arrived[0], SERVER, now) != [], "a duplicate, though it is not saved"
    records = engine.ledger.unsaved()
    told = engine.ledger.saved(records, now + 1)
    names = [action.name for action in told if isinstance(action, Event)]
    assert names == ["rekey-acked"] * MEMBERS + ["rekey-closed"]
    assert next(a.kind for a in told if isinstance(a, Persist)) == "rekey"
    assert len(rekey.acknowledged) == MEMBERS
    assert all(member.acknowledged == 1 for member in group.members.values())
    assert list(rekey.acknowledged.values()) == pytest.approx([now] * MEMBERS)


def test_of_many_there_is_one_event_and_single_ones_for_who_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ack_ledger, "TOLD_SINGLY", MEMBERS - 1)
    for each in (True, False):
        engine = clone(prepared("kek-sha256").engine)
        judged(engine, good_acks(engine))
        told = engine.ledger.saved(engine.ledger.unsaved(), 1e9, each=each)
        events = [action for action in told if isinstance(action, Event)]
        (summary,) = [event for event in events if event.name == "rekey-acks"]
        assert summary.fields["count"] == summary.fields["acknowledged"] == MEMBERS
        singles = [event for event in events if event.name == "rekey-acked"]
        assert len(singles) == (MEMBERS if each else 0)
        assert {event.level for event in singles} <= {"debug"}


def test_endpoints_and_ids_as_octets() -> None:
    for peer in (Peer(ip_address("192.0.2.7"), 848), Peer(ip_address("2001:db8::7"), 4500)):
        assert peer_of(endpoint_octets(peer)) == peer
    good = make_ack(new_kek(), 5, member_peer(0).host)
    assert good.endswith(ack_id(member_peer(0).host))


def test_no_more_acks_are_computed_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member behind a NAT may name either of two addresses."""
    monkeypatch.setattr(ack_gate, "MAX_EXPECTED", MEMBERS)
    engine = clone(prepared("kek-sha256").engine)
    roster = engine.groups[GROUP_ID].roster
    for number, member in enumerate(list(roster.members.values())):
        outside = Peer(ip_address("198.51.100.1") + number, 4500)
        roster.add(replace(member, address=outside, behind_nat=True))
    while engine.ledger.gate.prepare(3):
        pass
    assert engine.ledger.gate.prepare(3) is False
    assert MEMBERS <= len(engine.ledger.gate._expected_acks) <= MEMBERS + 1


def test_an_ack_whose_seq_counts_no_more_when_it_is_saved() -> None:
    """The rekey has been said again, in other parts, while it was on its way to the store."""
    engine = clone(prepared("kek-sha256").engine)
    engine.ledger.deferred = True
    group, arrived = engine.groups[GROUP_ID], good_acks(engine)
    rekey = group.ledger[group.epoch]
    judged(engine, arrived[:2], prepared("kek-sha256").now)
    records = engine.ledger.unsaved()
    rekey.split_into(3, 0, ())
    rekey.seqs.append(9)
    engine.ledger.saved(records, prepared("kek-sha256").now)
    assert len(rekey.acknowledged) == 2


def test_the_length_in_the_header_is_that_of_the_datagram() -> None:
    """Also where the same octets have led an ACK with another ID."""
    start = prepared("kek-sha256")
    alone, gate = clone(start.engine), clone(start.engine)
    for engine in (alone, gate):
        roster = engine.groups[GROUP_ID].roster
        member = roster.members[Identity.of_address(member_peer(1).host)]
        roster.add(replace(member, address=Peer(ip_address("2001:db8::1"), 848)))
    first, second = good_acks(alone)[0], good_acks(alone)[-1]
    assert len(first[0]) < len(second[0])
    longer = second[0][:24] + first[0][24:28] + second[0][28:]
    arrived = [first, (longer, second[1])]
    said = one_by_one(alone, arrived, start.now)
    assert said == [None, Drop.MALFORMED]
    assert each_through_the_gate(gate, arrived, start.now) == said
