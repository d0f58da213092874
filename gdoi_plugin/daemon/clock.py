"""The daemons' clock: Unix time that never steps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Self

from .state_file import StateDirectory

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SteadyClock:
    """The time of day at its start, carried on by the clock that counts from boot.

    Lifetimes are Unix times: they survive a restart. Whoever steps the time of day, an
    administrator or NTP, disturbs none of them while the daemon runs; nor later, where a clock is
    kept: a daemon that starts again on the same boot goes on with the former one's time. One that
    believed in the new time would let go of every key at once, or hold it for too long.

    CLOCK_BOOTTIME goes on while the machine sleeps, as lifetimes do, the kernel's own ones too.
    """

    def __init__(self) -> None:
        self._offset = time.time() - _since_boot()

    @classmethod
    def kept(cls, directory: StateDirectory, name: str) -> Self:
        """Goes on with the clock in ``<directory>/<name>.json``, or puts a new one there.

        Raises StoreError.
        """
        clock, boot = cls(), BOOT_ID.read_text(encoding="ascii").strip()
        saved = directory.load(name) or {}
        offset = saved.get("offset")
        if saved.get("boot") == boot and isinstance(offset, float):
            clock._offset = offset
        else:
            directory.save(name, {"boot": boot, "offset": clock._offset})
        return clock

    def now(self) -> float:
        return _since_boot() + self._offset

    def time_of_day(self, moment: float) -> float:
        """What a time of this clock is called by people, whatever they have set theirs to since."""
        return moment - self.now() + time.time()


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
