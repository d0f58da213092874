"""What deploy/test runs: ruff, then mypy and pytest on this host beside pytest in lab kernels, then
the tests that need the machine to themselves.

A lab kernel has one processor, which waits more than half of the time. Two of them share the tests
between them; what runs beside them on the host leaves them the machine when they want it. That are
two processes as well, one for the tests of what is only computed and one for those of daemons. Of
the tests that come after, those of a lab kernel and those that boot one have a processor each.

A machine that others use too may stand still for longer than a group's delays are: what failed, if
it is not much, is run once more when nothing else runs, and both outcomes are told. What fails a
second time fails the suite.

Ends with the lab scenarios' table, a table of the stages and one line, ``N passed, N failed,
N skipped``. The counts come from pytest's junit files, never from its text. A test that is
skipped, or expected to fail, is a test that did not run: it fails the suite, and so does a stage
that finds no test.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from gdoi_lab import sharing
from gdoi_lab.checkout import CHECKOUT
from gdoi_lab.kernel import CHOICES, Choice, python_module
from gdoi_lab.table import format_rows, read_rows

KERNEL_TIME_LIMIT = 3600.0
# Tests that boot kernels of their own, load the machine or measure: they come after the others.
ALONE = "lab or alone"
# Tests of what opens no socket and starts no daemon: no other process can be in their way.
PURE = ("tests/wire", "tests/crypto", "tests/protocol", "tests/fuzz")
PYTEST_NO_TESTS = 5
# More tests than this fail for a reason of their own.
MOST_AGAIN = 6
# Of what runs beside the lab kernels, whose daemons and traffic keep time.
NICE = 10


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
    """How a stage ended: `problem` is empty when all is well.

    `failed` names tests, as pytest takes them, where they are the whole problem.
    """

    problem: str = ""
    counts: Counts | None = None
    failed: tuple[str, ...] = ()
    remark: str = ""


_Again = Callable[[Sequence[str]], Outcome]
# A stage's name, what writes its output into a file, and what runs tests of it by their names.
_Job = tuple[str, Callable[[Path], Outcome], _Again | None]


@dataclass(frozen=True, slots=True)
class Stage:
    """`again` runs tests of it by their names."""

    name: str
    outcome: Outcome
    seconds: float
    again: _Again | None = None


def read_outcome(junit: Path) -> Outcome:
    """What one junit file says. A test case with several outcomes counts by its worst."""
    passed, failed, skipped = 0, dict[str, None](), 0
    # pytest's own output, not somebody else's XML
    for case in ElementTree.parse(junit).iter("testcase"):  # noqa: S314
        outcomes = {child.tag for child in case}
        if outcomes & {"failure", "error"}:
            failed[f"{case.get('file', '')}::{case.get('name')}"] = None
        elif "skipped" in outcomes:
            skipped += 1
        else:
            passed += 1
    counts = Counts(passed, len(failed), skipped)
    # A module that cannot be imported is a case without a file.
    named = not skipped and all(name.partition("::")[0] for name in failed)
    problem = f"{len(failed)} failed" if failed else ""
    return Outcome(problem, counts, tuple(failed) if named else ())


def judge(status: int, junit: Path, *, selected: bool) -> Outcome:
    """What pytest's exit status and junit file say together; `selected`: some tests were named."""
    try:
        found = read_outcome(junit)
    except (OSError, ElementTree.ParseError):
        return Outcome(f"no report, exit status {status}", Counts(failed=1))
    counts = found.counts or Counts()
    if counts.failed:
        return found
    if counts.skipped:
        return Outcome(f"{counts.skipped} skipped: every test must run", counts)
    if status == PYTEST_NO_TESTS and counts.total == 0:
        return Outcome("" if selected else "no tests ran", counts)
    if status != 0:
        return Outcome(f"exit status {status}", Counts(counts.passed, 1, 0))
    return Outcome("" if counts.total or selected else "no tests ran", counts)


def main(argv: list[str]) -> int:
    # A shell's background commands ignore it, and so would what the tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    own, separator, for_pytest = _split(argv)
    arguments = _parser().parse_args(own)
    stages: list[Stage] = []
    with tempfile.TemporaryDirectory(prefix="gdoi-test-") as folder:
        suite = Suite(Path(folder), arguments.kernel, for_pytest, bool(separator))
        _run_stages(suite, arguments, stages)
        stages = once_more(stages)
        if rows := read_rows(suite.results):
            print(f"\n{format_rows(rows)}")
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
    parser.add_argument("--kernel", choices=CHOICES, default="uml", help="default: uml")
    return parser


def _run_stages(suite: "Suite", arguments: argparse.Namespace, stages: list[Stage]) -> None:
    def stage(name: str, run: Callable[[], Outcome], again: _Again | None = None) -> None:
        print(f"\n=== {name}", flush=True)
        stages.append(_timed(name, run, again))

    if not arguments.no_lint:
        stage("ruff check", lambda: _tool("ruff", "check", "."))
        stage("ruff format", lambda: _tool("ruff", "format", "--check", "."))
    beside = suite.host_jobs()
    if not arguments.no_lint:
        beside.insert(0, ("mypy", lambda out: _tool("mypy", out=out), None))
    stages += _beside(suite, ("pytest, lab kernels", suite.kernels, suite.kernel_again), beside)
    if not arguments.quick:
        kernel = ("pytest, lab alone", suite.kernel_alone, suite.kernel_again)
        stages += _beside(suite, kernel, [("pytest, lab", suite.boots, suite.host_again)])
        stage("pytest, alone", suite.alone, suite.host_again)


def _beside(
    suite: "Suite", shown: tuple[str, Callable[[], Outcome], _Again], beside: Sequence[_Job]
) -> list[Stage]:
    """Stages at the same time: the output of all but the first is shown when that is over."""
    with ThreadPoolExecutor(len(beside)) as pool:
        outputs = [suite.folder / f"{number}.txt" for number in range(len(beside))]
        running = [
            pool.submit(_timed, name, partial(run, out), again)
            for (name, run, again), out in zip(beside, outputs, strict=True)
        ]
        print(f"\n=== {shown[0]}", flush=True)
        stages = [_timed(*shown)]
        for future, (name, _, _), out in zip(running, beside, outputs, strict=True):
            print(f"\n=== {name} (ran beside {shown[0]})", flush=True)
            stages.append(future.result())
            print(out.read_text(errors="replace"), flush=True)
    return stages


def _timed(name: str, run: Callable[[], Outcome], again: _Again | None = None) -> Stage:
    began = time.monotonic()
    outcome = run()
    return Stage(name, outcome, time.monotonic() - began, again)


def once_more(stages: Sequence[Stage]) -> list[Stage]:
    """The stages, with what failed in them run a second time, if that can help."""
    if sum(len(stage.outcome.failed) for stage in stages) > MOST_AGAIN:
        return list(stages)
    return [_stage_again(stage) if stage.outcome.failed else stage for stage in stages]


def _stage_again(stage: Stage) -> Stage:
    names, counts = stage.outcome.failed, stage.outcome.counts
    if stage.again is None or counts is None:
        return stage
    print(f"\n=== {stage.name}, once more", *names, sep="\n    ", flush=True)
    began = time.monotonic()
    second = stage.again(names)
    seconds = stage.seconds + time.monotonic() - began
    if second.problem or second.counts != Counts(passed=len(names)):
        return replace(stage, seconds=seconds)
    well = Outcome(
        counts=Counts(counts.passed + len(names)),
        remark=f"{len(names)} passed only when run again: {', '.join(names)}",
    )
    return replace(stage, outcome=well, seconds=seconds)


def _tool(module: str, *argv: str, out: Path | None = None) -> Outcome:
    status = _run(python_module(module, *argv), out, nice=0 if out is None else NICE)
    return Outcome("" if status == 0 else f"exit status {status}")


def _run(
    command: Sequence[str],
    out: Path | None,
    env: Mapping[str, str] | None = None,
    *,
    nice: int = 0,
) -> int:
    """The command's exit status; what it prints goes to the file `out`, if there is one."""
    with contextlib.ExitStack() as stack:
        return subprocess.run(
            ["setpriv", "--pdeathsig", "TERM", "nice", "-n", str(nice), *command],
            cwd=CHECKOUT,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=None if out is None else stack.enter_context(out.open("wb")),
            stderr=None if out is None else subprocess.STDOUT,
            check=False,
        ).returncode


@dataclass(frozen=True, slots=True)
class Suite:
    """Runs pytest; `selected`: `for_pytest` says which tests, so there may be none in a stage."""

    folder: Path
    kernel: Choice
    for_pytest: Sequence[str]
    selected: bool

    @property
    def results(self) -> Path:
        """What the lab kernels can write."""
        return self.folder / "kernel"

    def host_jobs(self) -> list[_Job]:
        """Two processes; one for tests that were named, of which a half may have none."""
        pure, rest = PURE, [f"--ignore={folder}" for folder in PURE]
        halves = {"pytest, engines": pure, "pytest, daemons": rest}
        chosen = {"pytest, host": ()} if self.selected else halves
        return [
            (name, partial(self.beside, options), self.host_again)
            for name, options in chosen.items()
        ]

    def beside(self, options: Sequence[str], out: Path) -> Outcome:
        """What may be held up by the lab kernels."""
        marks = f"not uml and not ({ALONE})"
        return self.run(out.stem, ["-m", marks, *options, *self.for_pytest], out, nice=NICE)

    def boots(self, out: Path) -> Outcome:
        """What boots kernels itself, one at a time."""
        return self.run("lab", ["-m", "not uml and lab", *self.for_pytest], out)

    def alone(self) -> Outcome:
        return self.run("alone", ["-m", "not uml and alone and not lab", *self.for_pytest])

    def host_again(self, names: Sequence[str]) -> Outcome:
        return self.run("again", names)

    def run(
        self, name: str, options: Sequence[str], out: Path | None = None, *, nice: int = 0
    ) -> Outcome:
        junit = self.folder / f"{name}.xml"
        junit.unlink(missing_ok=True)
        tests = python_module("pytest", f"--junitxml={junit}", *options)
        status = _run(tests, out, nice=nice)
        return judge(status, junit, selected=self.selected)

    def kernels(self) -> Outcome:
        """Two that share the tests, the second's output after the first's; but the host has one, at
        most."""
        tests = ["-m", f"uml and not ({ALONE})", *self.for_pytest]
        if self.kernel != "uml":
            return merge([self._in_kernel("only", tests)], selected=self.selected)
        claims = {sharing.CLAIMS: str(self.results / "claims")}
        out = self.folder / "second.txt"
        with ThreadPoolExecutor(1) as pool:
            backwards = {**claims, sharing.BACKWARDS: "yes"}
            second = pool.submit(self._in_kernel, "second", tests, backwards, out)
            first = self._in_kernel("first", tests, claims)
            outcomes = (first, second.result())
            print(f"\n--- the second kernel\n{out.read_text(errors='replace')}", flush=True)
        return merge(outcomes, selected=self.selected)

    def kernel_alone(self) -> Outcome:
        tests = ["-m", f"uml and ({ALONE})", *self.for_pytest]
        return merge([self._in_kernel("alone", tests)], selected=self.selected)

    def kernel_again(self, names: Sequence[str]) -> Outcome:
        return self._in_kernel("again", names)

    def _in_kernel(
        self,
        name: str,
        selection: Sequence[str],
        env: Mapping[str, str] | None = None,
        out: Path | None = None,
    ) -> Outcome:
        """Any number of tests is all right, none too: the other kernel may have had them all."""
        junit = self.results / f"{name}.xml"
        junit.unlink(missing_ok=True)
        options = ("-p", "no:cacheprovider", "-p", "gdoi_lab.sharing", f"--junitxml={junit}")
        tests = python_module("pytest", *options, *selection)
        where = ("--kernel", self.kernel, "--out", str(self.results))
        limit = ("--time-limit", str(KERNEL_TIME_LIMIT))
        status = _run(python_module("gdoi_lab", "run", *where, *limit, "--", *tests), out, env)
        if not junit.exists():
            log = self.results / "kernel.log"
            print(log.read_text(errors="replace") if log.exists() else "no kernel started")
        return judge(status, junit, selected=True)


def merge(outcomes: Sequence[Outcome], *, selected: bool) -> Outcome:
    """Of several that shared one list of tests; unless some were named, there must be one."""
    counts = sum((outcome.counts for outcome in outcomes if outcome.counts), Counts())
    problems = [outcome.problem for outcome in outcomes if outcome.problem]
    if not problems and counts.total == 0 and not selected:
        problems = ["no tests ran"]
    # Tests by name cannot be the whole problem of one of them, and not of another.
    named = all(outcome.failed for outcome in outcomes if outcome.problem)
    failed = tuple(name for outcome in outcomes for name in outcome.failed) if named else ()
    return Outcome(", ".join(problems), counts, failed)


def _close(stages: list[Stage]) -> int:
    counts = sum((s.outcome.counts for s in stages if s.outcome.counts), Counts())
    problems = [s for s in stages if s.outcome.problem]
    print(f"\n{'stage':<20} {'passed':>7} {'failed':>7} {'skipped':>8} {'seconds':>8}  result")
    for stage in stages:
        c = stage.outcome.counts
        numbers = (
            f"{c.passed:>7} {c.failed:>7} {c.skipped:>8}" if c else f"{'-':>7} {'-':>7} {'-':>8}"
        )
        result = stage.outcome.problem or stage.outcome.remark or "ok"
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
