"""What former runs left in the kernel: adopted, taken over or taken out, and never others'."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from gdoi_xfrm import Direction, PolicyKey, Xfrm

from gdoi_plugin.daemon.guard import Guard
from gdoi_plugin.daemon.kernel import GroupKernel
from gdoi_plugin.daemon.leftovers import GRACE, Leftovers
from gdoi_plugin.daemon.own_tables import OwnTables
from gdoi_plugin.daemon.state_file import StateDirectory
from gdoi_plugin.protocol.actions import ApplyKernel
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.policy import Tek
from gdoi_plugin.protocol.rollover import Held, Rollover
from tests.daemon.teks import LOCAL, flow, tek
from tests.kernel.conftest import namespace, xfrm

__all__ = ["namespace", "xfrm"]
pytestmark = pytest.mark.uml

GROUP, OTHERS = GroupId.of_number(7), GroupId.of_number(8)
WIDE = tek(0x100)
# A former policy of the key server's: one port of the same group, and another group.
NARROW = tek(0x200, flow(protocol=17, destination_port=5000))
ELSEWHERE = tek(0x300, flow(destination="239.1.1.2"))


@pytest.fixture
def tables(xfrm: Xfrm) -> Iterator[OwnTables]:
    """After a crash without a state file: a former run and another agent have left things."""
    former = GroupKernel(xfrm, GROUP, LOCAL)
    former.apply(ApplyKernel(1, add=(NARROW, ELSEWHERE), outbound=(NARROW, ELSEWHERE)))
    other = replace(ELSEWHERE, flow=flow(destination="239.9.9.9"))
    GroupKernel(xfrm, OTHERS, LOCAL).apply(ApplyKernel(1, add=(other,), outbound=(other,)))
    with OwnTables(time.monotonic) as opened:
        yield opened


def registered(tables: OwnTables, *teks: Tek) -> tuple[GroupKernel, set[PolicyKey]]:
    group = GroupKernel(tables, GROUP, LOCAL)
    group.apply(ApplyKernel(1, add=teks, outbound=teks))
    held = {one.spi: Held(one, 1, 0, 3600) for one in teks}
    pinned = {one.flow: one.spi for one in teks}
    return group, group.serving(Rollover(LOCAL, held, pinned))


def of(tables: OwnTables, group: GroupId) -> tuple[set[int], set[PolicyKey]]:
    """SPIs and policies in the kernel."""
    reqid = GroupKernel(tables, group, LOCAL).reqid
    sas = {state.sa.spi for state in tables.dump_sas() if state.sa.reqid == reqid}
    policies = {
        policy.key
        for policy in tables.dump_policies()
        if any(template.reqid == reqid for template in policy.templates)
    }
    return sas, policies


def test_what_is_not_wanted_goes_and_what_blocks_stays(tables: OwnTables) -> None:
    others = of(tables, OTHERS)
    group, current = registered(tables, WIDE)
    (told,) = Leftovers(tables, Guard(tables)).sweep([group.reqid], current)
    assert (told.name, dict(told.fields)) == ("leftovers-removed", {"sas": 2, "policies": 2})
    sas, policies = of(tables, GROUP)
    assert sas == {0x100}
    # The port's packets are protected by the new TEK; the other group's stay blocked.
    blocked = {group.policy(ELSEWHERE, way).key for way in (Direction.IN, Direction.OUT)}
    assert policies == current | blocked
    assert blocked <= tables.policies.keys(), "from now on they are watched, too"
    assert of(tables, OTHERS) == others
    assert Leftovers(tables, Guard(tables)).sweep([group.reqid], current) == []


def test_sources_that_come_and_go_leave_no_policies(xfrm: Xfrm) -> None:
    """Each had its own; what is left blocks them all, and no policy grows old in the kernel."""
    with OwnTables(time.monotonic) as tables:
        guard = Guard(tables)
        group = GroupKernel(tables, GROUP, LOCAL, guard)
        leftovers, sizes = Leftovers(tables, guard), []
        for number in range(1, 4):
            one = tek(0x100 * number, flow(f"192.0.2.{number}/32"))
            group.apply(ApplyKernel(1, add=(one,)))
            serving = group.serving(Rollover(LOCAL, {one.spi: Held(one, 1, 0, 3600)}))
            leftovers.sweep([group.reqid], serving)
            assert {p.key for p in xfrm.dump_policies() if p.templates} == serving
            sizes.append((len(xfrm.dump_policies()), len(tables.policies)))
            missing = tables.compare()
            assert not missing
        assert sizes == [sizes[0]] * 3
        nobody = leftovers.sweep([group.reqid], ())
        assert [told.fields["policies"] for told in nobody] == [1]
        assert {p.key for p in xfrm.dump_policies()} == {p.key for p in guard.policies()}


def test_the_same_teks_are_adopted(tables: OwnTables) -> None:
    before = of(tables, GROUP)
    group, current = registered(tables, NARROW, ELSEWHERE)
    assert Leftovers(tables, Guard(tables)).sweep([group.reqid], current) == []
    assert of(tables, GROUP) == before


def test_who_has_not_registered_takes_nothing_out(tables: OwnTables) -> None:
    before = of(tables, GROUP)
    assert Leftovers(tables, Guard(tables)).sweep([], set()) == []
    assert of(tables, GROUP) == before


def test_a_sweep_waits_for_the_deactivation_delay(tables: OwnTables) -> None:
    leftovers = Leftovers(tables, Guard(tables))
    leftovers.expect(100.0, 60.0)
    leftovers.expect(130.0, 60.0)
    assert leftovers.at == 160.0 + GRACE
    leftovers.sweep([], set())
    assert leftovers.at is None


@pytest.mark.parametrize("unblock", [True, False])
def test_a_group_that_is_not_configured_any_more(
    tables: OwnTables, tmp_path: Path, unblock: bool
) -> None:
    """Once: its SAs go, and with on_stop = "remove" its policies. Others' files are left alone."""
    state = StateDirectory(tmp_path)
    state.save("former", {"group": GROUP.key})
    state.save("here", {"group": OTHERS.key})
    (tmp_path / "broken.json").write_text("{")
    before, others = of(tables, GROUP)[1], of(tables, OTHERS)
    (told,) = Leftovers(tables, Guard(tables)).of_former_groups(
        state, {"here": OTHERS.key}, unblock=unblock
    )
    assert told.fields["sas"] == 2
    assert of(tables, GROUP) == (set(), set() if unblock else before)
    assert of(tables, OTHERS) == others
    assert state.names() == {"here", "broken"}
    assert (
        Leftovers(tables, Guard(tables)).of_former_groups(
            state, {"here": OTHERS.key}, unblock=unblock
        )
        == []
    )


def test_a_group_with_another_name_is_the_same_group(tables: OwnTables, tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    state.save("old", {"group": GROUP.key})
    before = of(tables, GROUP)
    assert (
        Leftovers(tables, Guard(tables)).of_former_groups(state, {"new": GROUP.key}, unblock=True)
        == []
    )
    assert of(tables, GROUP) == before
