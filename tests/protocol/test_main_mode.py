"""Main mode: what each side refuses, and what it must put up with from other implementations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import pytest

from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.protocol import main_mode
from gdoi_plugin.protocol.actions import Drop, Send
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.isakmp import SUITES
from gdoi_plugin.protocol.phase1 import Phase1Config
from gdoi_plugin.protocol.phase1_proposal import (
    check_choice,
    choose,
    describe,
    offer,
    parse_suites,
    read_transform,
)
from gdoi_plugin.wire.attributes import Attribute, uint32
from gdoi_plugin.wire.buffer import Buffer
from gdoi_plugin.wire.header import Header, pull_header
from gdoi_plugin.wire.message import encode_clear, pull_clear
from gdoi_plugin.wire.notification import Notification
from gdoi_plugin.wire.opaque import KeyExchange, Nonce, VendorId
from gdoi_plugin.wire.payload import Body
from gdoi_plugin.wire.registry import (
    AuthMethod,
    Doi,
    ExchangeType,
    NotifyType,
    PayloadType,
    PhaseOneAttribute,
    Protocol,
)
from gdoi_plugin.wire.sa import Proposal, SecurityAssociation
from tests.support.forge import only_drop, resend
from tests.support.simnet import Network, Wire
from tests.support.snapshot import snapshot
from tests.support.worlds import (
    SERVER,
    SUITE,
    World,
    build,
    exchange_of,
    member_peer,
    member_phase1,
    registered,
    sends,
    server_phase1,
    wired,
)

GM = member_peer(0)


def up_to(number: int, **options: Any) -> tuple[Wire, World, Send]:
    """A registration with message ``number`` under way."""
    wire, world = wired(**options)
    world.start()
    wire.pass_on(number - 1)
    return wire, world, wire.take()


def failure_of(world: World) -> str:
    """What the member says when it has given up."""
    world.start()
    world.network.run(32)
    failed = world.member.events("registration-failed")
    return str(failed[0].fields["error"])


# -- retransmission and duplicates ---------------------------------------------------------------


def test_requests_are_repeated_after_1_2_4_and_8_seconds_and_given_up_after_16() -> None:
    network = Network()
    world = build(network)
    world.member.start()
    start = network.now
    network.run(30.9)
    assert [at - start for at, _ in network.sent] == [0, 1, 3, 7, 15]
    assert len({send.datagram for _, send in network.sent}) == 1
    assert world.member.events("registration-failed") == []
    network.run(0.2)
    (failed,) = world.member.events("registration-failed")
    assert failed.fields["error"] == f"{SERVER}: phase 1: no answer"


def test_it_tries_again_after_a_pause_that_grows_to_a_minute() -> None:
    network = Network()
    world = build(network)
    world.member.start()
    network.run(3000)
    pauses = [float(e.fields["retry"]) for e in world.member.events("registration-failed")]  # type: ignore[arg-type]
    for pause, base in zip(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60], strict=False):
        assert 0.7 * base <= pause <= 1.3 * base
    assert len(pauses) > 30


@pytest.mark.parametrize("number", [1, 3, 5])
def test_repeated_request_gets_the_stored_answer(number: int) -> None:
    wire, world, request = up_to(number)
    (first,) = sends(resend(world.server, request))
    before = snapshot(world.server.engine)
    for _ in range(3):
        actions = resend(world.server, request)
        assert sends(actions) == [first]
        # Message 1 is answered anew: the same octets, and no memory of it.
        assert (Drop.DUPLICATE in world.server.dropped()) == (number > 1)
    assert snapshot(world.server.engine) == before
    assert wire.waiting[0] == first


@pytest.mark.parametrize("number", [2, 4, 6])
def test_repeated_answer_is_not_answered_again(number: int) -> None:
    _, world, answer = up_to(number)
    assert len(sends(resend(world.member, answer))) == 1
    before = snapshot(world.member.engine)
    assert only_drop(resend(world.member, answer)) in (Drop.MALFORMED, Drop.UNEXPECTED)
    assert snapshot(world.member.engine) == before


def test_another_message_with_the_cookies_of_a_complete_exchange() -> None:
    wire, world, message5 = up_to(5)
    resend(world.server, message5)
    other = message5.datagram[:-1] + b"\0"
    assert only_drop(world.server.hear(other, GM)) is Drop.UNEXPECTED
    assert wire.waiting


# -- authentication ------------------------------------------------------------------------------


def test_wrong_pre_shared_key_gets_a_word_in_clear_and_a_hint_in_the_members_log() -> None:
    wrong = member_phase1(GM, psk=Secret(b"not the same"))
    world = build(Network(), phase1=wrong)
    error = failure_of(world)
    assert "phase 1: no answer but an unauthenticated PAYLOAD_MALFORMED: message 5 was not" in error
    assert "is the pre-shared key the same" in error
    assert set(world.server.dropped()) == {Drop.MALFORMED}
    assert len(world.server.engine.isakmp.sessions) == 0
    # Messages 2 and 4 once each: a repeated message 5 gets neither again.
    said = [pull_header(s.datagram) for _, s in world.network.sent if s.source == SERVER]
    assert sum(header.exchange_type == ExchangeType.MAIN_MODE for header in said) == 2


def test_key_server_with_another_identity_is_refused() -> None:
    stranger = Identity.parse("other.example.org")
    world = build(Network(), phase1_for=lambda p: server_phase1(p, local_identity=stranger))
    error = failure_of(world)
    assert "peer proved to be other.example.org, expected 10.0.0.1" in error
    assert world.member.group.kek is None
    assert set(world.member.dropped()) == {Drop.AUTHENTICATION}


def test_member_with_another_identity_is_refused() -> None:
    own = member_phase1(GM, local_identity=Identity.parse("other.example.org"))
    world = build(Network(), phase1=own)
    error = failure_of(world)
    assert "unauthenticated INVALID_ID_INFORMATION" in error
    assert "does the key server expect this identity?" in error
    assert set(world.server.dropped()) == {Drop.AUTHENTICATION}
    assert world.server.engine.isakmp.sessions == {}


def test_answer_from_another_address_than_the_key_servers() -> None:
    _, world, answer = up_to(2)
    other = member_peer(9)
    assert only_drop(world.member.hear(answer.datagram, other)) is Drop.UNKNOWN_PEER


# -- proposals -----------------------------------------------------------------------------------


def test_no_proposal_chosen_is_said_in_clear_and_believed_by_nobody() -> None:
    other = SUITES["aes256-sha512-ecp384"]
    world = build(Network(), phase1=member_phase1(GM, suites=(other,)))
    error = failure_of(world)
    assert "no answer but an unauthenticated NO_PROPOSAL_CHOSEN" in error
    (drop, *_) = world.server.dropped()
    assert drop is Drop.NO_PROPOSAL
    details = [a.detail for a in world.server.actions if hasattr(a, "detail")]
    assert "enc=7/len=256/hash=6/auth=1/group=20" in details[0]
    assert set(world.member.dropped()) == {Drop.CLEAR_NOTIFY}
    answer = next(s for _, s in world.network.sent if s.source == SERVER)
    assert exchange_of(answer) == ExchangeType.INFORMATIONAL
    assert world.server.engine.isakmp.half_open == {}


def test_clear_notify_ends_nothing() -> None:
    """Anybody can send one: the exchange goes on to its end."""
    wire, world, message2 = up_to(2)
    spi = message2.datagram[:16]
    forged = encode_clear(
        Header(spi[:8], spi[8:], 0, ExchangeType.INFORMATIONAL),
        [Notification(Doi.GDOI, Protocol.PROTO_ISAKMP, spi, NotifyType.NO_PROPOSAL_CHOSEN)],
    )
    assert only_drop(world.member.hear(forged, SERVER)) is Drop.CLEAR_NOTIFY
    resend(world.member, message2)
    wire.settle()
    assert only_drop(world.member.hear(forged, SERVER)) is Drop.CLEAR_NOTIFY
    assert world.converged()


def altered_choice(change: str) -> SecurityAssociation:
    """Message 2's SA with something that was not offered."""
    asked = offer(member_phase1(GM))
    (proposal,) = asked.proposals
    (transform,) = proposal.transforms
    attributes = {a.type: a for a in transform.attributes}
    if change == "stronger cipher":
        attributes[PhaseOneAttribute.KEY_LENGTH] = Attribute(PhaseOneAttribute.KEY_LENGTH, 256)
    if change == "lifetime":
        attributes[PhaseOneAttribute.LIFE_DURATION] = uint32(PhaseOneAttribute.LIFE_DURATION, 60)
    if change == "no lifetime":
        del attributes[PhaseOneAttribute.LIFE_TYPE], attributes[PhaseOneAttribute.LIFE_DURATION]
    if change == "unknown attribute":
        attributes[99] = Attribute(99, 1)
    if change == "other method":
        key = PhaseOneAttribute.AUTHENTICATION_METHOD
        attributes[key] = Attribute(key, 3)
    transform = replace(transform, attributes=tuple(attributes.values()))
    if change == "kilobytes too":
        kilobytes = (Attribute(PhaseOneAttribute.LIFE_TYPE, 2), uint32(12, 1000))
        transform = replace(transform, attributes=transform.attributes + kilobytes)
    if change == "other transform id":
        transform = replace(transform, transform_id=2)
    if change == "other transform number":
        transform = replace(transform, number=2)
    transforms = (transform, transform) if change == "two transforms" else (transform,)
    protocol = 3 if change == "ESP" else proposal.protocol_id
    chosen = Proposal(2 if change == "other proposal number" else 1, protocol, b"", transforms)
    proposals = (chosen, chosen) if change == "two proposals" else (chosen,)
    doi = Doi.IPSEC if change == "other DOI" else asked.doi
    situation = 1 if change == "other situation" else asked.situation
    return SecurityAssociation(doi, situation, proposals)


@pytest.mark.parametrize(
    "change",
    [
        "stronger cipher",
        "lifetime",
        "no lifetime",
        "unknown attribute",
        "other method",
        "other transform id",
        "other transform number",
        "other proposal number",
        "other situation",
        "kilobytes too",
        "two transforms",
        "two proposals",
        "ESP",
        "other DOI",
    ],
)
def test_message_2_that_chooses_what_was_not_offered(change: str) -> None:
    wire, world, message2 = up_to(2)
    spi = message2.datagram[:16]
    header = Header(spi[:8], spi[8:], 0, ExchangeType.MAIN_MODE)
    before = snapshot(world.member.engine)
    forged = encode_clear(header, [altered_choice(change)])
    assert only_drop(world.member.hear(forged, SERVER)) is Drop.UNEXPECTED
    assert snapshot(world.member.engine) == before
    assert len(sends(resend(world.member, message2))) == 1
    wire.settle()
    assert world.converged()


def wide(attribute: Attribute) -> Attribute:
    """The same number as a variable attribute."""
    return Attribute(attribute.type, attribute.number().to_bytes(4, "big"))


def narrow(attribute: Attribute) -> Attribute:
    """The same number as a basic attribute."""
    return Attribute(attribute.type, attribute.number())


@pytest.mark.parametrize("encode", [wide, narrow])
def test_phase_1_attributes_in_either_encoding(encode: Callable[[Attribute], Attribute]) -> None:
    """RFC 2408 section 3.3. Lifetimes come in both; what they say is what counts."""
    offered = offer(member_phase1(GM, lifetime=3600))
    (proposal,) = offered.proposals
    (transform,) = proposal.transforms
    other = replace(transform, attributes=tuple(encode(a) for a in transform.attributes))
    assert other != transform
    assert read_transform(other) == read_transform(transform)
    answer = replace(offered, proposals=(replace(proposal, transforms=(other,)),))
    assert check_choice(offered, answer) == read_transform(transform)


def test_a_lifetime_in_kilobytes_is_tolerated() -> None:
    (transform,) = offer(member_phase1(GM)).proposals[0].transforms
    kilobytes = (Attribute(PhaseOneAttribute.LIFE_TYPE, 2), uint32(12, 1000))
    both = replace(transform, attributes=transform.attributes + kilobytes)
    assert read_transform(both) == read_transform(transform)
    alone = replace(transform, attributes=transform.attributes[:-2] + kilobytes)
    terms = read_transform(alone)
    assert terms is not None
    assert terms.lifetime is None


def test_message_2_without_a_responder_cookie() -> None:
    _, world, message2 = up_to(2)
    header = Header(message2.datagram[:8], bytes(8), 0, ExchangeType.MAIN_MODE)
    forged = encode_clear(header, [altered_choice("")])
    assert only_drop(world.member.hear(forged, SERVER)) is Drop.UNEXPECTED


def test_responder_cookie_may_not_change_after_message_2() -> None:
    _, world, message4 = up_to(4)
    altered = message4.datagram[:8] + b"\1" * 8 + message4.datagram[16:]
    assert only_drop(world.member.hear(altered, SERVER)) is Drop.UNEXPECTED


def test_choice_is_the_key_servers_first_preference_and_the_first_such_transform() -> None:
    strong, weak = SUITES["aes256-sha256-ecp256"], SUITE
    sa = offer(member_phase1(GM, suites=(weak, strong, weak)))
    _, transform, terms = choose(sa, member_phase1(GM, suites=(strong, weak)))
    assert (transform.number, terms) == (2, (strong, AuthMethod.PRE_SHARED_KEY, 86400))
    _, transform, terms = choose(sa, member_phase1(GM, suites=(weak,)))
    assert (transform.number, terms.suite) == (1, weak)


def test_weak_algorithms_are_not_understood_and_described_by_number() -> None:
    """3DES, SHA-1, MODP-1024, as an old router offers them."""
    a = PhaseOneAttribute
    old = (
        Attribute(a.ENCRYPTION_ALGORITHM, 5),
        Attribute(a.HASH_ALGORITHM, 2),
        Attribute(a.AUTHENTICATION_METHOD, 1),
        Attribute(a.GROUP_DESCRIPTION, 2),
    )
    sa = offer(member_phase1(GM))
    transform = replace(sa.proposals[0].transforms[0], attributes=old)
    assert read_transform(transform) is None
    proposal = replace(sa.proposals[0], transforms=(transform,) * 9)
    assert describe(replace(sa, proposals=(proposal,))) == (
        ", ".join(["enc=5/hash=2/auth=1/group=2"] * 8) + " ..."
    )


def test_parse_suites_names_what_is_allowed() -> None:
    assert parse_suites(["aes128-sha256-ecp256"], SUITES) == (SUITE,)
    with pytest.raises(ValueError, match=r"'3des-md5' is none of aes128-sha256-ecp256"):
        parse_suites(["3des-md5"], SUITES)


# -- Diffie-Hellman ------------------------------------------------------------------------------


@pytest.mark.parametrize("public", [bytes(64), b"\xff" * 64, b"\1" * 64, b"\1" * 63], ids=len)
@pytest.mark.parametrize("number", [3, 4])
def test_bad_public_value_is_refused_by_both(number: int, public: bytes) -> None:
    wire, world, message = up_to(number)
    host = world.server if number == 3 else world.member
    spi = message.datagram[:16]
    header = Header(spi[:8], spi[8:], 0, ExchangeType.MAIN_MODE)
    forged = encode_clear(header, [KeyExchange(public), Nonce(bytes(16))])
    before = snapshot(host.engine)
    assert only_drop(host.hear(forged, message.source)) is Drop.BAD_KEY_EXCHANGE
    assert snapshot(host.engine) == before
    resend(host, message)
    wire.settle()
    assert world.converged()


# -- what other implementations do ---------------------------------------------------------------


@dataclass(frozen=True)
class _Unknown:
    """A payload of a type that nobody here has heard of."""

    TYPE: ClassVar[PayloadType] = cast(PayloadType, 130)

    def push(self, buf: Buffer) -> None:
        buf.push_bytes(b"from another world")


EXTRAS = (VendorId(b"CISCO-UNITY-like"), VendorId(b"x"), cast(Body, _Unknown()))


def test_vendor_ids_and_unknown_payloads_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    def talkative(header: Header, payloads: Sequence[Body]) -> bytes:
        return encode_clear(header, [*payloads, *EXTRAS])

    monkeypatch.setattr(main_mode, "encode_clear", talkative)
    _, world = registered()
    first = world.network.sent[0][1].datagram
    kinds = pull_clear(Header.pull(Buffer(first)), first).kinds
    vendor_id = PayloadType.VENDOR_ID
    assert kinds == (PayloadType.SA, vendor_id, vendor_id, vendor_id, 130), "ours is one of them"


def test_transforms_numbered_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = offer

    def from_zero(config: Phase1Config) -> SecurityAssociation:
        sa = ours(config)
        transforms = tuple(replace(t, number=t.number - 1) for t in sa.proposals[0].transforms)
        return replace(sa, proposals=(replace(sa.proposals[0], transforms=transforms),))

    monkeypatch.setattr(main_mode, "offer", from_zero)
    _, world = registered()
    chosen = world.network.sent[1][1].datagram
    assert chosen[52] == 0, "the number goes back as it came"


def test_ipsec_doi_where_a_peer_insists_on_it() -> None:
    own = member_phase1(GM, dois=(Doi.IPSEC,))
    registered(phase1=own, phase1_for=lambda p: server_phase1(p, dois=(Doi.IPSEC,)))
