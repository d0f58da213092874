"""The simulated network's probabilities are those of its description."""

from __future__ import annotations

from itertools import pairwise
from math import exp, inf, sqrt
from random import Random

import pytest
from gdoi_bench.population import Curve, Network, Paths, Population, binomial, registering

TRIALS = 20_000


@pytest.mark.parametrize(("number", "probability"), [(10, 0.3), (1000, 0.002), (100_000, 0.4)])
def test_binomial_numbers(number: int, probability: float) -> None:
    """Mean and variance, where each thing is drawn and where a normal number is."""
    rng = Random(1)
    drawn = [binomial(rng, number, probability) for _ in range(TRIALS)]
    mean, variance = number * probability, number * probability * (1 - probability)
    assert sum(drawn) / TRIALS == pytest.approx(mean, abs=5 * sqrt(variance / TRIALS))
    spread = sum((n - mean) ** 2 for n in drawn) / TRIALS
    assert spread == pytest.approx(variance, rel=0.06)
    assert min(drawn) >= 0
    assert max(drawn) <= number
    assert (binomial(rng, 7, 0.0), binomial(rng, 7, 1.0), binomial(rng, 0, 0.5)) == (0, 7, 0)


def _all_lost(network: Network, tries: int, interval: float) -> float:
    """The same as ``missed`` by the sum over every sequence of states."""
    usual, left = network.burst_loss, exp(-interval / (network.burst * (1 - network.burst_loss)))

    def step(cut: bool, again: bool) -> float:
        becomes = usual + (cut - usual) * left
        return becomes if again else 1 - becomes

    total = 0.0
    for states in range(2**tries):
        cut = [bool(states >> n & 1) for n in range(tries)]
        chance = usual if cut[0] else 1 - usual
        for one, other in pairwise(cut):
            chance *= step(one, other)
        total += chance * network.loss ** cut.count(False)
    return total


@pytest.mark.parametrize("tries", [1, 2, 3, 5])
def test_what_is_missed_by_a_path_that_is_cut_off_at_times(tries: int) -> None:
    network = Network(loss=0.1, burst_loss=0.2, burst=5.0)
    assert network.missed(tries, 4.0) == pytest.approx(_all_lost(network, tries, 4.0))


def test_paths_are_cut_off_as_often_and_as_long_as_they_should() -> None:
    network = Network(burst_loss=0.25, burst=5.0, site=4)
    paths = Paths(network, 4 * TRIALS, Random(2))
    before = [paths.is_cut(4 * site, 0.0) for site in range(TRIALS)]
    assert all(paths.is_cut(4 * site + 3, 0.0) == before[site] for site in range(100))
    after = [paths.is_cut(4 * site, 3.0) for site in range(TRIALS)]
    assert sum(before) / TRIALS == pytest.approx(0.25, abs=0.016)
    assert sum(after) / TRIALS == pytest.approx(0.25, abs=0.016)
    both = sum(one and other for one, other in zip(before, after, strict=True)) / sum(before)
    assert both == pytest.approx(0.25 + 0.75 * exp(-3 / (5 * 0.75)), abs=0.04)


def test_a_registration_takes_five_round_trips_and_its_repetitions() -> None:
    assert registering(Network(0, 0, delay=0.1, jitter=0.0), Random(3)) == pytest.approx(1.0)
    lossy = Network(0.2, 0, delay=0.0, jitter=0.0)
    taken = [registering(lossy, Random(seed)) for seed in range(2000)]
    # Not a single repetition: (0.8^2)^5.
    assert taken.count(0.0) / 2000 == pytest.approx(0.64**5, abs=0.035)
    assert {n for n in taken if n < 3} == {0.0, 1.0, 2.0}


def test_who_holds_the_new_epoch_when() -> None:
    """Ten members: one evicted, one away from the beginning, one that restarts."""
    people = Population(10)
    people.gone = frozenset({9})
    people.begin_away(8)
    for member in range(8):
        people.held_at[member] = 1.0 + member
    people.leave(0, 5.5)
    people.come_back(8, 20.0)
    people.register(8, 21.0)
    people.come_back(0, 30.0)
    people.register(0, 31.0)
    curve = people.curve()
    shares = {0.5: 0, 4.5: 4 / 8, 5.7: 4 / 7, 8.5: 1, 20.5: 7 / 8, 30.5: 8 / 9, 40.0: 1}
    assert {at: curve.share(at) for at in shares} == pytest.approx(shares)
    assert [curve.reached(share) for share in (0.5, 4 / 7, 1.0)] == [4.0, 5.0, 8.0]


def test_who_restarts_before_its_keys_have_come_never_had_them() -> None:
    people = Population(2)
    people.held_at[0] = people.held_at[1] = 2.0
    people.leave(0, 1.0)
    people.come_back(0, 3.0)
    people.register(0, 4.0)
    curve = people.curve()
    assert [curve.share(at) for at in (0.5, 1.5, 2.5, 3.5, 4.5)] == [0, 0, 1, 0.5, 1]


def test_a_share_that_nobody_reaches() -> None:
    assert Curve([1.0, 2.0], [(0.0, 4, 0)]).reached(0.75) == inf
