"""What the gate keeps in memory of members, keys and policies does not outlive their changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from gdoi_plugin.protocol.ack import base_key, build_ack
from gdoi_plugin.protocol.actions import Peer
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.key_server import KeyServer
from gdoi_plugin.protocol.nat import Path
from gdoi_plugin.protocol.roster import Registrant
from tests.protocol.test_ack_gate import (
    OUTSIDE,
    VARIANTS,
    Arrived,
    all_at_once,
    each_through_the_gate,
    ledger_of,
    one_by_one,
    prepared,
)
from tests.support.clone import clone
from tests.support.forge import flip
from tests.support.worlds import GROUP_ID, SERVER, STRANGER, member_peer

STEPS = 12
Change = Callable[[KeyServer, Random, float], None]


def _member(engine: KeyServer, rng: Random) -> Registrant:
    return rng.choice(list(engine.groups[GROUP_ID].members.values()))


def _registers_again(engine: KeyServer, rng: Random, now: float) -> None:
    group, known = engine.groups[GROUP_ID], _member(engine, rng)
    member = group.registrant(known.identity, Path(SERVER, known.address), now)
    tree = group.sas[member.sa].tree
    if tree is not None and not tree.holds(member.leaf):
        member.leaf = tree.join(engine.random)
    group.roster.add(member)


def _moves(engine: KeyServer, rng: Random, now: float) -> None:  # noqa: ARG001
    member = _member(engine, rng)
    to = Peer(rng.choice([OUTSIDE, STRANGER.host, member.address.host]), rng.choice([848, 4500]))
    engine.groups[GROUP_ID].roster.move(member.identity, to, None)


def _behind_nat(engine: KeyServer, rng: Random, now: float) -> None:  # noqa: ARG001
    member = _member(engine, rng)
    engine.groups[GROUP_ID].roster.add(replace(member, behind_nat=not member.behind_nat))


def _leaves_and_is_back(engine: KeyServer, rng: Random, now: float) -> None:
    group, member = engine.groups[GROUP_ID], _member(engine, rng)
    group.roster.remove(member.identity)
    back, tree = Registrant(member.identity, member.address, now), group.sas[0].tree
    back.leaf = tree.join(engine.random) if tree is not None and not tree.full else 0
    group.roster.add(back)


def _leaves(engine: KeyServer, rng: Random, now: float) -> None:  # noqa: ARG001
    """All but the last: what was computed ahead for it counts no more."""
    roster = engine.groups[GROUP_ID].roster
    if len(roster.members) > 1:
        roster.remove(_member(engine, rng).identity)


def _where_another_is(engine: KeyServer, rng: Random, now: float) -> None:  # noqa: ARG001
    one, other = _member(engine, rng), _member(engine, rng)
    engine.groups[GROUP_ID].roster.add(replace(one, address=other.address))


def _other_readings_of_l(engine: KeyServer, rng: Random, now: float) -> None:  # noqa: ARG001
    group = engine.groups[GROUP_ID]
    group.config = replace(group.config, ack_l=rng.choice([(), (128,), (256,)]))


def _exempt(engine: KeyServer, rng: Random, now: float) -> None:  # noqa: ARG001
    group, member = engine.groups[GROUP_ID], _member(engine, rng)
    chosen = rng.choice([frozenset({member.identity}), frozenset[Identity]()])
    group.config = replace(group.config, ack_exempt=chosen)


def _rekey(engine: KeyServer, rng: Random, now: float) -> None:
    engine.rekey(GROUP_ID, now, "operator", kek=rng.random() < 0.5)
    engine.sent(now)


def _clean_slate(engine: KeyServer, rng: Random, now: float) -> None:  # noqa: ARG001
    engine.delete_group(GROUP_ID, now)
    engine.sent(now)


def _time_goes_by(engine: KeyServer, rng: Random, now: float) -> None:  # noqa: ARG001
    engine.tick(now)
    engine.sent(now)


CHANGES: tuple[Change, ...] = (
    _registers_again,
    _moves,
    _behind_nat,
    _leaves_and_is_back,
    _leaves,
    _where_another_is,
    _other_readings_of_l,
    _exempt,
    _rekey,
    _clean_slate,
    _time_goes_by,
)


def acks(engine: KeyServer, rng: Random) -> list[Arrived]:
    """Good ones of the last rekeys, from where they should and should not come, and bent ones."""
    group, found = engine.groups[GROUP_ID], list[Arrived]()
    for rekey in list(group.ledger.values())[-3:]:
        under = group.kek_of(rekey.kek_spi)
        if under is None:
            continue
        for member in group.members.values():
            for leaf in (group.leaf_key(member.identity), member.former_leaf):
                for base in filter(None, (base_key(t, under.kek, leaf) for t in rekey.ack_types)):
                    who = Identity.of_address(rng.choice(sorted(member.claims, key=str))).payload()
                    seq = rng.choice(rekey.seqs)
                    ack = build_ack(rekey.ack_types[0], base, under.kek, seq, who)
                    places = [member.address] * 3 + [STRANGER, OUTSIDE_PORT, member_peer(1)]
                    found.append((ack, rng.choice(places)))
                    found.append((flip(ack, rng.randrange(len(ack)), 3), member.address))
    return rng.sample(found, min(len(found), 40))


OUTSIDE_PORT = Peer(OUTSIDE, 4500)


@pytest.mark.parametrize("variant", sorted(set(VARIANTS) - {"not-asked"}))
def test_what_counts_is_the_same_after_any_change(variant: str) -> None:
    start, rng = prepared(variant), Random(variant)
    engine, now, late = clone(start.engine), start.now, list[Arrived]()
    changed, counted = list[str](), 0
    for _ in range(STEPS):
        now += rng.choice([0, 1, 12])
        if rng.random() < 0.7:
            engine.ledger.gate.prepare(1000)
        change = rng.choice(CHANGES)
        changed.append(change.__name__)
        under_way = acks(engine, rng)[:15]
        change(engine, rng, now)
        arrived = under_way + acks(engine, rng) + late
        late = rng.sample(arrived, min(len(arrived), 10))
        alone, gate = clone(engine), clone(engine)
        said = [drop is None for drop in one_by_one(alone, arrived, now)]
        each = [drop is None for drop in each_through_the_gate(gate, arrived, now)]
        assert each == said, changed
        assert ledger_of(gate)[0] == ledger_of(alone)[0], changed
        counted += sum(said)
        all_at_once(engine, arrived[: rng.randrange(len(arrived) + 1) // 4], now)
    assert counted > 0, "some of them were good"
