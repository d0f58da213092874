"""TEKs become SAs and policies: every field, and the order they are asked for in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from gdoi_xfrm import (
    AH,
    ESP,
    AesGcm,
    AesGmac,
    CbcHmac,
    DeleteSa,
    Direction,
    Hmac,
    InstallSa,
    Integrity,
    Lifetime,
    Mark,
    Mode,
    Operation,
    Policy,
    PolicyAction,
    Sa,
    SaKey,
    Selector,
    Template,
    UpdatePolicy,
    Xfrm,
)

from gdoi_plugin.daemon.guard import BYPASS_PRIORITY, DIRECTIONS
from gdoi_plugin.daemon.kernel import GroupKernel
from gdoi_plugin.daemon.kernel_options import (
    MOST_SPECIFIC,
    PRIORITY,
    REPLAY_WINDOW,
    KernelOptions,
    Scope,
)
from gdoi_plugin.daemon.reqid import FIRST_REQID
from gdoi_plugin.protocol.actions import ApplyKernel
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.policy import Tek
from gdoi_plugin.wire.registry import AddressPreservation, EncapsulationMode, SaDirection
from tests.daemon.teks import CBC_KEY, HMAC_KEY, LOCAL, flow, tek
from tests.kernel.conftest import namespace, xfrm

__all__ = ["namespace", "xfrm"]

REQID = 0x40000007
GROUP, GROUP6 = ip_address("239.1.1.1"), ip_address("ff05::1")
ANY, ANY6 = ip_address("0.0.0.0"), ip_address("::")  # noqa: S104
ALL, ALL6 = ip_network("0.0.0.0/0"), ip_network("::/0")
CBC = CbcHmac(CBC_KEY, HMAC_KEY)
HOUR = Lifetime(soft_seconds=3600 - 135, hard_seconds=3600)


class Recorder:
    """Xfrm as far as a GroupKernel needs it."""

    def __init__(self) -> None:
        self.transactions: list[list[Operation]] = []
        self.asked: list[SaKey] = []

    def transaction(self, operations: Sequence[Operation]) -> None:
        self.transactions.append(list(operations))

    def find_sa(self, key: SaKey) -> None:
        self.asked.append(key)

    def find_policy(self, _: Any) -> None:
        """There is none yet."""

    def dump_policies(self) -> list[Policy]:
        return []


def kernel(group_id: int = 7, local: Any = LOCAL, **more: Any) -> tuple[GroupKernel, Recorder]:
    recorder: Any = Recorder()
    return GroupKernel(recorder, GroupId.of_number(group_id), local, **more), recorder


def sa_of(wanted: Tek) -> Sa:
    return kernel()[0].sa(wanted)


def policies_of(wanted: Tek) -> tuple[Policy, Policy]:
    group, _ = kernel()
    return group.policy(wanted, Direction.IN), group.policy(wanted, Direction.OUT)


# -- one SA, its two policies ---------------------------------------------------------------------


def test_any_source() -> None:
    wanted = tek(0xC0000001)
    assert sa_of(wanted) == Sa(
        ANY, GROUP, 0xC0000001, Mode.TRANSPORT, REQID, CBC, replay_window=0, lifetime=HOUR
    )
    selector = Selector(ALL, ip_network("239.1.1.1/32"))
    inbound = Template(ANY, GROUP, Mode.TRANSPORT, REQID)
    outbound = Template(ANY, GROUP, Mode.TRANSPORT, REQID, spi=0xC0000001)
    assert policies_of(wanted) == (
        Policy(selector, Direction.IN, PRIORITY, PolicyAction.ALLOW, (inbound,)),
        Policy(selector, Direction.OUT, PRIORITY, PolicyAction.ALLOW, (outbound,)),
    )


def test_one_source_is_pinned_and_replays_are_refused() -> None:
    wanted = tek(0x100, flow("192.0.2.9/32", protocol=17, source_port=5, destination_port=6))
    selector = Selector(ip_network("192.0.2.9/32"), ip_network("239.1.1.1/32"), 17, 5, 6)
    found = sa_of(wanted)
    assert (found.source, found.replay_window, found.selector) == (ANY, REPLAY_WINDOW, selector)
    assert [policy.selector for policy in policies_of(wanted)] == [selector] * 2


def test_a_network_of_senders_counts_no_replays() -> None:
    found = sa_of(tek(0x100, flow("192.0.2.0/24")))
    assert found.replay_window == 0
    assert found.selector == Selector(ip_network("192.0.2.0/24"), ip_network("239.1.1.1/32"))


def test_tunnel_mode_sends_from_the_local_address_and_hears_any() -> None:
    wanted = tek(0x100, mode=EncapsulationMode.TUNNEL)
    assert (sa_of(wanted).source, sa_of(wanted).mode) == (LOCAL, Mode.TUNNEL)
    inbound, outbound = policies_of(wanted)
    assert inbound.templates == (Template(ANY, GROUP, Mode.TUNNEL, REQID),)
    assert outbound.templates == (Template(LOCAL, GROUP, Mode.TUNNEL, REQID, spi=0x100),)


def octets(count: int, start: int = 0) -> bytes:
    return bytes(range(start, start + count))


@pytest.mark.parametrize(
    ("suite", "protocol", "algorithm"),
    [
        # Key and salt in one, as the kernel, RFC 4106 and RFC 4543 have them.
        ("aes128gcm8", ESP, AesGcm(octets(20), 64)),
        ("aes192gcm12", ESP, AesGcm(octets(28), 96)),
        ("aes256gcm16", ESP, AesGcm(octets(36), 128)),
        ("aes256gmac", ESP, AesGmac(octets(36))),
        ("aes192-sha384", ESP, CbcHmac(octets(24), octets(48, 32), Integrity.HMAC_SHA2_384)),
        ("aes256-sha512", ESP, CbcHmac(octets(32), octets(64, 32), Integrity.HMAC_SHA2_512)),
        ("sha256", AH, Hmac(octets(32, 32))),
        ("sha512", AH, Hmac(octets(64, 32), Integrity.HMAC_SHA2_512)),
    ],
)
def test_suites(suite: str, protocol: int, algorithm: Any) -> None:
    wanted = tek(0x100, flow("192.0.2.1/32"), suite)
    found = sa_of(wanted)
    assert (found.algorithm, found.protocol) == (algorithm, protocol)
    assert {policy.templates[0].protocol for policy in policies_of(wanted)} == {protocol}


def blocked(*teks: Tek, outbound: tuple[Tek, ...] = ()) -> set[tuple[str, Direction]]:
    """Sources and directions that a transaction blocks."""
    group, recorder = kernel()
    group.apply(ApplyKernel(1, add=teks, outbound=outbound))
    (operations,) = recorder.transactions
    return {
        (str(operation.policy.selector.source), operation.policy.direction)
        for operation in operations
        if isinstance(operation, UpdatePolicy) and operation.policy.action is PolicyAction.BLOCK
    }


def test_sender_only_hears_nothing_not_even_what_has_the_key() -> None:
    sender = tek(0x100, flow("192.0.2.1/32"), direction=SaDirection.SENDER_ONLY)
    group, recorder = kernel()
    group.apply(ApplyKernel(1, add=(sender,), outbound=(sender,)))
    allowed = [
        operation.policy.direction
        for operation in recorder.transactions[0]
        if isinstance(operation, UpdatePolicy) and operation.policy.templates
    ]
    assert allowed == [Direction.OUT]
    both = {("0.0.0.0/0", Direction.IN), ("0.0.0.0/0", Direction.OUT)}
    assert blocked(sender, outbound=(sender,)) == both
    everybody = tek(0x100, direction=SaDirection.SENDER_ONLY)
    assert blocked(everybody, outbound=(everybody,)) == {("0.0.0.0/0", Direction.IN)}


def test_tunnel_that_keeps_the_source_takes_this_members_packets_alone() -> None:
    wanted = tek(0x100, flow("192.0.2.0/24"), mode=EncapsulationMode.TUNNEL)
    inbound, outbound = policies_of(wanted)
    assert (str(inbound.selector.source), str(outbound.selector.source)) == (
        "192.0.2.0/24",
        "192.0.2.1/32",
    )
    shared = tek(0x100, mode=EncapsulationMode.TUNNEL)
    assert blocked(shared, outbound=(shared,)) == {("0.0.0.0/0", Direction.OUT)}
    changed = replace(shared, preservation=AddressPreservation.DESTINATION_ONLY)
    assert policies_of(changed)[1].selector.source == ALL
    assert blocked(changed, outbound=(changed,)) == set()


def test_ipv6() -> None:
    wanted = tek(0x100, flow(destination="ff05::1"))
    found = sa_of(wanted)
    assert (found.source, found.destination, found.selector) == (ANY6, GROUP6, None)
    selector = Selector(ALL6, ip_network("ff05::1/128"))
    inbound, outbound = policies_of(wanted)
    assert (inbound.selector, outbound.selector) == (selector, selector)
    assert outbound.templates == (Template(ANY6, GROUP6, Mode.TRANSPORT, REQID, spi=0x100),)


def test_kilobytes() -> None:
    assert sa_of(tek(0x100, lifetime_kilobytes=3)).lifetime == Lifetime(
        soft_seconds=HOUR.soft_seconds, hard_seconds=3600, soft_bytes=3072 - 460, hard_bytes=3072
    )


@pytest.mark.parametrize(
    ("chance", "lifetime"),
    [(0.0, Lifetime(3510, 3600, 92160, 102400)), (1.0, Lifetime(3420, 3600, 81920, 102400))],
)
def test_soft_limits_are_somewhere_in_their_margins(chance: float, lifetime: Lifetime) -> None:
    group, _ = kernel(chance=chance)
    assert group.sa(tek(0x100, lifetime_kilobytes=100)).lifetime == lifetime


def test_what_is_left_of_a_lifetime_may_have_no_margin() -> None:
    assert sa_of(tek(0x100, lifetime=1)).lifetime == Lifetime(hard_seconds=1)


# -- options --------------------------------------------------------------------------------------


def test_marks_and_interface_are_those_of_sas_and_policies() -> None:
    marks = KernelOptions(scope=Scope(Mark(1), Mark(2, 0xF), 5))
    group, _ = kernel(options=marks)
    wanted = tek(0x100)
    sa, inbound, outbound = group.sa(wanted), *(group.policy(wanted, d) for d in DIRECTIONS)
    assert (sa.mark, sa.if_id) == (None, 5)
    assert (inbound.mark, inbound.if_id) == (Mark(1), 5)
    assert (outbound.mark, outbound.if_id) == (Mark(2, 0xF), 5)


def test_sas_may_be_found_by_their_mark() -> None:
    mark = Mark(0x10, 0xFF)
    group, recorder = kernel(options=KernelOptions(scope=Scope(mark, mark), mark_in_sa=True))
    wanted = tek(0x100)
    assert group.sa(wanted).mark == mark
    group.state(wanted)
    group.apply(ApplyKernel(1, remove=(wanted,)))
    assert recorder.asked == [SaKey(GROUP, 0x100, ESP, mark)] == [group.sa(wanted).key]
    assert recorder.transactions == [[DeleteSa(group.sa(wanted).key)]]


@pytest.mark.parametrize(
    ("serves", "option", "window"),
    [
        (flow(), {}, 0),
        (flow("192.0.2.0/24"), {"replay_window": 64}, 0),
        (flow("192.0.2.9/32"), {}, 32),
        (flow("192.0.2.9/32"), {"replay_window": 0}, 0),
        (flow("192.0.2.9/32"), {"replay_window": 4096}, 4096),
    ],
    ids=str,
)
def test_replay_window_is_for_one_sender(serves: Any, option: Any, window: int) -> None:
    group, _ = kernel(options=KernelOptions(**option))
    assert group.sa(tek(0x100, serves)).replay_window == window


def test_64_bit_sequence_numbers_need_a_replay_window() -> None:
    """The kernel finds their upper half by it."""
    group, _ = kernel(options=KernelOptions(replay_window=0))
    found = group.sa(tek(0x100, flow("192.0.2.9/32"), esn=True))
    assert (found.esn, found.replay_window) == (True, REPLAY_WINDOW)


def test_what_is_for_fewer_packets_wins() -> None:
    flows = [
        flow(),
        flow(protocol=17),
        flow(protocol=17, destination_port=5000),
        flow("192.0.2.0/24"),
        flow("192.0.2.9/32"),
        flow("192.0.2.9/32", protocol=17, source_port=1, destination_port=2),
    ]
    group, _ = kernel(options=KernelOptions(priority=375000))
    found = [group.policy(tek(0x100, one), Direction.OUT).priority for one in flows]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == len(flows)
    assert found[0] == 375000
    assert found[-1] >= 375000 - MOST_SPECIFIC


@pytest.mark.parametrize("group_id", [0, 1, 0x3FFFFFFF, 0x40000000, 0xFFFFFFFF])
def test_reqids_are_out_of_charons_way(group_id: int) -> None:
    found = kernel(group_id)[0].sa(tek(0x100)).reqid
    assert FIRST_REQID <= found < 2 * FIRST_REQID


def test_the_kernel_is_asked_by_destination_and_spi() -> None:
    group, recorder = kernel()
    assert group.state(tek(0x1234)) is None
    assert group.state(tek(0x1234, suite="sha384")) is None
    assert recorder.asked == [SaKey(GROUP, 0x1234), SaKey(GROUP, 0x1234, AH)]
    assert group.key(tek(0x1234)) == SaKey(GROUP, 0x1234)


# -- transactions --------------------------------------------------------------------------------


def test_order() -> None:
    """SAs before the policies that need them, deletions last: no packet is ever without an SA."""
    group, recorder = kernel()
    other = flow("192.0.2.9/32")
    new = (tek(0x200), tek(0x201), tek(0x202, other))
    old = tek(0x100)
    group.apply(ApplyKernel(1, add=new, outbound=(new[1],), remove=(old,)))
    (operations,) = recorder.transactions
    igmp = Selector(ALL, ip_network("224.0.0.0/4"), 2)
    assert operations == [
        *(InstallSa(group.sa(wanted)) for wanted in new),
        # IGMP, before there is a policy that would take it for the group's.
        UpdatePolicy(Policy(igmp, Direction.IN, BYPASS_PRIORITY)),
        UpdatePolicy(Policy(igmp, Direction.OUT, BYPASS_PRIORITY)),
        # One inbound policy for a flow, however many SAs it has.
        UpdatePolicy(group.policy(new[1], Direction.IN)),
        UpdatePolicy(group.policy(new[2], Direction.IN)),
        UpdatePolicy(group.policy(new[1], Direction.OUT)),
        DeleteSa(SaKey(GROUP, 0x100)),
    ]


def test_switching_is_one_update() -> None:
    group, recorder = kernel()
    group.apply(ApplyKernel(1, outbound=(tek(0x200),)))
    assert recorder.transactions == [[UpdatePolicy(group.policy(tek(0x200), Direction.OUT))]]


def test_policies_are_never_taken_away() -> None:
    group, recorder = kernel()
    group.apply(ApplyKernel(1, remove=(tek(0x200),)))
    assert recorder.transactions == [[DeleteSa(SaKey(GROUP, 0x200))]]


def test_flows_of_tunnels_share_what_they_are_sent_with(xfrm: Xfrm) -> None:
    """Sent from this member's address: who takes a flow's packets over takes the policy."""
    group = GroupKernel(xfrm, GroupId.of_number(7), LOCAL)
    wide, narrow = (
        tek(spi, flow(source), mode=EncapsulationMode.TUNNEL)
        for spi, source in ((0x100, "192.0.2.0/24"), (0x200, "192.0.2.0/25"))
    )
    out = group.policy(narrow, Direction.OUT)
    assert out.key == group.policy(wide, Direction.OUT).key
    group.apply(ApplyKernel(1, inbound=(wide,), outbound=(wide,)))
    group.apply(ApplyKernel(2, inbound=(narrow,), outbound=(narrow,), released=(wide,)))
    assert set(xfrm.dump_policies()) == {out, group.policy(narrow, Direction.IN)}
    group.apply(ApplyKernel(3, silenced=(wide,)))
    assert xfrm.find_policy(out.key) == out, "another TEK's by now"
    group.apply(ApplyKernel(4, silenced=(narrow,)))
    assert xfrm.dump_policies() == [group.policy(narrow, Direction.IN)]


def test_odd_values_are_refused_before_anything_is_asked() -> None:
    """A tunnel for IPv6 has no outer source at a member with an IPv4 address."""
    group, recorder = kernel()
    six = tek(0x100, flow(destination="ff05::1"), mode=EncapsulationMode.TUNNEL)
    with pytest.raises(ValueError, match="different families"):
        group.apply(ApplyKernel(1, add=(tek(0x101), six)))
    assert recorder.transactions == []
