"""Budgets: so much in a second, saved up for two."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from gdoi_plugin.protocol.limits import MAX_SOURCES, Budget, Budgets, source_of


def taken(budget: Budget, now: float, tries: int = 1000) -> int:
    return sum(budget.take(now) for _ in range(tries))


def test_a_budget_is_saved_up_for_two_seconds() -> None:
    budget = Budget(8)
    assert taken(budget, 100.0) == 16
    assert taken(budget, 100.0625) == 0
    assert taken(budget, 100.125) == 1
    assert taken(budget, 101.125) == 8
    assert taken(budget, 9999.0) == 16


def test_less_than_one_a_second_is_one_after_a_while() -> None:
    budget = Budget(0.25)
    assert [budget.take(float(now)) for now in range(9)] == [n % 4 == 0 for n in range(9)]


def test_a_clock_that_goes_back_gives_nothing_and_takes_nothing() -> None:
    budget = Budget(10)
    assert taken(budget, 100.0) == 20
    assert taken(budget, 50.0) == 0
    assert taken(budget, 50.5) == 5


def test_each_source_has_its_own() -> None:
    budgets = Budgets(1)
    assert [budgets.take(b"a", 0.0) for _ in range(3)] == [True, True, False]
    assert budgets.take(b"b", 0.0)
    assert not budgets.take(b"a", 0.5)
    assert budgets.take(b"a", 1.0)


def test_sources_heard_last_are_kept() -> None:
    budgets = Budgets(0.5)
    budgets.take("often", 0.0)
    for number in range(2 * MAX_SOURCES):
        budgets.take(number, 0.0)
        assert not budgets.take("often", 0.0)
    assert len(budgets) == MAX_SOURCES


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
    ],
)
def test_a_source_is_an_ipv4_address_or_an_ipv6_site(one: str, other: str, same: bool) -> None:
    assert (source_of(ip_address(one)) == source_of(ip_address(other))) == same
