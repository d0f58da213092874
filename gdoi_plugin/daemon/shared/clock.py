"""One time for the groups of several key servers."""

from __future__ import annotations

from ..clock import SteadyClock
from .lease import since_boot

# A difference that is more than what clocks drift between two looks (seconds).
STEP = 2.0


class SharedClock(SteadyClock):
    """Carried on by the clock that counts from boot, and kept with the leader's by small amounts.

    The leader's goes its own way, and its lease says what that is. Where others find it far from
    theirs the database's clock has been set, and the leader's next beat says so: only what is still
    so after ``patience`` is believed.
    """

    def __init__(self, patience: float) -> None:
        super().__init__()
        self._patience = patience
        self._first = True
        self._odd_since: float | None = None

    def follow(self, time: float, at: float) -> None:
        """``time`` of the group was when this host's clock that counts from boot said ``at``."""
        offset = time - at
        if self._first or abs(offset - self._offset) <= STEP:
            self._first, self._odd_since = False, None
            self._offset = offset
            return
        now = since_boot()
        if self._odd_since is None:
            self._odd_since = now
        elif now - self._odd_since > self._patience:
            self._odd_since, self._offset = None, offset
