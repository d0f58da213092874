"""Bounds in C: the programs of tests/bench, compiled in the run that compares with them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from gdoi_lab.checkout import CHECKOUT

SOURCES = CHECKOUT / "tests" / "bench"
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")
LIMIT = 300.0  # seconds for one run


class BoundError(Exception):
    """There is nothing to compare with."""


class Bound:
    """A compiled program of tests/bench."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def name(self) -> str:
        return self._path.name

    def run(self, *arguments: object, prefix: tuple[str, ...] = ()) -> list[float]:
        """The numbers it prints. ``prefix``: what starts it. Raises BoundError."""
        command = [*prefix, str(self._path), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
        if done.returncode:
            raise BoundError(f"{self.name} {' '.join(command[1:])}: {done.stderr.strip()}")
        return [float(word) for word in done.stdout.split()]


@contextmanager
def compiled(name: str, *libraries: str) -> Iterator[Bound]:
    """``tests/bench/NAME.c``. Raises BoundError."""
    with TemporaryDirectory(prefix="gdoi-bench-") as folder:
        path = Path(folder) / name
        links = [f"-l{library}" for library in libraries]
        source = SOURCES / f"{name}.c"
        command = ["gcc", *FLAGS, "-o", str(path), str(source), *links]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BoundError(f"gcc {source}: {done.stderr.strip()}")
        yield Bound(path)
