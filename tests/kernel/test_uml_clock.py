"""What the kernel makes of a time of day that steps: SAs' lifetimes are counted with it, in part.

An SA's timer goes by a clock that does not step, but when it runs out the kernel asks for the time
of day. The first run is a second after the SA came.
"""

from __future__ import annotations

import time

import pytest
from gdoi_xfrm import Lifetime, Monitor, SaExpired, Xfrm

from tests.kernel.conftest import namespace, xfrm
from tests.kernel.namespaces import eventually
from tests.kernel.values import sa
from tests.lab.steps import DAY, time_of_day

__all__ = ["namespace", "xfrm"]
pytestmark = [pytest.mark.uml, pytest.mark.own_kernel]

LIFETIMES = {
    0x1001: Lifetime(hard_seconds=3600),
    0x1002: Lifetime(hard_seconds=3600, soft_seconds=3000),
}


def held(xfrm: Xfrm) -> set[int]:
    return {state.sa.spi for state in xfrm.dump_sas()}


def pass_a_second() -> None:
    """The kernel has looked at every SA for the first time."""
    begin = time.monotonic()
    eventually(lambda: time.monotonic() > begin + 1.2)


def test_only_what_is_new_is_taken_away_and_only_by_a_step_ahead(xfrm: Xfrm) -> None:
    """It goes at once, with an event that calls it expired; the agent knows better."""
    new = {spi + 0x100: lifetime for spi, lifetime in LIFETIMES.items()}
    with Monitor() as monitor, time_of_day() as clock:
        for spi, lifetime in LIFETIMES.items():
            xfrm.add_sa(sa(spi, lifetime=lifetime))
        clock.step(-DAY)
        pass_a_second()
        assert held(xfrm) == LIFETIMES.keys()
        for spi, lifetime in new.items():
            xfrm.add_sa(sa(spi, lifetime=lifetime))
        clock.step(2 * DAY)
        pass_a_second()
        eventually(lambda: held(xfrm) == LIFETIMES.keys())
        expired = [event for event in monitor.read() if isinstance(event, SaExpired)]
    assert {(event.key.spi, event.hard) for event in expired} == {(spi, True) for spi in new}


def test_a_short_life_is_as_long_as_it_was_to_be(xfrm: Xfrm) -> None:
    """Set on, the clock shortens no life that has a second behind it."""
    xfrm.add_sa(sa(0x1001, lifetime=Lifetime(hard_seconds=4, soft_seconds=2)))
    began = time.monotonic()
    pass_a_second()
    with time_of_day() as clock:
        clock.step(DAY)
        eventually(lambda: not held(xfrm))
    assert time.monotonic() - began > 3.5
