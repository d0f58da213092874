"""``deploy/lab scenarios``: runs scenarios of tests/lab in the lab kernel and prints their table.

The exit status is pytest's: 0 only if every one of them found what it must.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from gdoi_lab.checkout import CHECKOUT
from gdoi_lab.errors import LabError
from gdoi_lab.kernel import CHOICES, output_to, python_module, run_in_kernel
from gdoi_lab.table import format_rows, read_rows

FOLDER = CHECKOUT / "tests" / "lab"
TIME_LIMIT = 600.0  # seconds for each scenario


def folders() -> dict[str, Path]:
    """The scenarios there are: the folders that hold a test of their own name."""
    tests = sorted(FOLDER.rglob("test_*.py"))
    return {t.parent.name: t.parent for t in tests if t.stem == f"test_{t.parent.name}"}


def main(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    known = folders()
    if unknown := set(arguments.names) - known.keys():
        raise LabError(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    chosen = arguments.names or list(known)
    results = (arguments.out or Path(tempfile.mkdtemp(prefix="gdoi-lab-out-"))).resolve()
    print(f"lab: results in {results}", file=sys.stderr)
    tests = [str(known[name]) for name in chosen]
    command = python_module("pytest", "-m", "uml", "-v", "-p", "no:cacheprovider", *tests)
    # With --json the progress goes where it does not mix with the document.
    with output_to(sys.stderr if arguments.json else sys.stdout):
        status = run_in_kernel(arguments.kernel, command, results, TIME_LIMIT * len(chosen))
    rows = read_rows(results)
    if arguments.json:
        document = {"passed": status == 0, "scenarios": [asdict(row) for row in rows]}
        print(json.dumps(document, indent=2))
    else:
        print(f"\n{format_rows(rows)}")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="deploy/lab scenarios", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(folders())}")
    parser.add_argument("--json", action="store_true", help="the table as a JSON document")
    parser.add_argument("--kernel", choices=CHOICES, default="uml", help="default: uml")
    parser.add_argument("--out", type=Path, help="a folder for the rows (default: a new one)")
    return parser
