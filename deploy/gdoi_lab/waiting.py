"""Waiting for something to become true, with a deadline; nothing in the lab just sleeps."""

import time
from collections.abc import Callable

from gdoi_lab.errors import LabError

# Who asks by running programs leaves most of the processor to those who are to make it true.
SHARE = 0.25
LONGEST_PAUSE = 1.0


def wait_until(
    predicate: Callable[[], object], timeout: float, what: str, *, interval: float = 0.05
) -> float:
    """Ask `predicate` until it is true; return the seconds it took.

    `interval` seconds lie between two questions, or more if the answer takes long. Raises
    LabError("waited ... for WHAT") after `timeout` seconds. `what` reads after "waited for".
    """
    began = time.monotonic()
    while True:
        asked = time.monotonic()
        if predicate():
            return time.monotonic() - began
        answered = time.monotonic()
        if answered - began > timeout:
            raise LabError(f"waited {timeout:g} s for {what}")
        time.sleep(max(interval, min((answered - asked) * (1 / SHARE - 1), LONGEST_PAUSE)))
