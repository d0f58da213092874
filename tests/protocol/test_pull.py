"""GROUPKEY-PULL: who gets in, what is recorded when, and what happens to every repetition."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from gdoi_plugin.protocol import key_server
from gdoi_plugin.protocol.actions import Drop, Dropped, Send
from gdoi_plugin.protocol.association import MAX_REASON
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.isakmp import (
    IsakmpSa,
    Phase2Channel,
    open_informational,
    seal_notify,
)
from gdoi_plugin.protocol.member import MemberState
from gdoi_plugin.protocol.policy import GroupPolicy, encode_kd, encode_sa
from gdoi_plugin.protocol.pull import PullResponder
from gdoi_plugin.wire.attributes import Attribute
from gdoi_plugin.wire.group_sa import GroupAssociatedPolicy, GroupSecurityAssociation
from gdoi_plugin.wire.header import pull_header
from gdoi_plugin.wire.identification import Identification
from gdoi_plugin.wire.key_download import KeyDownload
from gdoi_plugin.wire.opaque import Nonce
from gdoi_plugin.wire.payload import Body
from gdoi_plugin.wire.registry import ExchangeType, IdType, NotifyType
from tests.support.forge import only_drop, resend, seal_phase2
from tests.support.simnet import Network, Wire
from tests.support.snapshot import snapshot
from tests.support.worlds import (
    FLOW,
    GROUP_ID,
    SERVER,
    World,
    build,
    exchange_of,
    group_config,
    member_peer,
    registered,
    sends,
    server_phase1,
    wired,
)

PULL = ExchangeType.GROUPKEY_PULL
GM = member_peer(0)


def pull_message(number: int, **options: Any) -> tuple[Wire, World, Send]:
    """A registration with GROUPKEY-PULL message ``number`` under way."""
    wire, world = wired(**options)
    world.start()
    wire.pass_on(5 + number)
    return wire, world, wire.take()


def server_sa(world: World) -> IsakmpSa:
    (session,) = world.server.engine.isakmp.sessions.values()
    return session.sa


def told_by(world: World, datagram: bytes) -> list[int]:
    """The notifies of a protected Informational message of the key server."""
    told = open_informational(server_sa(world), pull_header(datagram), datagram)
    return [notification.notify_type for notification in told.notifications]


# -- the formulas, computed here and not by the code under test -----------------------------------


def decrypted(sa: IsakmpSa, datagrams: Sequence[bytes]) -> list[bytes]:
    """One phase-2 exchange: IV = hash(last phase-1 block | M-ID), then the last block before."""
    mid = datagrams[0][20:24]
    iv = hashlib.sha256(sa.last_block + mid).digest()[:16]
    plain = []
    for datagram in datagrams:
        body = datagram[28:]
        key = algorithms.AES(sa.keys.encryption_key.reveal())
        context = Cipher(key, modes.CBC(iv)).decryptor()
        plain.append(context.update(body) + context.finalize())
        iv = body[-16:]
    return plain


def chain(first: int, plain: bytes) -> list[tuple[int, bytes]]:
    """Payload types and whole payloads, generic headers included."""
    found, kind, at = [], first, 0
    while kind:
        length = int.from_bytes(plain[at + 2 : at + 4], "big")
        found.append((kind, plain[at : at + length]))
        kind, at = plain[at], at + length
    assert not any(plain[at:])
    assert len(plain) - at < 16
    return found


def test_hashes_are_what_rfc_6407_section_3_2_writes() -> None:
    _, world = registered()
    sa = server_sa(world)
    datagrams = [s.datagram for s in world.datagrams(PULL)]
    mid = datagrams[0][20:24]
    assert {d[20:24] for d in datagrams} == {mid}
    assert mid != bytes(4)
    one, two, three, four = (chain(8, plain) for plain in decrypted(sa, datagrams))
    assert [kind for kind, _ in one] == [8, 10, 5]
    assert [kind for kind, _ in two] == [8, 10, 1]
    assert [kind for kind, _ in three] == [8]
    assert [kind for kind, _ in four] == [8, 18, 17]
    ni_b, nr_b = one[1][1][4:], two[1][1][4:]
    prefixes = [b"", ni_b, ni_b + nr_b, ni_b + nr_b]
    for message, prefix in zip((one, two, three, four), prefixes, strict=True):
        rest = b"".join(payload for _, payload in message[1:])
        wanted = hmac.digest(sa.keys.skeyid_a.reveal(), mid + prefix + rest, "sha256")
        assert message[0][1][4:] == wanted
    # ID_KEY_ID, protocol and port 0, the group in 4 octets; SEQ of 8 octets, none sent yet
    assert one[2][1] == bytes.fromhex("0000000c 0b000000 01020304")
    assert four[1][1] == bytes.fromhex("11000008 00000000")


# -- who gets in ---------------------------------------------------------------------------------


def test_unknown_group_is_told_so() -> None:
    wire, world = wired(member_changes={"group_id": GroupId.of_number(99)})
    world.start()
    wire.settle()
    assert world.server.dropped() == [Drop.UNKNOWN_GROUP]
    (failed,) = world.member.events("registration-failed")
    assert str(failed.fields["error"]).endswith("key server answered INVALID_ID_INFORMATION")
    assert world.group.members == {}


@pytest.mark.parametrize(
    ("identification", "told"),
    [
        (Identification(IdType.ID_IPV4_ADDR, bytes((239, 192, 0, 1))), "group 239.192.0.1"),
        (Identification(IdType.ID_KEY_ID, GROUP_ID.to_bytes(8, "big")), "ID_KEY_ID of 8 octets"),
        (Identification(IdType.ID_IPV4_ADDR, bytes(5)), "ID_IPV4_ADDR of 5 octets"),
        (Identification(IdType.ID_FQDN, b"video.example.org"), "type ID_FQDN, must be a number"),
        (Identification(IdType.ID_OID, bytes(3)), "OID is not a DER object identifier"),
        (Identification(99, b"x"), "type 99"),
    ],
    ids=["address", "8 octets", "5 octets of address", "name", "no OID", "unknown"],
)
def test_group_that_is_not_this_one(identification: Identification, told: str) -> None:
    _, world = registered()
    payloads: list[Body] = [Nonce(bytes(32)), identification]
    datagram = seal_phase2(server_sa(world), PULL, 5, b"", payloads)
    actions = world.server.hear(datagram, GM)
    (answer,) = sends(actions)
    (dropped,) = [action for action in actions if isinstance(action, Dropped)]
    assert dropped.reason is Drop.UNKNOWN_GROUP
    assert told in dropped.detail
    assert exchange_of(answer) == ExchangeType.INFORMATIONAL


@pytest.mark.parametrize(
    "text",
    ["239.1.1.1", "ff05::1", "oid:1.2.840.10070.61850.8.1.2:8004e9fc0001"],
)
def test_group_of_another_kind_of_id(text: str) -> None:
    """Registered, rekeyed, and after a restart of both still the same group."""
    group_id = GroupId.parse(text)
    wire, world = wired(
        group=group_config(group_id=group_id),
        member_changes={"group_id": group_id, "ack_jitter": 0.0},
    )
    world.start()
    wire.settle()
    (group,) = world.server.engine.groups.values()
    assert group.epoch == 1
    for host in (world.server, world.member):
        host.crash()
        host.start()
    wire.settle()
    (group,) = world.server.engine.groups.values()
    assert len(group.members) == 1
    world.server.do(world.server.engine.rekey(group_id.key, world.now, "operator"))
    wire.settle()
    assert group.ledger[2].acknowledged.keys() == group.members.keys()


def test_member_that_the_group_does_not_list() -> None:
    nobody = replace(group_config(), members=frozenset({Identity.parse("10.9.9.9")}))
    wire, world = wired(group=nobody)
    world.start()
    wire.settle()
    assert world.server.dropped() == [Drop.NOT_AUTHORISED]
    (failed,) = world.member.events("registration-failed")
    assert str(failed.fields["error"]).endswith("key server answered AUTHENTICATION_FAILED")
    assert world.group.members == {}
    assert world.server.store.members(GROUP_ID) == []
    # RFC 2408 section 3.15: the member tears phase 1 down and says so.
    assert world.server.engine.isakmp.sessions == {}


def test_nothing_is_recorded_before_message_3_is_verified() -> None:
    wire, world, message1 = pull_message(1)
    for message in (message1, None):
        if message is not None:
            resend(world.server, message)
        assert world.group.members == {}
        assert world.server.store.members(GROUP_ID) == []
    wire.pass_on()  # message 2
    message3 = wire.take()
    bad = message3.datagram[:-1] + bytes([message3.datagram[-1] ^ 1])
    only_drop(world.server.hear(bad, GM))
    assert world.group.members == {}
    resend(world.server, message3)
    assert list(world.group.members) == [Identity.of_address(GM.host)]
    (row,) = world.server.store.members(GROUP_ID)
    assert (row["address"], row["port"]) == (GM.host.packed, 848)


# -- repetitions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 3])
def test_repeated_request_gets_the_stored_answer_and_no_second_record(number: int) -> None:
    wire, world, request = pull_message(number)
    (first,) = sends(resend(world.server, request))
    before, effects = snapshot(world.server.engine), world.server.effects
    for again in range(1, 4):
        actions = resend(world.server, request)
        assert sends(actions) == [first]
        assert world.server.dropped()[-1] is Drop.DUPLICATE
        assert world.server.effects == effects + again, "one Send and no Persist"
    assert snapshot(world.server.engine) == before
    wire.settle()
    assert world.converged()
    assert len(world.server.events("member-registered")) == 1


def test_old_requests_of_a_complete_exchange_get_their_old_answers() -> None:
    _, world = registered()
    one, two, three, four = world.datagrams(PULL)
    for request, answer in ((one, two), (three, four), (one, two)):
        assert sends(resend(world.server, request)) == [answer]
    assert len(world.server.events("member-registered")) == 1


def test_another_message_in_a_complete_exchange() -> None:
    wire, world = registered()
    three = world.datagrams(PULL)[2].datagram
    other = three[:-1] + bytes([three[-1] ^ 1])
    before = snapshot(world.server.engine)
    assert only_drop(world.server.hear(other, GM)) is Drop.UNEXPECTED
    assert snapshot(world.server.engine) == before
    assert wire.waiting == []


def test_stored_answers_are_kept_for_40_seconds() -> None:
    wire, world = registered()
    one = world.datagrams(PULL)[0]
    wire.run(41)
    world.server.engine.isakmp.tick(wire.now)
    (answer,) = sends(resend(world.server, one))
    assert answer != world.datagrams(PULL)[1], "a new nonce: message 3 must be fresh too"
    assert len(world.server.events("member-registered")) == 1


def test_repeated_answers_are_dropped_by_the_member() -> None:
    _, world = registered()
    _, two, _, four = world.datagrams(PULL)
    before = snapshot(world.member.engine)
    assert only_drop(resend(world.member, two)) is Drop.DUPLICATE
    assert only_drop(resend(world.member, four)) is Drop.DUPLICATE
    assert snapshot(world.member.engine) == before


def test_message_2_again_while_message_4_is_awaited() -> None:
    _, world, message2 = pull_message(2)
    resend(world.member, message2)
    before = snapshot(world.member.engine)
    only_drop(resend(world.member, message2))
    assert snapshot(world.member.engine) == before


# -- out of place --------------------------------------------------------------------------------


def test_pull_before_phase_1_is_complete() -> None:
    wire, world = wired()
    world.start()
    wire.pass_on(4)
    cookies = wire.waiting[0].datagram[:16]
    early = cookies + bytes((8, 0x10, 32, 1)) + b"\0\0\0\7" + (60).to_bytes(4, "big") + bytes(32)
    assert only_drop(world.member.hear(early, SERVER)) is Drop.UNEXPECTED
    assert only_drop(world.server.hear(early, GM)) is Drop.UNKNOWN_COOKIES


def test_pull_with_message_id_zero() -> None:
    _, world = registered()
    one = world.datagrams(PULL)[0].datagram
    zero = one[:20] + bytes(4) + one[24:]
    assert only_drop(world.server.hear(zero, GM)) is Drop.MALFORMED


def test_pull_over_a_phase_1_sa_that_has_ended() -> None:
    wire, world = registered(phase1_for=lambda p: server_phase1(p, lifetime=60))
    wire.run(61)
    one = world.datagrams(PULL)[0]
    assert only_drop(resend(world.server, one)) is Drop.UNKNOWN_COOKIES


@pytest.mark.parametrize(("length", "fits"), [(7, False), (8, True), (128, True), (129, False)])
def test_nonce_has_8_to_128_octets(length: int, fits: bool) -> None:
    """RFC 6407 section 5.8."""
    _, world = registered()
    payloads: list[Body] = [Nonce(bytes(length)), GroupId.of_number(GROUP_ID).payload()]
    datagram = seal_phase2(server_sa(world), PULL, 5, b"", payloads)
    dropped = [a for a in world.server.hear(datagram, GM) if isinstance(a, Dropped)]
    told = world.network.sent[-1][1].datagram
    if fits:
        assert dropped == []
        assert pull_header(told).exchange_type == PULL
    else:
        assert [drop.reason for drop in dropped] == [Drop.UNEXPECTED]
        assert told_by(world, told) == [NotifyType.PAYLOAD_MALFORMED]


def test_pulls_under_way_are_bounded() -> None:
    _, world = registered()
    sa = server_sa(world)
    payloads: list[Body] = [Nonce(bytes(32)), GroupId.of_number(GROUP_ID).payload()]
    for message_id in range(1, 60):
        world.server.hear(seal_phase2(sa, PULL, message_id, b"", payloads), GM)
    (session,) = world.server.engine.isakmp.sessions.values()
    assert len(session.pulls) <= 17


# -- a rekey in between --------------------------------------------------------------------------


def test_rekey_between_message_2_and_message_4() -> None:
    network = Network()
    world = build(network)
    world.start()
    network.run_until(lambda: len(world.datagrams(PULL)) == 2, 5)
    world.rekey(kek=True)
    network.run(0.5)
    assert world.server.dropped() == [Drop.STALE_POLICY]
    (failed,) = world.member.events("registration-failed")
    assert str(failed.fields["error"]).endswith("key server answered INVALID_SPI")
    assert world.group.members == {}
    network.run(3)
    assert world.converged()
    assert len(world.member.events("registration-failed")) == 1


def overtaken(kek: bool) -> tuple[Wire, World]:
    """Registering again after a lost rekey, message 4 is overtaken by the next rekey's PUSH."""
    wire, world = registered()
    world.rekey()
    wire.take()  # lost
    world.member.do(world.member.group.register(wire.now))
    wire.pass_on(3)
    message4 = wire.take()
    world.rekey(kek=kek)
    wire.pass_on()
    resend(world.member, message4)
    return wire, world


@pytest.mark.parametrize("kek", [False, True])
def test_message_4_that_a_rekey_has_overtaken_is_not_taken_for_new(kek: bool) -> None:
    """RFC 6407 section 3.3: its SEQ is stale; so are its TEKs, and so may its KEK be."""
    wire, world = overtaken(kek)
    (failed,) = world.member.events("registration-failed")
    assert str(failed.fields["error"]).endswith("a rekey overtook the keys")
    wire.run(6)
    wire.settle()
    assert world.converged()
    world.rekey()
    wire.pass_on()
    assert Drop.REPLAY not in world.member.dropped()
    newest = world.group.teks[-1].tek
    wire.run(12)
    sending = world.member.kernel.sending(FLOW)
    assert sending is not None
    assert sending.spi == newest.spi


def test_message_4_that_a_delete_has_overtaken_brings_nothing_back() -> None:
    """Its KEK has been deleted in between: taken up again, the Delete would be no replay."""
    wire, world = registered(member_changes={"ack_jitter": 0.0})
    world.member.do(world.member.group.register(wire.now))
    wire.pass_on(3)
    message4 = wire.take()
    world.server.do(world.server.engine.delete_group(world.group.config.group_id.key, wire.now))
    wire.pass_on()
    assert world.member.group.kek is None
    resend(world.member, message4)
    assert world.member.group.kek is None
    wire.run(6)
    wire.settle()
    assert world.converged()


def test_old_kek_in_a_late_message_4_does_not_come_back() -> None:
    """The PUSH that brought the new KEK had the TEKs as well: nothing in message 4 is news."""
    wire, world = registered()
    world.member.do(world.member.group.register(wire.now))
    wire.pass_on(3)
    message4 = wire.take()
    world.rekey(kek=True)
    wire.pass_on()
    resend(world.member, message4)
    assert world.member.events("registration-failed") == []
    assert world.converged()
    kek = world.member.group.kek
    assert kek is not None
    assert kek.seq == 0, "the old KEK's SEQ says nothing about the new one's"


# -- what the member makes of message 2 and 4 -----------------------------------------------------


def test_unacceptable_policy_ends_phase_1_with_a_delete(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 6407 section 3.3: "SHOULD tear down the Phase 1 session after notifying the GCKS"."""

    def strange(policy: GroupPolicy) -> GroupSecurityAssociation:
        gap = GroupAssociatedPolicy((Attribute(99, 1),))
        return replace(encode_sa(policy), gap=gap)

    monkeypatch.setattr(key_server, "encode_sa", strange)
    wire, world = wired()
    world.start()
    wire.settle()
    assert world.member.dropped() == [Drop.UNACCEPTABLE_POLICY]
    (failed,) = world.member.events("registration-failed")
    assert str(failed.fields["error"]).endswith("not acceptable: GAP attribute 99 is unknown")
    (told,) = world.server.events("member-refused")
    assert told.fields == {
        "group": "g",
        "member": str(GM.host),
        "notify": "NO_PROPOSAL_CHOSEN",
        "error": "GAP attribute 99 is unknown",
    }
    assert world.server.engine.isakmp.sessions == {}
    assert world.group.members == {}


def test_keys_that_do_not_fit_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    def keyless(policy: GroupPolicy) -> KeyDownload:
        return KeyDownload(encode_kd(policy).packets[:1])

    monkeypatch.setattr(key_server, "encode_kd", keyless)
    wire, world = wired()
    world.start()
    wire.settle()
    (failed,) = world.member.events("registration-failed")
    assert "0 TEK key packets for SPI" in str(failed.fields["error"])
    (told,) = world.server.events("member-refused")
    assert "0 TEK key packets for SPI" in str(told.fields["error"])
    assert world.member.kernel.applied == 0
    assert world.server.engine.isakmp.sessions == {}


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"", ""),
        ("größer\n\x1b[2J".encode(), "größer\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}[2J"),
        (b"\xff\x00", "\N{REPLACEMENT CHARACTER}" * 2),
        (b"x" * 1000, "x" * MAX_REASON),
    ],
    ids=["none", "control characters", "not UTF-8", "long"],
)
def test_reasons_are_shown_as_one_short_line(data: bytes, shown: str) -> None:
    """A member's words end in the key server's log and on terminals."""
    _, world = registered()
    sa = server_sa(world)
    world.server.hear(seal_notify(sa, 77, NotifyType.NO_PROPOSAL_CHOSEN, data), GM)
    (told,) = world.server.events("member-refused")
    assert told.fields["error"] == shown


def test_kernel_that_refuses_at_registration() -> None:
    world = build(Network())
    world.member.kernel.refuse_next("EINVAL: add SA: Invalid argument")
    world.start()
    world.network.run(0.5)
    (failed,) = world.member.events("registration-failed")
    assert "the SAs were not installed: EINVAL" in str(failed.fields["error"])
    assert world.member.group.state is MemberState.REGISTERING
    world.network.run(5)
    assert world.converged()


def test_sak_without_seq_in_message_4(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = PullResponder.answer_3

    def without_seq(self: PullResponder, datagram: bytes, _: int | None, kd: Any) -> bytes:
        return answer(self, datagram, None, kd)

    monkeypatch.setattr(PullResponder, "answer_3", without_seq)
    wire, world = wired()
    world.start()
    wire.settle()
    assert world.member.dropped() == [Drop.UNEXPECTED]
    assert world.member.group.kek is None


def test_member_asking_for_no_sender_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """GAP with SENDER_ID_REQUEST = 0 in message 3: the first implementation of GDOI sends that."""
    seal = Phase2Channel.seal
    gap = GroupAssociatedPolicy((Attribute(3, 0),))
    asked: list[ExchangeType] = []

    def with_gap(self: Phase2Channel, prefix: bytes, payloads: Sequence[Body]) -> bytes:
        if self.exchange_type != PULL or payloads:
            return seal(self, prefix, payloads)
        asked.append(self.exchange_type)
        return seal(self, prefix, [gap])

    monkeypatch.setattr(Phase2Channel, "seal", with_gap)
    _, world = registered()
    assert asked == [PULL]
    assert world.group.members.keys() == {server_sa(world).remote_identity}
