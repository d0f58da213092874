"""GROUPKEY-PUSH at the member: what it installs, what it tolerates."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any, ClassVar, Self

import pytest

from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.protocol.actions import Action, Drop, Event
from gdoi_plugin.protocol.policy import (
    TEK_SUITES,
    Flow,
    GroupPolicy,
    Kek,
    Tek,
    encode_kd,
    encode_sa,
)
from gdoi_plugin.protocol.push import ALL_KEKS, all_teks
from gdoi_plugin.wire.attributes import Attribute
from gdoi_plugin.wire.buffer import Buffer
from gdoi_plugin.wire.delete import Delete
from gdoi_plugin.wire.group_sa import (
    Endpoint,
    EspTek,
    GroupSecurityAssociation,
)
from gdoi_plugin.wire.iec61850 import Iec61850Tek
from gdoi_plugin.wire.key_download import KeyDownload
from gdoi_plugin.wire.oid import Oid
from gdoi_plugin.wire.payload import Body
from gdoi_plugin.wire.registry import Doi, IdType, PayloadType, SaDirection, TekProtocol
from gdoi_plugin.wire.sequence import SequenceNumber
from tests.support.forge import multicast, only_drop, push, push_policy, seal_push
from tests.support.simnet import Wire
from tests.support.snapshot import snapshot
from tests.support.worlds import (
    ECDSA,
    FLOW,
    RSA,
    World,
    group_config,
    member_peer,
    registered,
    sends,
    signer,
)

IEC = Iec61850Tek(Oid.parse("1.2.840"), bytes(3) + b"\1", 1, 1, 3600)
ALL_TEKS = all_teks(TekProtocol.GDOI_PROTO_IPSEC_ESP)


def new_tek(spi: int = 0x0BADCAFE, keyword: str = "aes256-sha256", **changes: Any) -> Tek:
    suite = TEK_SUITES[keyword]
    tek = Tek(
        spi=spi.to_bytes(4, "big"),
        flow=FLOW,
        suite=suite,
        encryption_key=Secret(bytes(range(suite.encryption_octets))),
        integrity_key=Secret(b"i" * suite.integrity_octets) if suite.integrity_octets else None,
        lifetime=3600,
    )
    return replace(tek, **changes)


def new_kek(**changes: Any) -> Kek:
    kek = Kek(
        spi=bytes(range(1, 17)),
        iv=bytes(16),
        key=Secret(b"k" * 16),
        scheme=ECDSA,
        public_der=signer(ECDSA, 7).public_der,
        lifetime=86400,
        ack_type=1,
    )
    return replace(kek, **changes)


def ready(**changes: Any) -> tuple[Wire, World]:
    """A registered member that acknowledges without jitter."""
    config = group_config(**changes)
    return registered(group=config, member_changes={"ack_jitter": 0.0})


def with_sat(sa: GroupSecurityAssociation, **changes: Any) -> GroupSecurityAssociation:
    (sat,) = sa.sats
    assert isinstance(sat.tek, EspTek)
    return replace(sa, sats=(replace(sat, tek=replace(sat.tek, **changes)),))


def names(actions: list[Action]) -> list[str]:
    return [action.name for action in actions if isinstance(action, Event)]


# -- what it brings ------------------------------------------------------------------------------


def test_new_tek_is_held_beside_the_old_one_and_acknowledged() -> None:
    _, world = ready()
    (old,) = world.member.kernel.sas
    tek = new_tek()
    actions = multicast(world, push_policy(world, GroupPolicy(None, (tek,), 10, 30)))
    assert set(world.member.kernel.sas) == {old, tek.spi}
    assert world.member.kernel.sas[tek.spi].encryption_key == tek.encryption_key
    assert len(sends(actions)) == 1
    assert "rekey-installed" in names(actions)


def test_delete_of_one_tek() -> None:
    _, world = ready()
    (old,) = world.member.kernel.sas
    first = new_tek(0x1001, flow=Flow(None, ip_address("239.192.1.2")))
    multicast(world, push_policy(world, GroupPolicy(None, (first,))))
    gone = Delete(Doi.GDOI, TekProtocol.GDOI_PROTO_IPSEC_ESP, (first.spi,))
    actions = multicast(world, push(world, deletes=[gone]))
    assert set(world.member.kernel.sas) == {old}
    assert len(sends(actions)) == 1
    assert world.member.kernel.sending(first.flow) is None, "and clear traffic stays blocked"


def test_delete_of_a_tek_that_the_same_push_replaces_lets_it_finish() -> None:
    wire, world = ready()
    (old,) = world.member.kernel.sas
    gone = Delete(Doi.GDOI, TekProtocol.GDOI_PROTO_IPSEC_ESP, (old,))
    tek = new_tek()
    multicast(world, push_policy(world, GroupPolicy(None, (tek,), 10, 30), [gone]))
    assert set(world.member.kernel.sas) == {old, tek.spi}
    wire.run(31)
    assert set(world.member.kernel.sas) == {tek.spi}


def test_delete_of_every_tek_by_spi_zero_keeps_what_the_push_brings() -> None:
    _, world = ready()
    tek = new_tek()
    multicast(world, push_policy(world, GroupPolicy(None, (tek,), 10, 30), [ALL_TEKS]))
    assert set(world.member.kernel.sas) == {tek.spi}
    sending = world.member.kernel.sending(FLOW)
    assert sending is not None
    assert sending.spi == tek.spi, "the old one is gone: there is nothing to wait for"


def test_delete_for_another_protocol_is_not_ours() -> None:
    _, world = ready()
    held = set(world.member.kernel.sas)
    (spi,) = held
    ah = Delete(Doi.GDOI, TekProtocol.GDOI_PROTO_IPSEC_AH, (spi, bytes(4)))
    multicast(world, push(world, deletes=[ah]))
    assert set(world.member.kernel.sas) == held


def test_delete_of_another_doi_is_refused() -> None:
    """RFC 6407 section 5.9; in the IPsec DOI protocol 1 is ISAKMP, and what we hold no TEK's."""
    _, world = ready()
    held = set(world.member.kernel.sas)
    actions = multicast(world, push(world, deletes=[replace(ALL_TEKS, doi=Doi.IPSEC)]))
    assert set(world.member.kernel.sas) == held
    assert sends(actions) == []
    (refused,) = world.member.events("rekey-refused")
    assert "Delete of DOI 1, must be 2" in str(refused.fields["error"])


@pytest.mark.parametrize("by_name", [True, False])
def test_shutdown_is_seq_delete_sig_and_makes_the_member_register_again(by_name: bool) -> None:
    wire, world = ready()
    kek = world.group.current_kek().kek
    delete = Delete(Doi.GDOI, TekProtocol.KEK, (kek.spi,)) if by_name else ALL_KEKS
    actions = multicast(world, push(world, deletes=[ALL_TEKS, delete]))
    assert len(sends(actions)) == 1, "RFC 8263 section 4: acknowledged even so"
    assert world.member.group.kek is None
    assert world.member.kernel.sas == {}
    assert "group-deleted" in names(actions)
    wire.run(2.1)
    wire.settle()
    assert world.converged()


def test_key_server_deletes_the_group_and_starts_afresh() -> None:
    wire, world = ready()
    old = world.group.current_kek().kek.spi
    world.server.do(world.server.engine.delete_group(world.group.config.group_id.key, world.now))
    wire.settle()
    rekey = world.group.ledger[world.group.epoch]
    assert len(rekey.acknowledged) == 1
    assert rekey.closed
    wire.run(2.1)
    wire.settle()
    assert world.converged()
    assert world.group.current_kek().kek.spi != old


def test_delete_of_a_group_is_said_once() -> None:
    """Members that are back by then would lose the group a second time."""
    wire, world = ready(retransmissions=2)
    world.member.crash()
    world.server.do(world.server.engine.delete_group(world.group.config.group_id.key, world.now))
    wire.run(60)
    rekey = world.group.ledger[world.group.epoch]
    assert (rekey.closed, rekey.attempts, len(rekey.missing)) == (True, 1, 1)


# -- replay --------------------------------------------------------------------------------------


def test_same_seq_and_lower_seq_are_replays() -> None:
    _, world = ready()
    first = push_policy(world, GroupPolicy(None, (new_tek(0x1001),)))
    second = push_policy(world, GroupPolicy(None, (new_tek(0x1002),)))
    multicast(world, second)
    before = snapshot(world.member.engine)
    for old in (first, push(world, deletes=[ALL_TEKS], seq=0), push(world, seq=2)):
        assert only_drop(multicast(world, old)) is Drop.REPLAY
    assert only_drop(multicast(world, second)) is Drop.DUPLICATE
    assert snapshot(world.member.engine) == before


def test_replay_after_a_restart_from_the_saved_state() -> None:
    wire, world = ready()
    datagram = push_policy(world, GroupPolicy(None, (new_tek(),)))
    multicast(world, datagram)
    world.member.restart()
    assert only_drop(multicast(world, datagram)) is Drop.REPLAY
    wire.settle()
    assert only_drop(multicast(world, datagram)) is Drop.REPLAY


def test_replay_of_what_was_under_the_kek_before() -> None:
    wire, world = ready()
    world.rekey()
    first = wire.waiting[0]
    wire.settle()
    world.rekey(kek=True)
    second = wire.waiting[0]
    wire.settle()
    assert only_drop(multicast(world, first.datagram)) is Drop.REPLAY
    assert only_drop(multicast(world, second.datagram)) is Drop.DUPLICATE
    wire.run(61)
    assert only_drop(multicast(world, first.datagram)) is Drop.UNKNOWN_COOKIES


def test_seq_in_message_4_is_the_last_one_used() -> None:
    wire, world = ready()
    for _ in range(3):
        world.rekey()
    captured = list(wire.waiting)
    wire.waiting.clear()
    world.member.do(world.member.group.register(wire.now))
    wire.settle()
    for send in captured:
        assert only_drop(multicast(world, send.datagram)) is Drop.REPLAY


# -- retransmission ------------------------------------------------------------------------------


def test_retransmitted_rekey_is_acknowledged_again_and_installed_once() -> None:
    wire, world = ready()
    world.rekey()
    wire.pass_on()
    wire.take()  # the ACK is lost
    held = dict(world.member.group.rollover.held)
    wire.run(11)
    again = wire.take()
    actions = multicast(world, again.datagram)
    assert len(sends(actions)) == 1
    assert {spi: h.active_from for spi, h in world.member.group.rollover.held.items()} == {
        spi: h.active_from for spi, h in held.items()
    }
    wire.settle()
    rekey = world.group.ledger[world.group.epoch]
    assert rekey.seqs == [1, 2]
    assert rekey.closed
    assert rekey.missing == frozenset()


def test_retransmitted_kek_rollover_under_the_old_kek() -> None:
    wire, world = ready()
    world.rekey(kek=True)
    wire.pass_on()
    wire.take()
    wire.run(11)
    wire.settle()
    assert world.converged()
    rekey = world.group.ledger[world.group.epoch]
    assert rekey.seqs == [1, 2]
    assert len(rekey.acknowledged) == 1


# -- what other implementations do ---------------------------------------------------------------


def test_sak_repeated_with_the_unchanged_kek() -> None:
    _, world = ready()
    kek = world.group.current_kek().kek
    actions = multicast(world, push_policy(world, GroupPolicy(kek, (new_tek(),))))
    assert len(sends(actions)) == 1
    assert "kek-replaced" not in names(actions)
    assert world.member.group.previous == {}


def test_kek_packet_with_the_old_spi_at_a_rollover() -> None:
    _, world = ready()
    old = world.group.current_kek().kek
    policy = GroupPolicy(new_kek(), (new_tek(),))
    kd = encode_kd(policy)
    packets = (replace(kd.packets[0], spi=old.spi), *kd.packets[1:])
    multicast(world, push(world, encode_sa(policy), KeyDownload(packets)))
    held = world.member.group.kek
    assert held is not None
    assert held.kek.spi == new_kek().spi


@pytest.mark.parametrize("seq", [1, 2, 57])
def test_seq_restarts_or_goes_on_with_a_new_kek(seq: int) -> None:
    """The first GDOI implementation's SEQ goes on; RFC 6407 section 4 starts it again at 1."""
    _, world = ready()
    multicast(world, push_policy(world, GroupPolicy(new_kek(), (new_tek(),))))
    payloads: list[Body] = [SequenceNumber(seq), ALL_TEKS]
    datagram = seal_push(new_kek(), signer(ECDSA, 7), payloads)
    assert len(sends(multicast(world, datagram))) == 1
    held = world.member.group.kek
    assert held is not None
    assert held.seq == seq


@pytest.mark.parametrize("scheme", [RSA, ECDSA], ids=["rsa", "ecdsa"])
@pytest.mark.parametrize("as_sent", [False, True])
def test_signature_over_the_length_with_or_without_padding(scheme: Any, as_sent: bool) -> None:
    _, world = ready(scheme=scheme)
    policy = GroupPolicy(None, (new_tek(),))
    datagram = push(world, encode_sa(policy), encode_kd(policy), length_as_sent=as_sent)
    assert len(sends(multicast(world, datagram))) == 1


def test_signature_over_any_other_length_or_by_another_key() -> None:
    _, world = ready()
    under = world.group.current_kek()
    payloads: list[Body] = [SequenceNumber(9), ALL_TEKS]
    datagram = seal_push(under.kek, signer(ECDSA, 7), payloads)
    assert only_drop(multicast(world, datagram)) is Drop.AUTHENTICATION
    datagram = seal_push(under.kek, under.signer, payloads, signature=b"\1" * 64)
    assert only_drop(multicast(world, datagram)) is Drop.AUTHENTICATION
    assert world.member.kernel.sas


def test_kek_lifetime_as_a_basic_attribute() -> None:
    _, world = ready()
    policy = GroupPolicy(new_kek(), ())
    sa = encode_sa(policy)
    assert sa.sak is not None
    basic = tuple(Attribute(4, 7200) if a.type == 4 else a for a in sa.sak.attributes)
    sa = replace(sa, sak=replace(sa.sak, attributes=basic))
    multicast(world, push(world, sa, encode_kd(policy)))
    held = world.member.group.kek
    assert held is not None
    assert (held.kek.lifetime, held.expires) == (7200, world.now + 7200)


SOURCES = {
    "no octets": Endpoint(IdType.ID_IPV4_ADDR, 0, b""),
    "three zeros": Endpoint(IdType.ID_IPV4_ADDR, 0, bytes(3)),
    "four zeros": Endpoint(IdType.ID_IPV4_ADDR, 0, bytes(4)),
    "subnet 0/0": Endpoint(IdType.ID_IPV4_ADDR_SUBNET, 0, bytes(8)),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=list(SOURCES))
def test_any_source_however_it_is_written(source: Endpoint) -> None:
    _, world = ready()
    policy = GroupPolicy(None, (new_tek(),))
    sa = encode_sa(policy)
    multicast(world, push(world, with_sat(sa, source=source), encode_kd(policy)))
    assert world.member.kernel.sas[new_tek().spi].flow == FLOW


@pytest.mark.parametrize(
    "flow",
    [
        Flow(ip_network("10.0.0.2/32"), ip_address("239.192.1.1")),
        Flow(ip_network("10.0.0.0/24"), ip_address("239.192.1.1"), 17, 5000, 5001),
        Flow(ip_network("2001:db8::/32"), ip_address("ff35::1")),
        Flow(None, ip_address("ff35::1")),
    ],
    ids=str,
)
def test_flows_come_through_as_they_were_meant(flow: Flow) -> None:
    _, world = ready()
    multicast(world, push_policy(world, GroupPolicy(None, (new_tek(flow=flow),))))
    assert world.member.kernel.sas[new_tek().spi].flow == flow


def test_gcm_with_one_sender_or_for_receiving_only() -> None:
    _, world = ready()
    mine = Flow(ip_network(f"{member_peer(0).host}/32"), FLOW.destination)
    other = Flow(ip_network("10.0.0.77/32"), FLOW.destination)
    teks = (
        new_tek(0x1001, "aes256gcm16", flow=mine),
        new_tek(0x1002, "aes128gcm16", flow=other),
        new_tek(0x1003, "aes256gcm16", direction=SaDirection.RECEIVER_ONLY),
    )
    multicast(world, push_policy(world, GroupPolicy(None, teks)))
    kernel = world.member.kernel
    assert {tek.spi for tek in teks} <= set(kernel.sas)
    sending = kernel.sending(mine)
    assert sending is not None
    assert sending.spi == teks[0].spi
    assert kernel.sending(other) is None


# -- form ----------------------------------------------------------------------------------------


def test_sa_without_kd_and_kd_without_sa() -> None:
    _, world = ready()
    policy = GroupPolicy(None, (new_tek(),))
    for parts in ((encode_sa(policy), None), (None, encode_kd(policy))):
        actions = multicast(world, push(world, *parts))
        assert world.member.dropped()[-1] is Drop.UNACCEPTABLE_POLICY
        assert sends(actions) == []


class _Rubbish:
    """An SA payload that the key server has signed and nobody can read."""

    TYPE: ClassVar[PayloadType] = PayloadType.SA

    @classmethod
    def pull(cls, buf: Buffer) -> Self:
        raise AssertionError(buf)

    def push(self, buf: Buffer) -> None:
        buf.push_bytes(bytes(7))


def test_authentic_push_that_cannot_be_read_uses_up_its_seq() -> None:
    """It is the key server's: refused loudly, not acknowledged, and the member asks again."""
    wire, world = ready()
    under = world.group.current_kek()
    kd = encode_kd(GroupPolicy(None, (new_tek(),)))
    datagram = seal_push(under.kek, under.signer, [SequenceNumber(5), _Rubbish(), kd])
    actions = multicast(world, datagram)
    assert world.member.dropped()[-1] is Drop.UNACCEPTABLE_POLICY
    assert sends(actions) == []
    assert only_drop(multicast(world, datagram)) is Drop.REPLAY
    wire.run(2.1)
    wire.settle()
    assert len(world.member.events("registered")) == 2


def test_payloads_out_of_order_or_out_of_place() -> None:
    _, world = ready()
    under = world.group.current_kek()
    policy = GroupPolicy(None, (new_tek(),))
    sa, kd = encode_sa(policy), encode_kd(policy)
    orders: list[list[Body]] = [
        [ALL_TEKS, SequenceNumber(5)],
        [SequenceNumber(5), kd, sa],
        [SequenceNumber(5), sa, kd, ALL_TEKS],
        [SequenceNumber(5), SequenceNumber(6)],
        [SequenceNumber(5), sa, sa, kd],
        [sa, kd],
    ]
    for payloads in orders:
        datagram = seal_push(under.kek, under.signer, payloads)
        assert only_drop(multicast(world, datagram)) is Drop.MALFORMED


def test_push_in_clear_or_with_a_message_id() -> None:
    _, world = ready()
    datagram = push(world, deletes=[ALL_TEKS])
    clear = datagram[:19] + b"\0" + datagram[20:]
    numbered = datagram[:20] + b"\0\0\0\1" + datagram[24:]
    for altered in (clear, numbered):
        assert only_drop(multicast(world, altered)) is Drop.MALFORMED
