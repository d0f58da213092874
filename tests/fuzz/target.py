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

    ``seeds`` is where to begin. Both are called after the import only, so that a worker may
    instrument first. ``share``: how many of the million inputs of deploy/test it gets, None for an
    equal part of what the others leave: decoders are some 50 times as fast as engines.
    """

    name: str
    check: Callable[[bytes], bool]
    seeds: Callable[[], Sequence[bytes]]
    share: int | None = None


# The share of an engine that is built anew, keys and all, for every input.
ENGINE_SHARE = 500
TOTAL = 1_000_000


def share_of(target: Target) -> int:
    if target.share is not None:
        return target.share
    shares = [other.share for other in all_targets().values()]
    left = TOTAL - sum(share for share in shares if share is not None)
    return -(-left // shares.count(None))


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
