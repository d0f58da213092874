"""The floor under every TEK's policies, on the kernel these tests run on: policies need no ESP."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from gdoi_xfrm import (
    Direction,
    Mode,
    Monitor,
    Policy,
    PolicyAction,
    PolicyAdded,
    PolicyUpdated,
    Selector,
    Template,
    UpdatePolicy,
    Xfrm,
)

from gdoi_plugin.daemon.guard import BLOCK_PRIORITY, DIRECTIONS, PASS_PRIORITY, Guard
from tests.daemon.teks import flow
from tests.kernel.conftest import namespace, xfrm

__all__ = ["namespace", "xfrm"]

ALL, ALL6 = ip_network("0.0.0.0/0"), ip_network("::/0")
ANY = ip_address("0.0.0.0")  # noqa: S104
WIDE, WIDE6 = ip_network("239.192.0.0/16"), ip_network("ff18::/16")
IGMP = Selector(ALL, ip_network("224.0.0.0/4"), 2)
MLD = [Selector(ALL6, ip_network("ff00::/8"), 58, kind) for kind in (130, 131, 132)]


def passing(*selectors: Selector) -> set[Policy]:
    return {Policy(chosen, way, PASS_PRIORITY) for chosen in selectors for way in DIRECTIONS}


def blocking(*selectors: Selector) -> set[Policy]:
    block = PolicyAction.BLOCK
    return {Policy(s, way, BLOCK_PRIORITY, block) for s in selectors for way in DIRECTIONS}


def test_nothing_to_guard(xfrm: Xfrm) -> None:
    guard = Guard(xfrm)
    assert guard.policies() == ()
    guard.install()
    assert xfrm.dump_policies() == []


def test_prefixes_of_both_families(xfrm: Xfrm) -> None:
    guard = Guard(xfrm, [WIDE, WIDE6])
    guard.install()
    wide = blocking(Selector(ALL, WIDE), Selector(ALL6, WIDE6))
    assert set(guard.policies()) == passing(IGMP, *MLD) | wide
    assert set(xfrm.dump_policies()) == set(guard.policies())


def test_exceptions_are_of_the_families_that_have_blocks(xfrm: Xfrm) -> None:
    assert set(Guard(xfrm, [WIDE]).policies()) == passing(IGMP) | blocking(Selector(ALL, WIDE))
    guard = Guard(xfrm)
    guard.know([flow(destination="ff18::1")])
    group = Selector(ALL6, ip_network("ff18::1/128"))
    assert set(guard.policies()) == passing(*MLD) | blocking(group)


def test_flows_are_blocked_whoever_sends(xfrm: Xfrm) -> None:
    guard = Guard(xfrm)
    several = [flow("192.0.2.1/32", protocol=17, destination_port=5000), flow("192.0.2.0/24")]
    guard.know(several)
    group = ip_network("239.1.1.1/32")
    everybody = [Selector(ALL, group, 17, 0, 5000), Selector(ALL, group)]
    assert set(guard.policies()) == passing(IGMP) | blocking(*everybody)


def test_install_puts_back_what_is_missing_and_nothing_else(xfrm: Xfrm) -> None:
    guard = Guard(xfrm, [WIDE])
    guard.install()
    gone = guard.policies()[-1]
    xfrm.delete_policy(gone.selector, gone.direction)
    with Monitor() as monitor:
        guard.install()
        (event,) = monitor.read()
        assert isinstance(event, PolicyAdded | PolicyUpdated)
        assert event.policy == gone
        guard.install()
        assert monitor.read() == []
    assert set(xfrm.dump_policies()) == set(guard.policies())


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_drops_without_an_sa_is_as_good_as_a_block(xfrm: Xfrm, direction: Direction) -> None:
    """A TEK's policy of a former run: putting a block there would stop its traffic."""
    template = Template(ANY, ip_address("239.1.1.1"), Mode.TRANSPORT, 7)
    chosen = Selector(ALL, ip_network("239.1.1.1/32"))
    live = Policy(chosen, direction, 380000, templates=(template,))
    guard = Guard(xfrm)
    guard.know([flow()])
    for policy in (live, Policy(chosen, direction, 1, PolicyAction.BLOCK)):
        xfrm.update_policy(policy)
        guard.install()
        assert xfrm.get_policy(chosen, direction) == policy
    clear = Policy(chosen, direction, 380000)
    optional = replace(live, templates=(replace(template, optional=True),))
    for policy in (clear, optional):
        xfrm.update_policy(policy)
        guard.install()
        assert xfrm.get_policy(chosen, direction) in guard.policies()


def test_exceptions_of_others_stay(xfrm: Xfrm) -> None:
    others = Policy(IGMP, Direction.OUT, 5, PolicyAction.BLOCK)
    xfrm.add_policy(others)
    Guard(xfrm, [WIDE]).install()
    assert xfrm.get_policy(IGMP, Direction.OUT) == others


def test_a_transaction_covers_what_is_new(xfrm: Xfrm) -> None:
    guard = Guard(xfrm)
    inside = Selector(ALL, ip_network("239.1.1.1/32"))
    taken = {Policy(inside, Direction.IN, 1).key}
    operations = guard.cover([flow("192.0.2.1/32"), flow("192.0.2.2/32")], taken)
    out = Policy(inside, Direction.OUT, BLOCK_PRIORITY, PolicyAction.BLOCK)
    wanted = passing(IGMP) | {out}
    assert {op.policy for op in operations if isinstance(op, UpdatePolicy)} == wanted
    assert len(operations) == len(wanted)
    assert guard.policies() == (), "known only once the transaction has been"
    assert guard.cover([flow()], taken) == operations
    guard.know([flow()])
    assert guard.cover([flow("192.0.2.3/32")], ()) == []
    assert guard.cover([flow(destination="239.1.1.2")], taken) == [
        UpdatePolicy(policy)
        for policy in guard.policies()[-2:]
        for policy in [replace(policy, selector=Selector(ALL, ip_network("239.1.1.2/32")))]
    ]


def test_a_transaction_leaves_a_former_runs_policy_alone(xfrm: Xfrm) -> None:
    template = Template(ANY, ip_address("239.1.1.1"), Mode.TRANSPORT, 7, spi=256)
    chosen = Selector(ALL, ip_network("239.1.1.1/32"))
    xfrm.add_policy(Policy(chosen, Direction.OUT, 380000, templates=(template,)))
    taken = {Policy(chosen, Direction.IN, 1).key}
    operations = Guard(xfrm).cover([flow()], taken)
    assert {op.policy for op in operations if isinstance(op, UpdatePolicy)} == passing(IGMP)
