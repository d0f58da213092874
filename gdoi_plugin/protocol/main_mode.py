"""ISAKMP main mode, both roles: RFC 2409 sections 5, 5.1 and 5.4, RFC 6407 section 2.1.

::

    Initiator                          Responder
    HDR, SA                  (1) -->
                                 <-- (2)  HDR, SA
    HDR, KE, Ni              (3) -->
                                 <-- (4)  HDR, KE, Nr
    HDR*, IDii, HASH_I       (5) -->
                                 <-- (6)  HDR*, IDir, HASH_R

How messages 5 and 6 prove who sends them, and what SKEYID is, is the negotiated
:class:`.phase1.Authentication`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto

from ..crypto import cipher, groups
from ..crypto.cookie import fingerprint
from ..crypto.keymat import KeyMaterial, derive, phase1_iv
from ..crypto.prf import prf
from ..crypto.secret import Secret
from ..wire.buffer import DecodeError
from ..wire.header import COOKIE_LENGTH, HEADER_LENGTH, NO_COOKIE, Header
from ..wire.message import Message, encode_clear, pull_clear, pull_decrypted, with_body
from ..wire.notification import Notification
from ..wire.opaque import KeyExchange, Nonce
from ..wire.payload import Body, encode_body, encode_chain
from ..wire.registry import Doi, ExchangeType, Flags, Hash, NotifyType, PayloadType
from ..wire.sa import Proposal, SecurityAssociation
from ..wire.vendor_id import DEAD_PEER_DETECTION, NAT_TRAVERSAL
from . import rules, vendor
from .actions import IPAddress
from .errors import ProtocolError
from .identity import Identity
from .isakmp import IsakmpSa, Suite, status_notification
from .lifetime import lifetime_data
from .nat import NO_NAT, Detection, Nat, Path, Traversal, hashes
from .phase1 import Authentication, Digest, Phase1Config, asks_for_certificate
from .phase1_proposal import Terms, check_choice, choose, offer

NONCE_LENGTH = 32


class State(Enum):
    """Named for what has happened."""

    SENT_SA = auto()
    SENT_KE = auto()
    SENT_AUTH = auto()
    ESTABLISHED = auto()


# -- what both roles compute ----------------------------------------------------------------------


@dataclass(slots=True)
class _Exchange:
    """The values that HASH_I and HASH_R cover, as they become known."""

    cky_i: bytes
    cky_r: bytes = NO_COOKIE
    sai_b: bytes = b""
    doi: int = Doi.GDOI
    terms: Terms | None = None
    lifetime: int = 0
    g_xi: bytes = b""
    g_xr: bytes = b""
    ni_b: bytes = field(default=b"", repr=False)
    nr_b: bytes = field(default=b"", repr=False)
    keys: KeyMaterial | None = None
    iv: bytes = field(default=b"", repr=False)
    begun: float = 0.0
    vendor_ids: frozenset[bytes] = frozenset()
    asked: bool = False  # for our certificate

    def header(self, flags: Flags = Flags.NONE) -> Header:
        return Header(self.cky_i, self.cky_r, PayloadType.NONE, ExchangeType.MAIN_MODE, flags)

    def chosen(self) -> Terms:
        if self.terms is None:
            raise AssertionError("terms before message 2")
        return self.terms

    @property
    def suite(self) -> Suite:
        return self.chosen().suite

    def way(self, config: Phase1Config) -> Authentication:
        return config.authentication(self.chosen().method)

    def prove(self, config: Phase1Config, digest: Digest, beside: Sequence[Body]) -> bytes:
        """Message 5 or 6; what stands ``beside`` the proof is covered by no HASH."""
        method = self.chosen().method
        proof = self.way(config).prove(method, digest, asked=self.asked)
        return self.encrypt([*proof, *beside])

    def verify(
        self, config: Phase1Config, message: Message, digest: Digest, host: IPAddress, now: float
    ) -> Identity:
        return self.way(config).verify(self.chosen().method, message, digest, host, now)

    def material(self) -> KeyMaterial:
        if self.keys is None:
            raise AssertionError("keys before message 4")
        return self.keys

    def compute_keys(self, config: Phase1Config, g_xy: Secret) -> None:
        suite = self.suite
        skeyid = self.way(config).skeyid(suite.hash, self.ni_b, self.nr_b, g_xy)
        self.keys = derive(
            suite.hash, skeyid, g_xy.reveal(), self.cky_i, self.cky_r, suite.key_length // 8
        )
        self.iv = phase1_iv(suite.hash, self.g_xi, self.g_xr)

    def hash_i(self, id_b: bytes, algorithm: Hash | None = None) -> bytes:
        # HASH_I = prf(SKEYID, g^xi | g^xr | CKY-I | CKY-R | SAi_b | IDii_b)
        data = self.g_xi + self.g_xr + self.cky_i + self.cky_r + self.sai_b + id_b
        return prf(algorithm or self.suite.hash, self.material().skeyid.reveal(), data)

    def hash_r(self, id_b: bytes, algorithm: Hash | None = None) -> bytes:
        # HASH_R = prf(SKEYID, g^xr | g^xi | CKY-R | CKY-I | SAi_b | IDir_b)
        data = self.g_xr + self.g_xi + self.cky_r + self.cky_i + self.sai_b + id_b
        return prf(algorithm or self.suite.hash, self.material().skeyid.reveal(), data)

    def decrypt(self, header: Header, datagram: bytes) -> Message:
        body = datagram[HEADER_LENGTH:]
        if not body or len(body) % cipher.BLOCK:
            raise DecodeError(f"encrypted body of {len(body)} octets", HEADER_LENGTH)
        plain = cipher.decrypt(self.material().encryption_key.reveal(), self.iv, body)
        return pull_decrypted(header, plain, cipher.BLOCK)

    def encrypt(self, payloads: Sequence[Body]) -> bytes:
        plain = encode_chain(payloads)
        body = cipher.encrypt(self.material().encryption_key.reveal(), self.iv, plain)
        self.iv = body[-cipher.BLOCK :]
        return with_body(self.header(Flags.ENCRYPTION), payloads[0].TYPE, body)

    def note(self, message: Message) -> None:
        """What a message says besides. Raises DecodeError, and has noted nothing then."""
        self.asked |= asks_for_certificate(message)
        self.vendor_ids |= vendor.announced_in(message)

    def notify(self, kind: NotifyType, data: bytes = b"") -> Notification:
        """Stands in message 5 or 6 (RFC 2407 section 4.6.3): encrypted, covered by no HASH."""
        return status_notification(self.cky_i + self.cky_r, kind, data)

    def detection(self, path: Path, traversal: Traversal) -> Detection:
        forced = traversal is Traversal.FORCED
        return Detection(self.suite.hash, self.cky_i, self.cky_r, path, forced)

    def established(
        self, path: Path, nat: Nat, identity: Identity, now: float, *, initiator: bool
    ) -> IsakmpSa:
        return IsakmpSa(
            cky_i=self.cky_i,
            cky_r=self.cky_r,
            suite=self.suite,
            keys=self.material(),
            last_block=self.iv,
            local=path.local,
            remote=path.remote,
            remote_identity=identity,
            expires=now + self.lifetime,
            doi=self.doi,
            begun=self.begun,
            established=now,
            initiator=initiator,
            peer_dpd=DEAD_PEER_DETECTION in self.vendor_ids,
            method=self.chosen().method,
            nat=nat,
        )


def _notifications(message: Message) -> tuple[Notification, ...]:
    """Those beside the proof in message 5 or 6. No HASH covers them: what is none is left out."""
    found = []
    for payload in message.all(PayloadType.NOTIFY):
        with suppress(DecodeError):
            found.append(payload.parse(Notification))
    return tuple(found)


def _read_ke(exchange: _Exchange, message: Message) -> tuple[bytes, bytes]:
    public = message.first(PayloadType.KE).parse(KeyExchange).data
    nonce = message.first(PayloadType.NONCE).parse(Nonce).data
    if len(public) != groups.public_length(exchange.suite.group):
        raise groups.BadPublicValue(f"KE payload of {len(public)} octets")
    return public, nonce


def check_phase1_header(header: Header) -> None:
    # RFC 2408 section 3.1: the message ID is zero in phase 1.
    if header.message_id:
        raise DecodeError(f"main mode with message id 0x{header.message_id:08x}", 20)


# -- initiator -----------------------------------------------------------------------------------


class Initiator:
    """The group member's side. ``receive`` gives the next message, or None once ``sa`` is set;
    ``notifications`` are what the responder told with its proof.

    A message that does not fit raises and leaves the exchange as it was.
    """

    def __init__(
        self,
        config: Phase1Config,
        path: Path,
        cky_i: bytes,
        nonce: bytes,
        *,
        moved: Path | None = None,
        initial_contact: bool = False,
    ) -> None:
        """``moved``: the path to take if there is a NAT, None where NAT traversal is off."""
        self._config = config
        self._initial_contact = initial_contact
        self.path, self._moved = path, moved
        self._traversal = Traversal.OFF if moved is None else config.nat
        self._nat = NO_NAT
        self._x = _Exchange(cky_i, doi=config.dois[0], ni_b=nonce, lifetime=config.lifetime)
        self._private: groups.PrivateValue | None = None
        self._offer = offer(config)
        self.state = State.SENT_SA
        self.sa: IsakmpSa | None = None
        self.notifications: tuple[Notification, ...] = ()

    @property
    def cky_i(self) -> bytes:
        return self._x.cky_i

    def start(self) -> bytes:
        """Message 1."""
        self._x.sai_b = encode_body(self._offer)
        return encode_clear(self._x.header(), [self._offer, *vendor.announcement(self._traversal)])

    def receive(self, header: Header, datagram: bytes, now: float) -> bytes | None:
        """Raises DecodeError, ProtocolError, AuthError, BadPublicValue."""
        check_phase1_header(header)
        if self.state is State.SENT_SA:
            return self._message_2(header, datagram)
        if header.cky_r != self._x.cky_r:
            raise ProtocolError("responder cookie changed", "RFC 2408 section 5.2")
        if self.state is State.SENT_KE:
            return self._message_4(header, datagram)
        if self.state is State.SENT_AUTH:
            self._message_6(header, datagram, now)
            return None
        raise ProtocolError("phase 1 is complete", "RFC 2409 section 5")

    def _message_2(self, header: Header, datagram: bytes) -> bytes:
        message = pull_clear(header, datagram)
        rules.check(rules.MAIN_MODE[2], message)
        if header.cky_r == NO_COOKIE:
            raise ProtocolError("message 2 without responder cookie", "RFC 2408 section 2.5.3")
        sa = message.first(PayloadType.SA).parse(SecurityAssociation)
        terms = check_choice(self._offer, sa)
        self._x.note(message)
        private = groups.generate(terms.suite.group)
        self._x.cky_r = header.cky_r
        self._x.terms = terms
        self._private = private
        self._x.g_xi = private.public
        self.state = State.SENT_KE
        payloads: list[Body] = [KeyExchange(self._x.g_xi), Nonce(self._x.ni_b)]
        payloads += self._x.way(self._config).requests()
        if NAT_TRAVERSAL not in self._x.vendor_ids:
            self._traversal = Traversal.OFF
        if self._traversal is not Traversal.OFF:
            payloads += self._x.detection(self.path, self._traversal).payloads()
        return encode_clear(self._x.header(), payloads)

    def _message_4(self, header: Header, datagram: bytes) -> bytes:
        message = pull_clear(header, datagram)
        rules.check(rules.MAIN_MODE[4], message)
        public, nonce = _read_ke(self._x, message)
        received = hashes(message)
        if self._private is None:
            raise AssertionError("private value before message 2")
        shared = self._private.shared(public)
        self._x.note(message)
        if received and self._traversal is not Traversal.OFF:
            self._nat = self._x.detection(self.path, self._traversal).judge(received)
        if self._nat.found and self._moved is not None:
            # RFC 3947 section 4: "the initiator MUST change ports when sending the ID payload"
            self.path = self._moved
        self._x.g_xr, self._x.nr_b = public, nonce
        self._x.compute_keys(self._config, shared)
        self.state = State.SENT_AUTH
        contact = [self._x.notify(NotifyType.INITIAL_CONTACT)] if self._initial_contact else []
        return self._x.prove(self._config, self._x.hash_i, contact)

    def _message_6(self, header: Header, datagram: bytes, now: float) -> None:
        message = self._x.decrypt(header, datagram)
        identity = self._x.verify(self._config, message, self._x.hash_r, self.path.remote.host, now)
        self._x.iv = datagram[-cipher.BLOCK :]
        self.state = State.ESTABLISHED
        self.notifications = _notifications(message)
        self.sa = self._x.established(self.path, self._nat, identity, now, initiator=True)


# -- responder -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What messages 1 and 2 settle, for any two peers that say the same.

    ``octets``: message 2 after its cookies. ``lifetime`` in seconds, ``shorter`` than was offered.
    """

    octets: bytes
    sai_b: bytes
    doi: int
    terms: Terms
    lifetime: int
    shorter: bool
    vendor_ids: frozenset[bytes]


def answer_offer(message: Message, config: Phase1Config) -> Answer:
    """The responder's choice from message 1. Raises DecodeError, ProtocolError."""
    payload = message.first(PayloadType.SA)
    sa = payload.parse(SecurityAssociation)
    proposal, transform, terms = choose(sa, config)
    # The transform goes back as it came, number included: peers compare octets.
    chosen = Proposal(proposal.number, proposal.protocol_id, proposal.spi, (transform,))
    header = Header(message.header.cky_i, NO_COOKIE, PayloadType.NONE, ExchangeType.MAIN_MODE)
    choice = SecurityAssociation(sa.doi, sa.situation, (chosen,))
    reply = encode_clear(header, [choice, *vendor.announcement(config.nat)])
    return Answer(
        octets=reply[2 * COOKIE_LENGTH :],
        sai_b=payload.body,
        doi=sa.doi,
        terms=terms,
        lifetime=min(config.lifetime, terms.lifetime or config.lifetime),
        shorter=terms.lifetime is not None and config.lifetime < terms.lifetime,
        vendor_ids=vendor.announced_in(message),
    )


class Responder:
    """The key server's side from message 3 on: before that it keeps nothing.

    Every ``receive`` that does not raise gives the reply to send. A repeated request is answered
    with the stored reply and computed only once.
    """

    def __init__(
        self,
        config: Phase1Config,
        path: Path,
        cookies: bytes,
        answer: Answer,
        nonce: bytes,
    ) -> None:
        self._config = config
        self._path = path
        self._nat = NO_NAT
        self._x = _Exchange(
            cookies[:COOKIE_LENGTH],
            cookies[COOKIE_LENGTH:],
            sai_b=answer.sai_b,
            doi=answer.doi,
            terms=answer.terms,
            lifetime=answer.lifetime,
            nr_b=nonce,
            vendor_ids=answer.vendor_ids,
        )
        self._shorter = answer.shorter
        # By fingerprint: a request may be long.
        self._answered: dict[bytes, bytes] = {}
        self.state = State.SENT_SA
        self.sa: IsakmpSa | None = None
        self.notifications: tuple[Notification, ...] = ()

    @property
    def cookies(self) -> bytes:
        return self._x.cky_i + self._x.cky_r

    def replay(self, datagram: bytes) -> bytes | None:
        """The stored reply to a request that has been answered before."""
        return self._answered.get(fingerprint(datagram))

    @property
    def moves(self) -> bool:
        """Whether message 5 may come another way than those before (RFC 3947 section 4)."""
        return self._nat.found and self.state is State.SENT_KE

    def receive(self, header: Header, datagram: bytes, path: Path, now: float) -> bytes:
        """``path`` is the one it came. Raises DecodeError, ProtocolError, AuthError,
        BadPublicValue."""
        check_phase1_header(header)
        if self.state is State.SENT_SA:
            reply = self._message_3(header, datagram, now)
        elif self.state is State.SENT_KE:
            reply = self._message_5(header, datagram, path, now)
        else:
            raise ProtocolError("phase 1 is complete", "RFC 2409 section 5")
        self._answered[fingerprint(datagram)] = reply
        return reply

    def _message_3(self, header: Header, datagram: bytes, now: float) -> bytes:
        message = pull_clear(header, datagram)
        rules.check(rules.MAIN_MODE[3], message)
        public, nonce = _read_ke(self._x, message)
        received = hashes(message)
        private = groups.generate(self._x.suite.group)
        shared = private.shared(public)
        self._x.note(message)
        self._x.g_xi, self._x.ni_b, self._x.g_xr = public, nonce, private.public
        self._x.begun = now
        self._x.compute_keys(self._config, shared)
        self.state = State.SENT_KE
        payloads: list[Body] = [KeyExchange(self._x.g_xr), Nonce(self._x.nr_b)]
        payloads += self._x.way(self._config).requests()
        traversal = self._config.nat
        if received and traversal is not Traversal.OFF and NAT_TRAVERSAL in self._x.vendor_ids:
            detection = self._x.detection(self._path, traversal)
            self._nat = detection.judge(received)
            payloads += detection.payloads()
        return encode_clear(self._x.header(), payloads)

    def _message_5(self, header: Header, datagram: bytes, path: Path, now: float) -> bytes:
        message = self._x.decrypt(header, datagram)
        identity = self._x.verify(self._config, message, self._x.hash_i, path.remote.host, now)
        self._x.note(message)
        self._x.iv = datagram[-cipher.BLOCK :]
        told = []
        if self._shorter:
            data = lifetime_data(self._x.lifetime)
            told.append(self._x.notify(NotifyType.RESPONDER_LIFETIME, data))
        reply = self._x.prove(self._config, self._x.hash_r, told)
        self.state = State.ESTABLISHED
        self.notifications = _notifications(message)
        self.sa = self._x.established(path, self._nat, identity, now, initiator=False)
        return reply
