"""The time of day: dates that cannot be, and a kernel that knows of no synchronisation."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator

import pytest

from gdoi_plugin.daemon.check.clock import _Timex, check_clock, plausible

from .mending import FAIL, OK, WARN, the

YEAR = 365 * 86400
INSTALLED = 1_795_000_000.0
# linux/timex.h
ADJ_STATUS, STA_PLL, STA_UNSYNC = 0x0010, 0x0001, 0x0040


@pytest.mark.parametrize(
    ("now", "verdict", "said"),
    [
        (0.0, FAIL, "1970-01-01 00:00 UTC: before this program was installed"),
        (INSTALLED - YEAR, FAIL, "before this program was installed"),
        (INSTALLED - 3600, OK, "UTC"),  # a package is unpacked with the times of its maker
        (INSTALLED + 10 * YEAR, OK, "UTC"),
        (INSTALLED + 40 * YEAR, FAIL, "decades after"),
    ],
)
def test_dates(now: float, verdict: str, said: str) -> None:
    found = plausible(now, INSTALLED)
    assert found.verdict == verdict
    assert said in found.found
    assert bool(found.mend) == (verdict is FAIL)
    assert not found.mend or "timedatectl set-ntp true" in found.mend


def test_of_this_host() -> None:
    """Whoever runs the tests has installed the program before."""
    assert the(check_clock(), "date").verdict is OK


def adjust(status: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.adjtimex(ctypes.byref(_Timex(modes=ADJ_STATUS, status=status))) >= 0


@pytest.fixture
def unadjusted() -> Iterator[None]:
    yield
    adjust(STA_UNSYNC)


@pytest.mark.uml
@pytest.mark.own_kernel
@pytest.mark.usefixtures("unadjusted")
def test_synchronisation_as_the_kernel_has_it() -> None:
    adjust(STA_UNSYNC)
    found = the(check_clock(), "synchronisation")
    assert found.verdict is WARN
    assert found.mend.startswith("timedatectl set-ntp true")
    adjust(STA_PLL)  # as a time daemon does
    assert the(check_clock(), "synchronisation").verdict is OK


@pytest.mark.uml
@pytest.mark.own_kernel
def test_a_machine_without_a_battery_for_its_clock() -> None:
    now, begun = time.time(), time.monotonic()
    try:
        time.clock_settime(time.CLOCK_REALTIME, 86400.0)
        found = the(check_clock(), "date")
    finally:
        time.clock_settime(time.CLOCK_REALTIME, now + time.monotonic() - begun)
    assert (found.verdict, found.found[:10]) == (FAIL, "1970-01-02")
