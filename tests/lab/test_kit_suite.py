"""How deploy/test judges what pytest did, and what it runs a second time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from gdoi_lab.checkout import CHECKOUT
from gdoi_lab.suite import MOST_AGAIN, PURE, Counts, Outcome, Stage, Suite, judge, merge, once_more

JUNIT = "<testsuites><testsuite>{}</testsuite></testsuites>"
FAILED = '<testcase file="t.py" name="one[a]"><failure/></testcase>'
ONE = ("t.py::one[a]",)
# Passes from its second run on.
HESITANT = """
from pathlib import Path

def test_always():
    assert True

def test_hesitant(request):
    seen = Path(__file__).with_suffix(".seen")
    known = seen.exists()
    seen.touch()
    assert known

def test_hopeless():
    assert not {hopeless}
"""


@pytest.mark.parametrize(
    ("cases", "status", "selected", "expected"),
    [
        ("<testcase/><testcase/>", 0, False, Outcome("", Counts(2, 0, 0))),
        (f"<testcase/>{FAILED}", 1, False, Outcome("1 failed", Counts(1, 1), ONE)),
        ("<testcase><error/></testcase>", 2, False, Outcome("1 failed", Counts(0, 1))),
        (
            "<testcase><skipped/></testcase>",
            0,
            False,
            Outcome("1 skipped: every test must run", Counts(0, 0, 1)),
        ),
        (
            f"{FAILED}<testcase><skipped/></testcase>",
            1,
            False,
            Outcome("1 failed", Counts(0, 1, 1)),
        ),
        ("", 5, False, Outcome("no tests ran", Counts())),
        ("", 5, True, Outcome("", Counts())),
        ("<testcase/>", 3, False, Outcome("exit status 3", Counts(1, 1))),
    ],
)
def test_the_suite_judges_a_stage(
    tmp_path: Path, cases: str, status: int, selected: bool, expected: Outcome
) -> None:
    (tmp_path / "x.xml").write_text(JUNIT.format(cases))
    assert judge(status, tmp_path / "x.xml", selected=selected) == expected


def test_a_stage_without_a_report_has_failed(tmp_path: Path) -> None:
    outcome = judge(0, tmp_path / "none.xml", selected=True)
    assert outcome.counts == Counts(failed=1)
    assert outcome.failed == ()


def test_of_two_kernels_one_without_a_report_cannot_be_mended_by_names() -> None:
    tests = Outcome("1 failed", Counts(1, 1), ONE)
    assert merge([tests, Outcome("", Counts(3))], selected=False).failed == ONE
    crashed = merge([tests, Outcome("no report", Counts(failed=1))], selected=False)
    assert (crashed.failed, crashed.counts) == ((), Counts(1, 2))


def stage_of(tmp_path: Path, *, hopeless: bool) -> tuple[Suite, Stage]:
    """pytest's first run of the hesitant module."""
    module = tmp_path / "test_hesitant.py"
    module.write_text(HESITANT.format(hopeless=hopeless))
    options = ["-c", str(CHECKOUT / "pyproject.toml"), "-p", "no:cacheprovider"]
    suite = Suite(tmp_path, "uml", [], selected=True)
    outcome = suite.run("first", ["-m", "not uml", str(module), *options], tmp_path / "first.txt")
    return suite, Stage("pytest, host", outcome, 1.0, suite.host_again)


def test_what_fails_once_is_told_and_passes(tmp_path: Path) -> None:
    _, first = stage_of(tmp_path, hopeless=False)
    assert first.outcome.problem == "1 failed"
    (second,) = once_more([first])
    assert second.outcome.counts == Counts(3)
    assert second.outcome.problem == ""
    assert "test_hesitant.py::test_hesitant" in second.outcome.remark
    assert second.seconds > first.seconds


def test_what_fails_twice_has_failed(tmp_path: Path) -> None:
    _, first = stage_of(tmp_path, hopeless=True)
    (second,) = once_more([first])
    assert second.outcome == first.outcome
    assert second.outcome.counts == Counts(1, 2)


def test_what_fails_in_numbers_is_not_the_machine() -> None:
    def never(_: Sequence[str]) -> Outcome:
        raise AssertionError("not to be run again")

    names = tuple(f"t.py::{number}" for number in range(MOST_AGAIN))
    stages = [
        Stage("one", Outcome("6 failed", Counts(0, 6), names), 1.0, never),
        Stage("another", Outcome("1 failed", Counts(0, 1), ONE), 1.0, never),
    ]
    assert once_more(stages) == stages


def test_the_host_s_tests_are_run_by_two_unless_some_were_named(tmp_path: Path) -> None:
    """Each folder that one of them has, and the other leaves out, is there and has tests."""
    assert all(list((CHECKOUT / folder).glob("test_*.py")) for folder in PURE)
    jobs = Suite(tmp_path, "uml", [], selected=False).host_jobs()
    assert [name for name, _, _ in jobs] == ["pytest, engines", "pytest, daemons"]
    (job,) = Suite(tmp_path, "uml", ["tests/lab"], selected=True).host_jobs()
    assert job[0] == "pytest, host"
