"""A member under a key server that signs whatever it likes: rekeys, kernel refusals and time.

An input is a row of steps: what kind (1 octet), length (2), and octets. A PUSH has the group's KEK,
a good signature and, but for one kind, the next SEQ; its payloads are the octets' items. Keys of
the KEK it brings are known to the harness only where they are the group's own: so a PUSH under a
KEK that the input made up does not follow.
"""

from __future__ import annotations

from dataclasses import dataclass

from gdoi_plugin.protocol.actions import Action
from gdoi_plugin.protocol.forest import ServerKek
from gdoi_plugin.protocol.policy import GroupPolicy, encode_kd, encode_sa
from gdoi_plugin.wire.delete import Delete
from gdoi_plugin.wire.group_sa import GroupSecurityAssociation
from gdoi_plugin.wire.payload import Body
from gdoi_plugin.wire.registry import Doi, TekProtocol
from gdoi_plugin.wire.sequence import SequenceNumber
from tests.fuzz.invariants import check_actions
from tests.fuzz.standing import MemberSide, story
from tests.fuzz.target import ENGINE_SHARE, Target
from tests.support.clone import clone
from tests.support.forge import seal_push
from tests.support.insider import Raw, bodies, pull_items, push_items
from tests.support.worlds import REKEY, SERVER, member_peer

PUSH, UNICAST, OWN_SEQ, REFUSED, WAIT = range(5)
MAX_STEPS = 6


@dataclass(slots=True)
class _Run:
    """One input's member, and where the key server's SEQ is."""

    side: MemberSide
    under: ServerKek
    now: float
    seq: int

    def step(self, kind: int, octets: bytes) -> list[Action]:
        if kind == WAIT:
            self.now += int.from_bytes(octets[:3], "big") / 16
            return self.side.carry_out(self.side.engine.tick(self.now), self.now)
        if kind == REFUSED:
            self.side.kernel.refuse_next()
        payloads: list[Raw | Body] = [*pull_items(octets)]
        if kind != OWN_SEQ:
            self.seq += 1
            payloads.insert(0, SequenceNumber(self.seq))
        if not payloads:
            return []
        datagram = seal_push(self.under.kek, self.under.signer, bodies(payloads))
        arrived = member_peer(0) if kind == UNICAST else REKEY
        actions = self.side.receive(datagram, SERVER, arrived, self.now)
        self.side.kernel.refusals.clear()
        return actions


def check_push(data: bytes) -> bool:
    """True where a PUSH has been installed."""
    moment = story().registered
    under = moment.group.current_kek()
    run = _Run(clone(moment.member), under, moment.now, under.seq)
    for step in pull_items(data)[:MAX_STEPS]:
        check_actions(run.step(step.TYPE % 5, step.data))
        check_member(run.side, run.now)
    return run.side.engine.counters.rekeys_installed > 0


def check_member(side: MemberSide, now: float) -> None:
    """Engine and kernel hold the same, and time can go on."""
    engine = side.engine
    assert set(engine.rollover.held) == set(side.kernel.sas)
    assert set(engine.rollover.pinned.values()) <= set(engine.rollover.held)
    deadline = engine.deadline
    if deadline is not None and deadline <= now:
        check_actions(side.carry_out(engine.tick(now), now))


def _seeds() -> list[bytes]:
    moment = story().registered
    policies = [m.offer for m in story().moments[-3:]]
    esp, zero = TekProtocol.GDOI_PROTO_IPSEC_ESP, (bytes(4),)
    spis = tuple(moment.member.engine.rollover.held)
    rows: list[list[Body]] = [[*_both(policy)] for policy in policies]
    rows += [[*_both(GroupPolicy(None, policy.teks, 0, 5))] for policy in policies]
    rows += [
        [Delete(Doi.GDOI, esp, spis), *_both(GroupPolicy(None, policies[-1].teks, 10, 30))],
        [Delete(Doi.GDOI, esp, zero)],
        [Delete(Doi.GDOI, esp, zero), Delete(Doi.GDOI, TekProtocol.KEK, (bytes(16),))],
        [Delete(Doi.GDOI, TekProtocol.KEK, (moment.group.current_kek().kek.spi,))],
        [GroupSecurityAssociation(*(None, None, encode_sa(policies[0]).sats))],
    ]
    one = [push_items([Raw(kind, push_items(row))]) for row in rows for kind in (PUSH, REFUSED)]
    own = push_items([Raw(OWN_SEQ, push_items([SequenceNumber(9), *rows[0]]))])
    wait = push_items([Raw(WAIT, bytes((0, 2, 0)))])
    long_wait = push_items([Raw(WAIT, b"\xff\xff\xff")])
    return [*one, own, one[0] + wait + one[2] + long_wait, one[0] + own + wait + one[8]]


def _both(policy: GroupPolicy) -> list[Body]:
    return [encode_sa(policy), encode_kd(policy)]


def targets() -> list[Target]:
    return [Target("push-member", check_push, _seeds, ENGINE_SHARE)]
