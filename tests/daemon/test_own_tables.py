"""Which numbers an SA goes on with; the tables themselves are tested on a kernel."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gdoi_xfrm import MAX_PACKETS_PER_SECOND, Direction, Policy, SaState, Usage

from gdoi_plugin.daemon.own_tables import Lost, OwnSa
from tests.kernel.values import policy, sa

SA = replace(sa(5), output_sequence=1000, input_sequence=500)


def state(output: int, received: int) -> SaState:
    return SaState(sa(5), False, output, received, 4000, 40, 100, 200)


def test_as_long_as_it_was_unseen_it_may_have_sent() -> None:
    own = OwnSa(SA, at=10.0)
    assert own.continued(10.0) == SA
    assert own.continued(10.0).output_sequence == 1000
    half = own.continued(10.5)
    assert half.output_sequence == 1000 + MAX_PACKETS_PER_SECOND // 2
    assert half.input_sequence == 500, "what was received is not guessed"
    assert own.continued(9.0).output_sequence == 1000, "a clock that goes back takes nothing"


def test_what_is_gone_sends_nothing() -> None:
    gone = OwnSa(SA, at=10.0).gone(10.5)
    most = 1000 + MAX_PACKETS_PER_SECOND // 2
    assert gone.continued(1e9).output_sequence == most
    assert gone.gone(2e9).continued(3e9).output_sequence == most


@pytest.mark.parametrize(("esn", "last"), [(False, 2**32 - 1), (True, 2**64 - 1)])
def test_numbers_end(esn: bool, last: int) -> None:
    nearly = OwnSa(replace(SA, esn=esn, output_sequence=last - 10), at=10.0)
    assert not OwnSa(nearly.continued(10.0), 10.0).exhausted
    assert OwnSa(nearly.continued(10.1), 10.1).exhausted
    assert nearly.continued(10.1).output_sequence == last


def test_numbers_never_go_back() -> None:
    """The kernel's words on an SA may be read after it has been put back further on."""
    later = OwnSa(SA, at=10.0).learned(state(900, 700), 11.0)
    assert (later.sa.output_sequence, later.sa.input_sequence) == (1000, 700)
    assert later.sa.usage == Usage(4000, 40, 100, 200)
    assert later.continued(12.0).output_sequence > 1000
    last_words = OwnSa(SA, at=10.0).learned(state(1100, 500), 11.0, still=True)
    assert last_words.continued(99.0).output_sequence == 1100


def test_what_is_lost_adds_up() -> None:
    out: Policy = policy(5, Direction.OUT)
    lost, more = Lost(), Lost()
    assert not lost
    lost.note(sa(5).key)
    more.note(out.key)
    more.altered.add(sa(6).key)
    lost.add(more)
    assert lost
    assert lost == Lost({sa(5).key}, {sa(6).key}, {out.key})
