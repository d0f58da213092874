"""Programs that are forked behave as programs that are executed."""

import json
import signal
import subprocess
from pathlib import Path

import pytest
from gdoi_lab.checkout import PYTHON, VENV
from gdoi_lab.net import Network
from gdoi_lab.prefork import Forked, program_of
from gdoi_lab.waiting import wait_until

pytestmark = pytest.mark.uml

TRAFFIC = [PYTHON, "-m", "gdoi_lab.traffic"]


def test_only_our_programs_are_forked(tmp_path: Path) -> None:
    assert program_of([*TRAFFIC, "--id", "1"]) == tuple(TRAFFIC)
    assert program_of([PYTHON, "-m", "http.server"]) is None
    with Network(["gm1"], tmp_path) as network:
        process = network["gm1"].popen(["true"], tmp_path / "log")
        assert isinstance(process.popen, subprocess.Popen)
        assert process.wait(10) == 0


def test_arguments_output_and_status_are_the_programs(tmp_path: Path) -> None:
    with Network(["gm1"], tmp_path) as network:
        argv = [str(VENV / "bin" / "gdoi-gm"), "--config", str(tmp_path / "nosuch.toml")]
        process = network["gm1"].popen(argv, tmp_path / "log")
        assert isinstance(process.popen, Forked)
        forked = process.wait(30), process.log_text()
        executed = network["gm1"].run(argv, check=False)
    assert forked == (executed.returncode, executed.stderr)
    assert forked[0] != 0
    assert "nosuch.toml" in forked[1]


def test_streams_namespace_and_signals(tmp_path: Path) -> None:
    with Network(["gm1", "gm2"], tmp_path) as network:
        options = ["--group", "239.192.1.1", "--port", "5000", "--id", "7"]
        report = tmp_path / "report.json"
        host = network["gm2"]
        argv = [*TRAFFIC, *options, "--address", host.address4, "--report", str(report)]
        process = host.popen(argv, tmp_path / "log", stdin=True)
        # An address of gm2 can be joined with in gm2 only.
        wait_until(lambda: "ready" in process.log_text(), 30, "traffic to be ready")
        listed = subprocess.run(
            ["ip", "netns", "pids", host.namespace], capture_output=True, text=True, check=True
        )
        assert listed.stdout.split() == [str(process.pid)]
        process.write_line("finish")
        assert process.wait(30) == 0
        assert json.loads(report.read_text())["id"] == 7

        again = host.popen(argv, tmp_path / "log2", stdin=True)
        wait_until(lambda: "ready" in again.log_text(), 30, "traffic to be ready")
        assert again.kill() == -signal.SIGKILL
        assert again.status == -signal.SIGKILL
