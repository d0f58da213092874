"""Child processes: killed in the middle, or run as somebody else, and always reaped."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 90.0
ROOT = Path(__file__).parents[2]
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all")


@contextmanager
def running(command: Sequence[object], **options: object) -> Iterator[subprocess.Popen[str]]:
    """A child with its output in pipes, killed at the end if it still runs."""
    words = [str(word) for word in command]
    child = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **options
    )  # type: ignore[call-overload]
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def python(script: str, *arguments: object) -> list[object]:
    return [sys.executable, "-c", script, *arguments]


def finished(
    command: Sequence[object], seconds: float = PATIENCE
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=seconds,
        check=False,
    )


def eventually(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Looks again until the condition holds; fails at the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.01)
