"""The User Mode Linux runner, from the host's side: each test boots a kernel."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gdoi_lab.checkout import CHECKOUT
from gdoi_lab.errors import LabError
from gdoi_lab.net import wait_until

pytestmark = pytest.mark.lab


def lab_command(results: Path, *argv: str, limit: float = 60.0) -> list[str]:
    options = ["--kernel", "uml", "--out", str(results), "--time-limit", str(limit)]
    return [sys.executable, "-m", "gdoi_lab", "run", *options, "--", *argv]


def lab(
    results: Path, *argv: str, limit: float = 60.0, module_path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        lab_command(results, *argv, limit=limit),
        env={**os.environ, "PYTHONPATH": str((module_path or CHECKOUT) / "deploy")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def kernels_of(results: Path) -> list[str]:
    """The processes that have to do with this run: its name is in the runner's arguments."""
    found = subprocess.run(
        ["pgrep", "-f", str(results)], capture_output=True, text=True, check=False
    )
    return found.stdout.split()


def test_status_output_and_results_come_back(tmp_path: Path) -> None:
    script = (
        'echo out; echo err >&2; echo kept >"$GDOI_LAB_RESULTS/file"; '
        'pwd; touch /x || echo root is read-only; [ "$GDOI_LAB_KERNEL" = uml ] && exit 7'
    )
    done = lab(tmp_path / "results", "sh", "-c", script)
    assert done.stdout == f"out\n{CHECKOUT}\nroot is read-only\n"
    assert done.stderr.splitlines()[0] == "err"
    assert "Read-only file system" in done.stderr
    assert done.returncode == 7
    assert (tmp_path / "results" / "file").read_text() == "kept\n"
    assert not Path("/x").exists()


def test_large_output_is_whole(tmp_path: Path) -> None:
    done = lab(tmp_path, "seq", "100000")
    assert done.stdout == "".join(f"{n}\n" for n in range(1, 100001))
    assert done.returncode == 0


def test_the_lab_kernel_holds_esp_sas_and_the_probe_says_so(tmp_path: Path) -> None:
    script = "import time, os; from gdoi_lab.kernel import esp_refusal; print(esp_refusal())"
    done = lab(tmp_path, sys.executable, "-c", script)
    assert (done.stdout, done.stderr) == ("None\n", "")


def test_the_clock_inside_is_right(tmp_path: Path) -> None:
    done = lab(tmp_path, "date", "+%s")
    now = float(subprocess.run(["date", "+%s"], capture_output=True, check=True).stdout)
    assert abs(now - float(done.stdout)) < 60


def test_the_time_limit_ends_the_run(tmp_path: Path) -> None:
    done = lab(tmp_path, "sleep", "100", limit=1)
    assert done.returncode == 124
    assert "took longer than its 1 s" in done.stderr


def test_a_panic_is_one_sentence(tmp_path: Path) -> None:
    done = lab(tmp_path, "sh", "-c", "echo c >/proc/sysrq-trigger; sleep 20")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Kernel panic" in done.stderr
    assert (tmp_path / "kernel.log").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_leaves_no_process(tmp_path: Path, number: int) -> None:
    command = lab_command(tmp_path, "sh", "-c", 'touch "$GDOI_LAB_RESULTS/up"; exec sleep 100')
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / "deploy"), "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as run:
        # The kernel writes back what it was given, at the latest every few seconds.
        wait_until((tmp_path / "up").exists, 60, "the command to run")
        run.send_signal(number)
        assert run.wait(60) == (-number if number == signal.SIGKILL else 128 + number)
    wait_until(lambda: not kernels_of(tmp_path), 30, "every process to be gone")


def test_a_results_folder_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    done = lab(tmp_path / "a,b", "true")
    assert done.returncode == 1
    assert "comma" in done.stderr
    assert LabError.__name__ not in done.stderr
