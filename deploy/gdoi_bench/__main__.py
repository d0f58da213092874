"""``deploy/bench SUBJECT [--json]``: exits 1 where a goal is missed."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from pathlib import Path

from gdoi_lab.errors import LabError
from gdoi_lab.kernel import python_module, run_in_kernel

from gdoi_bench.figure import print_figures

SUBJECTS = ("lkh", "member")
# These need a kernel with ESP, and one that has nothing else to do: the lab's.
IN_LAB = frozenset({"member"})
LAB_LIMIT = 900.0  # seconds
ELSEWHERE = (
    "Packets lost or in clear over 100 rekeys (goal: 0): deploy/lab scenarios rekeys_under_load"
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="deploy/bench", description=__doc__, epilog=ELSEWHERE)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--json", action="store_true", help="objects for machines")
    arguments = parser.parse_args()
    if arguments.subject in IN_LAB and "GDOI_LAB_KERNEL" not in os.environ:
        return _in_lab(sys.argv[1:])
    figures = importlib.import_module(f"gdoi_bench.{arguments.subject}").measure()
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


if __name__ == "__main__":
    sys.exit(main())
