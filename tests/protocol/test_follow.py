"""A member whose address changes: a new engine goes on with what the former one held."""

from __future__ import annotations

from gdoi_plugin.protocol.actions import ApplyKernel
from gdoi_plugin.protocol.member import MemberState
from tests.support.worlds import member_peer, wired


def test_goes_on_with_its_keys_and_registers_from_the_new_address() -> None:
    """The former address is gone: nothing more is sent from there, not even a Delete."""
    wire, world = wired(2)
    world.server.start()
    old, new = world.members
    new.alive = True
    old.start()
    wire.settle()
    former, group = old.group, new.group
    assert former.state is MemberState.REGISTERED
    actions = group.follow(former, wire.now)
    (install,) = (action for action in actions if isinstance(action, ApplyKernel))
    assert {tek.spi for tek in install.add} == former.rollover.held.keys()
    assert group.kek is not None
    assert former.kek is not None
    assert group.kek.kek == former.kek.kek, "rekeys are understood at once"
    new.carry_out(actions)
    wire.settle()
    assert group.state is MemberState.REGISTERED
    assert group.rollover.held.keys() == former.rollover.held.keys()
    assert group.counters.registrations == 2
    registered = world.group.roster.members.values()
    assert {m.address for m in registered} == {member_peer(0), member_peer(1)}
