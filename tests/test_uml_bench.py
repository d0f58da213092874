"""``deploy/bench member`` runs and its objects have their shape. Times are no test's business."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.uml

# In a process of its own: it moves to a network namespace.
SHORT = """
import sys
from gdoi_bench import __main__, member

member.ROUNDS = {1: 2, 3: 1}
member.INSTALLED, member.INSTALLATIONS = 20, 1
sys.argv = ["bench", "member", "--json"]
sys.exit(__main__.main())
"""


def test_a_short_run_of_the_member_s_figures() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHORT], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    assert "bench: ecdsa256, 3 SAs, 2 rekeys" in done.stderr
    figures = {figure["name"]: figure for figure in json.loads(done.stdout)}
    for what in ("rsa2048-sha256, 1 SA", "ecdsa256, 3 SAs"):
        whole = figures[f"PUSH to ACK, {what}"]
        assert set(whole) == {"name", "value", "unit", "bound", "ratio", "goal", "met", "why"}
        assert whole["goal"] == pytest.approx(3 * whole["bound"])
        stages = {name for name in figures if name.startswith(f"PUSH to ACK, {what}: ")}
        assert {name.rpartition(" ")[2] for name in stages} == {
            "decode",
            "signature",
            "kernel",
            "persist",
            "ACK",
        }
        assert all(figures[name]["value"] > 0 for name in stages)
        assert figures[f"PUSH to ACK, {what}: kernel"]["bound"] > 0
    installed = figures["20 SAs, read back; bound: ip -batch"]
    assert installed["bound"] > 0
    assert installed["met"] == (installed["value"] <= installed["goal"])
