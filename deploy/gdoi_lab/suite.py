"""What deploy/test runs: ruff, mypy, pytest on this host and in the lab kernel side by side, then
the tests that need the machine to themselves.

Ends with a table of the stages and one line, ``N passed, N failed, N skipped``. The counts come
from pytest's junit files, never from its text. A test that is skipped, or expected to fail, is
a test that did not run: it fails the suite, and so does a stage that finds no test.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gdoi_lab.checkout import CHECKOUT
from gdoi_lab.errors import LabError
from gdoi_lab.kernel import CHOICES, Choice, python_module, run_in_kernel

KERNEL_TIME_LIMIT = 1800.0
# Tests that boot kernels of their own, or measure: nothing else may run meanwhile.
ALONE = "lab or alone"
PYTEST_NO_TESTS = 5


@dataclass(frozen=True, slots=True)
class Counts:
    """Tests by outcome; errors of collection, setup and teardown count as failed."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped
        )

    @property
    def total(self) -> int:
        return self.passed + self.failed + self.skipped

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a stage ended: `problem` is empty when all is well."""

    problem: str = ""
    counts: Counts | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    outcome: Outcome
    seconds: float


def read_counts(junit: Path) -> Counts:
    """The counts of one junit file. A test case with several outcomes counts by its worst."""
    passed = failed = skipped = 0
    # pytest's own output, not somebody else's XML
    for case in ElementTree.parse(junit).iter("testcase"):  # noqa: S314
        outcomes = {child.tag for child in case}
        if outcomes & {"failure", "error"}:
            failed += 1
        elif "skipped" in outcomes:
            skipped += 1
        else:
            passed += 1
    return Counts(passed, failed, skipped)


def judge(status: int, junit: Path, *, selected: bool) -> Outcome:
    """What pytest's exit status and junit file say together; `selected`: some tests were named."""
    try:
        counts = read_counts(junit)
    except (OSError, ElementTree.ParseError):
        return Outcome(f"no report, exit status {status}", Counts(failed=1))
    if counts.failed:
        return Outcome(f"{counts.failed} failed", counts)
    if counts.skipped:
        return Outcome(f"{counts.skipped} skipped: every test must run", counts)
    if status == PYTEST_NO_TESTS and counts.total == 0:
        return Outcome("" if selected else "no tests ran", counts)
    if status != 0:
        return Outcome(f"exit status {status}", Counts(counts.passed, 1, 0))
    return Outcome("" if counts.total or selected else "no tests ran", counts)


def main(argv: list[str]) -> int:
    own, separator, for_pytest = _split(argv)
    arguments = _parser().parse_args(own)
    stages: list[Stage] = []
    with tempfile.TemporaryDirectory(prefix="gdoi-test-") as folder:
        _run_stages(arguments, for_pytest, bool(separator), Path(folder), stages)
    return _close(stages)


def _split(argv: list[str]) -> tuple[list[str], str, list[str]]:
    if "--" not in argv:
        return argv, "", []
    at = argv.index("--")
    return argv[:at], "--", argv[at + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deploy/test", description=__doc__, epilog="What follows -- goes to pytest."
    )
    parser.add_argument("--quick", action="store_true", help="leave out tests marked lab or alone")
    parser.add_argument("--no-lint", action="store_true", help="leave out ruff and mypy")
    parser.add_argument("--kernel", choices=CHOICES, default="auto", help="default: auto")
    return parser


def _run_stages(
    arguments: argparse.Namespace,
    for_pytest: list[str],
    selected: bool,
    folder: Path,
    stages: list[Stage],
) -> None:
    def stage(name: str, run: Callable[[], Outcome]) -> None:
        print(f"\n=== {name}", flush=True)
        stages.append(_timed(name, run))

    if not arguments.no_lint:
        stage("ruff check", lambda: _tool("ruff", "check", "."))
        stage("ruff format", lambda: _tool("ruff", "format", "--check", "."))
        stage("mypy", lambda: _tool("mypy"))
    # The lab kernel has one processor and its tests wait much: the host's run beside them, and
    # what they print is shown afterwards.
    printed = folder / "host.txt"
    with ThreadPoolExecutor(1) as beside:
        host = beside.submit(
            _timed,
            "pytest, host",
            lambda: _pytest_host(
                folder, f"not uml and not ({ALONE})", for_pytest, selected, printed
            ),
        )
        stage(
            "pytest, lab kernel",
            lambda: _pytest_kernel(arguments.kernel, folder, for_pytest, selected),
        )
        print("\n=== pytest, host (ran beside the lab kernel's)", flush=True)
        stages.append(host.result())
        print(printed.read_text(errors="replace"), flush=True)
    if not arguments.quick:
        stage(
            "pytest, alone",
            lambda: _pytest_host(folder, f"not uml and ({ALONE})", for_pytest, selected),
        )


def _timed(name: str, run: Callable[[], Outcome]) -> Stage:
    began = time.monotonic()
    outcome = run()
    return Stage(name, outcome, time.monotonic() - began)


def _tool(module: str, *argv: str) -> Outcome:
    done = subprocess.run(
        python_module(module, *argv), cwd=CHECKOUT, stdin=subprocess.DEVNULL, check=False
    )
    return Outcome("" if done.returncode == 0 else f"exit status {done.returncode}")


def _pytest_host(
    folder: Path, marks: str, for_pytest: list[str], selected: bool, printed: Path | None = None
) -> Outcome:
    """What pytest prints goes to the file `printed`, if there is one."""
    junit = folder / f"host-{'beside' if printed else 'alone'}.xml"
    command = python_module("pytest", "-m", marks, f"--junitxml={junit}", *for_pytest)
    with contextlib.ExitStack() as stack:
        output = None if printed is None else stack.enter_context(printed.open("wb"))
        done = subprocess.run(
            command,
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            check=False,
        )
    return judge(done.returncode, junit, selected=selected)


def _pytest_kernel(kernel: Choice, folder: Path, for_pytest: list[str], selected: bool) -> Outcome:
    results = folder / "kernel"
    junit = results / "kernel.xml"
    options = ("-p", "no:cacheprovider", f"--junitxml={junit}")
    command = python_module("pytest", "-m", "uml", *options, *for_pytest)
    try:
        status = run_in_kernel(kernel, command, results, KERNEL_TIME_LIMIT)
    except LabError as error:
        print(f"test: {error}", file=sys.stderr)
        print((results / "kernel.log").read_text(errors="replace") if results.exists() else "")
        return Outcome("the lab kernel failed", Counts(failed=1))
    return judge(status, junit, selected=selected)


def _close(stages: list[Stage]) -> int:
    counts = sum((s.outcome.counts for s in stages if s.outcome.counts), Counts())
    problems = [s for s in stages if s.outcome.problem]
    print(f"\n{'stage':<20} {'passed':>7} {'failed':>7} {'skipped':>8} {'seconds':>8}  result")
    for stage in stages:
        c = stage.outcome.counts
        numbers = (
            f"{c.passed:>7} {c.failed:>7} {c.skipped:>8}" if c else f"{'-':>7} {'-':>7} {'-':>8}"
        )
        result = stage.outcome.problem or "ok"
        print(f"{stage.name:<20} {numbers} {stage.seconds:>8.1f}  {result}")
    if not problems and counts.total == 0:
        print("no tests ran")
    print(counts, flush=True)
    return 1 if problems or counts.total == 0 else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
