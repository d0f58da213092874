"""GROUPKEY-PULL, both roles, RFC 6407 section 3.2.

::

        Group Member                      GCKS
    (1) HDR*, HASH(1), Ni, ID     -->
    (2)                           <--     HDR*, HASH(2), Nr, SA
    (3) HDR*, HASH(3) [,GAP]      -->
    (4)                           <--     HDR*, HASH(4), [SEQ,] KD

    HASH(1) = prf(SKEYID_a, M-ID | Ni | ID)
    HASH(2) = prf(SKEYID_a, M-ID | Ni_b | Nr | SA)
    HASH(3) = prf(SKEYID_a, M-ID | Ni_b | Nr_b [ | GAP ])
    HASH(4) = prf(SKEYID_a, M-ID | Ni_b | Nr_b [ | SEQ ] | KD)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from ..crypto.cookie import fingerprint
from ..wire.buffer import DecodeError
from ..wire.group_sa import GroupAssociatedPolicy, GroupSecurityAssociation
from ..wire.header import Header
from ..wire.identification import Identification
from ..wire.key_download import KeyDownload
from ..wire.message import Message
from ..wire.opaque import NONCE_MAX, Nonce
from ..wire.payload import Body
from ..wire.registry import ExchangeType, NotifyType, PayloadType
from ..wire.sequence import SequenceNumber
from . import rules
from .errors import ProtocolError
from .isakmp import IsakmpSa, Phase2Channel, authentic
from .policy import Tek, check_sa
from .sender_ids import encode_request, read_request


def _read_nonce(message: Message) -> bytes:
    nonce = message.first(PayloadType.NONCE).parse(Nonce).data
    if len(nonce) > NONCE_MAX:  # RFC 6407 section 5.8: 8 to 128 octets
        raise DecodeError(f"nonce of {len(nonce)} octets", message.first(PayloadType.NONCE).offset)
    return nonce


class PullState(Enum):
    """Named for what has happened."""

    SENT_1 = auto()
    SENT_2 = auto()
    SENT_3 = auto()
    COMPLETE = auto()


@dataclass(frozen=True, slots=True)
class PullResult:
    """What message 4 brought, with the policy of message 2. ``seq`` None where there is no KEK."""

    sa: GroupSecurityAssociation
    seq: int | None
    kd: KeyDownload


@dataclass(slots=True)
class PullInitiator:
    """The group member. ``receive`` gives message 3, or None once ``result`` is set.

    ``sender_ids``: how many this member wants where it sends in counter mode.
    """

    sa: IsakmpSa
    message_id: int
    ni_b: bytes = field(repr=False)
    group: Identification
    sender_ids: int = 0
    state: PullState = field(default=PullState.SENT_1, init=False)
    result: PullResult | None = field(default=None, init=False)
    _channel: Phase2Channel = field(init=False, repr=False)
    _nr_b: bytes = field(default=b"", init=False, repr=False)
    _policy: GroupSecurityAssociation | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._channel = Phase2Channel(self.sa, ExchangeType.GROUPKEY_PULL, self.message_id)

    def start(self) -> bytes:
        """Message 1."""
        return self._channel.seal(b"", [Nonce(self.ni_b), self.group])

    def receive(self, header: Header, datagram: bytes) -> bytes | None:
        """Raises DecodeError, AuthError, ProtocolError; PolicyError once message 2 is authentic."""
        if self.state is PullState.SENT_1:
            return self._message_2(header, datagram)
        if self.state is PullState.SENT_3:
            self._message_4(header, datagram)
            return None
        raise ProtocolError("GROUPKEY-PULL is complete", "RFC 6407 section 3.2")

    def _message_2(self, header: Header, datagram: bytes) -> bytes:
        message = self._channel.decrypt(header, datagram)
        rules.check(rules.PULL[2], message)
        self._channel.verify(message, self.ni_b)
        nonce = _read_nonce(message)
        policy = message.first(PayloadType.SA).parse(GroupSecurityAssociation)
        # RFC 6407 section 3.3: continue only if the policy is acceptable.
        teks = check_sa(policy)
        self._channel.accept(datagram)
        self._nr_b, self._policy = nonce, policy
        self.state = PullState.SENT_3
        return self._channel.seal(self.ni_b + nonce, self._requests(teks))

    def _requests(self, teks: Sequence[Tek]) -> list[Body]:
        """RFC 6407 section 3.5: a sender may ask for Sender-IDs; a request of 1 is not necessary.

        A newcomer that message 2 tells no TEKs will be told them in a rekey, which has no SIDs.
        """
        host = self.sa.local.host
        sends = any(tek.suite.counter_mode and tek.sent_by(host) for tek in teks) or not teks
        return [encode_request(self.sender_ids)] if self.sender_ids > 1 and sends else []

    def _message_4(self, header: Header, datagram: bytes) -> None:
        message = self._channel.decrypt(header, datagram)
        rules.check(rules.PULL[4], message)
        self._channel.verify(message, self.ni_b + self._nr_b)
        if self._policy is None:
            raise AssertionError("message 4 without policy")
        seq = None
        if PayloadType.SEQ in message.kinds:
            seq = message.first(PayloadType.SEQ).parse(SequenceNumber).number
        if seq is None and self._policy.sak is not None:
            raise ProtocolError("SAK in message 2, no SEQ in message 4", "RFC 6407 section 3.2")
        kd = message.first(PayloadType.KD).parse(KeyDownload)
        self.state = PullState.COMPLETE
        self.result = PullResult(self._policy, seq, kd)


@dataclass(slots=True)
class PullResponder:
    """The key server. The caller authorises between the steps and supplies policy and keys."""

    sa: IsakmpSa
    message_id: int
    nr_b: bytes = field(repr=False)
    expires: float
    state: PullState | None = field(default=None, init=False)
    ni_b: bytes = field(default=b"", init=False, repr=False)
    group: Identification | None = field(default=None, init=False)
    _channel: Phase2Channel = field(init=False, repr=False)
    # By fingerprint: a request may be long.
    _answered: dict[bytes, bytes] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self._channel = Phase2Channel(self.sa, ExchangeType.GROUPKEY_PULL, self.message_id)

    def replay(self, datagram: bytes) -> bytes | None:
        """The stored reply to a request that has been answered before."""
        return self._answered.get(fingerprint(datagram))

    def read_1(self, header: Header, datagram: bytes) -> Identification:
        """The group asked for. Raises DecodeError, AuthError, ProtocolError."""
        if self.state is not None:
            raise ProtocolError("message 1 again, and not the same", "RFC 6407 section 3.2")
        message = self._channel.prove(rules.PULL[1], header, datagram, b"")
        if message.kinds[1:2] == (PayloadType.SA,):
            # HDR*, HASH(1), SA, Ni: under IPsec's DOI the exchange has the same number.
            what, section = "quick mode: no IPsec SAs are made here", "RFC 2409 section 5.5"
            raise ProtocolError(what, section, NotifyType.NO_PROPOSAL_CHOSEN)
        with authentic():
            rules.check_payloads(rules.PULL[1], message)
            ni_b = _read_nonce(message)
            group = message.first(PayloadType.ID).parse(Identification)
        self._channel.accept(datagram)
        self.ni_b, self.group = ni_b, group
        return group

    def answer_1(self, datagram: bytes, policy: GroupSecurityAssociation) -> bytes:
        """Message 2."""
        reply = self._channel.seal(self.ni_b, [Nonce(self.nr_b), policy])
        self._answered[fingerprint(datagram)] = reply
        self.state = PullState.SENT_2
        return reply

    def read_3(self, header: Header, datagram: bytes) -> int:
        """The member has proved that it is live: how many Sender-IDs it asks for.

        Raises DecodeError, AuthError, ProtocolError.
        """
        if self.state is not PullState.SENT_2:
            raise ProtocolError("message 3 out of turn", "RFC 6407 section 3.2")
        message = self._channel.open(rules.PULL[3], header, datagram, self.ni_b + self.nr_b)
        with authentic():
            gaps = [p.parse(GroupAssociatedPolicy) for p in message.all(PayloadType.GAP)]
            asked = sum(read_request(gap) for gap in gaps)
        self._channel.accept(datagram)
        return asked

    def refuse_3(self, datagram: bytes, refusal: bytes) -> None:
        """No message 4: a repeated message 3 gets ``refusal`` again."""
        self._answered[fingerprint(datagram)] = refusal
        self.state = PullState.COMPLETE

    def answer_3(self, datagram: bytes, seq: int | None, kd: KeyDownload) -> bytes:
        """Message 4."""
        payloads: list[Body] = [] if seq is None else [SequenceNumber(seq)]
        reply = self._channel.seal(self.ni_b + self.nr_b, [*payloads, kd])
        self._answered[fingerprint(datagram)] = reply
        self.state = PullState.COMPLETE
        return reply
