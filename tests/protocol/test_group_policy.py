"""Groups whose data SAs differ: ESP beside AH, directions, octets, and what a member refuses."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from gdoi_plugin.protocol.actions import Drop
from gdoi_plugin.protocol.data_sa import read_sat
from gdoi_plugin.protocol.errors import PolicyError
from gdoi_plugin.protocol.policy import TEK_SUITES, Flow, GroupPolicy, encode_sa
from gdoi_plugin.protocol.push import all_teks
from gdoi_plugin.protocol.tek_policy import MAX_ESN_AGE, MOST_OUTGOING, TekConfig, outdated
from gdoi_plugin.wire.attributes import Attribute
from gdoi_plugin.wire.group_sa import EspTek
from gdoi_plugin.wire.registry import (
    AddressPreservation,
    EncapsulationMode,
    SaAttribute,
    SaDirection,
    TekProtocol,
)
from tests.protocol.test_push import new_tek
from tests.support.forge import multicast, push, push_policy
from tests.support.simnet import Wire
from tests.support.worlds import World, group_config, member_peer, registered, wired

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
    {"esn": True},
    {"flow": AH.flow},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_changed_configuration_makes_new_sas(change: dict[str, Any]) -> None:
    _, world = group(ESP)
    assert not outdated(world.group.teks, world.group.config.teks)
    world.group.config = replace(world.group.config, teks=(replace(ESP, **change),))
    assert outdated(world.group.teks, world.group.config.teks)


# -- one sender for an SA -------------------------------------------------------------------------


def senders(suite: str, count: int, **changes: Any) -> list[TekConfig]:
    """As ``senders`` of the configuration makes them."""
    flows = [Flow(ip_network(member_peer(n).host), ip_address("239.192.1.5")) for n in range(count)]
    return [TekConfig(flow, TEK_SUITES[suite], **changes) for flow in flows]


def test_a_key_of_its_own_for_each_sender() -> None:
    """In PULL and in every rekey, RFC 6407 section 3.5."""
    teks = senders("aes256gcm16", 3)
    wire, world = group(*teks, members=3)
    for _ in range(2):
        keys = {t.tek.encryption_key.reveal() for t in world.group.teks if t.retire_at is None}
        assert len(keys) == 3
        for n, member in enumerate(world.members):
            sending = [tek.flow for tek in teks if member.kernel.sending(tek.flow)]
            assert sending == [teks[n].flow], "its own and nobody else's"
            assert {t.encryption_key.reveal() for t in member.kernel.sas.values()} >= keys
        world.rekey()
        wire.settle()
        wire.run(11)


def test_changed_list_of_senders_after_a_restart_of_the_key_server() -> None:
    wire, world = group(*senders("aes256gcm16", 2), members=3)
    teks = senders("aes256gcm16", 3)
    later = replace(world.group.config, teks=tuple(teks))
    world.server._make = lambda: replace(world.server.engine, configs=[later])
    world.server.restart()
    wire.settle()
    wire.run(11)
    assert world.converged()
    third = world.members[2].kernel
    assert third.sending(teks[2].flow) is not None
    assert third.sending(teks[0].flow) is None


def test_transform_without_a_number_needs_consent() -> None:
    chacha = senders("chacha20poly1305", 1)
    config = group_config(teks=tuple(chacha))
    _, world = wired(group=config)
    world.start()
    world.network.settle()  # type: ignore[attr-defined]
    assert not world.member.kernel.sas
    assert "only accept_private_algs takes it for chacha20poly1305" in (
        world.member.group.last_failure
    )
    _, world = registered(group=config, member_changes={"accept_private_algs": True})
    assert world.member.kernel.sending(chacha[0].flow) is not None


def test_64_bit_sequence_numbers_are_for_one_sender() -> None:
    _, world = group(*senders("aes256-sha256", 1, esn=True))
    (sa,) = world.member.kernel.sas.values()
    assert sa.esn
    odd = new_tek(flow=Flow(None, ip_address("239.192.1.9")), esn=True)
    multicast(world, push_policy(world, GroupPolicy(None, (odd,))))
    (refused,) = world.member.events("rekey-refused")
    assert "64-bit sequence numbers for several senders" in str(refused.fields["error"])


@pytest.mark.parametrize("value", [0, 2])
def test_other_values_of_extended_sequence_number(value: int) -> None:
    """RFC 4304 section 3: "the security association setup MUST be aborted"."""
    (sat,) = encode_sa(GroupPolicy(None, (new_tek(flow=FIRST),))).sats
    assert isinstance(sat.tek, EspTek)
    esn = Attribute(SaAttribute.EXTENDED_SEQUENCE_NUMBER, value)
    body = replace(sat.tek, attributes=(*sat.tek.attributes, esn))
    with pytest.raises(PolicyError, match=f"Extended Sequence Number {value}, must be 1"):
        read_sat(replace(sat, tek=body))


# -- registrations that make the key server give new TEKs -----------------------------------------


def again(world: World, member: int = 0) -> str | None:
    """The reason of the rekey that another registration leads to."""
    host, before = world.members[member], len(world.group.ledger)
    host.do(host.group.register(world.now))
    assert isinstance(world.network, Wire)
    world.network.settle()
    pages = list(world.group.ledger.values())
    return pages[-1].reason if len(pages) > before else None


def test_octets_used_up_at_a_member_make_new_teks() -> None:
    wire, world = group(replace(ESP, lifetime_kilobytes=1000), members=2)
    first = list(world.members[1].kernel.sas)
    assert again(world) is None, "nobody has sent with it yet"
    wire.run(world.group.config.activation_delay)
    assert again(world) == "tek-kilobytes"
    for member in world.members:
        assert len(member.kernel.sas) == 2
        assert set(member.kernel.sas) > set(first)
    assert again(world) is None, "nor with the new one"


def test_a_member_that_registers_in_a_loop_piles_up_no_teks() -> None:
    """Each rekey leaves a TEK that lives on for DTD, in the tables of all members."""
    wire, world = group(replace(ESP, lifetime_kilobytes=1000), members=2)
    world.group.config = replace(world.group.config, activation_delay=0, deactivation_delay=320)
    reasons = []
    for _ in range(64):
        wire.run(5)
        reasons.append(again(world))
    assert reasons.count("tek-kilobytes") == 320 // 20
    assert set(reasons) == {"tek-kilobytes", None}
    assert len(world.group.teks) <= MOST_OUTGOING + 1


def test_registrations_cost_no_rekey_where_no_octets_are_counted() -> None:
    wire, world = group(ESP)
    wire.run(1000)
    assert again(world) is None


def test_newcomer_costs_no_rekey_where_octets_are_counted() -> None:
    wire, world = wired(2, group=group_config(2, teks=(replace(ESP, lifetime_kilobytes=9),)))
    world.server.start()
    world.members[0].start()
    wire.settle()
    wire.run(1000)
    pages = len(world.group.ledger)
    world.members[1].start()
    wire.settle()
    assert len(world.group.ledger) == pages


def test_who_joins_when_the_upper_half_of_sequence_numbers_may_have_changed() -> None:
    """It is not sent, so nobody could know it: RFC 4303 section 2.2.1."""
    wire, world = group(*senders("aes256-sha256", 1, esn=True))
    wire.run(MAX_ESN_AGE - 1)
    assert again(world) is None
    wire.run(1)
    assert again(world) == "esn"
    assert again(world) is None


# -- a policy that is changed ---------------------------------------------------------------------

ATD, DTD = 10, 30


def change(world: World, *teks: TekConfig) -> None:
    """The key server is started again with another configuration."""
    later = replace(world.group.config, teks=teks)
    world.server._make = lambda: replace(world.server.engine, configs=[later])
    world.server.restart()
    assert isinstance(world.network, Wire)
    world.network.settle()


EVERYBODY = TekConfig(Flow(None, ip_address("239.192.1.5")), TEK_SUITES["aes256-sha256"])


def test_from_everybody_to_some_senders() -> None:
    """The old TEK is sent with until ATD and received until DTD; then who is not of the senders
    sends no more."""
    wire, world = group(EVERYBODY, members=3)
    (old,) = world.member.kernel.sas
    first, third = world.members[0].kernel, world.members[2].kernel
    named = senders("aes256-sha256", 2)
    change(world, *named)
    for member in world.members:
        assert len(member.kernel.sas) == 3
        tek = member.kernel.sending(EVERYBODY.flow)
        assert tek is not None
        assert tek.spi == old
        assert not any(member.kernel.sending(new.flow) for new in named)
    wire.run(ATD)
    assert first.sending(named[0].flow) is not None
    assert first.sending(EVERYBODY.flow) is third.sending(EVERYBODY.flow) is None
    assert old in first.sas
    wire.run(DTD - ATD)
    assert len(first.sas) == len(third.sas) == 2
    assert not world.members[0].events("group-deleted")


def test_from_some_senders_to_everybody() -> None:
    """A policy that is left behind for fewer packets would win, and pin them to an SA that went."""
    named = senders("aes256-sha256", 2)
    wire, world = group(*named, members=2)
    kernel = world.member.kernel
    change(world, EVERYBODY)
    assert kernel.sending(named[0].flow) is not None
    assert kernel.sending(EVERYBODY.flow) is None, "not before ATD"
    wire.run(ATD)
    assert kernel.sending(named[0].flow) is None
    assert kernel.sending(EVERYBODY.flow) is not None
    assert len(kernel.sas) == 3
    wire.run(DTD - ATD)
    assert len(kernel.sas) == 1
    world.rekey()
    wire.settle()
    wire.run(DTD)
    assert kernel.sending(EVERYBODY.flow) is not None


def test_who_may_send_no_more_holds_no_key_beyond_dtd() -> None:
    """RFC 5374 section 4.2.1: nobody sends with the trailing edge's keys once it is deleted,
    whether its successor lets this member send or not."""
    wire, world = group(EVERYBODY)
    (old,) = world.member.kernel.sas
    change(world, replace(EVERYBODY, direction=SaDirection.RECEIVER_ONLY))
    wire.run(ATD - 0.1)
    kernel = world.member.kernel
    assert kernel.sending(EVERYBODY.flow) is not None
    wire.run(0.1)
    assert kernel.sending(EVERYBODY.flow) is None
    assert old in kernel.sas, "others may not have heard of it yet"
    wire.run(DTD - ATD)
    (new,) = kernel.sas.values()
    assert new.direction is SaDirection.RECEIVER_ONLY


def test_flow_that_is_given_up_goes_at_once() -> None:
    """No other TEK is for its packets, so none of them is waited for."""
    _, world = group(ESP, AH)
    change(world, ESP)
    assert [tek.flow for tek in world.member.kernel.sas.values()] == [ESP.flow, ESP.flow]


def test_from_transport_to_tunnel() -> None:
    """Linux receives one of the two: the change is when senders change, and the log says so."""
    wire, world = group(EVERYBODY)
    kernel, flow = world.member.kernel, EVERYBODY.flow
    assert kernel.accepts[flow][0] is EncapsulationMode.TRANSPORT
    change(world, replace(EVERYBODY, mode=EncapsulationMode.TUNNEL))
    (told,) = world.server.events("data-sa-transformed")
    assert told.fields["before"] == "transport aes256-sha256"
    assert told.fields["after"] == "tunnel aes256-sha256"
    wire.run(ATD - 0.1)
    assert kernel.accepts[flow][0] is EncapsulationMode.TRANSPORT
    wire.run(0.1)
    assert kernel.accepts[flow][0] is EncapsulationMode.TUNNEL


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (FIRST, replace(FIRST, source=None), True),
        (FIRST, replace(FIRST, source=ip_network("10.0.0.0/8")), True),
        (FIRST, replace(FIRST, source=ip_network("192.0.2.0/24")), False),
        (FIRST, replace(FIRST, destination=ip_address("239.9.9.9")), False),
        (replace(FIRST, protocol=17), FIRST, True),
        (replace(FIRST, protocol=17), replace(FIRST, protocol=6), False),
        (
            replace(FIRST, protocol=17, source_port=1),
            replace(FIRST, protocol=17, destination_port=2),
            True,
        ),
        (
            replace(FIRST, protocol=17, source_port=1),
            replace(FIRST, protocol=17, source_port=2),
            False,
        ),
    ],
    ids=str,
)
def test_flows_that_share_packets(one: Flow, other: Flow, both: bool) -> None:
    assert one.overlaps(other) is other.overlaps(one) is both
