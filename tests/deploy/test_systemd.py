"""What systemd's own tools say of the units, without starting them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "deploy/systemd"
# Tenths of systemd's exposure level, whose scale ends at 10.
THRESHOLD = 20
SERVICES = ["gdoi-gm.service", "gdoi-gcks.service"]


def analyze(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, words)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("service", SERVICES)
def test_exposure(service: str) -> None:
    done = analyze("security", "--offline=true", f"--threshold={THRESHOLD}", UNITS / service)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout
    assert float(found[1]) <= THRESHOLD / 10


def test_the_threshold_is_one(tmp_path: Path) -> None:
    """A unit without a sandbox does not pass."""
    unit = tmp_path / "gdoi-open.service"
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    assert analyze("security", "--offline=true", f"--threshold={THRESHOLD}", unit).returncode != 0


@pytest.mark.parametrize("service", SERVICES)
def test_every_line_is_understood(service: str, tmp_path: Path) -> None:
    """With each drop-in that is shipped; programs are where the package has them."""
    text = (UNITS / service).read_text().replace("/usr/bin/gdoi-", "/bin/true gdoi-")
    for example in [None, *sorted((UNITS / "examples").glob("*.conf.example"))]:
        unit = tmp_path / service
        unit.write_text(text + ("" if example is None else example.read_text()))
        done = analyze("verify", "--man=no", unit)
        assert (done.returncode, done.stderr) == (0, ""), example


def test_drop_ins_say_no_more_than_they_mean() -> None:
    """A line that is taken over as it is belongs to [Service]."""
    for example in (UNITS / "examples").glob("*.conf.example"):
        lines = [line for line in example.read_text().splitlines() if line[:1] not in ("#", "")]
        assert lines[0] == "[Service]"
        assert all(re.match(r"[A-Z][A-Za-z]+=", line) for line in lines[1:])
