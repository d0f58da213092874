"""The floor under every TEK's policies, on the kernel these tests run on: policies need no ESP."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from gdoi_xfrm import (
    DefaultPolicy,
    DeletePolicy,
    Direction,
    KernelError,
    Mark,
    Mode,
    Monitor,
    Operation,
    Policy,
    PolicyAction,
    PolicyAdded,
    PolicyUpdated,
    Result,
    Selector,
    Template,
    UpdatePolicy,
    Xfrm,
)

from gdoi_plugin.daemon.guard import (
    BLOCK_PRIORITY,
    BYPASS_PRIORITY,
    DIRECTIONS,
    Fence,
    Guard,
    OnStop,
)
from gdoi_plugin.daemon.kernel_options import PRIORITY, Scope
from gdoi_plugin.daemon.memory import Memory
from gdoi_plugin.daemon.selectors import selector
from gdoi_plugin.daemon.state_file import StateDirectory
from tests.daemon.teks import flow, tek
from tests.kernel.conftest import namespace, xfrm
from tests.kernel.namespaces import counter, eventually, ip

__all__ = ["namespace", "xfrm"]

ALL, ALL6 = ip_network("0.0.0.0/0"), ip_network("::/0")
ANY = ip_address("0.0.0.0")  # noqa: S104
WIDE, WIDE6 = ip_network("239.192.0.0/16"), ip_network("ff18::/16")
IGMP = Selector(ALL, ip_network("224.0.0.0/4"), 2)
MLD = [Selector(ALL6, ip_network("ff00::/8"), 58, kind) for kind in (130, 131, 132)]


def passing(*selectors: Selector) -> set[Policy]:
    return {Policy(chosen, way, BYPASS_PRIORITY) for chosen in selectors for way in DIRECTIONS}


def blocking(*selectors: Selector) -> set[Policy]:
    block = PolicyAction.BLOCK
    return {Policy(s, way, BLOCK_PRIORITY, block) for s in selectors for way in DIRECTIONS}


def test_nothing_to_guard(xfrm: Xfrm) -> None:
    guard = Guard(xfrm)
    assert guard.policies() == ()
    guard.install()
    assert xfrm.dump_policies() == []


def test_prefixes_of_both_families(xfrm: Xfrm) -> None:
    guard = Guard(xfrm, Fence((WIDE, WIDE6)))
    guard.install()
    wide = blocking(Selector(ALL, WIDE), Selector(ALL6, WIDE6))
    assert set(guard.policies()) == passing(IGMP, *MLD) | wide
    assert set(xfrm.dump_policies()) == set(guard.policies())


def test_exceptions_are_of_the_families_that_have_blocks(xfrm: Xfrm) -> None:
    assert set(Guard(xfrm, Fence((WIDE,))).policies()) == passing(IGMP) | blocking(
        Selector(ALL, WIDE)
    )
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


def test_what_a_prefix_blocks_needs_no_block_of_its_own(xfrm: Xfrm) -> None:
    """But a prefix is for packets without mark and if_id alone."""
    guard = Guard(xfrm, Fence((ip_network("239.1.0.0/16"),)))
    inside, scope = flow(), Scope(if_id=5)
    assert not guard.protects(inside, scope)
    guard.install()
    floor = guard.policies()
    assert guard.cover([inside], ()) == []
    guard.know([inside])
    assert guard.policies() == floor
    made = Policy(selector(inside), Direction.IN, PRIORITY)
    assert guard.yielded([made.key]) == [DeletePolicy(made.key)]
    operations = guard.cover([inside], (), scope)
    xfrm.transaction(operations)
    guard.know([inside], scope)
    kept = {policy for policy in xfrm.dump_policies() if policy.if_id == 5}
    assert len(kept) == len(operations) == 4, "IGMP and the block, both ways"
    assert set(xfrm.dump_policies()) == set(guard.policies())
    assert len(guard.cover([flow(protocol=17)], (), scope)) == 2, "IGMP passes already"
    assert len(guard.cover([flow(protocol=17)], (), Scope(if_id=6))) == 4


def test_install_puts_back_what_is_missing_and_nothing_else(xfrm: Xfrm) -> None:
    guard = Guard(xfrm, Fence((WIDE,)))
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
    Guard(xfrm, Fence((WIDE,))).install()
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


# -- exceptions by configuration ------------------------------------------------------------------

SAP = Selector(ALL, WIDE, 17, 0, 9875)


def test_exceptions_come_before_a_teks_policy(xfrm: Xfrm) -> None:
    fence = Fence((WIDE,), bypass=((SAP, Direction.OUT),))
    guard = Guard(xfrm, fence)
    exception = Policy(SAP, Direction.OUT, BYPASS_PRIORITY)
    assert BYPASS_PRIORITY < PRIORITY < BLOCK_PRIORITY
    assert set(guard.policies()) == {exception, *Guard(xfrm, Fence((WIDE,))).policies()}


def test_no_exception_for_what_a_tek_protects(xfrm: Xfrm) -> None:
    announcements = flow("192.0.2.1/32", "239.192.1.1", protocol=17, destination_port=9875)
    guard = Guard(xfrm, Fence((WIDE,), bypass=((SAP, Direction.OUT),)))
    with pytest.raises(ValueError, match=r"SPI 0x00000100: member.bypass lets out .* all of"):
        guard.check([tek(0x101), tek(0x100, announcements)])
    more = replace(announcements, destination_port=0)
    elsewhere = replace(announcements, destination=ip_address("239.1.1.1"))
    other = replace(announcements, destination_port=9876)
    guard.check([tek(0x100, wanted) for wanted in (more, elsewhere, other)])
    narrow = replace(SAP, source=ip_network("192.0.2.1/32"))
    with pytest.raises(ValueError, match=r"member\.bypass"):
        Guard(xfrm, Fence(bypass=((narrow, Direction.IN),))).check([tek(0x100, announcements)])
    everybody = replace(announcements, source=None)
    Guard(xfrm, Fence(bypass=((narrow, Direction.IN),))).check([tek(0x100, everybody)])


# -- beginning and end ----------------------------------------------------------------------------

BLOCKED = DefaultPolicy(inbound=PolicyAction.BLOCK, outbound=PolicyAction.BLOCK)


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(StateDirectory(tmp_path), ["video"])


def test_marked_flows_are_blocked_where_they_are_marked(xfrm: Xfrm, memory: Memory) -> None:
    """IGMP passes with any mark; an XFRM interface's policies are apart from all others."""
    memory.add("video", [flow()])
    scope = Scope(Mark(1), Mark(2), 5)
    guard = Guard(xfrm, scopes={"video": scope})
    guard.begin(memory)
    group, block = Selector(ALL, ip_network("239.1.1.1/32")), PolicyAction.BLOCK
    blocks = {
        Policy(group, Direction.IN, BLOCK_PRIORITY, block, mark=Mark(1), if_id=5),
        Policy(group, Direction.OUT, BLOCK_PRIORITY, block, mark=Mark(2), if_id=5),
    }
    inside = {replace(policy, if_id=5) for policy in passing(IGMP)}
    assert set(guard.policies()) == set(xfrm.dump_policies()) == inside | blocks
    assert guard.cover([flow()], (), scope) == []
    there = {operation.key for operation in guard.cover([flow()], ())}
    assert there == {policy.key for policy in passing(IGMP) | blocking(group)}


def test_flows_of_a_former_run_are_blocked_from_the_beginning(xfrm: Xfrm, memory: Memory) -> None:
    memory.add("video", [flow()])
    Guard(xfrm).begin(memory)
    wanted = passing(IGMP) | blocking(Selector(ALL, ip_network("239.1.1.1/32")))
    assert set(xfrm.dump_policies()) == wanted
    assert xfrm.get_default() == DefaultPolicy()


def test_exceptions_of_a_former_configuration_are_gone(xfrm: Xfrm, memory: Memory) -> None:
    """Others', which look different, are none of ours."""
    former = Selector(ALL, ip_network("239.192.7.0/24"), 17, 0, 5000)
    kept, others = replace(former, destination_port=5001), replace(former, destination_port=5002)
    several = tuple((chosen, way) for chosen in (former, kept, others) for way in DIRECTIONS)
    Guard(xfrm, Fence((WIDE,), several)).begin(memory)
    xfrm.update_policy(Policy(others, Direction.OUT, 5))
    guard = Guard(xfrm, Fence((WIDE,), ((kept, Direction.OUT),)))
    guard.begin(memory)
    assert set(xfrm.dump_policies()) == {*guard.policies(), Policy(others, Direction.OUT, 5)}
    assert memory.bypass == {(kept, Direction.OUT)}


def test_default_blocks_and_all_else_is_allowed(xfrm: Xfrm, memory: Memory) -> None:
    former = DefaultPolicy(forwarded=PolicyAction.BLOCK)
    xfrm.set_default(former)
    guard = Guard(xfrm, Fence(block_by_default=True))
    guard.begin(memory)
    assert xfrm.get_default() == replace(BLOCKED, forwarded=PolicyAction.BLOCK)
    held = set(xfrm.dump_policies())
    assert held == set(guard.policies())
    assert {(p.action, p.priority, p.templates) for p in held} == {
        (PolicyAction.ALLOW, 2**32 - 1, ())
    }
    for direction in DIRECTIONS:
        to = sorted(str(p.selector.destination) for p in held if p.direction is direction)
        assert to == ["0.0.0.0/1", "128.0.0.0/1", "8000::/1", "::/1"]
    # A crash, and the next run: what was found in the first place is not forgotten.
    Guard(xfrm, Fence(block_by_default=True)).begin(memory)
    assert memory.default == former
    # The option is taken out.
    Guard(xfrm).begin(memory)
    assert (xfrm.get_default(), xfrm.dump_policies()) == (former, [])
    assert memory.default is None


def test_what_was_allowed_goes_at_the_next_start_where_it_could_not(
    xfrm: Xfrm, memory: Memory
) -> None:
    class Refusing(Xfrm):
        def transaction(self, _: Sequence[Operation]) -> list[Result]:
            raise KernelError(errno.ENOBUFS, "XFRM_MSG_DELPOLICY")

    Guard(xfrm, Fence(block_by_default=True)).begin(memory)
    with Refusing() as refusing, pytest.raises(KernelError, match="DELPOLICY"):
        Guard(refusing).begin(memory)
    assert xfrm.get_default() == DefaultPolicy()
    assert xfrm.dump_policies()
    Guard(xfrm).begin(memory)
    assert (xfrm.dump_policies(), memory.default) == ([], None)


def test_default_that_others_block_stays_as_it_was(xfrm: Xfrm, memory: Memory) -> None:
    """What they allow may be among what we do."""
    xfrm.set_default(BLOCKED)
    guard = Guard(xfrm, Fence(block_by_default=True, on_stop=OnStop.REMOVE))
    guard.begin(memory)
    guard.end(memory, ())
    assert xfrm.get_default() == BLOCKED
    assert set(xfrm.dump_policies()) == set(guard.policies())


def test_a_kernel_without_defaults_says_so(xfrm: Xfrm, memory: Memory) -> None:
    class Old(Xfrm):
        def get_default(self) -> DefaultPolicy:
            raise KernelError(errno.EINVAL, "XFRM_MSG_GETDEFAULT")

    with Old() as old, pytest.raises(KernelError, match="GETDEFAULT"):
        Guard(old, Fence(block_by_default=True)).begin(memory)
    assert (xfrm.get_default(), memory.default) == (DefaultPolicy(), None)


@pytest.mark.parametrize("on_stop", OnStop)
def test_policies_at_the_end(xfrm: Xfrm, memory: Memory, on_stop: OnStop) -> None:
    fence = Fence((WIDE,), ((SAP, Direction.OUT),), block_by_default=True, on_stop=on_stop)
    guard = Guard(xfrm, fence)
    memory.add("video", [flow()])
    guard.begin(memory)
    # Policies of TEKs, one in the place of a block; another program's, alike but for the reqid.
    inside = Selector(ALL, ip_network("239.1.1.1/32"))
    pinned = Selector(ip_network("192.0.2.1/32"), ip_network("239.1.1.1/32"))
    other = Selector(ALL, ip_network("239.1.1.9/32"))
    template = Template(ANY, ip_address("239.1.1.1"), Mode.TRANSPORT, 0x40000007)
    foreign = replace(template, reqid=0x40000008)
    others = {
        Policy(other, Direction.OUT, PRIORITY, templates=(foreign,)),
        Policy(other, Direction.IN, BLOCK_PRIORITY, PolicyAction.BLOCK),
    }
    for policy in (
        Policy(inside, Direction.OUT, PRIORITY, templates=(template,)),
        Policy(pinned, Direction.IN, PRIORITY, templates=(template,)),
        *others,
    ):
        xfrm.update_policy(policy)
    before = set(xfrm.dump_policies())
    guard.end(memory, {0x40000007})
    if on_stop is OnStop.REMOVE:
        assert set(xfrm.dump_policies()) == others
        assert (xfrm.get_default(), memory.default) == (DefaultPolicy(), None)
    else:
        assert set(xfrm.dump_policies()) == before
        assert (xfrm.get_default(), memory.default) == (BLOCKED, DefaultPolicy())
    assert dict(memory.groups) == {"video": {flow(): None}}, "blocked again at the next start"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_default_that_blocks_and_the_host_itself(
    xfrm: Xfrm, memory: Memory, address: str
) -> None:
    """All is as before; when the policies are flushed, only IPv4 is exempt on the loopback."""
    Guard(xfrm, Fence((WIDE, WIDE6), block_by_default=True)).begin(memory)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((address, 0))
        sock.settimeout(10)
        sock.sendto(b"allowed", sock.getsockname())
        assert sock.recv(100) == b"allowed"
        ip("xfrm policy flush")
        sock.sendto(b"flushed", sock.getsockname())
        if family == socket.AF_INET6:
            eventually(lambda: counter("XfrmInNoPols") == 1)
            Guard(xfrm, Fence(block_by_default=True)).begin(memory)
            sock.sendto(b"flushed", sock.getsockname())
        assert sock.recv(100) == b"flushed"
