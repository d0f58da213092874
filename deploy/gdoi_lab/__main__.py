"""``python -m gdoi_lab``: what deploy/lab starts once everything is installed."""

import argparse
import importlib
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from gdoi_lab.errors import LabError
from gdoi_lab.kernel import CHOICES, run_in_kernel, shell_in_kernel

_PROGRAMS = {"demo": "gdoi_lab.demo", "scenarios": "gdoi_lab.scenarios"}


def main(argv: list[str]) -> int:
    signal.signal(signal.SIGTERM, _terminated)
    try:
        if argv and (program := _PROGRAMS.get(argv[0])):  # its options are its own
            return int(importlib.import_module(program).main(argv[1:]))
        return _dispatch(_parser().parse_args(argv))
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _terminated(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)  # unwinds, so that everything started is taken down


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="deploy/lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "demo",
        help="a key server and members, traffic and rekeys; ends with a table",
        add_help=False,
    )
    commands.add_parser(
        "scenarios", help="the test scenarios, or some; ends with their table", add_help=False
    )
    shell = commands.add_parser("shell", help="a root shell in the lab kernel")
    run = commands.add_parser("run", help="run a command in the lab kernel")
    for command in (shell, run):
        command.add_argument("--kernel", choices=CHOICES, default="auto", help="default: auto")
        command.add_argument(
            "--out", type=Path, help="the folder that is writable inside (default: a new one)"
        )
    run.add_argument(
        "--time-limit", type=float, default=600.0, metavar="SECONDS", help="default: 600"
    )
    run.add_argument("argv", nargs="+", metavar="COMMAND", help="after --")
    return parser


def _dispatch(arguments: argparse.Namespace) -> int:
    results = arguments.out or Path(tempfile.mkdtemp(prefix="gdoi-lab-out-"))
    if arguments.out is None:
        print(f"lab: results in {results}", file=sys.stderr)
    if arguments.command == "shell":
        return shell_in_kernel(arguments.kernel, results)
    return run_in_kernel(arguments.kernel, arguments.argv, results, arguments.time_limit)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
