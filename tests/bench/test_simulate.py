"""``deploy/bench simulate``: its options, objects and picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from gdoi_bench import __main__, simulate
from gdoi_bench.figure import Figure
from gdoi_bench.population import Network

SMALL = ("simulate", "--members", "3000", "--rekey-sas", "3", "--evicted", "9", "--json")
OBJECT = {"name", "value", "unit", "bound", "ratio", "goal", "met", "why"}


def _printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    assert __main__.main() == 0
    documents = json.loads(capsys.readouterr().out)
    assert all(set(document) == OBJECT for document in documents)
    return {document["name"]: document for document in documents}


def test_figures_and_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture = tmp_path / "rekey.svg"
    figures = _printed(monkeypatch, capsys, *SMALL, "--svg", str(picture), "--burst-loss", "0")
    times = [
        figures[f"{share} % of 3,000 members hold the new epoch"]
        for share in ("50", "99", "99.9", "99.99")
    ]
    assert [each["value"] for each in times] == sorted(each["value"] for each in times)
    assert times[-1]["value"] >= times[-1]["bound"] == pytest.approx(10.02)
    assert times[-1]["value"] < 31, "three PUSHes"
    assert figures["PUSHes"]["value"] > 9
    assert figures["not heard 10 s after PUSH 1"]["value"] > 0
    root = ElementTree.fromstring(picture.read_text())  # noqa: S314 -- our own
    (line,) = root.findall("{http://www.w3.org/2000/svg}polyline")
    heights = [float(point.split(",")[1]) for point in line.attrib["points"].split()]
    assert len(heights) > 100
    assert heights[0] < heights[-1], "further down are fewer that lack it"


def test_the_same_seed_prints_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, again, other = (
        _printed(monkeypatch, capsys, *SMALL, "--seed", seed) for seed in ("1", "1", "2")
    )
    assert one == again != other


def test_several_runs_are_a_median(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "not heard 10 s after PUSH 1"
    alone = [_printed(monkeypatch, capsys, *SMALL, "--seed", s)[name] for s in ("1", "2", "3")]
    together = _printed(monkeypatch, capsys, *SMALL, "--runs", "3")[name]
    assert together["value"] == sorted(each["value"] for each in alone)[1]


def test_options_reach_what_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network's, a key server's and the group's."""
    seen = []

    def measure(arguments: Any) -> list[Figure]:
        seen.append(simulate.scenario_of(arguments))
        return []

    monkeypatch.setattr(simulate, "measure", measure)
    options = ("--unicast", "--pace", "500", "--cores", "2", "--burst", "9", "--ack-wait", "15")
    monkeypatch.setattr(sys, "argv", ["bench", "simulate", *options])
    assert __main__.main() == 0
    (scenario,) = seen
    assert (scenario.unicast, scenario.servers.pace, scenario.servers.number) == (True, 500, 2)
    assert (scenario.network.burst, scenario.ack_wait) == (9, 15)
    assert scenario.members == simulate.MILLION


def test_a_rekey_sa_holds_no_more_than_its_tree(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "simulate", "--rekey-sas", "20"])
    with pytest.raises(SystemExit, match="50000 members in one Rekey SA, at most 49151: take 21"):
        __main__.main()
    assert capsys.readouterr().out == ""


def test_no_bound_for_a_network_that_never_lets_enough_through() -> None:
    assert simulate.quickest(Network(loss=0.1, burst_loss=0.0), 0.9999, 10.0) == pytest.approx(
        30.02
    )
    assert simulate.quickest(Network(loss=1.0), 0.5, 10.0) is None
