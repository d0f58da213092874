"""The scenarios' table: from reports to print, and the command's choice of scenarios."""

from pathlib import Path

import pytest
from gdoi_lab import scenarios
from gdoi_lab.errors import LabError
from gdoi_lab.table import Row, format_rows, read_rows, report

ROWS = [
    Row("tunnel", 900, 1800, 0, 0, 12.5, 2),
    Row("wrong key", 30, 20, 10, 0, 1.0, note="gm2's key is wrong"),
]


def test_rows_go_through_the_results_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_rows(tmp_path) == []
    monkeypatch.setenv("GDOI_LAB_RESULTS", str(tmp_path))
    for row in ROWS:
        report(row)
    assert read_rows(tmp_path) == ROWS


def test_without_a_lab_run_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GDOI_LAB_RESULTS", raising=False)
    monkeypatch.chdir(tmp_path)
    report(ROWS[0])
    assert list(tmp_path.iterdir()) == []


def test_the_table_lines_up() -> None:
    assert format_rows(ROWS).splitlines() == [
        "scenario   sent  received  lost  in clear  seconds  rekeys  note",
        "tunnel      900      1800     0         0     12.5       2",
        "wrong key    30        20    10         0      1.0       0  gm2's key is wrong",
    ]


def test_an_unknown_scenario_is_named_with_those_there_are() -> None:
    known = scenarios.folders()
    assert all(folder.is_dir() for folder in known.values())
    with pytest.raises(LabError, match=rf"no scenario nosuch; there are {', '.join(known)}"):
        scenarios.main(["nosuch"])
