"""SA and KD as a member reads them, and the plan its rollover makes of what it has read."""

from __future__ import annotations

from gdoi_plugin.protocol.errors import PolicyError
from gdoi_plugin.protocol.policy import check_sa, encode_kd, encode_sa, read_policy
from gdoi_plugin.protocol.rollover import Plan, Rollover
from gdoi_plugin.wire.buffer import Buffer, DecodeError
from gdoi_plugin.wire.delete import Delete
from gdoi_plugin.wire.group_sa import GroupSecurityAssociation
from gdoi_plugin.wire.key_download import KeyDownload
from gdoi_plugin.wire.registry import PayloadType
from tests.fuzz.standing import story
from tests.fuzz.target import ENGINE_SHARE, Target
from tests.support.clone import clone
from tests.support.insider import pull_items, push_items


def check_policy(data: bytes) -> bool:
    """The first octet: from a PULL or a PUSH."""
    moment = story().registered
    pull = data[:1] < b"\x80"
    found: dict[int, bytes] = {item.TYPE: item.data for item in pull_items(data[1:])}
    try:
        sa = GroupSecurityAssociation.pull(Buffer(found.get(PayloadType.SA, b"")))
        check_sa(sa)
        kd = KeyDownload.pull(Buffer(found.get(PayloadType.KD, b"")))
        deletes = [Delete.pull(Buffer(d)) for k, d in found.items() if k == PayloadType.DELETE]
        policy = read_policy(sa, kd, pull=pull)
        rollover = clone(moment.member.engine.rollover)
        rollover.check(policy)
    except (DecodeError, PolicyError) as error:
        assert str(error)
        return False
    plan = rollover.receive(policy, deletes, moment.now, at_once=pull)
    _check_plan(rollover, plan, moment.now)
    rollover.commit(plan)
    now = moment.now
    for _ in range(4 * len(plan.held) + 4):
        due = rollover.deadline(now)
        if due is None:
            break
        now = due
        plan = rollover.advance(now)
        _check_plan(rollover, plan, now)
        rollover.commit(plan)
    assert not rollover.held, "every TEK has an end"
    return True


def _check_plan(rollover: Rollover, plan: Plan, now: float) -> None:
    """What is sent with is held, what is removed is not, and nothing lives for ever."""
    assert set(plan.pinned.values()) <= set(plan.held)
    assert {tek.spi for tek in plan.add} <= set(plan.held)
    assert not {tek.spi for tek in plan.remove} & set(plan.held)
    assert set(rollover.held) | {tek.spi for tek in plan.add} >= set(plan.held)
    for held in plan.held.values():
        assert held.expires <= now + held.tek.lifetime


def _seeds() -> list[bytes]:
    seeds = []
    for moment in story().moments:
        policy = moment.offer
        told = push_items([encode_sa(policy), encode_kd(policy)])
        seeds += [b"\0" + told, b"\xff" + told]
    return seeds


def targets() -> list[Target]:
    return [Target("policy", check_policy, _seeds, 4 * ENGINE_SHARE)]
