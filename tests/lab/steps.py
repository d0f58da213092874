"""Setting the time of day, in a lab kernel that has one of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

DAY = 86400.0
KERNEL = "GDOI_LAB_KERNEL"


class TimeOfDay:
    """Of everybody in this kernel."""

    def step(self, seconds: float) -> None:
        time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)


@contextmanager
def time_of_day() -> Iterator[TimeOfDay]:
    """To be set; at the end it is right again."""
    assert os.environ.get(KERNEL) == "uml", "this would set the host's clock"
    ahead = time.time() - time.monotonic()
    try:
        yield TimeOfDay()
    finally:
        time.clock_settime(time.CLOCK_REALTIME, ahead + time.monotonic())
