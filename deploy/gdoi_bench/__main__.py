"""``deploy/bench SUBJECT [--json]``."""

from __future__ import annotations

import argparse
import sys

from gdoi_bench import lkh
from gdoi_bench.figure import print_figures

SUBJECTS = {"lkh": lkh.measure}


def main() -> int:
    parser = argparse.ArgumentParser(prog="deploy/bench", description=__doc__)
    parser.add_argument("subject", choices=sorted(SUBJECTS))
    parser.add_argument("--json", action="store_true", help="objects for machines")
    arguments = parser.parse_args()
    figures = SUBJECTS[arguments.subject]()
    print_figures(figures, as_json=arguments.json)
    return 0 if all(figure.met for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
