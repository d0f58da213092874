"""The simulation against what can be computed exactly, and against the engines themselves."""

from __future__ import annotations

import dataclasses
import statistics
from math import sqrt
from random import Random
from typing import Any

import pytest
from gdoi_bench.population import Network
from gdoi_bench.rollout import AckQueue, KeyServers, Outcome, Rollout, Scenario

from gdoi_plugin.protocol.forest import LkhPolicy
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.push import DEFAULT_PUSH_LIMIT
from gdoi_plugin.wire.registry import ExchangeType
from tests.support.simnet import Link
from tests.support.simnet import Network as SimulatedNetwork
from tests.support.worlds import GROUP_ID, build, group_config, member_peer

LOSS = 0.2
MEMBERS = 20_000
QUIET = Network(LOSS, 0.0, delay=0.01, jitter=0.02)


def _run(seed: int = 1, **changes: Any) -> Outcome:
    scenario = Scenario(MEMBERS, 2, network=QUIET, retransmissions=3, ack_jitter=2.0)
    return Rollout(dataclasses.replace(scenario, **changes), seed).run()


def assert_near(found: float, share: float, members: int = MEMBERS) -> None:
    """Within five standard deviations of a binomial number."""
    spread = 5 * sqrt(members * share * (1 - share))
    assert found == pytest.approx(members * share, abs=spread)


def _lacking(outcome: Outcome, after: float, members: int = MEMBERS) -> float:
    return members * (1 - outcome.curve.share(after))


def test_tek_rekeys_are_missed_as_often_as_each_is_lost() -> None:
    """p^k have heard none of k; silent is also whose every ACK was lost."""
    outcome = _run()
    for attempt in range(1, 5):
        assert_near(_lacking(outcome, 10 * attempt), LOSS**attempt)
        assert_near(outcome.silent[attempt - 1], (1 - (1 - LOSS) ** 2) ** attempt)
    assert_near(outcome.missed, LOSS**4)
    assert outcome.pushes == 2 * 4
    assert _lacking(outcome, 1800) == 0, "they have registered again"


def test_an_eviction_s_update_comes_before_its_teks() -> None:
    """Who first hears the KEK at attempt j needs one of the TEKs' PUSHes from then on."""
    outcome = _run(evicted=40)
    members = MEMBERS - 40
    for attempt in range(1, 5):
        held = sum(
            LOSS ** (j - 1) * (1 - LOSS) * (1 - LOSS ** (attempt - j + 1))
            for j in range(1, attempt + 1)
        )
        assert_near(_lacking(outcome, 10 * attempt, members), 1 - held, members)
    assert outcome.octets / outcome.pushes <= DEFAULT_PUSH_LIMIT
    assert outcome.pushes > 100, "updates for forty leaves"


def test_paths_that_are_cut_off_for_long() -> None:
    network = Network(0.05, 0.2, 8.0, site=1, delay=0.0, jitter=0.0)
    outcome = _run(network=network)
    for attempt in range(1, 5):
        assert_near(_lacking(outcome, 10 * attempt - 1), network.missed(attempt, 10.0))


def test_unicast_goes_to_the_silent_alone_at_its_pace() -> None:
    """The last of 20,000 is told after 20 s; only then do the 10 s of waiting begin."""
    outcome = _run(unicast=True, servers=KeyServers(pace=1000), retransmissions=1)
    assert outcome.pushes == MEMBERS + outcome.silent[0]
    assert_near(_lacking(outcome, 20.1), LOSS)
    assert outcome.curve.reached(0.4) == pytest.approx(10, abs=0.5)
    assert_near(_lacking(outcome, 29.9), LOSS)
    assert_near(_lacking(outcome, 45), LOSS**2)


def test_acks_that_find_no_room_are_lost() -> None:
    """A thousand at once, where one can be read and 500 may wait; 300 until the time is over."""
    queue = AckQueue(KeyServers(acks=100, ack_buffer=500), Random(4))
    for member in range(1000):
        queue.add(0.0, member, 3)
    heard: list[tuple[int, int]] = []
    queue.read(0.0, 3.0, lambda member, bits: heard.append((member, bits)))
    assert (queue.arrived, queue.lost, queue.peak) == (1000, 499, 500)
    assert {bits for _, bits in heard} == {8}
    assert len(heard) == pytest.approx(150, abs=60), "of those with room, who comes early"
    queue.read(3.0, 13.0, lambda member, bits: heard.append((member, bits)))
    assert len({member for member, _ in heard}) == pytest.approx(501, abs=80)


def test_a_key_server_that_reads_too_slowly_repeats_to_those_it_has_not_read() -> None:
    network = Network(0.0, 0.0, delay=0.01, jitter=0.0)
    slow = KeyServers(acks=1000, ack_buffer=2000)
    outcome = _run(network=network, servers=slow)
    assert _lacking(outcome, 1) == 0
    assert outcome.acks_lost > 0
    # 2 s of reading and what then still waits
    assert MEMBERS - outcome.silent[0] == pytest.approx(4000, rel=0.1)


def test_members_that_restart_register_again() -> None:
    network = Network(0.0, 0.0, delay=0.01, jitter=0.0)
    outcome = _run(network=network, churn=36_000, away=30.0, tek_left=100.0)
    assert outcome.restarted == pytest.approx(1000, abs=160)
    assert outcome.curve.share(100.0) > 0.99
    _, up, _ = outcome.curve.steps[0]
    away = outcome.silent[0]
    assert up <= MEMBERS - away < MEMBERS
    assert away == pytest.approx(300, abs=110), "36,000 an hour, away for 30 s, less who is back"


def test_the_same_seed_is_the_same_run() -> None:
    one, again, other = (
        _run(seed, evicted=3, churn=10_000, network=dataclasses.replace(QUIET, burst_loss=0.01))
        for seed in (1, 1, 2)
    )
    assert one == again
    assert one != other


# -- beside the engines --------------------------------------------------------------------------

TREES, IN_TREE, EVICTED, ATTEMPTS = 3, 40, 6, 3
DELAY = 0.01


def _engines(seed: int) -> tuple[int, list[int]]:
    """The key server's and members' own engines evict over a lossy network: how many PUSHes they
    say, and how many members lack the new epoch before each next attempt."""
    members = TREES * IN_TREE
    network = SimulatedNetwork(seed, Link(delay=DELAY))
    config = group_config(
        members, lkh=LkhPolicy(members=IN_TREE), retransmissions=ATTEMPTS - 1, kek_bits=256
    )
    world = build(network, members, group=config)
    world.start()
    network.run_until(world.converged, 60)
    network.run(30)
    network.sent.clear()
    network.link = Link(drop=LOSS, delay=DELAY)
    evicted = Random(seed).sample(range(members), EVICTED)
    gone = [Identity.of_address(member_peer(n).host) for n in evicted]
    world.server.do(world.server.engine.evict(GROUP_ID, gone, world.now))
    others = [m for n, m in enumerate(world.members) if n not in evicted]
    lacking = []
    for _ in range(ATTEMPTS):
        network.run(9.99)
        lacking.append(sum(1 for member in others if not world.in_step(member)))
    return len(world.datagrams(ExchangeType.GROUPKEY_PUSH)), lacking


def test_the_simulation_is_like_the_engines() -> None:
    """One run of these among forty of the other: no further off than its own spread."""
    scenario = Scenario(
        TREES * IN_TREE,
        TREES,
        evicted=EVICTED,
        network=Network(LOSS, 0.0, delay=DELAY, jitter=0.0, reorder=0.0),
        retransmissions=ATTEMPTS - 1,
    )
    runs = [Rollout(scenario, seed).run() for seed in range(40)]
    pushes, lacking = _engines(seed=5)
    assert min(run.pushes for run in runs) <= pushes <= max(run.pushes for run in runs)
    members = scenario.members - EVICTED
    for attempt in range(ATTEMPTS):
        simulated = [_lacking(run, 9.99 * (attempt + 1), members) for run in runs]
        mean, spread = statistics.mean(simulated), statistics.stdev(simulated)
        assert lacking[attempt] == pytest.approx(mean, abs=4 * spread + 1), (lacking, simulated)
