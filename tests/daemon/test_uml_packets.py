"""What a group's options, and other policies on the same host, do to packets.

192.0.2.1, 2001:db8::1  sender ---- veth ---- receiver  192.0.2.2, 2001:db8::2
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from gdoi_xfrm import Direction, Mark, Mode, Policy, Selector, Template

from gdoi_plugin.daemon.kernel_options import PRIORITY, Scope
from gdoi_plugin.protocol.policy import GroupPolicy, Tek
from gdoi_plugin.protocol.rollover import Plan, Rollover
from gdoi_plugin.wire.delete import Delete
from gdoi_plugin.wire.registry import Doi, EncapsulationMode
from tests.daemon.ends import (
    SPIS,
    End,
    Pair,
    delivered,
    joined,
    new_group,
    refused,
    serves,
    two_ends,
)
from tests.daemon.teks import carried_out, tek
from tests.kernel.namespaces import counter, eventually

pytestmark = pytest.mark.uml

MARK = Mark(0x10, 0xFF)


@pytest.fixture(scope="module")
def ends() -> Iterator[Pair]:
    with two_ends() as pair:
        yield pair


def shared(**more: Any) -> Tek:
    return tek(next(SPIS), serves(4, new_group(4), one=False), **more)


def single(suite: str = "aes256-sha256", **more: Any) -> Tek:
    return tek(next(SPIS), serves(4, new_group(4), one=True), suite, **more)


def sent(end: End, wanted: Tek, **options: Any) -> int:
    state = end.kernel(4, **options).state(wanted)
    assert state is not None
    return state.output_sequence


# -- marks ----------------------------------------------------------------------------------------


def mark_packets(end: End, value: int) -> None:
    for made in end.sockets.values():
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, value)


@pytest.fixture
def marked(ends: Pair) -> Iterator[Pair]:
    yield ends
    for end in ends:
        mark_packets(end, 0)


def test_marked_packets_are_protected_and_others_are_none_of_the_groups(marked: Pair) -> None:
    """The receiver's policies are for all: what comes in clear is dropped there."""
    sender, receiver = marked
    wanted, options = shared(), {"scope": Scope(mark_out=MARK)}
    group = wanted.flow.destination
    with joined(receiver, group):
        sender.install(wanted, **options)
        delivered(sender, receiver, group)
        assert sent(sender, wanted, **options) == 0, "in clear, as everything without the mark"
        receiver.install(wanted)
        refused(sender, receiver, group, receiver, "In")
        mark_packets(sender, 0xAB10)
        delivered(sender, receiver, group)
        assert sent(sender, wanted, **options) > 0
        sender.xfrm.delete_sa(group, int.from_bytes(wanted.spi, "big"))
        refused(sender, receiver, group, sender, "Out")


def test_sas_by_mark(marked: Pair) -> None:
    """What arrives has to be marked before the SA is looked for, as a firewall does it."""
    sender, receiver = marked
    wanted = shared()
    options = {"scope": Scope(MARK, MARK), "mark_in_sa": True}
    group = wanted.flow.destination
    mark_packets(sender, MARK.value)
    with joined(receiver, group):
        for end in marked:
            end.install(wanted, **options)
        refused(sender, receiver, group, receiver, "In")
        assert sent(sender, wanted, **options) > 0
        assert receiver.kernel(4).state(wanted) is None, "it answers to its mark alone"


def test_interface_id_is_of_sa_and_policies(ends: Pair) -> None:
    """Without the XFRM interface there is no packet that they are for."""
    sender, receiver = ends
    wanted, options = shared(), {"scope": Scope(if_id=5)}
    group = wanted.flow.destination
    with joined(receiver, group):
        sender.install(wanted, **options)
        kernel = sender.kernel(4, **options)
        state = kernel.state(wanted)
        assert state is not None
        assert state.sa.if_id == 5
        for direction in (Direction.IN, Direction.OUT):
            policy = kernel.policy(wanted, direction)
            assert sender.xfrm.find_policy(policy.key) == policy
            assert sender.xfrm.get_policy(policy.selector, direction) is None
        delivered(sender, receiver, group)
        assert sent(sender, wanted, **options) == 0


# -- beside other policies ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("priority", "group_wins"), [(400000, True), (PRIORITY - 1, False)], ids=["trap", "narrow"]
)
def test_the_lower_number_wins(ends: Pair, priority: int, group_wins: bool) -> None:
    """charon's trap for everything is behind a group; its CHILD_SAs are before."""
    sender, receiver = ends
    wanted = shared()
    group = wanted.flow.destination
    everything = Selector(ip_network("0.0.0.0/0"), ip_network("0.0.0.0/0"))
    template = Template(sender.address(4), receiver.address(4), Mode.TUNNEL, 1)
    charons = Policy(everything, Direction.OUT, priority, templates=(template,))
    with joined(receiver, group):
        for end in ends:
            end.install(wanted)
        delivered(sender, receiver, group)
        sender.xfrm.update_policy(charons)
        try:
            if group_wins:
                delivered(sender, receiver, group)
            else:
                refused(sender, receiver, group, sender, "Out")
        finally:
            sender.xfrm.delete_policy(everything, Direction.OUT)


def test_a_tek_for_one_sender_wins_over_one_for_all(ends: Pair) -> None:
    """Whichever came first: what is for fewer packets has the lower number."""
    sender, receiver = ends
    one = single()
    everybodys = tek(next(SPIS), replace(one.flow, source=None))
    group = one.flow.destination
    with joined(receiver, group):
        for end in ends:
            end.install(one)
            end.install(everybodys)
        delivered(sender, receiver, group)
        assert sent(sender, one) > 0
        assert sent(sender, everybodys) == 0


# -- 64-bit sequence numbers ----------------------------------------------------------------------


def test_beyond_four_thousand_million_packets(ends: Pair) -> None:
    """Who was there when the upper half changed goes on; who joins later cannot know it."""
    sender, receiver = ends
    wanted = single(esn=True)
    group, kernel = wanted.flow.destination, sender.kernel(4)
    last = 2**32 - 2
    with joined(receiver, group):
        sender.xfrm.add_sa(replace(kernel.sa(wanted), output_sequence=last))
        sender.install(wanted)
        there = receiver.kernel(4).sa(wanted)
        receiver.xfrm.add_sa(replace(there, input_sequence=last))
        receiver.install(wanted)
        for _ in range(4):
            delivered(sender, receiver, group)
        state = receiver.kernel(4).state(wanted)
        assert state is not None
        assert state.input_sequence > 2**32
        receiver.xfrm.delete_sa(there.destination, there.spi)
        receiver.xfrm.add_sa(there)
        before = protocol_errors(receiver)

        def refused_again() -> bool:
            sender.send(group, b"never")
            return protocol_errors(receiver) > before

        eventually(refused_again)
        assert b"never" not in receiver.heard(4)


def protocol_errors(end: End) -> int:
    with end.namespace.entered():
        return counter("XfrmInStateProtoError")


# -- a policy that changes ------------------------------------------------------------------------


class Changing:
    """One end's table of TEKs, carried out in its kernel."""

    def __init__(self, end: End) -> None:
        self.end, self.kernel = end, end.kernel(4)
        self.rollover = Rollover(end.address(4))

    def do(self, plan: Plan) -> None:
        self.kernel.apply(carried_out(plan))
        self.rollover.commit(plan)

    def receive(self, now: float, wanted: Tek, old: Tek | None = None) -> None:
        gone = [] if old is None else [Delete(Doi.GDOI, old.protocol, (old.spi,))]
        policy = GroupPolicy(None, (wanted,), ATD, DTD)
        self.do(self.rollover.receive(policy, gone, now, at_once=old is None))

    def advance(self, now: float) -> None:
        self.do(self.rollover.advance(now))


ATD, DTD = 10, 30
CHANGES = ["to everybody", "to one sender", "to a tunnel", "to a tunnel of one sender"]


@pytest.mark.parametrize("what", CHANGES)
def test_change_of_selectors_and_mode(ends: Pair, what: str) -> None:
    """Old packets are received until senders change; those of other flows until DTD. A member that
    changes its mode earlier than another is heard again when that one changes."""
    sender, receiver = ends
    group = new_group(4)
    one, everybody = (tek(next(SPIS), serves(4, group, one=o)) for o in (True, False))
    old, new = {
        "to everybody": (one, everybody),
        "to one sender": (everybody, one),
        "to a tunnel": (
            everybody,
            tek(next(SPIS), everybody.flow, mode=EncapsulationMode.TUNNEL),
        ),
        # Both are sent from the sender's own address: by one policy.
        "to a tunnel of one sender": (
            tek(next(SPIS), everybody.flow, mode=EncapsulationMode.TUNNEL),
            tek(next(SPIS), one.flow, mode=EncapsulationMode.TUNNEL),
        ),
    }[what]
    tables = [Changing(end) for end in ends]
    with joined(receiver, group):
        for table in tables:
            table.receive(0, old)
        delivered(sender, receiver, group)
        for table in reversed(tables):
            table.receive(100, new, old)
        delivered(sender, receiver, group)
        assert sent(sender, new) == 0
        if old.mode is new.mode:
            tables[1].advance(100 + ATD)
            delivered(sender, receiver, group)
            tables[0].advance(100 + ATD)
        else:
            tables[0].advance(100 + ATD)
            refused(sender, receiver, group, receiver, "In")
            tables[1].advance(100 + ATD)
        delivered(sender, receiver, group)
        assert sent(sender, new) > 0
        for table in tables:
            table.advance(100 + DTD)
            assert table.kernel.state(old) is None
        delivered(sender, receiver, group)
        key = tables[1].kernel.key(new)
        receiver.xfrm.delete_sa(key.destination, key.spi)
        refused(sender, receiver, group, receiver, "In")
        sender.xfrm.delete_sa(key.destination, key.spi)
        refused(sender, receiver, group, sender, "Out")
