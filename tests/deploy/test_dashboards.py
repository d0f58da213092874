"""The Grafana dashboard and the alert rules, with what real daemons say and the real promtool."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.scraped import Scrape, scrapes
from tests.daemon.test_daemons import pair

__all__ = ["pair", "scrapes"]  # pytest finds them here

FOLDER = Path(__file__).parents[2] / "deploy" / "dashboards"
ALERTS = FOLDER / "gdoi-alerts.yml"
NAME = re.compile(r"\b(?:gdoi|process)_[a-z0-9_]+\b")
# What Grafana puts in place of its variables.
VARIABLES = {"$group": ".*", "$__rate_interval": "1m"}


def promtool(*words: object) -> str:
    done = subprocess.run(
        ["promtool", *map(str, words)], capture_output=True, text=True, check=False, timeout=90
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = json.loads((FOLDER / "gdoi.json").read_text())["panels"]
    return panels


def _queries() -> list[str]:
    return [target["expr"] for panel in _panels() for target in panel.get("targets", ())]


def _said(scrapes: tuple[Scrape, Scrape]) -> set[str]:
    return scrapes[0].names | scrapes[1].names


def test_every_metric_of_the_dashboard_is_one_of_the_daemons(
    scrapes: tuple[Scrape, Scrape],
) -> None:
    asked = {name for query in _queries() for name in NAME.findall(query)}
    variables = json.loads((FOLDER / "gdoi.json").read_text())["templating"]["list"]
    asked |= set(NAME.findall(json.dumps(variables)))
    assert len(asked) > 20
    assert asked - _said(scrapes) == set()


def test_every_metric_of_the_alerts_is_one_of_the_daemons(scrapes: tuple[Scrape, Scrape]) -> None:
    asked = set(NAME.findall(ALERTS.read_text()))
    assert len(asked) > 10
    assert asked - _said(scrapes) == set()


def test_labels_that_are_asked_for_exist(scrapes: tuple[Scrape, Scrape]) -> None:
    values = {pair for found in scrapes for _, labels in found.values for pair in labels}
    text = " ".join(_queries()) + ALERTS.read_text()
    for label, pattern in re.findall(r'\b(state|event)=~?"([^"]+)"', text):
        fits = [value for name, value in values if name == label and re.fullmatch(pattern, value)]
        assert fits, (label, pattern)
        for alternative in pattern.split("|") if "(" not in pattern else ():
            assert (label, alternative) in values


def test_every_query_is_promql(tmp_path: Path) -> None:
    rules = []
    for number, query in enumerate(_queries()):
        for variable, value in VARIABLES.items():
            query = query.replace(variable, value)
        assert "$" not in query
        rules.append({"record": f"q{number}", "expr": query})
    path = tmp_path / "rules.json"  # JSON is YAML
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"SUCCESS: {len(rules)} rules found" in promtool("check", "rules", path)


def test_panels_lie_side_by_side() -> None:
    """Every one has a place of its own, a number of its own, and a title."""
    panels = _panels()
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not taken & cells, panel["title"]
        taken |= cells
        assert panel["title"]


def test_alert_rules_are_rules() -> None:
    count = ALERTS.read_text().count("- alert:")
    assert f"SUCCESS: {count} rules found" in promtool("check", "rules", ALERTS)


# -- when they fire ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """``fires``: names of alerts. ``changed``: series, by name and the value of one label, that are
    as promtool writes it. All others are as they were scraped."""

    fires: str
    changed: dict[tuple[str, str], str]


END = 1800  # seconds after the scrape
LATE = "0x100 1x20"
CASES = [
    Case("", {}),
    Case("GdoiDown", {("up", "gdoi-gm"): "0x120"}),
    Case("GdoiMembersMissing", {
        ("gdoi_gcks_members", "missing"): "1x120", ("gdoi_gcks_members", "acknowledged"): "99x120",
    }),
    Case("", {("gdoi_gcks_members", "missing"): "1x100 0x20"}),
    Case("GdoiEpochNotConverged", {
        ("gdoi_gcks_members", "pending"): "6x120", ("gdoi_gcks_members", "acknowledged"): "94x120",
    }),
    Case("", {
        ("gdoi_gcks_members", "pending"): "4x120", ("gdoi_gcks_members", "acknowledged"): "96x120",
    }),
    Case("GdoiMembersDead", {
        ("gdoi_gcks_members", "dead"): "4x120", ("gdoi_gcks_members", "acknowledged"): "96x120",
    }),
    Case("GdoiEpochNotConverged GdoiMembersDead", {
        ("gdoi_gcks_members", "dead"): "95x120", ("gdoi_gcks_members", "acknowledged"): "5x120",
    }),
    Case("GdoiRekeyOverdue", {("gdoi_gcks_next_rekey_timestamp_seconds", "video"): "1500x120"}),
    Case("GdoiKeysExpire", {("gdoi_gcks_kek_expiry_timestamp_seconds", "video"): "1830x120"}),
    Case("GdoiKeysExpire", {("gdoi_gcks_tek_expiry_timestamp_seconds", "video"): "1830x120"}),
    Case("GdoiMemberKeysExpire", {("gdoi_gm_sa_expiry_timestamp_seconds", "video"): "1830x120"}),
    Case("GdoiMemberNotRegistered", {("gdoi_gm_registered", "video"): "0x120"}),
    Case("GdoiInstallFailed", {("gdoi_events_total", "install-failed"): LATE}),
    Case("", {("gdoi_events_total", "install-failed"): "7x120"}),
    Case("GdoiKernelDrift", {("gdoi_gm_kernel_repairs_total", ""): LATE}),
    Case("GdoiKernelContested", {("gdoi_gm_kernel_contested", ""): "1x120"}),
    Case("GdoiKernelContested", {("gdoi_gm_kernel_missing", ""): "2x120"}),
    Case("GdoiStoreFailing", {("gdoi_store_failing", "gdoi-gcks"): "1x120"}),
    Case("GdoiNoLeader", {("gdoi_gcks_leader", ""): "0x120"}),
    Case("GdoiAcksLost", {("gdoi_gcks_receive_buffer_drops_total", ""): LATE}),
]  # fmt: skip


def test_every_alert_has_a_case() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", ALERTS.read_text()))
    assert alerts == {name for case in CASES for name in case.fires.split()}


def test_alerts_fire_when_they_should_and_no_other(
    scrapes: tuple[Scrape, Scrape], tmp_path: Path
) -> None:
    now, tests = time.time(), []
    for case in CASES:
        found = list(_series(scrapes, now, case))
        names = case.fires.split()
        expected = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in names]
        asked = 'count by (alertname) (ALERTS{alertstate="firing"})'
        check = {"expr": asked, "eval_time": f"{END}s", "exp_samples": expected}
        tests.append({"interval": "15s", "input_series": found, "promql_expr_test": [check]})
    path = tmp_path / "tests.json"
    # As Prometheus does it by default; more often takes longer and shows nothing else.
    document = {"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}
    path.write_text(json.dumps(document))
    assert "SUCCESS" in promtool("test", "rules", path)


def _series(scrapes: tuple[Scrape, Scrape], now: float, case: Case) -> Iterator[dict[str, str]]:
    """As a Prometheus server has them, those that alerts ask for; times count from the scrape."""
    left, asked = dict(case.changed), {"up", *NAME.findall(ALERTS.read_text())}
    for found, job in zip(scrapes, ("gdoi-gcks", "gdoi-gm"), strict=True):
        where = {"job": job, "instance": f"{job}:9848"}
        values = {**found.values, ("up", frozenset[tuple[str, str]]()): 1.0}
        for (name, labels), value in values.items():
            if name not in asked:
                continue
            every = dict(labels) | where
            key = next(
                (key for key in left if key[0] == name and key[1] in ("", *every.values())), None
            )
            said = f"{value - now * name.endswith('_timestamp_seconds')}x120"
            if key is not None:
                said = left.pop(key)
            text = ",".join(f"{label}={json.dumps(text)}" for label, text in every.items())
            yield {"series": f"{name}{{{text}}}", "values": said}
    assert not left, "what a case changes is there"


@pytest.mark.parametrize("file", ["gdoi.json", "gdoi-alerts.yml"])
def test_monitoring_names_the_file(file: str) -> None:
    assert f"deploy/dashboards/{file}" in (FOLDER.parent / "docs" / "monitoring.md").read_text()
