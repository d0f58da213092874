"""ISAKMP main mode with a pre-shared key, both roles: RFC 2409 sections 5 and 5.4, RFC 6407 2.1.

::

    Initiator                          Responder
    HDR, SA                  (1) -->
                                 <-- (2)  HDR, SA
    HDR, KE, Ni              (3) -->
                                 <-- (4)  HDR, KE, Nr
    HDR*, IDii, HASH_I       (5) -->
                                 <-- (6)  HDR*, IDir, HASH_R
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from ..crypto import cipher, groups
from ..crypto.cookie import fingerprint
from ..crypto.keymat import KeyMaterial, derive, phase1_iv, skeyid_pre_shared
from ..crypto.prf import equal, prf
from ..crypto.secret import Secret
from ..wire import attributes as attr
from ..wire.attributes import Attribute
from ..wire.buffer import DecodeError
from ..wire.header import COOKIE_LENGTH, HEADER_LENGTH, NO_COOKIE, Header
from ..wire.identification import Identification
from ..wire.message import Message, encode_clear, pull_clear, pull_decrypted, with_body
from ..wire.opaque import Hash as HashPayload
from ..wire.opaque import KeyExchange, Nonce
from ..wire.payload import encode_body, encode_chain
from ..wire.registry import (
    AuthMethod,
    Doi,
    Encryption,
    ExchangeType,
    Flags,
    Group,
    Hash,
    LifeType,
    NotifyType,
    PayloadType,
    PhaseOneAttribute,
    PhaseOneTransform,
    Protocol,
)
from ..wire.sa import Proposal, SecurityAssociation, Transform
from . import rules
from .actions import Peer
from .errors import AuthError, ProtocolError
from .identity import Identity
from .isakmp import IsakmpSa, Suite

SIT_IDENTITY_ONLY = 1  # RFC 2407 section 4.2.1
NONCE_LENGTH = 32
A = PhaseOneAttribute


class State(Enum):
    """Named for what has happened."""

    SENT_SA = auto()
    SENT_KE = auto()
    SENT_AUTH = auto()
    ESTABLISHED = auto()


@dataclass(frozen=True, slots=True)
class Phase1Config:
    """One side's phase-1 policy towards one peer. ``lifetime`` in seconds.

    ``dois``: an initiator offers the first, a responder takes any of them.
    """

    local_identity: Identity
    remote_identity: Identity
    psk: Secret
    suites: tuple[Suite, ...]
    lifetime: int = 86400
    dois: tuple[Doi, ...] = (Doi.GDOI,)

    @property
    def negotiation(self) -> Hashable:
        """All of it that the answer to a proposal depends on."""
        return self.suites, self.lifetime, self.dois


# -- transforms ----------------------------------------------------------------------------------


def _transform(number: int, suite: Suite, lifetime: int) -> Transform:
    return Transform(
        number,
        PhaseOneTransform.KEY_IKE,
        (
            Attribute(A.ENCRYPTION_ALGORITHM, suite.encryption),
            Attribute(A.KEY_LENGTH, suite.key_length),
            Attribute(A.HASH_ALGORITHM, suite.hash),
            Attribute(A.AUTHENTICATION_METHOD, AuthMethod.PRE_SHARED_KEY),
            Attribute(A.GROUP_DESCRIPTION, suite.group),
            Attribute(A.LIFE_TYPE, LifeType.SECONDS),
            attr.uint32(A.LIFE_DURATION, lifetime),
        ),
    )


def offer(config: Phase1Config) -> SecurityAssociation:
    """One proposal, no SPI, a transform per suite: what every implementation understands."""
    transforms = tuple(
        _transform(number, suite, config.lifetime) for number, suite in enumerate(config.suites, 1)
    )
    proposal = Proposal(1, Protocol.PROTO_ISAKMP, b"", transforms)
    # RFC 6407 section 5.2: "Situation (4 octets) -- MUST be zero"; others insist on it.
    doi = config.dois[0]
    situation = SIT_IDENTITY_ONLY if doi == Doi.IPSEC else 0
    return SecurityAssociation(doi, situation, (proposal,))


def read_transform(transform: Transform) -> tuple[Suite, int | None] | None:
    """The suite and the lifetime (seconds) of an offered transform, None for what we do not do.

    An attribute we do not know makes the transform unacceptable (RFC 2408 section 3.6), not the
    message. Raises DecodeError only for an attribute of impossible form.
    """
    if transform.transform_id != PhaseOneTransform.KEY_IKE:
        return None
    values: dict[int, int] = {}
    lifetime: int | None = None
    life_type = 0
    for attribute in transform.attributes:
        if attribute.type == A.LIFE_TYPE:
            life_type = attribute.number()
        elif attribute.type == A.LIFE_DURATION:
            if life_type == LifeType.SECONDS:
                lifetime = attribute.number()
        elif attribute.type in values:
            return None
        else:
            values[attribute.type] = attribute.number()
    try:
        suite = Suite(
            Encryption(values.pop(A.ENCRYPTION_ALGORITHM)),
            values.pop(A.KEY_LENGTH),
            Hash(values.pop(A.HASH_ALGORITHM)),
            Group(values.pop(A.GROUP_DESCRIPTION)),
        )
        AuthMethod(values.pop(A.AUTHENTICATION_METHOD))
    except (KeyError, ValueError):
        return None
    return None if values else (suite, lifetime)


def describe(sa: SecurityAssociation) -> str:
    """What a peer offered, for the log of a refusal: attribute numbers as they came."""
    words = []
    for proposal in sa.proposals:
        for transform in proposal.transforms:
            numbers = {a.type: a.value for a in transform.attributes if isinstance(a.value, int)}
            names = (
                ("enc", A.ENCRYPTION_ALGORITHM),
                ("len", A.KEY_LENGTH),
                ("hash", A.HASH_ALGORITHM),
                ("auth", A.AUTHENTICATION_METHOD),
                ("group", A.GROUP_DESCRIPTION),
            )
            words.append("/".join(f"{n}={numbers[k]}" for n, k in names if k in numbers))
    return ", ".join(words[:8]) + (" ..." if len(words) > 8 else "")


def choose(
    sa: SecurityAssociation, suites: Sequence[Suite], dois: Sequence[Doi]
) -> tuple[Proposal, Transform, Suite, int | None]:
    """The responder's choice: its own first preference among what was offered."""
    found: dict[Suite, tuple[Proposal, Transform, Suite, int | None]] = {}
    if sa.doi in dois:
        for proposal in sa.proposals:
            if proposal.protocol_id != Protocol.PROTO_ISAKMP:
                continue
            for transform in proposal.transforms:
                read = read_transform(transform)
                if read is not None and read[0] not in found:
                    found[read[0]] = (proposal, transform, *read)
    for suite in suites:
        if suite in found:
            return found[suite]
    raise ProtocolError(
        f"DOI {sa.doi}, offered {describe(sa) or 'nothing'}",
        "RFC 2408 section 5.4",
        NotifyType.NO_PROPOSAL_CHOSEN,
    )


# -- what both roles compute ----------------------------------------------------------------------


@dataclass(slots=True)
class _Exchange:
    """The values that HASH_I and HASH_R cover, as they become known."""

    cky_i: bytes
    cky_r: bytes = NO_COOKIE
    sai_b: bytes = b""
    doi: int = Doi.GDOI
    suite: Suite | None = None
    lifetime: int = 0
    g_xi: bytes = b""
    g_xr: bytes = b""
    ni_b: bytes = field(default=b"", repr=False)
    nr_b: bytes = field(default=b"", repr=False)
    keys: KeyMaterial | None = None
    iv: bytes = field(default=b"", repr=False)

    def header(self, flags: Flags = Flags.NONE) -> Header:
        return Header(self.cky_i, self.cky_r, PayloadType.NONE, ExchangeType.MAIN_MODE, flags)

    def chosen(self) -> Suite:
        if self.suite is None:
            raise AssertionError("suite before message 2")
        return self.suite

    def material(self) -> KeyMaterial:
        if self.keys is None:
            raise AssertionError("keys before message 4")
        return self.keys

    def compute_keys(self, psk: Secret, g_xy: Secret) -> None:
        suite = self.chosen()
        skeyid = skeyid_pre_shared(suite.hash, psk, self.ni_b, self.nr_b)
        self.keys = derive(
            suite.hash, skeyid, g_xy.reveal(), self.cky_i, self.cky_r, suite.key_length // 8
        )
        self.iv = phase1_iv(suite.hash, self.g_xi, self.g_xr)

    def hash_i(self, idii_b: bytes) -> bytes:
        # HASH_I = prf(SKEYID, g^xi | g^xr | CKY-I | CKY-R | SAi_b | IDii_b)
        data = self.g_xi + self.g_xr + self.cky_i + self.cky_r + self.sai_b + idii_b
        return prf(self.chosen().hash, self.material().skeyid.reveal(), data)

    def hash_r(self, idir_b: bytes) -> bytes:
        # HASH_R = prf(SKEYID, g^xr | g^xi | CKY-R | CKY-I | SAi_b | IDir_b)
        data = self.g_xr + self.g_xi + self.cky_r + self.cky_i + self.sai_b + idir_b
        return prf(self.chosen().hash, self.material().skeyid.reveal(), data)

    def decrypt(self, header: Header, datagram: bytes) -> Message:
        body = datagram[HEADER_LENGTH:]
        if not body or len(body) % cipher.BLOCK:
            raise DecodeError(f"encrypted body of {len(body)} octets", HEADER_LENGTH)
        plain = cipher.decrypt(self.material().encryption_key.reveal(), self.iv, body)
        return pull_decrypted(header, plain, cipher.BLOCK)

    def encrypt(self, identity: Identification, digest: bytes) -> bytes:
        plain = encode_chain([identity, HashPayload(digest)])
        body = cipher.encrypt(self.material().encryption_key.reveal(), self.iv, plain)
        self.iv = body[-cipher.BLOCK :]
        return with_body(self.header(Flags.ENCRYPTION), PayloadType.ID, body)

    def authenticate(
        self, message: Message, expected: Identity, digest: Callable[[bytes], bytes]
    ) -> None:
        """HASH first, then the identity it covers. Raises AuthError."""
        identification = message.first(PayloadType.ID)
        given = message.first(PayloadType.HASH).parse(HashPayload).data
        if not equal(given, digest(identification.body)):
            raise AuthError("phase 1 HASH does not verify")
        identity = Identity.of_payload(identification.parse(Identification))
        if identity != expected:
            raise AuthError(f"peer proved to be {identity}, expected {expected}")

    def established(self, local: Peer, remote: Peer, identity: Identity, now: float) -> IsakmpSa:
        return IsakmpSa(
            cky_i=self.cky_i,
            cky_r=self.cky_r,
            suite=self.chosen(),
            keys=self.material(),
            last_block=self.iv,
            local=local,
            remote=remote,
            remote_identity=identity,
            expires=now + self.lifetime,
            doi=self.doi,
        )


def _read_ke(exchange: _Exchange, message: Message) -> tuple[bytes, bytes]:
    public = message.first(PayloadType.KE).parse(KeyExchange).data
    nonce = message.first(PayloadType.NONCE).parse(Nonce).data
    if len(public) != groups.public_length(exchange.chosen().group):
        raise groups.BadPublicValue(f"KE payload of {len(public)} octets")
    return public, nonce


def check_phase1_header(header: Header) -> None:
    # RFC 2408 section 3.1: the message ID is zero in phase 1.
    if header.message_id:
        raise DecodeError(f"main mode with message id 0x{header.message_id:08x}", 20)


# -- initiator -----------------------------------------------------------------------------------


class Initiator:
    """The group member's side. ``receive`` gives the next message, or None once ``sa`` is set.

    A message that does not fit raises and leaves the exchange as it was.
    """

    def __init__(
        self, config: Phase1Config, local: Peer, remote: Peer, cky_i: bytes, nonce: bytes
    ) -> None:
        self._config = config
        self._local, self._remote = local, remote
        self._x = _Exchange(cky_i, doi=config.dois[0], ni_b=nonce, lifetime=config.lifetime)
        self._private: groups.PrivateValue | None = None
        self._offer = offer(config)
        self.state = State.SENT_SA
        self.sa: IsakmpSa | None = None

    @property
    def cky_i(self) -> bytes:
        return self._x.cky_i

    def start(self) -> bytes:
        """Message 1."""
        self._x.sai_b = encode_body(self._offer)
        return encode_clear(self._x.header(), [self._offer])

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
        suite = self._chosen(sa)
        private = groups.generate(suite.group)
        self._x.cky_r = header.cky_r
        self._x.suite = suite
        self._private = private
        self._x.g_xi = private.public
        self.state = State.SENT_KE
        return encode_clear(self._x.header(), [KeyExchange(self._x.g_xi), Nonce(self._x.ni_b)])

    def _chosen(self, sa: SecurityAssociation) -> Suite:
        """RFC 2408 section 4.2: exactly one of the offered transforms, unchanged."""
        if sa.doi != self._x.doi or len(sa.proposals) != 1:
            raise ProtocolError("message 2 is no choice of our proposal", "RFC 2408 section 4.2")
        (proposal,) = sa.proposals
        if len(proposal.transforms) != 1 or proposal.protocol_id != Protocol.PROTO_ISAKMP:
            raise ProtocolError("message 2 has not one transform", "RFC 2408 section 4.2")
        read = read_transform(proposal.transforms[0])
        if read is None or read[0] not in self._config.suites:
            raise ProtocolError(
                f"peer chose what was not offered: {describe(sa)}", "RFC 2408 section 4.2"
            )
        # RFC 2409 section 5: "If the initiator of an exchange notices that attribute values have
        # changed [...] from an offer made, that response MUST be rejected." HASH_R would not tell.
        if read[1] != self._config.lifetime:
            raise ProtocolError(f"peer changed the lifetime to {read[1]}", "RFC 2409 section 5")
        return read[0]

    def _message_4(self, header: Header, datagram: bytes) -> bytes:
        message = pull_clear(header, datagram)
        rules.check(rules.MAIN_MODE[4], message)
        public, nonce = _read_ke(self._x, message)
        if self._private is None:
            raise AssertionError("private value before message 2")
        shared = self._private.shared(public)
        self._x.g_xr, self._x.nr_b = public, nonce
        self._x.compute_keys(self._config.psk, shared)
        self.state = State.SENT_AUTH
        identity = self._config.local_identity.payload()
        return self._x.encrypt(identity, self._x.hash_i(encode_body(identity)))

    def _message_6(self, header: Header, datagram: bytes, now: float) -> None:
        message = self._x.decrypt(header, datagram)
        rules.check(rules.MAIN_MODE[6], message)
        self._x.authenticate(message, self._config.remote_identity, self._x.hash_r)
        self._x.iv = datagram[-cipher.BLOCK :]
        self.state = State.ESTABLISHED
        self.sa = self._x.established(self._local, self._remote, self._config.remote_identity, now)


# -- responder -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What messages 1 and 2 settle, for any two peers that say the same.

    ``octets``: message 2 after its cookies. ``lifetime`` in seconds.
    """

    octets: bytes
    sai_b: bytes
    doi: int
    suite: Suite
    lifetime: int


def answer_offer(message: Message, config: Phase1Config) -> Answer:
    """The responder's choice from message 1. Raises DecodeError, ProtocolError."""
    payload = message.first(PayloadType.SA)
    sa = payload.parse(SecurityAssociation)
    proposal, transform, suite, lifetime = choose(sa, config.suites, config.dois)
    # The transform goes back as it came, number included: peers compare octets.
    chosen = Proposal(proposal.number, proposal.protocol_id, proposal.spi, (transform,))
    header = Header(message.header.cky_i, NO_COOKIE, PayloadType.NONE, ExchangeType.MAIN_MODE)
    reply = encode_clear(header, [SecurityAssociation(sa.doi, sa.situation, (chosen,))])
    return Answer(
        octets=reply[2 * COOKIE_LENGTH :],
        sai_b=payload.body,
        doi=sa.doi,
        suite=suite,
        lifetime=min(config.lifetime, lifetime or config.lifetime),
    )


class Responder:
    """The key server's side from message 3 on: before that it keeps nothing.

    Every ``receive`` that does not raise gives the reply to send. A repeated request is answered
    with the stored reply and computed only once.
    """

    def __init__(
        self,
        config: Phase1Config,
        local: Peer,
        remote: Peer,
        cookies: bytes,
        answer: Answer,
        nonce: bytes,
    ) -> None:
        self._config = config
        self._local, self._remote = local, remote
        self._x = _Exchange(
            cookies[:COOKIE_LENGTH],
            cookies[COOKIE_LENGTH:],
            sai_b=answer.sai_b,
            doi=answer.doi,
            suite=answer.suite,
            lifetime=answer.lifetime,
            nr_b=nonce,
        )
        # By fingerprint: a request may be long.
        self._answered: dict[bytes, bytes] = {}
        self.state = State.SENT_SA
        self.sa: IsakmpSa | None = None

    @property
    def cookies(self) -> bytes:
        return self._x.cky_i + self._x.cky_r

    def replay(self, datagram: bytes) -> bytes | None:
        """The stored reply to a request that has been answered before."""
        return self._answered.get(fingerprint(datagram))

    def receive(self, header: Header, datagram: bytes, now: float) -> bytes:
        """Raises DecodeError, ProtocolError, AuthError, BadPublicValue."""
        check_phase1_header(header)
        if self.state is State.SENT_SA:
            reply = self._message_3(header, datagram)
        elif self.state is State.SENT_KE:
            reply = self._message_5(header, datagram, now)
        else:
            raise ProtocolError("phase 1 is complete", "RFC 2409 section 5")
        self._answered[fingerprint(datagram)] = reply
        return reply

    def _message_3(self, header: Header, datagram: bytes) -> bytes:
        message = pull_clear(header, datagram)
        rules.check(rules.MAIN_MODE[3], message)
        public, nonce = _read_ke(self._x, message)
        private = groups.generate(self._x.chosen().group)
        shared = private.shared(public)
        self._x.g_xi, self._x.ni_b, self._x.g_xr = public, nonce, private.public
        self._x.compute_keys(self._config.psk, shared)
        self.state = State.SENT_KE
        return encode_clear(self._x.header(), [KeyExchange(self._x.g_xr), Nonce(self._x.nr_b)])

    def _message_5(self, header: Header, datagram: bytes, now: float) -> bytes:
        message = self._x.decrypt(header, datagram)
        rules.check(rules.MAIN_MODE[5], message)
        self._x.authenticate(message, self._config.remote_identity, self._x.hash_i)
        self._x.iv = datagram[-cipher.BLOCK :]
        identity = self._config.local_identity.payload()
        reply = self._x.encrypt(identity, self._x.hash_r(encode_body(identity)))
        self.state = State.ESTABLISHED
        self.sa = self._x.established(self._local, self._remote, self._config.remote_identity, now)
        return reply


def parse_suites(keywords: Iterable[str], known: dict[str, Suite]) -> tuple[Suite, ...]:
    """Suites by swanctl keyword; raises ValueError naming what is allowed."""
    found = []
    for keyword in keywords:
        if keyword not in known:
            raise ValueError(f"{keyword!r} is none of {', '.join(sorted(known))}")
        found.append(known[keyword])
    return tuple(found)
