"""The daemons' clock: Unix time that never steps."""

from __future__ import annotations

import time


class SteadyClock:
    """Wall-clock time at start, carried on by the monotonic clock.

    Lifetimes survive a restart because they are Unix times; a clock that an administrator or NTP
    steps while the daemon runs disturbs none of them.
    """

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        return time.monotonic() + self._offset
