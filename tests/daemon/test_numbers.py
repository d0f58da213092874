"""Sequence numbers that outlive the agent, and the machine's reboot."""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gdoi_xfrm import AesGcm, Lifetime, Sa

from gdoi_plugin.daemon import numbers
from gdoi_plugin.daemon.errors import StoreError
from gdoi_plugin.daemon.numbers import BLOCK, INTERVAL, MARGIN, UNATTENDED, Numbers
from gdoi_plugin.daemon.state_file import StateDirectory
from tests.kernel.values import sa

HOUR = Lifetime(hard_seconds=3600)
NEW = sa(5, lifetime=HOUR)
USED = replace(NEW, output_sequence=1000, input_sequence=500)
FILE = "_numbers.json"


def fresh(folder: Path) -> Numbers:
    """As the next process has them."""
    found = Numbers(StateDirectory(folder))
    found.load()
    return found


def knows(numbers: Numbers, sa: Sa) -> bool:
    """Of what is not kept nothing is changed."""
    return numbers.continued(sa, 0.0) is not sa


def test_what_was_never_held_begins_at_0(tmp_path: Path) -> None:
    nothing = fresh(tmp_path)
    assert not knows(nothing, NEW)
    assert nothing.continued(NEW, 0.0).output_sequence == 0
    assert not nothing.reserved(NEW)


def test_after_a_clean_stop_numbers_are_exact(tmp_path: Path) -> None:
    first = fresh(tmp_path)
    first.keep([NEW], [], 0.0)
    first.keep([], [USED], 10.0)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    back = fresh(tmp_path).continued(NEW, 1000.0)
    assert (back.output_sequence, back.input_sequence) == (1000, 500)


def test_after_a_crash_no_number_that_may_be_used_comes_again(tmp_path: Path) -> None:
    fresh(tmp_path).keep([USED], [], 0.0)
    at_once = fresh(tmp_path).continued(NEW, 0.0)
    assert (at_once.output_sequence, at_once.input_sequence) == (1000 + BLOCK, 500)
    later = fresh(tmp_path).continued(NEW, 1800.0).output_sequence
    assert later == 1000 + BLOCK + UNATTENDED // 2, "the kernel may have sent on alone"
    back = fresh(tmp_path).continued(NEW, -5.0).output_sequence
    assert back == 1000 + BLOCK, "a clock that goes back takes nothing"


@pytest.mark.parametrize(("esn", "last"), [(False, 2**32 - 1), (True, 2**64 - 1)])
def test_numbers_end(tmp_path: Path, esn: bool, last: int) -> None:
    nearly = replace(USED, esn=esn, replay_window=32, output_sequence=last - 10)
    fresh(tmp_path).keep([nearly], [], 0.0)
    again = fresh(tmp_path)
    assert again.reserved(nearly)
    assert again.continued(replace(nearly, output_sequence=0), 3600.0).output_sequence == last


def test_it_is_written_before_numbers_run_out_and_seldom_else(tmp_path: Path) -> None:
    kept = fresh(tmp_path)
    kept.keep([NEW], [], 0.0)
    assert kept.reserved(replace(NEW, output_sequence=BLOCK - MARGIN))
    assert not kept.due([replace(NEW, output_sequence=BLOCK - MARGIN)], 2.0)
    assert kept.due([replace(NEW, output_sequence=BLOCK - MARGIN + 1)], 2.0)
    assert not kept.due([USED], INTERVAL - 1)
    assert kept.due([USED], INTERVAL)
    assert not kept.due([NEW], INTERVAL), "nothing has changed"


def test_another_key_with_the_same_spi_is_another_sa(tmp_path: Path) -> None:
    fresh(tmp_path).keep([USED], [], 0.0)
    other = replace(NEW, algorithm=AesGcm(bytes(20)))
    assert fresh(tmp_path).continued(other, 0.0).output_sequence == 0


def test_keys_are_not_written(tmp_path: Path) -> None:
    fresh(tmp_path).keep([USED], [], 0.0)
    text = (tmp_path / FILE).read_text()
    assert all(attribute.key.hex() not in text for attribute in USED.algorithm.attributes)


def test_an_sa_stays_until_its_time_is_up(tmp_path: Path) -> None:
    fresh(tmp_path).keep([NEW], [], 0.0)
    later = fresh(tmp_path)
    later.keep([sa(6, lifetime=HOUR)], [USED], 3599.0)
    assert knows(later, NEW)
    later.keep([sa(6, lifetime=HOUR)], [USED], 3600.0)
    assert not knows(fresh(tmp_path), NEW)
    assert knows(fresh(tmp_path), sa(6))


def test_the_oldest_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "MAX_KEPT", 2)
    kept = fresh(tmp_path)
    kept.keep([sa(5), sa(6)], [], 0.0)
    kept.keep([sa(6), sa(7)], [sa(5)], 10.0)
    again = fresh(tmp_path)
    assert [knows(again, sa(spi)) for spi in (5, 6, 7)] == [False, True, True]


def test_what_runs_stays_however_old_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "MAX_KEPT", 2)
    kept = fresh(tmp_path)
    kept.keep([sa(5)], [], 0.0)
    for spi in (6, 7, 8):
        kept.keep([sa(5), sa(spi)], [], 10.0)
        kept.keep([sa(5)], [sa(spi)], 20.0)
    again = fresh(tmp_path)
    assert [knows(again, sa(spi)) for spi in (5, 6, 7, 8)] == [True, False, False, True]
    again.keep([sa(5), sa(6), sa(7)], [], 30.0)
    assert [knows(fresh(tmp_path), sa(spi)) for spi in (5, 6, 7, 8)] == [True, True, True, False]


def test_new_sas_are_appended(tmp_path: Path) -> None:
    kept = fresh(tmp_path)
    assert not kept.add([NEW], 0.0), "the first time it is written as a whole"
    kept.keep([NEW], [], 0.0)
    before = (tmp_path / FILE).read_bytes()
    assert kept.add([replace(USED, spi=6), replace(USED, spi=7)], 10.0)
    assert (tmp_path / FILE).read_bytes().startswith(before)
    assert kept.reserved(replace(USED, spi=7))
    again = fresh(tmp_path)
    assert again.kept == kept.kept
    back = again.continued(replace(NEW, spi=6), 10.0)
    assert (back.output_sequence, back.input_sequence) == (1000 + BLOCK, 500)
    again.keep([NEW], [], 20.0)
    assert (tmp_path / FILE).read_bytes().count(b"\n") == 0


def test_what_is_appended_later_counts(tmp_path: Path) -> None:
    kept = fresh(tmp_path)
    kept.keep([NEW], [], 0.0)
    assert kept.add([replace(NEW, output_sequence=BLOCK)], 10.0)
    assert fresh(tmp_path).continued(NEW, 10.0).output_sequence == 2 * BLOCK


def test_a_line_that_was_cut_was_never_reserved(tmp_path: Path) -> None:
    kept = fresh(tmp_path)
    kept.keep([NEW], [], 0.0)
    assert kept.add([replace(NEW, spi=6)], 10.0)
    whole = (tmp_path / FILE).read_bytes()
    assert kept.add([replace(NEW, spi=7)], 20.0)
    longer = (tmp_path / FILE).read_bytes()
    for end in range(len(whole), len(longer)):
        (tmp_path / FILE).write_bytes(longer[:end])
        again = fresh(tmp_path)
        known = [knows(again, replace(NEW, spi=spi)) for spi in (5, 6, 7)]
        assert known == [True, True, False], "it was not durable, so nothing was sent"
        assert not again.add([replace(NEW, spi=8)], 30.0), "nothing is appended to half a line"
    (tmp_path / FILE).write_bytes(longer.replace(b"spi 0x00000006", b'"'))
    with pytest.raises(StoreError, match=r"_numbers\.json"):
        fresh(tmp_path)


def test_the_file_is_written_anew_before_it_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numbers, "MAX_APPENDED", 2)
    kept = fresh(tmp_path)
    kept.keep([NEW], [], 0.0)
    assert [kept.add([replace(NEW, spi=spi)], 10.0) for spi in (6, 7, 8)] == [True, True, False]
    assert not kept.reserved(replace(NEW, spi=8))


def test_what_cannot_be_appended_is_not_reserved(tmp_path: Path) -> None:
    kept = fresh(tmp_path)
    kept.keep([NEW], [], 0.0)
    (tmp_path / FILE).unlink()
    assert not kept.add([replace(NEW, spi=6)], 10.0)
    assert not kept.reserved(replace(NEW, spi=6))
    kept.keep([NEW, replace(NEW, spi=6)], [], 10.0)
    assert knows(fresh(tmp_path), replace(NEW, spi=6))


def test_what_cannot_be_saved_is_not_reserved(tmp_path: Path) -> None:
    kept = fresh(tmp_path)
    (tmp_path / FILE).mkdir()
    with pytest.raises(StoreError, match=r"_numbers\.json"):
        kept.keep([NEW], [], 0.0)
    assert not kept.reserved(NEW)
    assert not kept.due([NEW], 2.0), "it is not tried at every look"
    assert kept.due([NEW], INTERVAL)


def test_nothing_is_appended_to_a_file_whose_name_may_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = fresh(tmp_path)
    kept.keep([NEW], [], 0.0)
    flush = os.fsync

    def of_files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", of_files_only)
        with pytest.raises(StoreError, match=r"_numbers\.json"):
            kept.keep([NEW], [], 10.0)
    assert not kept.add([replace(NEW, spi=6)], 20.0)
    kept.keep([NEW], [], 30.0)
    assert kept.add([replace(NEW, spi=6)], 40.0)


@pytest.mark.parametrize(
    "change",
    [{"sent": "7"}, {"sent": -1}, {"received": 2**64}, {"until": None}, {"at": "now"}, {"more": 1}],
)
def test_a_file_that_cannot_be_read_is_no_empty_one(tmp_path: Path, change: Any) -> None:
    fresh(tmp_path).keep([NEW], [], 0.0)
    saved = json.loads((tmp_path / FILE).read_text())
    (entry,) = saved["sas"].values()
    entry.update(change)
    documents: list[Any] = [saved, {"sas": []}, {"sas": {"x": 7}}]
    for document in documents:
        (tmp_path / FILE).write_text(json.dumps(document))
        with pytest.raises(StoreError, match=r"_numbers\.json: .*remove it"):
            fresh(tmp_path)
