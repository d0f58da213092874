"""SAs that a former process had: with which numbers the next one puts them into the kernel."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from gdoi_xfrm import (
    MAX_PACKETS_PER_SECOND,
    DeleteSa,
    InstallSa,
    KernelError,
    Lifetime,
    Outcome,
    Sa,
    UpdatePolicy,
)

from gdoi_plugin.daemon.numbers import BLOCK, Numbers
from gdoi_plugin.daemon.own_tables import OwnTables
from gdoi_plugin.daemon.state_file import StateDirectory
from tests.kernel.conftest import namespace
from tests.kernel.namespaces import ip
from tests.kernel.values import CBC, policy, sa, template

__all__ = ["namespace"]
pytestmark = [pytest.mark.uml, pytest.mark.usefixtures("namespace")]

LAST = 2**32 - 1
NEW = sa(0x105, replay_window=32, lifetime=Lifetime(hard_seconds=3600))
# For another address family: an SA before it is in when the kernel says no.
REFUSED = UpdatePolicy(policy(NEW.spi, templates=(template(version=6),)))


@contextmanager
def process(folder: Path) -> Iterator[OwnTables]:
    """One that crashes at the end: nothing more is written."""
    numbers = Numbers(StateDirectory(folder))
    numbers.load()
    with OwnTables(time.monotonic, numbers) as tables:
        yield tables


def counted(tables: OwnTables, wanted: Sa) -> tuple[int, int]:
    state = tables.find_sa(wanted.key)
    assert state is not None
    return state.output_sequence, state.input_sequence


def used(tables: OwnTables, sent: int, received: int) -> None:
    """The kernel's SA after some traffic."""
    tables.delete_sa(NEW.destination, NEW.spi)
    tables.add_sa(replace(NEW, output_sequence=sent, input_sequence=received))
    tables.look_at_sas()


def test_gone_with_a_crash(tmp_path: Path) -> None:
    with process(tmp_path) as tables:
        tables.transaction([InstallSa(NEW)])
        assert counted(tables, NEW) == (0, 0), "never held before"
        used(tables, 4711, 42)
        tables.save_numbers(at_once=True)
    ip("xfrm state flush")
    with process(tmp_path) as tables:
        tables.transaction([InstallSa(NEW)])
        sent, received = counted(tables, NEW)
        assert sent >= 4711 + BLOCK
        assert received == 42
    ip("xfrm state flush")
    with process(tmp_path) as tables:
        tables.transaction([InstallSa(NEW)])
        assert counted(tables, NEW)[0] >= sent + BLOCK, "reserved before it could send"


def test_taken_out_at_the_end(tmp_path: Path) -> None:
    with process(tmp_path) as tables:
        tables.transaction([InstallSa(NEW)])
        used(tables, 4711, 42)
        tables.transaction([DeleteSa(NEW.key)])
        tables.save_numbers(at_once=True)
    with process(tmp_path) as tables:
        tables.transaction([InstallSa(NEW)])
        sent, received = counted(tables, NEW)
        assert 4711 <= sent < BLOCK, "no block is lost"
        assert received == 42


def test_what_is_still_there_is_adopted_as_it_is(tmp_path: Path) -> None:
    with process(tmp_path) as tables:
        tables.transaction([InstallSa(NEW)])
        used(tables, 4711, 42)
    with process(tmp_path) as tables:
        (result,) = tables.transaction([InstallSa(NEW)])
        assert result.outcome is Outcome.ADOPTED
        assert counted(tables, NEW) == (4711, 42)
        assert tables.sas[NEW.key].sa.output_sequence == 4711


def test_what_the_kernel_refused_has_used_nothing(tmp_path: Path) -> None:
    with process(tmp_path) as tables, process(tmp_path / "others") as others:
        taken = replace(NEW, algorithm=CBC)
        for _ in range(3):
            others.add_sa(taken)
            with pytest.raises(KernelError):
                tables.transaction([InstallSa(NEW)])
            others.delete_sa(taken.destination, taken.spi)
        tables.transaction([InstallSa(NEW)])
        assert counted(tables, NEW) == (0, 0)


def test_what_was_undone_may_have_sent(tmp_path: Path) -> None:
    """Each attempt costs what can be sent meanwhile, and no block."""
    with process(tmp_path) as tables:
        began = time.monotonic()
        for _ in range(3):
            with pytest.raises(KernelError, match="EINVAL") as caught:
                tables.transaction([InstallSa(NEW), REFUSED])
            assert caught.value.not_undone == ()
            assert tables.find_sa(NEW.key) is None
        most = math.ceil((time.monotonic() - began) * MAX_PACKETS_PER_SECOND)
        tables.transaction([InstallSa(NEW)])
        assert 3 <= counted(tables, NEW)[0] <= most
    with process(tmp_path / "stopped") as tables:
        tables.delete_sa(NEW.destination, NEW.spi)
        with pytest.raises(KernelError, match="EINVAL"):
            tables.transaction([InstallSa(NEW), REFUSED])
        tables.save_numbers(at_once=True)
    with process(tmp_path / "stopped") as tables:
        tables.transaction([InstallSa(NEW)])
        assert 0 < counted(tables, NEW)[0] < BLOCK, "the file says so, too"


def test_what_is_brought_again_and_undone_may_have_sent(tmp_path: Path) -> None:
    """One of ours that somebody has taken out, before it is put back."""
    with process(tmp_path) as tables:
        tables.transaction([InstallSa(NEW)])
        used(tables, 4711, 42)
        state = tables.find_sa(NEW.key)
        tables.delete_sa(NEW.destination, NEW.spi)
        tables.deleted(NEW.key, state)
        with pytest.raises(KernelError, match="EINVAL"):
            tables.transaction([InstallSa(NEW), REFUSED])
        assert tables.mend(tables.look_at_sas()).sas == [NEW.key]
        sent, received = counted(tables, NEW)
        assert 4711 < sent < BLOCK
        assert received == 42


def test_all_numbers_may_be_used(tmp_path: Path) -> None:
    """It is back to receive; that it sends nothing is told once."""
    with process(tmp_path) as tables:
        tables.transaction([InstallSa(NEW)])
        used(tables, LAST - 100, 42)
        tables.save_numbers(at_once=True)
        assert tables.exhausted() == []
    ip("xfrm state flush")
    with process(tmp_path) as tables:
        tables.transaction([InstallSa(NEW)])
        assert counted(tables, NEW) == (LAST, 42)
        assert [tables.exhausted(), tables.exhausted()] == [[NEW.key], []]
