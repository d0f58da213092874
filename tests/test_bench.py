"""deploy/bench's figures: what they say of a goal, and that it is what was measured."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gdoi_bench import __main__, ack, bound, figure, ledger, lkh, push, scrape, store
from gdoi_bench.bound import BoundError
from gdoi_bench.figure import Figure, lower_quartile, median_time, print_figures
from gdoi_lab.checkout import CHECKOUT

from tests.daemon.children import eventually
from tests.daemon.test_udp import free_port

OBJECT = {"name", "value", "unit", "bound", "ratio", "goal", "met", "why"}


def test_a_goal_is_met_or_not() -> None:
    assert Figure("size", 6000, "octets", 6000).met is True
    assert Figure("size", 6001, "octets", 6000).met is False
    assert Figure("time", 1e9, "s").met is None, "there is none"
    assert Figure("rate", 90, "/s", 90, at_least=True).met is True
    assert Figure("rate", 89, "/s", 90, at_least=True).met is False


def test_objects_for_machines_and_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    figures = [
        Figure("evict", 0.25, "ms", 0.3, 0.2),
        Figure("size", 7000, "octets", 6000, why="too large"),
        Figure("memory", 12, "MB"),
        Figure("rate", 85_000, "/s", 90_000, 100_000, at_least=True),
    ]
    print_figures(figures, as_json=True)
    documents = json.loads(capsys.readouterr().out)
    first = documents[0]
    assert [(each["ratio"], each["goal"], each["met"]) for each in documents] == [
        (1.25, 0.3, True),
        (None, 6000, False),
        (None, None, None),
        (0.85, 90_000, False),
    ]
    assert set(first) == OBJECT
    assert [each["why"] for each in documents] == [None, "too large", None, figure.UNKNOWN]
    print_figures(figures, as_json=False)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[-1] for row in rows[:-2]] == ["met", "yes", "NO", "-", "NO"]
    assert rows[-3][-3:] == [">=", "90,000", "NO"]
    assert " ".join(rows[-2]) == "not met: size: too large"
    assert " ".join(rows[-1]) == f"not met: rate: {figure.UNKNOWN}"


@pytest.mark.parametrize(("value", "status"), [(1.0, 0), (2.0, 1)])
def test_a_missed_goal_is_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, value: float, status: int
) -> None:
    """A figure without a goal is neither met nor missed."""
    figures = [Figure("time", 9.0, "s"), Figure("size", value, "octets", 1.0)]
    monkeypatch.setattr(lkh, "measure", lambda: figures)
    monkeypatch.setattr(sys, "argv", ["bench", "lkh"])
    assert __main__.main() == status


def test_medians_are_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 3, 1 and 9 seconds it is 3; what passes between two runs does not count."""
    clock = iter([0.0, 3.0, 10.0, 11.0, 20.0, 29.0])
    monkeypatch.setattr(figure, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    calls: list[int] = []
    assert median_time(lambda: calls.append(1), 3) == 3.0
    assert len(calls) == 3


def test_a_lower_quartile_leaves_out_what_was_held_up() -> None:
    assert lower_quartile([5.0]) == 5.0
    assert lower_quartile([9.0, 2.0, 90.0, 3.0]) == 3.0
    assert lower_quartile([float(n) for n in range(40, 0, -1)]) == 11.0


def test_a_small_run_of_the_key_tree_s_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sizes and names; times belong to `deploy/bench`, on a machine that does nothing else."""
    small = {"MEMBERS": 256, "MILLION": 50_000, "RESTARTED": 200, "TIMES": 20, "ROUNDS": 2}
    for name, value in {**small, "FORESTS": 1}.items():
        monkeypatch.setattr(lkh, name, value)
    documents = _documents(monkeypatch, capsys, "lkh")
    assert documents["update arrays, AES-128"]["met"]
    assert documents["memory of tree and index; bound: bare keys"]["met"]
    assert "a forest of 50,000, 2 trees" in documents
    assert all(document["value"] > 0 for document in documents.values())
    without = {name for name, document in documents.items() if not document["bound"]}
    assert without == {"restart with 200 members"}


def test_a_small_run_of_the_pushes_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"TIMES": 4, "ROUNDS": 2, "FAN_OUT_ROUNDS": 2}.items():
        monkeypatch.setattr(push, name, value)
    documents = _documents(monkeypatch, capsys, "push", "--members", "3000")
    fan_out = documents["fan-out of one rekey to 3,000 members; bound: sendmmsg in C"]
    assert fan_out["goal"] == pytest.approx(0.9 * fan_out["bound"])
    assert fan_out["met"] == (fan_out["value"] >= fan_out["goal"])
    assert {"rsa2048-sha256", "ecdsa256"} == {
        name.partition(";")[0].rpartition(" ")[2] for name in documents if name.startswith("PUSHes")
    }
    assert all(document["value"] > 0 < document["bound"] for document in documents.values())


def test_a_small_restart_of_the_key_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real process, its state sealed, with and without members."""
    for name, value in {"MEMBERS": 300, "PAGES": 3, "ROUNDS": 1, "PORT": free_port()}.items():
        monkeypatch.setattr(store, name, value)
    documents = _documents(monkeypatch, capsys, "store")
    assert documents["restart with 300 members"]["bound"] > 0
    assert documents["restart with 300 members"]["goal"] == 2
    assert documents["restart with 3 pages of all of them"]["value"] > 0


def _documents(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> dict[str, Any]:
    """What `deploy/bench ... --json` prints, by name. Whether a goal is met is no test's business,
    but the status says so."""
    monkeypatch.setattr(sys, "argv", ["bench", *arguments, "--json"])
    status = __main__.main()
    documents = json.loads(capsys.readouterr().out)
    assert all(set(document) == OBJECT for document in documents)
    assert status == (1 if any(document["met"] is False for document in documents) else 0)
    return {document["name"]: document for document in documents}


@pytest.mark.parametrize("source", sorted(bound.SOURCES.glob("*.c")), ids=lambda path: path.stem)
def test_every_bound_compiles_without_a_warning_and_refuses_no_arguments(source: Path) -> None:
    with bound.compiled(source.stem, "crypto") as program, pytest.raises(BoundError, match="usage"):
        program.run()


def test_without_a_bound_there_are_no_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keytree.c").write_text("int main(void) { int unused; return 0; }")
    monkeypatch.setattr(bound, "SOURCES", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench", "lkh"])
    assert __main__.main() == 2
    said = capsys.readouterr()
    assert (said.out, "unused variable" in said.err) == ("", True)


def test_a_small_run_of_registrations() -> None:
    """A real gdoi-gcks and a real charon, in a process of its own for its network namespace."""
    command = [sys.executable, "-m", "gdoi_bench", "register", "--suite", "ecp256-ecdsa256"]
    done = subprocess.run(
        [*command, "--rounds", "1", "--each", "3", "--json"],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": f"{CHECKOUT}/deploy:{CHECKOUT}"},
        timeout=150,
        check=False,
    )
    documents = {document["name"]: document for document in json.loads(done.stdout)}
    name = "ecp256-ecdsa256"
    beside = (f"{name}: registrations; bound: arithmetic", f"{name}: main modes; bound: charon's")
    assert tuple(documents) == beside, done.stderr
    for document in documents.values():
        assert set(document) == OBJECT
        assert document["value"] > 0
        assert document["bound"] > 0
    missed = any(not document["met"] for document in documents.values())
    assert (done.returncode, done.stderr) == (int(missed), "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_who_measures_takes_charon_and_the_key_server_with_it(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "gdoi_bench", "register", "--suite", "ecp256-psk"]
    with subprocess.Popen(
        [*command, "--each", "100000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": f"{CHECKOUT}/deploy:{CHECKOUT}"},
    ) as bench:
        measured = {"charon-systemd", "gdoi-gcks"}
        eventually(lambda: measured <= set(_children(bench.pid).values()), "both to run")
        children = _children(bench.pid)
        bench.send_signal(number)
        bench.wait(150)
    eventually(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "none to be left"
    )


def _children(pid: int) -> dict[int, str]:
    """Their names, as the kernel has them."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with suppress(OSError):
            found[int(child)] = Path(f"/proc/{child}/comm").read_text().strip()
    return found


def test_a_small_run_of_the_acknowledgements_figures() -> None:
    figures = ack.measure(argparse.Namespace(members=200, rounds=1))
    assert len(figures) == 3 + 1 + 7 + 2
    assert all(rate.bound and rate.value > 0 for rate in figures[-2:])
    assert all(rate.bound and rate.value > 0 and rate.at_least for rate in figures[:2])


def test_a_small_run_of_the_scrape_s_figures() -> None:
    figures = scrape.measure(argparse.Namespace(members=300, rounds=1))
    assert [figure.goal is not None for figure in figures] == 2 * [False, True, False]
    assert all(figure.value > 0 for figure in figures)


def test_a_small_run_of_the_ledger_s_figures(tmp_path: Path) -> None:
    """However slow the machine is, none is lost."""
    figures = ledger.measure(argparse.Namespace(members=200, rounds=1, state=tmp_path))
    lost, dropped = figures[-2:]
    assert lost.value == dropped.value == 0
    assert lost.met is dropped.met is True
    assert all(figure.value > 0 for figure in figures[:3])
