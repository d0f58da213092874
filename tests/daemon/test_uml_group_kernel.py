"""A group's transactions on a real kernel: all of one, or nothing of it."""

from __future__ import annotations

import pytest
from gdoi_xfrm import AH, ESP, AddSa, AesGcm, Direction, KernelError, PolicyAction, Xfrm

from gdoi_plugin.daemon.kernel import GroupKernel
from gdoi_plugin.protocol.actions import ApplyKernel
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.wire.registry import EncapsulationMode, SaDirection
from tests.daemon.teks import LOCAL, flow, tek
from tests.kernel.conftest import namespace, xfrm
from tests.kernel.namespaces import ip

__all__ = ["namespace", "xfrm"]
pytestmark = pytest.mark.uml

OLD, NEW = tek(0x100), tek(0x200)
PINNED = tek(0x101, flow("192.0.2.1/32"), "aes256gcm16")
TUNNEL = tek(0x102, flow(destination="239.1.1.2"), mode=EncapsulationMode.TUNNEL)


@pytest.fixture
def group(xfrm: Xfrm) -> GroupKernel:
    made = GroupKernel(xfrm, GroupId.of_number(7), LOCAL)
    first = (OLD, PINNED, TUNNEL)
    made.apply(ApplyKernel(1, add=first, outbound=first))
    return made


def tables() -> tuple[str, str]:
    keep = [line for line in ip("xfrm state").splitlines() if "lastused" not in line]
    policies = ip("xfrm policy").replace("\nsrc", "\n\nsrc").split("\n\n")
    return "\n".join(sorted(keep)), "\n".join(sorted(text.strip() for text in policies))


def test_a_rekey_and_its_end(group: GroupKernel, xfrm: Xfrm) -> None:
    group.apply(ApplyKernel(2, add=(NEW,)))
    held = {state.sa.spi for state in xfrm.dump_sas()}
    assert held == {0x100, 0x101, 0x102, 0x200}
    out = group.policy(OLD, Direction.OUT)
    assert xfrm.get_policy(out.selector, Direction.OUT) == out
    group.apply(ApplyKernel(3, outbound=(NEW,), remove=(OLD,)))
    assert {state.sa.spi for state in xfrm.dump_sas()} == held - {0x100}
    assert xfrm.get_policy(out.selector, Direction.OUT) == group.policy(NEW, Direction.OUT)
    # In and out of three flows; a tunnel that keeps the source blocks what has another one; IGMP.
    assert len(xfrm.dump_policies()) == 6 + 1 + 2
    state = group.state(NEW)
    assert state is not None
    assert state.sa == group.sa(NEW)
    assert group.state(OLD) is None


def test_the_same_again_after_a_restart(group: GroupKernel) -> None:
    before = tables()
    group.apply(ApplyKernel(2, add=(OLD, PINNED, TUNNEL), outbound=(OLD, PINNED, TUNNEL)))
    assert tables() == before


def test_esp_and_ah_under_one_spi_are_two_sas(xfrm: Xfrm) -> None:
    group = GroupKernel(xfrm, GroupId.of_number(7), LOCAL)
    both = tek(0x100), tek(0x100, flow(destination="239.1.1.1", protocol=17), "sha512")
    group.apply(ApplyKernel(1, add=both, outbound=both))
    assert {state.sa.protocol for state in xfrm.dump_sas()} == {ESP, AH}
    group.apply(ApplyKernel(2, remove=both[1:]))
    (left,) = xfrm.dump_sas()
    assert left.sa == group.sa(both[0])


def test_who_may_only_send_hears_nothing(xfrm: Xfrm) -> None:
    """Until a TEK comes that it may receive with: that one's policy takes the block's place."""
    group = GroupKernel(xfrm, GroupId.of_number(7), LOCAL)
    sender = tek(0x100, direction=SaDirection.SENDER_ONLY)
    group.apply(ApplyKernel(1, add=(sender,), outbound=(sender,)))
    inside = group.policy(OLD, Direction.IN)
    found = xfrm.get_policy(inside.selector, Direction.IN)
    assert found is not None
    assert (found.action, found.templates) == (PolicyAction.BLOCK, ())
    group.apply(ApplyKernel(2, add=(NEW,), outbound=(NEW,)))
    assert xfrm.get_policy(inside.selector, Direction.IN) == group.policy(NEW, Direction.IN)


def test_who_may_only_listen_sends_nothing_in_clear(xfrm: Xfrm) -> None:
    """Until a TEK comes that it may send with: that one's policy takes the block's place."""
    group = GroupKernel(xfrm, GroupId.of_number(7), LOCAL)
    group.apply(ApplyKernel(1, add=(tek(0x100, direction=SaDirection.RECEIVER_ONLY),)))
    out = group.policy(OLD, Direction.OUT)
    found = xfrm.get_policy(out.selector, Direction.OUT)
    assert found is not None
    assert (found.action, found.templates) == (PolicyAction.BLOCK, ())
    group.apply(ApplyKernel(2, add=(NEW,), outbound=(NEW,)))
    allowed = xfrm.get_policy(out.selector, Direction.OUT)
    assert allowed == group.policy(NEW, Direction.OUT)
    later = tek(0x300, direction=SaDirection.RECEIVER_ONLY)
    group.apply(ApplyKernel(3, add=(later,)))
    assert xfrm.get_policy(out.selector, Direction.OUT) == allowed, "a sender stays one"
    inside = xfrm.get_policy(out.selector, Direction.IN)
    group.apply(ApplyKernel(4, silenced=(NEW,)))
    assert xfrm.get_policy(out.selector, Direction.OUT) == found, "until ATD is over"
    assert xfrm.get_policy(out.selector, Direction.IN) == inside


def test_flow_of_one_sender_blocks_everybody_else(xfrm: Xfrm) -> None:
    """Another source's clear packets, and this member's own where it is not the sender."""
    group = GroupKernel(xfrm, GroupId.of_number(7), LOCAL)
    group.apply(ApplyKernel(1, add=(PINNED,)))
    policies = {
        (p.selector.source.prefixlen, p.direction): p
        for p in xfrm.dump_policies()
        if p.selector.protocol == 0
    }
    assert set(policies) == {(32, Direction.IN), (0, Direction.IN), (0, Direction.OUT)}
    for direction in (Direction.IN, Direction.OUT):
        assert policies[0, direction].action is PolicyAction.BLOCK
        assert policies[0, direction].priority > policies[32, Direction.IN].priority
    group.apply(ApplyKernel(2, add=(OLD,), outbound=(OLD,)))
    for direction in (Direction.IN, Direction.OUT):
        wanted = group.policy(OLD, direction)
        assert xfrm.get_policy(wanted.selector, direction) == wanted, "a TEK for all replaces it"


def test_refused_leaves_everything_as_it_was(group: GroupKernel, xfrm: Xfrm) -> None:
    taken = group.sa(NEW)
    squat = AddSa(
        type(taken)(taken.source, taken.destination, taken.spi, taken.mode, 1, AesGcm(bytes(20)))
    )
    assert not any(result.error for result in xfrm.apply([squat]))
    before = tables()
    action = ApplyKernel(2, add=(tek(0x300), NEW), outbound=(NEW,), remove=(OLD,))
    with pytest.raises(KernelError, match="EEXIST"):
        group.apply(action)
    assert tables() == before
    xfrm.delete_sa(taken.destination, taken.spi)
    group.apply(action)
    assert group.state(OLD) is None
