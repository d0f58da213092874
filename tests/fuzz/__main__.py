"""Coverage-guided fuzzing of decoders and engines, for as long as told."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from gdoi_plugin.daemon.config_values import parse_duration
from tests.fuzz import campaign
from tests.fuzz.standing import Witness
from tests.fuzz.target import all_targets


def main(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.replay is not None:
        return replay(arguments.replay)
    unknown = set(arguments.target) - set(all_targets())
    if unknown or arguments.list:
        print("\n".join(all_targets()))
        if unknown:
            print(f"fuzz: no target is called {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2 if unknown else 0
    targets = [all_targets()[name] for name in arguments.target or all_targets()]
    folder = arguments.out or Path(tempfile.mkdtemp(prefix="gdoi-fuzz-"))
    workers = campaign.run(targets, arguments.time, arguments.jobs, folder.resolve())
    for worker in workers:
        for path in worker.findings:
            print(f"{worker.target.name}: deploy/fuzz --replay {path}")
        if worker.state.startswith("exit"):
            print(f"{worker.target.name}: {worker.state}, see {worker.folder}/log")
        elif arguments.keep and worker.state == "done":
            print(f"{worker.target.name}: {campaign.keep(worker)} inputs kept")
    return 0 if all(worker.state == "done" for worker in workers) else 1


def replay(what: str) -> int:
    """A finding's file, whose folder names the target, or TARGET:HEX."""
    name, colon, digits = what.partition(":")
    if colon and name in all_targets():
        data = bytes.fromhex(digits)
    else:
        path = Path(what).resolve()
        name, data = path.parent.name, path.read_bytes()
    Witness.every = 1
    taken = all_targets()[name].check(data)  # a finding ends here, with its traceback
    print(f"{name}: {len(data)} octets {'taken' if taken else 'refused'}, no finding")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="deploy/fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", metavar="TARGET", help="default: all")
    parser.add_argument(
        "--time", type=parse_duration, default=600.0, help="for all together; default: 10m"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="default: all CPUs")
    parser.add_argument("--out", type=Path, help="folder for inputs, logs and findings")
    parser.add_argument(
        "--keep", action="store_true", help="merge what was found into tests/fuzz/corpus"
    )
    parser.add_argument("--replay", metavar="FILE", help="a finding's file, or TARGET:HEX")
    parser.add_argument("--list", action="store_true", help="the names of all targets")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
