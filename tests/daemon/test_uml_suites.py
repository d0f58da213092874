"""Every suite, mode and IP version: a packet from one host to another through a group's policies.

Each case has a group address of its own. First the receiver alone has the TEK, and what the sender
says in clear is dropped; then both have it, and it is delivered; then the receiver answers, which
only a TEK for all senders lets it do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from gdoi_plugin.protocol.policy import TEK_SUITES, Tek
from gdoi_plugin.wire.registry import AddressPreservation, EncapsulationMode, SaDirection
from tests.daemon.ends import (
    PORT,
    SPIS,
    Pair,
    delivered,
    joined,
    new_group,
    refused,
    serves,
    two_ends,
)
from tests.daemon.teks import tek

pytestmark = pytest.mark.uml


@pytest.fixture(scope="module")
def ends() -> Iterator[Pair]:
    with two_ends() as pair:
        yield pair


def carries(ends: Pair, at_sender: Tek, at_receiver: Tek, **options: Any) -> None:
    """The three steps."""
    sender, receiver = ends
    group = at_sender.flow.destination
    with joined(receiver, group), joined(sender, group):
        receiver.install(at_receiver, **options)
        refused(sender, receiver, group, receiver, "In")
        sender.install(at_sender, **options)
        delivered(sender, receiver, group)
        state = receiver.kernel(group.version, **options).state(at_receiver)
        assert state is not None
        assert state.packets >= 1
        if at_receiver.sent_by(receiver.address(group.version)):
            delivered(receiver, sender, group)
        else:
            refused(receiver, sender, group, receiver, "Out")


@pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("mode", list(EncapsulationMode), ids=lambda mode: mode.name.lower())
@pytest.mark.parametrize("keyword", TEK_SUITES)
def test_suite(ends: Pair, keyword: str, mode: EncapsulationMode, version: int) -> None:
    """A counter mode has one sender; the others are shared."""
    one = TEK_SUITES[keyword].counter_mode
    wanted = tek(next(SPIS), serves(version, new_group(version), one=one), keyword, mode=mode)
    carries(ends, wanted, wanted)


@pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("mode", list(EncapsulationMode), ids=lambda mode: mode.name.lower())
@pytest.mark.parametrize("keyword", ["aes256-sha256", "aes256gcm16", "sha256"])
def test_who_may_only_send_and_who_may_only_listen(
    ends: Pair, keyword: str, mode: EncapsulationMode, version: int
) -> None:
    wanted = tek(next(SPIS), serves(version, new_group(version), one=True), keyword, mode=mode)
    carries(
        ends,
        replace(wanted, direction=SaDirection.SENDER_ONLY),
        replace(wanted, direction=SaDirection.RECEIVER_ONLY),
    )


@pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("one", [False, True], ids=["any source", "one source"])
def test_ports_and_protocol(ends: Pair, one: bool, version: int) -> None:
    """What is for other ports is none of the group's business."""
    sender, _ = ends
    group = new_group(version)
    flow = serves(version, group, one=one, protocol=17, destination_port=PORT)
    wanted = tek(next(SPIS), flow)
    carries(ends, wanted, wanted)
    before = sender.kernel(version).state(wanted)
    sender.sockets[version].sendto(b"in clear", (str(group), PORT + 1))
    after = sender.kernel(version).state(wanted)
    assert before is not None
    assert after is not None
    assert after.output_sequence == before.output_sequence >= 1


@pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("keyword", ["aes256-sha256", "aes256gcm16", "chacha20poly1305", "sha256"])
def test_64_bit_sequence_numbers(ends: Pair, keyword: str, version: int) -> None:
    wanted = tek(next(SPIS), serves(version, new_group(version), one=True), keyword, esn=True)
    carries(ends, wanted, wanted, replay_window=128)


def test_tunnel_for_the_packets_of_others(ends: Pair) -> None:
    """The destination alone is preserved, so the selector is everybody's."""
    wanted = tek(
        next(SPIS),
        serves(4, new_group(4), one=False),
        mode=EncapsulationMode.TUNNEL,
        preservation=AddressPreservation.DESTINATION_ONLY,
    )
    carries(ends, wanted, wanted)
