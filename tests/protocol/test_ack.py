"""GROUPKEY-PUSH-ACK, RFC 8263 sections 3 to 6, and the gate in front of it."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Any

import pytest

from gdoi_plugin.crypto import ack_key
from gdoi_plugin.protocol import ack as ack_module
from gdoi_plugin.protocol.ack import MAX_JITTER, MIN_WAIT, read_ack
from gdoi_plugin.protocol.actions import Action, Drop, Dropped, Event, Peer, Send
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.policy import GroupPolicy
from gdoi_plugin.wire.buffer import DecodeError
from gdoi_plugin.wire.header import pull_header
from gdoi_plugin.wire.registry import ExchangeType
from tests.protocol.test_push import new_kek, new_tek
from tests.support.forge import make_ack, multicast, only_drop, push_policy, resend, unicast
from tests.support.simnet import Network, Wire, ack_seq
from tests.support.snapshot import snapshot
from tests.support.worlds import (
    REKEY,
    SERVER,
    STRANGER,
    World,
    build,
    group_config,
    member_peer,
    registered,
    sends,
)

VICTIM = Identity.of_address(member_peer(1).host)
ACK = ExchangeType.GROUPKEY_PUSH_ACK
GM = member_peer(0)


def prompt(members: int = 1, **changes: Any) -> tuple[Wire, World]:
    """Registered members that acknowledge without jitter."""
    config = group_config(members, **changes)
    return registered(members, group=config, member_changes={"ack_jitter": 0.0})


def running(
    members: int = 1, member_changes: dict[str, Any] | None = None, **changes: Any
) -> World:
    config = group_config(members, **changes)
    world = build(Network(), members, group=config, member_changes=member_changes or {})
    world.start()
    world.network.run(5)
    return world


def with_ack(**changes: Any) -> tuple[Wire, World, Send]:
    """An acknowledgement under way."""
    wire, world = prompt(**changes)
    world.rekey()
    wire.pass_on()
    return wire, world, wire.take()


def last_rekey(world: World) -> Any:
    return world.group.ledger[world.group.epoch]


# -- the octets ----------------------------------------------------------------------------------


def test_octets_are_what_rfc_8263_section_3_draws() -> None:
    _, world, send = with_ack()
    kek = world.group.current_kek().kek
    octets = send.datagram
    assert len(octets) == 28 + 36 + 8 + 12
    assert octets[0:16] == kek.spi
    assert octets[16] == 8, "next payload: HASH"
    assert octets[17] == 0x10, "version 1.0"
    assert octets[18] == 35, "GROUPKEY-PUSH-ACK"
    assert octets[19] == 0, "flags"
    assert octets[20:24] == bytes(4), "message ID"
    assert octets[24:28] == len(octets).to_bytes(4, "big")
    assert octets[28:32] == bytes((18, 0, 0, 36)), "HASH, then SEQ"
    assert octets[64:72] == bytes((5, 0, 0, 8, 0, 0, 0, 1)), "SEQ 1, then ID"
    assert octets[72:84] == bytes((0, 0, 0, 12, 1, 0, 0, 0, 10, 0, 0, 2)), "ID_IPV4_ADDR, 0/0"
    # ack_key = prf(base_key, "GROUPKEY-PUSH ACK" NUL | SPI | L), HASH = prf(ack_key, SEQ | ID)
    data = b"GROUPKEY-PUSH ACK\0" + kek.spi + b"\x02\x00"
    key = hmac.digest(kek.key.reveal(), data, "sha256")
    assert octets[32:64] == hmac.digest(key, octets[64:84], "sha256")


def test_addresses_and_ports_are_the_pushs_the_other_way_round() -> None:
    _, world = prompt()
    source, arrived = Peer(SERVER.host, 3848), Peer(REKEY.host, 1848)
    datagram = push_policy(world, GroupPolicy(None, (new_tek(),)))
    (send,) = sends(world.member.hear(datagram, source, arrived))
    assert send.destination == source
    assert send.source == Peer(GM.host, 1848)
    assert send.datagram[80:84] == GM.host.packed


# -- when it is said -----------------------------------------------------------------------------


def test_multicast_is_acknowledged_after_a_jitter_of_at_most_5_seconds() -> None:
    world = running(20, {"ack_jitter": 60.0})
    at = world.now
    world.rekey()
    world.network.run(30)
    delays = [
        when - at for when, s in world.network.sent if pull_header(s.datagram).exchange_type == ACK
    ]
    assert len(delays) == 20
    assert min(delays) > 0
    assert max(delays) <= MAX_JITTER + 0.01
    assert max(delays) - min(delays) > 1
    assert last_rekey(world).missing == frozenset()


def test_unicast_is_acknowledged_at_once() -> None:
    world = running(3, {"ack_jitter": 5.0}, rekey_address=None)
    world.rekey()
    world.network.run(0.1)
    assert len(last_rekey(world).acknowledged) == 3


def test_no_word_where_the_key_server_did_not_ask() -> None:
    _, world = prompt(ack=None)
    datagram = push_policy(world, GroupPolicy(None, (new_tek(),)))
    assert sends(multicast(world, datagram)) == []
    assert new_tek().spi in world.member.kernel.sas


@pytest.mark.parametrize("ack_type", [2, 4, 5, 129])
def test_type_it_cannot_do_and_it_takes_part_without(ack_type: int) -> None:
    """RFC 8263 section 4."""
    _, world = prompt()
    policy = GroupPolicy(new_kek(ack_type=ack_type), (new_tek(),))
    actions = multicast(world, push_policy(world, policy))
    assert sends(actions) == []
    (said,) = (a for a in actions if isinstance(a, Event) and a.name == "ack-unsupported")
    assert said.fields["type"] == ack_type
    assert new_tek().spi in world.member.kernel.sas
    held = world.member.group.kek
    assert held is not None
    assert held.kek.spi == new_kek().spi


def test_push_that_asks_for_the_first_time_is_acknowledged() -> None:
    """Some key servers put attribute 9 into a PUSH only."""
    _, world = prompt(ack=None)
    policy = GroupPolicy(new_kek(ack_type=1), (new_tek(),))
    (send,) = sends(multicast(world, push_policy(world, policy)))
    assert send.datagram[:16] == world.group.current_kek().kek.spi, "keyed by the KEK it came under"


# -- the gate ------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["multicast", "unicast"])
def test_refused_by_the_kernel_not_acknowledged_reported_recovered(transport: str) -> None:
    address = REKEY.host if transport == "multicast" else None
    world = running(3, retransmissions=0, rekey_address=address)
    victim = world.members[1]
    (old,) = victim.kernel.sas
    victim.kernel.refuse_next("ENOBUFS: XFRM_MSG_NEWSA: No buffer space available")
    at = world.now
    world.rekey()
    refused = last_rekey(world)
    world.network.run(0.01)
    (event,) = victim.events("install-failed")
    assert event.level == "error"
    assert event.fields["seq"] == 1
    assert "ENOBUFS" in str(event.fields["error"])
    assert set(victim.kernel.sas) == {old}
    assert set(victim.kernel.pinned.values()) == {old}

    world.network.run(MIN_WAIT - 0.1)
    assert world.server.events("ack-missing") == [], "not before 10 seconds"
    assert victim.group.counters.registrations == 2, "by itself, within recovery_delay"
    again = world.group.members[VICTIM]
    assert at < again.registered_at <= at + 2.1
    world.network.run(2)
    (missing,) = world.server.events("ack-missing")
    assert (missing.level, missing.fields["member"]) == ("warning", "10.0.0.3")
    assert [str(i) for i in refused.missing] == ["10.0.0.3"]
    assert not any(send.source.host == victim.address.host for send in world.datagrams(ACK))

    world.rekey()
    world.network.run(15)
    assert len(last_rekey(world).acknowledged) == 3
    assert world.converged()
    world.check_ledger()


def test_members_that_recover_do_not_all_come_at_the_same_moment() -> None:
    world = running(12, {"recovery_delay": 10.0}, retransmissions=0)
    for member in world.members:
        member.kernel.refuse_next()
    at = world.now
    world.rekey()
    world.network.run(12)
    times = sorted(m.registered_at - at for m in world.group.members.values())
    assert times[0] > 0
    assert times[-1] <= 10.1
    assert times[-1] - times[0] > 4


def test_retransmission_makes_up_for_a_refusal() -> None:
    world = running(1, {"recovery_delay": 10_000.0}, rekey_address=None)
    world.member.kernel.refuse_next()
    world.rekey()
    world.network.run(12)
    rekey = last_rekey(world)
    assert rekey.seqs == [1, 2]
    assert len(rekey.acknowledged) == 1
    assert world.member.group.counters.registrations == 1
    world.network.run(100)
    assert world.member.group.counters.registrations == 1, "nothing left to recover from"


# -- the key server's side -----------------------------------------------------------------------


def test_missing_only_after_10_seconds_and_every_retransmission() -> None:
    world = running(2, retransmissions=2)
    world.members[1].crash()
    at = world.now
    world.rekey()
    world.network.run(60)
    assert [when - at for when, s in pushes(world)] == pytest.approx([0, 10, 20], abs=2)
    rekey = last_rekey(world)
    assert rekey.closed
    (event,) = world.server.events("ack-missing")
    assert event.fields["member"] == "10.0.0.3"
    assert world.group.members[VICTIM].missed == 1
    world.check_ledger()


def pushes(world: World) -> list[tuple[float, Send]]:
    kind = ExchangeType.GROUPKEY_PUSH
    return [x for x in world.network.sent if pull_header(x[1].datagram).exchange_type == kind]


def test_unicast_repeats_to_the_silent_alone() -> None:
    world = running(3, rekey_address=None)
    world.members[1].crash()
    world.rekey()
    world.network.run(12)
    assert [s.destination for _, s in pushes(world)] == [
        *(member_peer(i) for i in range(3)),
        member_peer(1),
    ]


@pytest.mark.parametrize("wait", [10.0, 25.0])
def test_window_is_at_least_what_is_configured(wait: float) -> None:
    world = running(1, ack_wait=wait, retransmissions=0)
    world.member.crash()
    at = world.now
    world.rekey()
    world.network.run_until(lambda: bool(world.server.events("ack-missing")), 60)
    assert world.now - at >= wait


def test_window_opens_when_the_datagrams_have_left() -> None:
    """Making a KEK's signing key, signing and the store's commit do not shorten the wait."""
    world = running(1, retransmissions=0)
    engine, at = world.server.engine, world.now
    engine.rekey(world.group.config.group_id.key, at, "operator", kek=True)
    engine.sent(at + 3)
    rekey = last_rekey(world)
    assert (rekey.first_sent, rekey.sent_at, rekey.deadline) == (at + 3, at + 3, at + 13)
    engine.sent(at + 9)
    assert rekey.deadline == at + 13, "what has left stays where it is"


def test_late_acknowledgement_counts_and_is_called_late() -> None:
    wire, world, send = with_ack(retransmissions=0)
    wire.run(20)
    assert last_rekey(world).closed
    resend(world.server, send)
    (event,) = world.server.events("rekey-acked")
    assert event.fields["late"] == "yes"
    assert len(last_rekey(world).acknowledged) == 1


def test_acknowledgement_of_any_seq_of_the_epoch_counts() -> None:
    wire, world, first = with_ack()
    wire.run(11)
    assert last_rekey(world).seqs == [1, 2]
    resend(world.server, first)
    assert last_rekey(world).closed


def test_duplicates_are_discarded_before_any_hmac(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 8263 section 5."""
    _, world, send = with_ack()
    calls: list[Sequence[bytes]] = []

    def counting(kind: Any, key: Any, seq: bytes, identification: bytes) -> bytes:
        calls.append((seq, identification))
        return ack_key.ack_hash(kind, key, seq, identification)

    monkeypatch.setattr(ack_module, "ack_hash", counting)
    bad = send.datagram[:40] + b"\xff\xff" + send.datagram[42:]
    for _ in range(3):
        only_drop(world.server.hear(bad, GM))
    assert len(calls) == 1
    again = Drop.ACK_DUPLICATE
    assert world.server.dropped() == [Drop.ACK_BAD_HASH, again, again]
    resend(world.server, send)
    assert len(calls) == 2
    for _ in range(3):
        assert only_drop(resend(world.server, send)) is Drop.ACK_DUPLICATE
        only_drop(world.server.hear(bad, GM))
    assert len(calls) == 2
    assert len(last_rekey(world).acknowledged) == 1


def test_copy_with_another_members_id_does_not_shut_out_the_true_one() -> None:
    """The memory of bad ACKs is of whole messages: a HASH alone would name the true one too."""
    wire, world = prompt(2)
    world.rekey()
    wire.pass_on()
    mine, _ = wire.waiting
    copy = mine.datagram[:-1] + b"\x03"
    assert only_drop(world.server.hear(copy, member_peer(1))) is Drop.ACK_BAD_HASH
    wire.settle()
    assert len(last_rekey(world).acknowledged) == 2


def refused(world: World, datagram: bytes, source: Peer = GM) -> tuple[Drop, str]:
    before = snapshot(world.server.engine)
    actions: list[Action] = world.server.hear(datagram, source)
    only_drop(actions)
    assert snapshot(world.server.engine) == before
    assert isinstance(actions[0], Dropped)
    return actions[0].reason, actions[0].detail


def test_each_refusal_has_its_own_trigger() -> None:
    wire, world, send = with_ack()
    kek = world.group.current_kek().kek
    good = send.datagram
    elsewhere = make_ack(kek, 1, STRANGER.host)
    assert refused(world, elsewhere)[0] is Drop.ACK_UNKNOWN_MEMBER
    assert refused(world, make_ack(kek, 77, GM.host))[0] is Drop.ACK_UNKNOWN_SEQ
    assert refused(world, good[:63] + b"\0" + good[64:])[0] is Drop.ACK_BAD_HASH
    assert refused(world, make_ack(new_kek(), 1, GM.host))[0] is Drop.ACK_UNKNOWN_SPI
    for malformed in (
        good[:19] + b"\1" + good[20:],  # encrypted
        good[:23] + b"\1" + good[24:],  # message ID
        good[:27] + bytes((len(good) - 12,)) + good[28:-12],  # no ID
        good[:77] + b"\x11" + good[78:],  # ID with a protocol
        good[:79] + b"\x50" + good[80:],  # ID with a port
    ):
        assert refused(world, malformed)[0] is Drop.ACK_MALFORMED
    assert resend(world.server, send)
    assert wire.waiting == []


def test_unknown_address_is_named_in_the_log() -> None:
    _, world, _ = with_ack()
    kek = world.group.current_kek().kek
    _, detail = refused(world, make_ack(kek, 1, STRANGER.host), GM)
    assert "192.0.2.66" in detail
    assert "10.0.0.2" in detail


def test_not_asked_for() -> None:
    _, world = prompt(ack=None)
    world.rekey()
    ack = make_ack(world.group.current_kek().kek, 1, GM.host)
    assert refused(world, ack)[0] is Drop.ACK_NOT_REQUESTED
    assert last_rekey(world).expected == frozenset()
    assert last_rekey(world).closed


@pytest.mark.parametrize("how", ["rollover", "delete"])
def test_acknowledgement_under_the_kek_that_goes(how: str) -> None:
    """RFC 8263 sections 4 and 6: sent even so, and counted until the window is over."""
    wire, world = prompt(2)
    old = world.group.current_kek().kek.spi
    if how == "rollover":
        world.rekey(kek=True)
    else:
        world.server.do(
            world.server.engine.delete_group(world.group.config.group_id.key, world.now)
        )
    wire.pass_on()
    acks = list(wire.waiting[:2]) if how == "rollover" else world.datagrams(ACK)
    assert [s.datagram[:16] for s in acks] == [old, old]
    resend(world.server, acks[0])
    wire.waiting.clear()
    wire.run(9)
    assert old in world.group.old_keks
    resend(world.server, acks[1])
    assert len(last_rekey(world).acknowledged) == 2
    wire.run(9)
    assert old in world.group.old_keks, "for those still on their way"
    wire.run(2)
    assert old not in world.group.old_keks
    assert refused(world, acks[0].datagram)[0] is Drop.ACK_KEK_RETIRED
    world.server.restart()
    assert refused(world, acks[0].datagram)[0] is Drop.ACK_KEK_RETIRED, "from the saved ledger"


def test_kek_stays_while_another_rekey_is_open_under_it() -> None:
    """The window of a rekey that closes must not take the KEK from a later one."""
    world = running(1, retransmissions=2)
    world.member.crash()
    world.rekey()
    world.network.run(25)
    world.rekey(kek=True)
    world.network.run(60)
    first, second = world.group.ledger.values()
    assert (first.attempts, second.attempts) == (3, 3)
    assert first.closed
    assert second.closed
    assert world.group.old_keks == {}


# -- reading -------------------------------------------------------------------------------------


def test_read_ack_wants_the_hash_of_its_type() -> None:
    good = make_ack(new_kek(), 5, GM.host)
    assert ack_seq(good) == 5
    assert read_ack(pull_header(good), good).seq == 5
    short = good[:27] + bytes((83,)) + good[28:31] + b"\x23" + good[32:63] + good[64:]
    with pytest.raises(DecodeError, match="HASH of 31 octets"):
        read_ack(pull_header(short), short)


def test_unicast_push_is_acknowledged_from_where_it_arrived() -> None:
    _, world = prompt(rekey_address=None)
    (send,) = sends(unicast(world, push_policy(world, GroupPolicy(None, (new_tek(),)))))
    assert (send.source, send.destination) == (GM, SERVER)
