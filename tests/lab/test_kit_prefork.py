"""Programs that are forked behave as programs that are executed."""

import json
import signal
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
from gdoi_lab.checkout import PYTHON, VENV
from gdoi_lab.net import Network
from gdoi_lab.prefork import Forked, program_of
from gdoi_lab.traffic import Talker
from gdoi_lab.waiting import wait_until

pytestmark = pytest.mark.uml

TALKERS = [PYTHON, "-m", "gdoi_lab.talkers"]


def test_only_our_programs_are_forked(tmp_path: Path) -> None:
    assert program_of([*TALKERS, "talkers.json"]) == tuple(TALKERS)
    assert program_of([PYTHON, "-m", "http.server"]) is None
    with Network(["gm1"], tmp_path) as network:
        process = network["gm1"].popen(["true"], tmp_path / "log")
        assert isinstance(process.popen, subprocess.Popen)
        assert process.wait(120) == 0


def test_arguments_output_and_status_are_the_programs(tmp_path: Path) -> None:
    with Network(["gm1"], tmp_path) as network:
        argv = [str(VENV / "bin" / "gdoi-gm"), "--config", str(tmp_path / "nosuch.toml")]
        process = network["gm1"].popen(argv, tmp_path / "log")
        assert isinstance(process.popen, Forked)
        forked = process.wait(120), process.log_text()
        executed = network["gm1"].run(argv, check=False)
    assert forked == (executed.returncode, executed.stderr)
    assert forked[0] != 0
    assert "nosuch.toml" in forked[1]


def test_streams_namespace_and_signals(tmp_path: Path) -> None:
    with Network(["gm1", "gm2"], tmp_path) as network:
        host, report, told = network["gm2"], tmp_path / "report.json", tmp_path / "talkers.json"
        # Of the namespace it is in already.
        talker = Talker(
            *("gm2", host.namespace, 7, host.address4, host.interface, "239.192.1.1", 5000),
            rate=1.0,
            size=100,
            report=str(report),
        )
        told.write_text(json.dumps([asdict(talker)]))
        argv = [*TALKERS, str(told)]
        process = host.popen(argv, tmp_path / "log", stdin=True)
        # An address of gm2 can be joined with in gm2 only.
        wait_until(lambda: "ready" in process.log_text(), 120, "traffic to be ready")
        listed = subprocess.run(
            ["ip", "netns", "pids", host.namespace], capture_output=True, text=True, check=True
        )
        assert listed.stdout.split() == [str(process.pid)]
        process.write_line("finish")
        assert process.wait(120) == 0
        assert json.loads(report.read_text())["id"] == 7

        again = host.popen(argv, tmp_path / "log2", stdin=True)
        wait_until(lambda: "ready" in again.log_text(), 120, "traffic to be ready")
        assert again.kill() == -signal.SIGKILL
        assert again.status == -signal.SIGKILL
