"""What is fuzzed: a name, a check, and where to begin."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module

from tests.fuzz import targets

# Longer than any message of a lab: what needs more octets than this is built by a test on purpose.
MAX_INPUT = 4096


@dataclass(frozen=True, slots=True)
class Target:
    """``check`` says whether the input was taken for a good one, and raises for a finding.

    ``seeds`` are inputs that are taken. ``engine``: state behind it, some 100 times slower than a
    decoder. Both are called after the import only, so that a worker may instrument first.
    """

    name: str
    check: Callable[[bytes], bool]
    seeds: Callable[[], Sequence[bytes]]
    engine: bool = False


@cache
def all_targets() -> dict[str, Target]:
    """Every target of every module in ``targets``, by name."""
    found: dict[str, Target] = {}
    for module in pkgutil.iter_modules(targets.__path__, f"{targets.__name__}."):
        for target in import_module(module.name).targets():
            if target.name in found:
                raise ValueError(f"two targets are called {target.name}")
            found[target.name] = target
    return found
