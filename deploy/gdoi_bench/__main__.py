"""``deploy/bench SUBJECT [--json]``: exits 1 where a goal is missed."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import tempfile
from pathlib import Path

from gdoi_lab.errors import LabError
from gdoi_lab.kernel import python_module, run_in_kernel

from gdoi_bench.bound import BoundError
from gdoi_bench.figure import print_figures

SUBJECTS = (
    "ack",
    "ledger",
    "lkh",
    "member",
    "push",
    "register",
    "scrape",
    "simulate",
    "store",
    "swarm",
)
# These need a kernel with ESP, and one that has nothing else to do: the lab's.
IN_LAB = frozenset({"member"})
LAB_LIMIT = 900.0  # seconds
ELSEWHERE = (
    "Packets lost or in clear over 100 rekeys (goal: 0): deploy/lab scenarios rekeys_under_load"
)


def main() -> int:
    overview = argparse.ArgumentParser(prog="deploy/bench", description=__doc__, epilog=ELSEWHERE)
    overview.add_argument("subject", choices=SUBJECTS)
    overview.add_argument(
        "options", nargs=argparse.REMAINDER, help="`deploy/bench SUBJECT --help` lists them"
    )
    chosen = overview.parse_args()
    module = importlib.import_module(f"gdoi_bench.{chosen.subject}")
    parser = argparse.ArgumentParser(
        prog=f"deploy/bench {chosen.subject}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="objects for machines")
    has_options = hasattr(module, "options")
    if has_options:
        module.options(parser)
    arguments = parser.parse_args(chosen.options)
    if chosen.subject in IN_LAB and "GDOI_LAB_KERNEL" not in os.environ:
        return _in_lab(sys.argv[1:])
    try:
        figures = module.measure(arguments) if has_options else module.measure()
    except BoundError as error:
        print(f"bench: nothing to compare with: {error}", file=sys.stderr)
        return 2
    print_figures(figures, as_json=arguments.json)
    return 1 if any(figure.met is False for figure in figures) else 0


def _in_lab(argv: list[str]) -> int:
    command = python_module("gdoi_bench", *argv)
    try:
        with tempfile.TemporaryDirectory(prefix="gdoi-bench-") as results:
            return run_in_kernel("uml", command, Path(results), LAB_LIMIT)
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


def _end(number: int, _: object) -> None:
    """As at an interrupt, what was started is stopped and what was made removed."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _end)
    sys.exit(main())
