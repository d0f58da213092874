"""Several pytest processes with one list of tests: each unit of it runs once, in one of them."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from gdoi_lab.checkout import CHECKOUT
from gdoi_lab.sharing import BACKWARDS, CLAIMS, unit_of

MODULE = """
import time
import pytest

pytestmark = pytest.mark.uml

@pytest.fixture(scope="module")
def shared():
    time.sleep({pause})

@pytest.mark.parametrize("number", range(3))
def test_{name}(number, shared):
    pass
"""


def test_a_scenario_is_taken_as_a_whole() -> None:
    assert unit_of("tests/lab/tunnel/test_tunnel.py::test_it[1]") == "tests/lab/tunnel"
    assert unit_of("tests/lab/variants/tunnel/test_tunnel.py::test_it") == "tests/lab/variants"
    assert unit_of("tests/lab/test_nat.py::test_it") == "tests/lab/test_nat.py"
    assert unit_of("tests/kernel/test_uml_errors.py::test_it") == "tests/kernel/test_uml_errors.py"


def test_each_module_runs_once_and_whole(tmp_path: Path) -> None:
    """One process from the front, one from the end, of six modules; the first two take long. One
    that is not for the lab kernel is not even imported."""
    (tmp_path / "test_host.py").write_text("raise AssertionError")
    names = list("abcdef")
    for name in names:
        pause = 3.0 if name in "ab" else 0.0
        (tmp_path / f"test_{name}.py").write_text(MODULE.format(name=name, pause=pause))
    env = {
        **os.environ,
        "PYTHONPATH": str(CHECKOUT / "deploy"),
        CLAIMS: str(tmp_path / "claims"),
    }
    started = []
    for report, more in (("first", {}), ("second", {BACKWARDS: "yes"})):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir=."]
        command += ["-p", "gdoi_lab.sharing", f"--junitxml={report}.xml", "."]
        started.append(subprocess.Popen(command, cwd=tmp_path, env={**env, **more}))
    assert [process.wait(60) for process in started] == [0, 0]
    ran = [ran_in(tmp_path / f"{report}.xml") for report in ("first", "second")]
    assert sorted(ran[0] + ran[1]) == sorted(name for name in names for _ in range(3))
    assert not set(ran[0]) & set(ran[1])
    assert ran[1] == sorted(ran[1], reverse=True)


def ran_in(report: Path) -> list[str]:
    cases = ElementTree.parse(report).iter("testcase")  # noqa: S314  (pytest's own output)
    return [case.attrib["name"].removeprefix("test_")[0] for case in cases]
