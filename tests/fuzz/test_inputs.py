"""The bounded share of fuzzing: a million inputs, the same at every run, none of them a finding."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fuzz.corpus import pool
from tests.fuzz.mutation import Mutator
from tests.fuzz.standing import Witness
from tests.fuzz.target import TOTAL, all_targets, share_of


@pytest.mark.parametrize("name", all_targets())
def test_no_input_is_a_finding(name: str, record_property: Callable[[str, object], None]) -> None:
    target = all_targets()[name]
    mutator = Mutator(pool(target), name)
    taken = sum(target.check(data) for data in pool(target))
    assert taken, "nothing gets past the first check: seeds or kept inputs are needed"
    share = share_of(target)
    ran = 0
    while ran < share:
        data = mutator.next()
        ran += 1
        try:
            taken += target.check(data)
        except Exception as error:
            raise AssertionError(f"deploy/fuzz --replay {name}:{data.hex()}") from error
    Witness.look_at_all()
    record_property("inputs", ran)
    record_property("taken", taken)


def test_the_shares_are_a_million() -> None:
    assert sum(share_of(target) for target in all_targets().values()) >= TOTAL
