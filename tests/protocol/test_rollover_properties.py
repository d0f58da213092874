"""Rollover under any sequence of rekeys, deletes, refusals and time, and of rekeys heard twice.

A model beside it knows of each TEK when it came, from when the others may use it, and until when
they may: RFC 6407 section 5.4.1. What must hold is asked after every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.protocol.actions import ApplyKernel
from gdoi_plugin.protocol.policy import TEK_SUITES, Flow, GroupPolicy, Tek
from gdoi_plugin.protocol.rollover import Plan, Rollover
from gdoi_plugin.wire.delete import Delete
from gdoi_plugin.wire.registry import Doi, TekProtocol
from tests.support.simnet import START, FakeKernel

LOCAL = ip_address("192.0.2.1")
ATD, DTD, LIFE = 10.0, 30.0, 100
# Two that this member sends to, and one of another sender's.
FLOWS = (
    Flow(None, ip_address("239.1.1.1")),
    Flow(ip_network("192.0.2.0/24"), ip_address("239.1.1.2")),
    Flow(ip_network("198.51.100.7/32"), ip_address("239.1.1.3")),
)
SENT = FLOWS[:2]
SOME_FLOWS = st.lists(st.sampled_from(FLOWS), min_size=1, max_size=3, unique=True)
SECONDS = st.sampled_from([0.0, 0.5, 3.0, 9.5, 10.0, 25.0, 31.0, 99.0, 150.0])


@dataclass
class Known:
    """A TEK that the key server has made. ``used_until``: when the last of the others lets go."""

    tek: Tek
    active_from: float
    used_until: float
    ends: float


def delete(spis: Sequence[bytes]) -> Delete:
    return Delete(Doi.GDOI, TekProtocol.GDOI_PROTO_IPSEC_ESP, tuple(spis))


class Rollovers(RuleBasedStateMachine):
    """One member's table, its kernel and the model."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.rollover, self.kernel = Rollover(LOCAL), FakeKernel()
        self.known: dict[bytes, Known] = {}
        self.last: tuple[GroupPolicy, tuple[Delete, ...]] | None = None
        self.made = 0x1000

    # -- the key server --------------------------------------------------------------------------

    def make(self, flow: Flow) -> Tek:
        self.made += 1
        keys = Secret(self.made.to_bytes(32, "big")), Secret(self.made.to_bytes(32, "little"))
        spi = self.made.to_bytes(4, "big")
        return Tek(spi, flow, TEK_SUITES["aes256-sha256"], *keys, lifetime=LIFE)

    def held_of(self, flow: Flow) -> list[Known]:
        """What the member must have for a flow, oldest first."""
        return [k for k in self.known.values() if k.tek.flow == flow and k.used_until > self.now]

    def expect(self, tek: Tek, *, at_once: bool) -> None:
        """A new TEK, and what becomes of those before it: they finish their DTD."""
        before = self.held_of(tek.flow)
        waits = not at_once and any(k.active_from <= self.now for k in before)
        ends = self.now + LIFE
        for old in before:
            old.used_until = min(old.used_until, self.now + DTD)
        self.known[tek.spi] = Known(tek, self.now + ATD if waits else self.now, ends, ends)

    def deliver(
        self, policy: GroupPolicy, deletes: tuple[Delete, ...], *, at_once: bool = False
    ) -> None:
        self.rollover.check(policy)
        self.commit(self.rollover.receive(policy, deletes, self.now, at_once=at_once))
        self.tick()

    def policy(self, teks: Sequence[Tek]) -> GroupPolicy:
        return GroupPolicy(None, tuple(teks), int(ATD), int(DTD))

    # -- the member ------------------------------------------------------------------------------

    def commit(self, plan: Plan) -> None:
        action = ApplyKernel(1, plan.add, plan.outbound, plan.remove)
        assert self.kernel.apply(action, self.now) is None
        self.rollover.commit(plan)

    def tick(self) -> None:
        plan = self.rollover.advance(self.now)
        if not plan.empty:
            self.commit(plan)
        assert self.rollover.advance(self.now).empty, "a tick leaves nothing to do"

    # -- what happens ----------------------------------------------------------------------------

    @initialize()
    def registers(self) -> None:
        self.pulls(list(FLOWS))

    @rule(flows=SOME_FLOWS)
    def pulls(self, flows: list[Flow]) -> None:
        """A registration, which brings TEKs that the others have had for long."""
        teks = [self.make(flow) for flow in flows]
        for tek in teks:
            self.expect(tek, at_once=True)
        self.deliver(self.policy(teks), (), at_once=True)

    @rule(flows=SOME_FLOWS, names_old=st.booleans())
    def rekeys(self, flows: list[Flow], names_old: bool) -> None:
        """``names_old``: with a Delete of what is replaced, which may finish its DTD."""
        old = [k.tek.spi for flow in flows for k in self.held_of(flow)]
        deletes = (delete(old),) if names_old and old else ()
        teks = [self.make(flow) for flow in flows]
        for tek in teks:
            self.expect(tek, at_once=False)
        self.last = self.policy(teks), deletes
        self.deliver(*self.last)

    @precondition(lambda self: self.last is not None)
    @rule()
    def hears_it_again(self) -> None:
        """The key server repeats a rekey under the next SEQ: twice is once."""
        assert self.last is not None
        policy, deletes = self.last
        if any(tek.spi not in self.rollover.held for tek in policy.ipsec):
            return  # over, or deleted since: nobody repeats it
        once = deepcopy(self.rollover)
        self.deliver(policy, deletes)
        assert (self.rollover.held, self.rollover.pinned) == (once.held, once.pinned)

    @rule(flow=st.sampled_from(FLOWS))
    def loses_one(self, flow: Flow) -> None:
        """A TEK is taken back, without another in its place."""
        held = self.held_of(flow)
        if held:
            held[0].used_until = self.now
            self.deliver(GroupPolicy(None, ()), (delete([held[0].tek.spi]),))

    @rule()
    def loses_all(self) -> None:
        """SPI zero."""
        for known in self.known.values():
            known.used_until = min(known.used_until, self.now)
        self.deliver(GroupPolicy(None, ()), (delete([bytes(4)]),))

    @rule(flows=SOME_FLOWS)
    def kernel_refuses(self, flows: list[Flow]) -> None:
        """Whatever was planned, nothing has changed."""
        before = deepcopy(self.rollover)
        teks = [self.make(flow) for flow in flows]
        self.rollover.receive(self.policy(teks), (delete([bytes(4)]),), self.now)
        assert (self.rollover.held, self.rollover.pinned) == (before.held, before.pinned)

    @rule(seconds=SECONDS)
    def time_passes(self, seconds: float) -> None:
        """With a tick at every deadline."""
        end = self.now + seconds
        while (due := self.rollover.deadline(self.now)) is not None and due <= end:
            self.now = max(self.now, due)
            self.tick()
        self.now = end
        self.tick()

    @rule(seconds=SECONDS)
    def stands_still(self, seconds: float) -> None:
        """A stopped process: one tick for all that was due."""
        self.now += seconds
        self.tick()

    @rule()
    def starts_again(self) -> None:
        """From its record, in a kernel that has lost everything."""
        saved = {spi: held.read(held.record()) for spi, held in self.rollover.held.items()}
        assert saved == self.rollover.held
        self.rollover, self.kernel = Rollover(LOCAL), FakeKernel()
        self.commit(self.rollover.resume(saved, self.now))
        self.tick()

    # -- what holds ------------------------------------------------------------------------------

    @invariant()
    def kernel_and_table_agree(self) -> None:
        assert self.kernel.sas.keys() == self.rollover.held.keys()
        for flow, spi in self.rollover.pinned.items():
            assert self.kernel.pinned[flow] == spi
            assert self.rollover.held[spi].tek.flow == flow

    @invariant()
    def nothing_goes_that_somebody_may_still_send_with(self) -> None:
        wanted = {spi for spi, known in self.known.items() if known.used_until > self.now}
        assert wanted <= self.kernel.sas.keys()

    @invariant()
    def nothing_stays_beyond_its_time(self) -> None:
        """But what a member sends with stays to its end: better than nothing."""
        for spi, held in self.rollover.held.items():
            known = self.known[spi]
            pinned = self.rollover.pinned.get(held.tek.flow) == spi
            assert known.ends > self.now
            assert known.used_until > self.now or pinned

    @invariant()
    def every_flow_sends_with_one(self) -> None:
        """Where anything is held; the newest that all others have; none before its ATD."""
        for flow in SENT:
            held = [known for spi, known in self.known.items() if spi in self.rollover.held]
            there = [known for known in held if known.tek.flow == flow]
            pinned = self.rollover.pinned.get(flow)
            if not there:
                assert pinned is None
                continue
            active = [known for known in there if known.active_from <= self.now]
            assert pinned == (active or there)[-1].tek.spi
        assert self.rollover.pinned.keys() <= set(SENT)


TestRollovers = Rollovers.TestCase
TestRollovers.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_second_delivery_asks_the_kernel_again_and_changes_nothing() -> None:
    """An ACK says that the kernel holds it: somebody may have flushed its tables meanwhile."""
    machine = Rollovers()
    machine.registers()
    machine.rekeys([FLOWS[0]], names_old=True)
    policy, _ = machine.last or (None, None)
    assert policy is not None
    machine.now += 12
    machine.tick()
    plan = machine.rollover.receive(policy, (), machine.now)
    assert {tek.spi for tek in plan.add} >= {tek.spi for tek in policy.teks}
    assert [tek.spi for tek in plan.outbound] == [policy.teks[0].spi]
    assert (plan.remove, plan.held) == ((), machine.rollover.held)
    shortened = next(tek for tek in plan.add if tek.spi == policy.teks[0].spi)
    assert shortened == replace(policy.teks[0], lifetime=LIFE - 12)
