"""Waiting for something to become true, with a deadline; nothing in the lab just sleeps."""

import time
from collections.abc import Callable

from gdoi_lab.errors import LabError


def wait_until(
    predicate: Callable[[], object], timeout: float, what: str, *, interval: float = 0.05
) -> float:
    """Ask `predicate` until it is true; return the seconds it took.

    Raises LabError("waited ... for WHAT") after `timeout` seconds. `what` reads after "waited for".
    """
    began = time.monotonic()
    while True:
        if predicate():
            return time.monotonic() - began
        if time.monotonic() - began > timeout:
            raise LabError(f"waited {timeout:g} s for {what}")
        time.sleep(interval)
