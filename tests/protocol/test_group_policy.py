"""Groups whose data SAs differ: ESP beside AH, directions, octets, and what a member refuses."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from gdoi_plugin.protocol.actions import Drop
from gdoi_plugin.protocol.policy import TEK_SUITES, Flow, GroupPolicy
from gdoi_plugin.protocol.push import all_teks
from gdoi_plugin.protocol.tek_policy import TekConfig
from gdoi_plugin.wire.registry import (
    AddressPreservation,
    EncapsulationMode,
    SaDirection,
    TekProtocol,
)
from tests.protocol.test_push import new_tek
from tests.support.forge import multicast, push, push_policy
from tests.support.simnet import Wire
from tests.support.worlds import World, group_config, member_peer, registered

ESP = TekConfig(Flow(None, ip_address("239.192.1.1")), TEK_SUITES["aes256-sha512"])
AH = TekConfig(Flow(None, ip_address("239.192.1.2")), TEK_SUITES["sha384"])
FIRST = Flow(ip_network(member_peer(0).host), ip_address("239.192.1.3"))
GMAC = TekConfig(FIRST, TEK_SUITES["aes128gmac"], per_member=True)


def group(*teks: TekConfig, members: int = 1) -> tuple[Wire, World]:
    config = group_config(members, teks=teks)
    return registered(members, group=config, member_changes={"ack_jitter": 0.0})


def protocols(world: World) -> list[TekProtocol]:
    return sorted(tek.protocol for tek in world.member.kernel.sas.values())


def test_esp_and_ah_in_one_group() -> None:
    wire, world = group(ESP, AH)
    assert protocols(world) == [TekProtocol.GDOI_PROTO_IPSEC_ESP, TekProtocol.GDOI_PROTO_IPSEC_AH]
    for policy in (ESP, AH):
        sending = world.member.kernel.sending(policy.flow)
        assert sending is not None
        assert sending.suite == policy.suite
        assert len(sending.encryption_key) == policy.suite.encryption_octets
    world.rekey()
    wire.settle()
    assert world.group.ledger[2].acknowledged
    assert len(world.member.kernel.sas) == 4


def test_replacing_all_deletes_in_every_protocol() -> None:
    """RFC 6407 section 5.9: a Delete of SPI zero is for one protocol."""
    wire, world = group(ESP, AH)
    old = set(world.member.kernel.sas)
    world.rekey(replace_old=True)
    wire.settle()
    assert len(world.member.kernel.sas) == 2
    assert not old & set(world.member.kernel.sas)


def test_delete_touches_its_own_protocol_alone() -> None:
    _, world = group(ESP, AH)
    multicast(world, push(world, deletes=[all_teks(TekProtocol.GDOI_PROTO_IPSEC_ESP)]))
    assert protocols(world) == [TekProtocol.GDOI_PROTO_IPSEC_AH]
    (left,) = world.member.kernel.sas.values()
    wrong = replace(all_teks(TekProtocol.GDOI_PROTO_IPSEC_ESP), spis=(left.spi,))
    multicast(world, push(world, deletes=[wrong]))
    assert protocols(world) == [TekProtocol.GDOI_PROTO_IPSEC_AH]
    multicast(world, push(world, deletes=[replace(wrong, protocol_id=2)]))
    assert protocols(world) == []


def test_another_integrity_key_under_a_held_spi_is_refused() -> None:
    _, world = group(AH)
    (held,) = world.member.kernel.sas.values()
    changed = new_tek(int.from_bytes(held.spi, "big"), "sha384", flow=held.flow)
    multicast(world, push_policy(world, GroupPolicy(None, (changed,))))
    (refused,) = world.member.events("rekey-refused")
    assert "is in use with another key" in str(refused.fields["error"])


def test_directions_in_a_pull_are_each_members_own() -> None:
    """RFC 6407 section 5.5.1.1.2; a PUSH is for everybody and can only say Symmetric."""
    wire, world = group(GMAC, members=2)
    told = [[tek.direction for tek in m.kernel.sas.values()] for m in world.members]
    assert told == [[SaDirection.SENDER_ONLY], [SaDirection.RECEIVER_ONLY]]
    sender, listener = world.members
    assert sender.kernel.sending(FIRST) is not None
    assert listener.kernel.sending(FIRST) is None
    world.rekey()
    wire.settle()
    new = [[*m.group.rollover.held.values()][-1].tek for m in world.members]
    assert {tek.direction for tek in new} == {SaDirection.SYMMETRIC}
    assert new[0].spi == new[1].spi
    wire.run(11)
    assert sender.kernel.sending(FIRST) == new[0]
    assert listener.kernel.sending(FIRST) is None, "it is not the source"


def test_group_that_only_listens() -> None:
    listening = replace(ESP, direction=SaDirection.RECEIVER_ONLY)
    wire, world = group(listening)
    for _ in range(2):
        assert {t.direction for t in world.member.kernel.sas.values()} == {listening.direction}
        assert world.member.kernel.pinned == {}
        world.rekey()
        wire.settle()
        wire.run(11)


def test_sender_only_for_another_member_is_refused() -> None:
    """It could neither send nor receive with it."""
    _, world = group(ESP)
    other = Flow(ip_network("10.0.0.77/32"), ip_address("239.192.1.9"))
    odd = new_tek(flow=other, direction=SaDirection.SENDER_ONLY)
    actions = multicast(world, push_policy(world, GroupPolicy(None, (odd,))))
    assert Drop.UNACCEPTABLE_POLICY in [getattr(action, "reason", None) for action in actions]
    (refused,) = world.member.events("rekey-refused")
    assert "Sender-Only for 10.0.0.77/32 -> 239.192.1.9" in str(refused.fields["error"])


def test_what_the_key_server_says_of_an_sa_is_what_the_member_has() -> None:
    said: dict[str, Any] = {
        "mode": EncapsulationMode.TUNNEL,
        "lifetime_kilobytes": 4096,
        "preservation": AddressPreservation.DESTINATION_ONLY,
    }
    wire, world = group(replace(ESP, **said))
    world.rekey()
    wire.settle()
    for tek in world.member.kernel.sas.values():
        assert {name: getattr(tek, name) for name in said} == said


CHANGES: list[dict[str, Any]] = [
    {"suite": TEK_SUITES["aes128-sha256"]},
    {"mode": EncapsulationMode.TUNNEL},
    {"lifetime_kilobytes": 7},
    {"direction": SaDirection.RECEIVER_ONLY},
    {"preservation": AddressPreservation.DESTINATION_ONLY},
    {"flow": AH.flow},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_changed_configuration_makes_new_sas(change: dict[str, Any]) -> None:
    _, world = group(ESP)
    assert not world.group.teks_outdated()
    world.group.config = replace(world.group.config, teks=(replace(ESP, **change),))
    assert world.group.teks_outdated()
