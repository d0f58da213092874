"""The daemons' clock: it never steps, over a restart either, and counts the machine's sleep."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from gdoi_plugin.daemon import clock as module
from gdoi_plugin.daemon.clock import SteadyClock
from gdoi_plugin.daemon.errors import StoreError
from gdoi_plugin.daemon.state_file import StateDirectory

NOON = 1_800_000_000.0
DAY = 86400.0


@dataclass
class Machine:
    """Its time of day, and the seconds since it was booted."""

    day: float = NOON
    up: float = 50.0

    def lives(self, seconds: float) -> None:
        self.day += seconds
        self.up += seconds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    made = Machine()
    boot = tmp_path / "boot_id"
    boot.write_text("the first boot\n")
    monkeypatch.setattr(module, "BOOT_ID", boot)
    monkeypatch.setattr(time, "time", lambda: made.day)
    monkeypatch.setattr(time, "clock_gettime", lambda which: {time.CLOCK_BOOTTIME: made.up}[which])
    return made


def kept(folder: Path) -> SteadyClock:
    return SteadyClock.kept(StateDirectory(folder), "_clock")


@pytest.mark.parametrize("step", [DAY, -DAY, -NOON])
def test_the_clock_does_not_step(machine: Machine, step: float) -> None:
    clock = SteadyClock()
    assert clock.now() == NOON
    machine.day += step
    machine.lives(1.5)
    assert clock.now() == NOON + 1.5
    assert clock.time_of_day(NOON) == NOON + step, "what people call that moment now"


@pytest.mark.parametrize("step", [DAY, -DAY])
def test_a_daemon_that_starts_again_goes_on_with_its_time(
    machine: Machine, tmp_path: Path, step: float
) -> None:
    first = kept(tmp_path)
    machine.day += step
    machine.lives(10)
    again = kept(tmp_path)
    assert first.now() == again.now() == NOON + 10
    machine.lives(5)
    assert kept(tmp_path).now() == NOON + 15


def test_another_boot_believes_the_time_of_day(machine: Machine, tmp_path: Path) -> None:
    kept(tmp_path)
    module.BOOT_ID.write_text("the second boot\n")
    machine.day, machine.up = NOON + 3 * DAY, 4.0
    assert kept(tmp_path).now() == NOON + 3 * DAY
    machine.day -= DAY
    assert kept(tmp_path).now() == NOON + 3 * DAY


@pytest.mark.parametrize("offset", [None, "1", True, [], 10**400])
def test_what_is_no_clock_is_not_gone_on_with(
    machine: Machine, tmp_path: Path, offset: object
) -> None:
    record = {"boot": "the first boot", "offset": offset}
    (tmp_path / "_clock.json").write_text(json.dumps(record))
    assert kept(tmp_path).now() == machine.day
    machine.day += DAY
    assert kept(tmp_path).now() == NOON, "it has been put right"


def test_a_damaged_file_is_told(machine: Machine, tmp_path: Path) -> None:
    assert machine.up
    (tmp_path / "_clock.json").write_text("{")
    with pytest.raises(StoreError, match="not JSON"):
        kept(tmp_path)


def test_the_real_clocks(tmp_path: Path) -> None:
    clock = kept(tmp_path)
    first = clock.now()
    assert abs(first - time.time()) < 60
    assert clock.now() >= first
    assert json.loads((tmp_path / "_clock.json").read_text())["boot"]
