"""How often a repair may be begun, and what an operator hears; the rest is tested on a kernel."""

from __future__ import annotations

import asyncio
import errno
import time

import pytest
from gdoi_xfrm import DeletePolicy, KernelError, Monitor, SaKey, UpdatePolicy, Xfrm

from gdoi_plugin.daemon import watch as watching
from gdoi_plugin.daemon.guard import Guard
from gdoi_plugin.daemon.notices import (
    MAX_NAMED,
    Contested,
    Exhausted,
    Notice,
    NotRestored,
    Restored,
)
from gdoi_plugin.daemon.own_tables import Lost, OwnTables
from gdoi_plugin.daemon.watch import (
    BURST,
    FIRST_PAUSE,
    FIRST_RETRY,
    LONGEST_PAUSE,
    LONGEST_RETRY,
    SPACING,
    WINDOW,
    KernelWatch,
    Pace,
    Retry,
)
from tests.kernel.namespaces import Namespace
from tests.kernel.values import GROUP, policy

SA, POLICY = SaKey(GROUP[4], 0x10), policy(5).key


def test_a_few_repairs_are_not_held_up() -> None:
    pace = Pace()
    for number in range(BURST):
        assert not pace.repaired(number * 0.1)
        assert pace.next_at == number * 0.1 + SPACING
    assert not pace.contested


def test_repairs_now_and_then_are_never_a_quarrel() -> None:
    pace = Pace()
    for number in range(100):
        assert not pace.repaired(2 * number * WINDOW / BURST)
    assert not pace.contested


def test_a_quarrel_is_told_once_and_its_pauses_grow() -> None:
    pace, now, told, pauses = Pace(), 0.0, 0, []
    for _ in range(BURST + 10):
        told += pace.repaired(now)
        pauses.append(pace.next_at - now)
        now = pace.next_at
    assert told == 1
    grown = [round(pause, 6) for pause in pauses[BURST:]]
    assert (grown[0], grown[-1]) == (FIRST_PAUSE, LONGEST_PAUSE)
    assert grown == sorted(grown)
    assert pace.contested


def test_a_quarrel_ends_when_repairs_last() -> None:
    pace = Pace()
    for number in range(BURST + 1):
        pace.repaired(number * 0.01)
    assert pace.contested
    assert not pace.repaired(2 * WINDOW)
    assert not pace.contested
    assert pace.next_at == 2 * WINDOW + SPACING


def test_what_is_refused_is_tried_again_ever_less_often() -> None:
    retry, now, delays = Retry(), 0.0, []
    for _ in range(15):
        retry.refused(now)
        delays.append(retry.at - now)
        now = retry.at
    assert delays[0] == FIRST_RETRY
    assert max(delays) == delays[-1] == LONGEST_RETRY
    assert retry.refusals == 15


def test_what_an_operator_hears() -> None:
    told = Restored([SA], [POLICY], 0.00321, default=True).told
    assert (told.name, told.level) == ("kernel-restored", "warning")
    assert told.fields == {
        "sas": 1,
        "policies": 1,
        "missing": ["239.1.1.1 spi 0x00000010 esp", "out 0.0.0.0/0 -> 239.1.1.1/32"],
        "milliseconds": 3.2,
        "default": "block",
    }
    many = Restored([SA] * 1000, [], 0.1).told
    assert (many.fields["sas"], len(many.fields["missing"])) == (1000, MAX_NAMED)  # type: ignore[arg-type]
    refused = NotRestored([SA], [], "EEXIST", give_up=False).told
    assert (refused.name, refused.fields["error"]) == ("kernel-not-restored", "EEXIST")
    assert Exhausted([SA]).told.name == "sequence-exhausted"
    assert Contested(10, 10.0).told.fields == {"repairs": 10, "seconds": 10.0}


def test_no_socket_to_listen_with_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever quarrels may have taken the memory or descriptors as well: it is asked for again."""
    told: list[Notice] = []

    def refuse(*_: object) -> Monitor:
        raise KernelError(errno.EMFILE, "opening a NETLINK_XFRM socket")

    async def main(tables: OwnTables) -> None:
        watch = KernelWatch(tables, time.monotonic, told.extend, Guard(tables))
        watch.start()
        watch._pause()
        with monkeypatch.context() as patch:
            patch.setattr(watching, "Monitor", refuse)
            now = time.monotonic() + SPACING
            for _ in range(2):
                watch.tick(now)
                assert watch.deadline is not None
                assert watch.deadline > now, "not at once"
                now = watch.deadline
        (said,) = [notice for notice in told if isinstance(notice, NotRestored)]
        assert "EMFILE" in said.error
        watch.tick(now)
        assert watch._monitor is not None
        watch.close()

    with Namespace() as fresh, fresh.entered(), OwnTables(time.monotonic) as tables:
        asyncio.run(main(tables))


def test_a_comparison_that_is_refused_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ever less often; a loss that is told of meanwhile is not kept waiting."""
    told: list[Notice] = []
    asked: list[float] = []
    clock = 0.0

    def refuse(_: OwnTables) -> Lost:
        asked.append(clock)
        raise KernelError(errno.ENOBUFS, "reading tables")

    async def main(tables: OwnTables, others: Xfrm) -> None:
        nonlocal clock
        own = policy(5)
        tables.transaction([UpdatePolicy(own)])
        watch = KernelWatch(tables, lambda: clock, told.extend, Guard(tables))
        with monkeypatch.context() as patch:
            patch.setattr(OwnTables, "compare", refuse)
            watch.start()
            watch.tick(clock)
            assert asked == [0.0], "not at once"
            while len(asked) < 4:
                assert watch.deadline is not None
                clock = watch.deadline
                watch.tick(clock)
        assert asked == [0.0, FIRST_RETRY, 3 * FIRST_RETRY, 7 * FIRST_RETRY]
        others.apply([DeletePolicy(own.key)])
        watch.tick(clock)
        assert tables.find_policy(own.key) == own
        watch.close()

    with Namespace() as fresh, fresh.entered(), OwnTables(time.monotonic) as tables, Xfrm() as xfrm:
        asyncio.run(main(tables, xfrm))
    assert [type(one) for one in told] == [NotRestored, NotRestored, Restored]


def test_comparisons_leave_time_for_other_things() -> None:
    pace = Pace()
    pace.compared(1.0, 4.0)
    assert (pace.next_at, pace.contested) == (7.0, False)
    for _ in range(BURST):
        pace.compared(7.0, 7.0)
    assert (pace.next_at, pace.contested) == (7.0 + FIRST_PAUSE, True)


def test_a_storm_of_others_changes_costs_few_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel throws events away each time; what is lost in between is put back all the same."""
    bursts, compared, told = 200, 0, list[Notice]()
    really = OwnTables.compare

    def compare(tables: OwnTables) -> Lost:
        nonlocal compared
        compared += 1
        return really(tables)

    async def main(tables: OwnTables, others: Xfrm) -> None:
        nonlocal compared
        own, somebodys = policy(5), policy(5, version=6)
        tables.transaction([UpdatePolicy(own)])
        watch = KernelWatch(tables, time.monotonic, told.extend, Guard(tables), receive_buffer=1)
        watch.start()
        began, compared = time.monotonic(), 0
        for number in range(bursts):
            others.apply([UpdatePolicy(somebodys)] * 10)
            if number == bursts - 1:
                others.apply([DeletePolicy(own.key)])
            await asyncio.sleep(0)
            watch.tick(time.monotonic())
        took = time.monotonic() - began
        assert watch.counters.overruns > BURST
        # After each pause one, and one for what is thrown away then.
        assert 0 < compared <= BURST + 2 * (1 + took / FIRST_PAUSE)
        while tables.find_policy(own.key) is None:
            assert time.monotonic() < began + 60
            await asyncio.sleep(0.01)
            watch.tick(time.monotonic())
        watch.close()

    monkeypatch.setattr(OwnTables, "compare", compare)
    with Namespace() as fresh, fresh.entered(), OwnTables(time.monotonic) as tables, Xfrm() as xfrm:
        asyncio.run(main(tables, xfrm))
    assert [one.policies for one in told if isinstance(one, Restored)] == [[policy(5).key]]
    assert not [one for one in told if isinstance(one, Contested)], "nobody undoes repairs"
