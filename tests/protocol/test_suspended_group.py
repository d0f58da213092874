"""One of several key servers that was told something else than the others about a group."""

from __future__ import annotations

from gdoi_plugin.protocol.actions import Drop
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.pull import PullState
from tests.support.worlds import GROUP_ID, member_peer, registered

STAYS, COMES = (Identity.of_address(member_peer(i).host) for i in range(2))


def test_nothing_of_it_is_handed_out() -> None:
    """Nor to who has message 2 already; rekeys and ACKs go on, and later all is as before."""
    wire, world = registered(2)
    engine = world.server.engine
    before = len(world.server.events("member-registered"))
    world.members[1].restart()
    while not any(
        pull.exchange.state is PullState.SENT_2
        for session in engine.isakmp.sessions.of(COMES)
        for pull in session.pulls.values()
    ):
        wire.pass_on()
    engine.suspended = {GROUP_ID}
    wire.settle()
    wire.run(30)
    wire.settle()
    assert {Drop.NOT_AUTHORISED, Drop.UNKNOWN_GROUP} <= world.network.reasons
    assert len(world.server.events("member-registered")) == before
    world.server.do(engine.rekey(GROUP_ID, world.now, "operator"))
    wire.settle()
    wire.run(6)  # ACKs are not sent all at one moment
    wire.settle()
    last = world.group.last_rekey()
    assert last is not None
    assert last.acknowledged.has(world.group.members[STAYS].number)
    engine.suspended = set()
    world.members[1].restart()  # the rekey had made it need nothing more
    wire.settle()
    assert len(world.server.events("member-registered")) == before + 1
    assert world.converged()
