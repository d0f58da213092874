"""The time of day: certificates, CRLs and lifetimes go by it."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from .finding import Area, Finding

CLOCK = Area("time")
# linux/timex.h
_STA_UNSYNC = 0x0040
_DAY = 86400
# Later than its installation by more than this, and the clock is wrong rather than the program old.
_OLD = 30 * 365 * _DAY
_SYNCHRONISE = "timedatectl set-ntp true   # where that fails: apt-get install systemd-timesyncd"


class _Timex(ctypes.Structure):
    """struct timex, as far as it is of interest; the rest is room."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    ]


def check_clock() -> Iterator[Finding]:
    yield plausible(time.time(), Path(__file__).stat().st_mtime)
    yield _synchronised()


def plausible(now: float, installed: float) -> Finding:
    test, said = "date", datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M UTC")
    mend = f"date --utc --set 'YYYY-MM-DD HH:MM' && {_SYNCHRONISE}"
    if now < installed - _DAY:
        return CLOCK.fail(test, f"{said}: before this program was installed", mend)
    if now > installed + _OLD:
        return CLOCK.fail(test, f"{said}: decades after this program was installed", mend)
    return CLOCK.ok(test, said)


def _synchronised() -> Finding:
    test = "synchronisation"
    buffer = _Timex()
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(buffer)) < 0:
        return CLOCK.warn(test, "the kernel does not say (adjtimex)", "timedatectl status")
    if buffer.status & _STA_UNSYNC:
        found = "the kernel knows of nothing that keeps the clock right"
        return CLOCK.warn(test, found, _SYNCHRONISE)
    return CLOCK.ok(test, "the clock is kept right")
