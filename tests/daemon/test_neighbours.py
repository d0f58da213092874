"""Two groups of one agent that want the same policy; on the kernel, see test_uml_agent."""

from __future__ import annotations

import time

import pytest
from gdoi_xfrm import Direction, Policy, PolicyKey

from gdoi_plugin.daemon.guard import Guard
from gdoi_plugin.daemon.kernel import GroupKernel
from gdoi_plugin.daemon.neighbours import Neighbours
from gdoi_plugin.daemon.own_tables import OwnTables
from gdoi_plugin.protocol.actions import ApplyKernel
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.wire.registry import SaDirection
from tests.daemon.teks import LOCAL, tek
from tests.kernel.conftest import namespace
from tests.kernel.namespaces import ip

__all__ = ["namespace"]

FIRST, SECOND = 0x40000007, 0x40000008
TEK = tek(0x100)


class Tables:
    """What the first group's last transaction has put into the kernel."""

    def __init__(self) -> None:
        made = GroupKernel(None, GroupId.of_number(7), LOCAL)  # type: ignore[arg-type]
        assert made.reqid == FIRST
        self.policies: dict[PolicyKey, Policy] = {
            policy.key: policy for policy in (made.policy(TEK, way) for way in Direction)
        }


def test_only_what_is_in_use_is_a_neighbours() -> None:
    tables = Tables()
    serving = set(tables.policies)
    neighbours = Neighbours(tables)
    neighbours.add(FIRST, "video", lambda: serving)
    neighbours.add(SECOND, "audio", set)
    wanted = list(tables.policies.values())
    neighbours.check(FIRST, wanted)
    with pytest.raises(
        ValueError, match=r"groups audio and video .* in 0\.0\.0\.0/0 -> 239.*netns"
    ):
        neighbours.check(SECOND, wanted)
    serving.clear()
    neighbours.check(SECOND, wanted)


def test_another_group_is_asked_once_about_all_policies() -> None:
    tables, asked = Tables(), list[str]()
    neighbours = Neighbours(tables)

    def serving() -> set[PolicyKey]:
        asked.append("video")
        return set()

    neighbours.add(FIRST, "video", serving)
    neighbours.add(SECOND, "audio", set)
    for times in (1, 2):
        neighbours.check(SECOND, tables.policies.values())
        assert len(tables.policies) > 1
        assert asked == ["video"] * times, "and each time anew"


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("flushed", [False, True])
def test_what_is_only_received_is_given_up_without_what_a_neighbour_sends(flushed: bool) -> None:
    """One group sends a flow and another receives it; also while the kernel has no policy."""
    hears = tek(0x200, direction=SaDirection.RECEIVER_ONLY)
    with OwnTables(time.monotonic) as tables:
        neighbours, guard = Neighbours(tables), Guard(tables)
        sender, listener = (
            GroupKernel(tables, GroupId.of_number(n), LOCAL, guard, neighbours=neighbours)
            for n in (7, 8)
        )
        out, inside = sender.policy(TEK, Direction.OUT), listener.policy(hears, Direction.IN)
        neighbours.add(FIRST, "video", lambda: {out.key})
        neighbours.add(SECOND, "audio", lambda: {inside.key})
        sender.apply(ApplyKernel(1, outbound=(TEK,)))
        listener.apply(ApplyKernel(1, inbound=(hears,)))
        if flushed:
            ip("xfrm policy flush")
        listener.apply(ApplyKernel(2, released=(hears,)))
        assert tables.policies == {out.key: out}
        assert tables.dump_policies() == ([] if flushed else [out])
