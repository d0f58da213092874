"""When a member changes over from one TEK to the next: RFC 6407 section 5.4.1, RFC 5374 4.2.1."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gdoi_plugin.crypto.signature import Scheme
from gdoi_plugin.protocol.policy import TEK_SUITES, Flow, GroupPolicy
from gdoi_plugin.protocol.rollover import Rollover
from gdoi_plugin.protocol.tek_policy import TekConfig
from gdoi_plugin.wire.delete import Delete
from gdoi_plugin.wire.registry import Doi
from tests.support.simnet import Network
from tests.support.worlds import ECDSA, FLOW, RSA, World, build, group_config, member_peer

ATD, DTD = 10, 30


def running(members: int = 1, **changes: object) -> World:
    config = group_config(members, activation_delay=ATD, deactivation_delay=DTD, **changes)
    world = build(Network(), members, group=config)
    world.start()
    world.network.run(5)
    return world


def spis(world: World) -> list[bytes]:
    """Of the key server's TEKs, oldest first."""
    return [t.tek.spi for t in world.group.teks]


def sending(world: World) -> bytes:
    tek = world.member.kernel.sending(FLOW)
    assert tek is not None
    return tek.spi


@pytest.mark.parametrize("scheme", [RSA, ECDSA], ids=["rsa", "ecdsa"])
@pytest.mark.parametrize("bits", [128, 256])
@pytest.mark.parametrize("kek", [False, True])
def test_receives_at_once_sends_after_atd_lets_go_after_dtd(
    scheme: Scheme, bits: int, kek: bool
) -> None:
    world = running(scheme=scheme, kek_bits=bits)
    (old,) = spis(world)
    at = world.now
    world.rekey(kek=kek)
    world.network.run(0.1)
    new = spis(world)[-1]
    assert set(world.member.kernel.sas) == {old, new}
    world.network.run(ATD - 0.2)
    assert sending(world) == old
    world.network.run(0.2)
    assert sending(world) == new
    world.network.run(DTD - ATD - 0.2)
    assert set(world.member.kernel.sas) == {old, new}
    world.network.run(0.2)
    assert set(world.member.kernel.sas) == {new}
    (_, (changed, _, _)) = world.member.kernel.history
    assert changed - at == pytest.approx(ATD, abs=0.01)


def test_first_keys_are_sent_with_at_once() -> None:
    world = running()
    ((when, flow, spi),) = world.member.kernel.history
    assert (flow, spi) == (FLOW, spis(world)[0])
    assert when - world.now == pytest.approx(-5, abs=0.1)


def test_rekey_during_the_rollover_of_the_one_before() -> None:
    """Every member holds every SA that any other may still send with."""
    world = running(3)
    first, start = spis(world)[0], world.now
    kernels = [member.kernel for member in world.members]
    world.rekey()
    world.network.run(5)
    world.rekey(kek=True)
    second, third = spis(world)[1:]
    for _ in range(500):
        world.network.run(0.1)
        for sender in kernels:
            tek = sender.sending(FLOW)
            assert tek is not None
            assert all(tek.spi in receiver.sas for receiver in kernels)
    changes = [(round(at - start), spi) for at, _, spi in kernels[0].history[1:]]
    assert changes == [(ATD, second), (5 + ATD, third)]
    assert set(kernels[0].sas) == {third}
    assert first not in spis(world)


def test_rekeys_faster_than_atd_never_leave_a_sender_behind() -> None:
    world = running(3)
    kernels = [member.kernel for member in world.members]
    for number in range(40):
        world.rekey(kek=number % 5 == 4)
        for _ in range(8):
            world.network.run(0.5)
            for sender in kernels:
                tek = sender.sending(FLOW)
                assert tek is not None
                assert all(tek.spi in receiver.sas for receiver in kernels)
    assert all(len(kernel.sas) <= 2 + DTD / 4 for kernel in kernels)
    assert all(member.group.counters.registrations == 1 for member in world.members)


def test_late_member_gets_the_old_tek_too_and_sends_with_the_new_one() -> None:
    world = running(2)
    world.members[1].crash()
    world.rekey()
    world.network.run(3)
    old, new = spis(world)
    late = world.members[1]
    late.restart()
    world.network.run(1)
    assert set(late.kernel.sas) == {old, new}
    assert late.kernel.pinned[FLOW] == new
    world.network.run(3 * DTD)
    assert set(late.kernel.sas) == {new}
    assert late.kernel.history[-1][2] == new
    assert late.group.counters.registrations == 1, "the old TEK's end asks for nothing"


def test_registering_again_does_not_bring_an_old_tek_back_into_use() -> None:
    """During DTD a PULL still names the TEK that this member has let go of already."""
    world = running(1)
    world.rekey()
    world.network.run(3)
    old, new = spis(world)
    world.member.do(world.member.group.register(world.now))
    world.network.run(ATD)
    assert world.member.kernel.pinned[FLOW] == new
    del world.member.kernel.sas[old]
    forgotten = {spi: h for spi, h in world.member.group.rollover.held.items() if spi != old}
    world.member.group.rollover.held = forgotten
    world.member.do(world.member.group.register(world.now))
    world.network.run(1)
    assert set(world.member.kernel.sas) == {old, new}, "it may still be sent with"
    assert world.member.kernel.pinned[FLOW] == new
    world.network.run(DTD)
    assert set(world.member.kernel.sas) == {new}


@pytest.mark.parametrize("how", ["rekey", "the same rekey again", "register"])
def test_flushed_kernel_is_filled_before_anything_is_said(how: str) -> None:
    """An ACK, and a registration, say that the kernel holds it: so it is asked."""
    world = running(1)
    world.rekey()
    world.network.run(3)
    kernel, group = world.member.kernel, world.member.group
    held = set(kernel.sas)
    acknowledged = group.counters.acknowledged
    kernel.sas, kernel.pinned = {}, {}
    if how == "register":
        world.member.do(group.register(world.now))
    elif how == "rekey":
        world.rekey()
    else:
        rekey = world.group.ledger[world.group.epoch]
        world.server.do(world.server.engine.rekeyer.sayer.send(world.group, rekey, world.now))
    world.network.run(1)
    assert held <= set(kernel.sas)
    assert kernel.sending(FLOW) is not None
    world.network.run(5)
    assert group.counters.acknowledged == acknowledged + (how != "register")


def test_without_delays_the_change_is_at_once() -> None:
    config = group_config(activation_delay=0, deactivation_delay=0)
    world = build(Network(), group=config)
    world.start()
    world.network.run(5)
    world.rekey()
    world.network.run(1)
    assert set(world.member.kernel.sas) == set(spis(world)[-1:])
    assert sending(world) == spis(world)[-1]


def test_replacing_the_old_keys_at_once() -> None:
    world = running(2)
    (old,) = spis(world)
    world.rekey(replace_old=True)
    world.network.run(1)
    (new,) = spis(world)
    assert new != old
    for member in world.members:
        assert set(member.kernel.sas) == {new}
        assert member.kernel.pinned[FLOW] == new


def test_last_sa_is_used_to_its_end_when_nothing_comes() -> None:
    teks = (TekConfig(FLOW, TEK_SUITES["aes128-sha256"], lifetime=300),)
    world = running(teks=teks)
    world.server.crash()
    world.network.run(290)
    assert sending(world)
    world.network.run(20)
    assert world.member.kernel.sending(FLOW) is None
    assert world.member.kernel.sas == {}


def test_tek_that_was_to_retire_while_nobody_was_there_is_taken_out() -> None:
    world = running()
    world.rekey()
    world.network.run(ATD)
    old, new = spis(world)
    world.member.crash()
    world.network.run(DTD)
    assert set(world.member.kernel.sas) == {old, new}
    world.member.restart()
    assert set(world.member.kernel.sas) == {new}
    assert sending(world) == new


# -- the kernel says no --------------------------------------------------------------------------


def test_refused_change_over_is_tried_again() -> None:
    world = running()
    world.rekey()
    world.network.run(ATD - 1)
    world.member.kernel.refuse_next()
    world.member.kernel.refuse_next()
    world.network.run(1.5)
    assert sending(world) == spis(world)[0]
    world.network.run(2)
    assert sending(world) == spis(world)[1]
    assert len(world.member.events("install-failed")) == 2


def test_refusal_of_what_was_saved_does_not_make_the_engine_spin() -> None:
    world = running()
    world.member.crash()
    world.server.crash()
    world.member.kernel.refuse_next()
    world.member.restart()
    world.network.run(100)
    assert world.member.kernel.refusals == []
    world.server.restart()
    world.network.run(100)
    assert world.converged()


def test_times_of_a_clock_that_was_ahead_are_not_believed() -> None:
    """Nothing saved lasts longer than a whole life from now."""
    world = running(1, teks=(TekConfig(FLOW, TEK_SUITES["aes256-sha256"], 600),))
    (spi,) = spis(world)
    (held,) = world.member.group.rollover.held.values()
    ahead = replace(held, active_from=held.active_from + 1e8, expires=held.expires + 1e8)
    plan = Rollover(member_peer(0).host).resume({spi: ahead}, world.now)
    assert plan.held[spi].expires == world.now + held.tek.lifetime
    assert plan.add[0].lifetime == held.tek.lifetime <= 600


def test_whichever_tek_a_flow_is_sent_with_it_is_released_when_others_serve_its_packets() -> None:
    """Here the older of two: the policy that goes is known by the TEK."""
    world = running()
    (held,) = world.member.group.rollover.held.values()
    everybody, now = Flow(None, FLOW.destination), world.now
    narrow = replace(everybody, protocol=17)
    old, new, wide = (
        replace(held.tek, spi=bytes([0, 0, 1, n]), flow=flow)
        for n, flow in enumerate((narrow, narrow, everybody))
    )
    rollover = Rollover(member_peer(0).host)
    rollover.commit(rollover.receive(GroupPolicy(None, (old,), ATD, DTD), (), now, at_once=True))
    rollover.commit(rollover.receive(GroupPolicy(None, (new,), ATD, DTD), (), now))
    gone = Delete(Doi.GDOI, old.protocol, (old.spi, new.spi))
    rollover.commit(rollover.receive(GroupPolicy(None, (wide,), 1, DTD), (gone,), now))
    assert rollover.pinned == {narrow: old.spi}
    plan = rollover.advance(now + 1)
    assert plan.pinned == {everybody: wide.spi}
    assert {tek.spi for tek in plan.released} == {old.spi, new.spi}
