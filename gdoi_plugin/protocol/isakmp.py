"""The ISAKMP SA that phase 1 leaves behind, and the protection it gives to phase-2 messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..crypto import cipher
from ..crypto.keymat import KeyMaterial, phase2_iv
from ..crypto.prf import equal, prf
from ..wire.buffer import DecodeError
from ..wire.delete import Delete
from ..wire.header import HEADER_LENGTH, Header
from ..wire.message import Message, pull_decrypted, with_body
from ..wire.notification import Notification
from ..wire.opaque import Hash as HashPayload
from ..wire.payload import Body, encode_chain
from ..wire.registry import (
    FIRST_STATUS_NOTIFY,
    AuthMethod,
    Doi,
    Encryption,
    ExchangeType,
    Flags,
    Group,
    Hash,
    NotifyType,
    PayloadType,
    Protocol,
    name_of,
)
from . import rules
from .actions import Event, Peer
from .errors import AuthError, ProtocolError
from .identity import Identity
from .nat import NO_NAT, Nat, Path


@dataclass(frozen=True, slots=True)
class Suite:
    """One phase-1 transform. ``keyword`` is swanctl's, e.g. ``aes256-sha256-ecp256``."""

    encryption: Encryption
    key_length: int  # bits
    hash: Hash
    group: Group

    @property
    def keyword(self) -> str:
        group = self.group.name.lower().replace("_", "")
        return f"aes{self.key_length}-{self.hash.name.lower().replace('sha2_', 'sha')}-{group}"


SUITES = {
    suite.keyword: suite
    for suite in (
        Suite(Encryption.AES_CBC, length, algorithm, group)
        for length in (128, 256)
        for algorithm in Hash
        for group in Group
    )
}


@dataclass(frozen=True, slots=True)
class IsakmpSa:
    """An established phase-1 SA. ``last_block`` seeds every phase-2 IV (RFC 2409 appendix B).

    ``begun``: when its exchange began; ``initiator``: whether that was this side's doing;
    ``peer_dpd``: the peer announced RFC 3706.
    """

    cky_i: bytes
    cky_r: bytes
    suite: Suite
    keys: KeyMaterial
    last_block: bytes
    local: Peer
    remote: Peer
    remote_identity: Identity
    expires: float
    doi: int = Doi.GDOI
    begun: float = 0.0
    established: float = 0.0
    initiator: bool = False
    peer_dpd: bool = False
    method: AuthMethod = AuthMethod.PRE_SHARED_KEY
    nat: Nat = NO_NAT

    @property
    def path(self) -> Path:
        return Path(self.local, self.remote)

    @property
    def cookies(self) -> bytes:
        return self.cky_i + self.cky_r

    def iv(self, message_id: int) -> bytes:
        return phase2_iv(self.suite.hash, self.last_block, message_id)

    def prf(self, data: bytes) -> bytes:
        """prf(SKEYID_a, data): every HASH(n) of phase 2."""
        return prf(self.suite.hash, self.keys.skeyid_a.reveal(), data)

    def event(self, name: str, level: str = "info", **more: str) -> Event:
        """For the log: who is at the other end, and what protects the talk."""
        fields = {
            "peer": str(self.remote),
            "identity": str(self.remote_identity),
            "cookies": self.cookies.hex(),
            "proposal": self.suite.keyword,
            "auth": name_of(AuthMethod, self.method).lower(),
            "doi": name_of(Doi, self.doi).lower(),
        }
        if self.nat.found:
            fields["nat"] = str(self.nat)
        return Event(name, more | fields, level)


@dataclass(slots=True)
class Phase2Channel:
    """The CBC chain of one phase-2 exchange: each message's IV is the last block of the one before.

    ``decrypt`` moves nothing; ``accept`` does, once the message has proved itself.
    """

    sa: IsakmpSa
    exchange_type: ExchangeType
    message_id: int
    iv: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.iv = self.sa.iv(self.message_id)

    @property
    def mid(self) -> bytes:
        return self.message_id.to_bytes(4, "big")

    def decrypt(self, header: Header, datagram: bytes) -> Message:
        """Raises DecodeError."""
        body = datagram[HEADER_LENGTH:]
        if not header.encrypted or not body or len(body) % cipher.BLOCK:
            raise DecodeError(f"encrypted body of {len(body)} octets", HEADER_LENGTH)
        plain = cipher.decrypt(self.sa.keys.encryption_key.reveal(), self.iv, body)
        return pull_decrypted(header, plain, cipher.BLOCK)

    def verify(self, message: Message, prefix: bytes) -> None:
        """HASH(n) = prf(SKEYID_a, M-ID | prefix | everything after the HASH payload)."""
        given = message.first(PayloadType.HASH).parse(HashPayload).data
        rest = b"".join(p.octets for p in message.payloads[1:])
        if not equal(given, self.sa.prf(self.mid + prefix + rest)):
            raise AuthError(f"HASH of message id 0x{self.message_id:08x} does not verify")

    def prove(self, rule: rules.Rule, header: Header, datagram: bytes, prefix: bytes) -> Message:
        """Decrypted and verified, its payloads still unchecked. Raises DecodeError, AuthError."""
        message = self.decrypt(header, datagram)
        rules.check_flags(rule, message)
        if not message.kinds or message.kinds[0] != PayloadType.HASH:
            raise DecodeError(f"{rule.name}: HASH must come first", HEADER_LENGTH)
        self.verify(message, prefix)
        return message

    def open(self, rule: rules.Rule, header: Header, datagram: bytes, prefix: bytes) -> Message:
        """Raises DecodeError and AuthError for what proves nothing, and for an authentic message
        that breaks the rule ProtocolError with PAYLOAD-MALFORMED."""
        message = self.prove(rule, header, datagram, prefix)
        with authentic():
            rules.check_payloads(rule, message)
        return message

    def accept(self, datagram: bytes) -> None:
        self.iv = datagram[-cipher.BLOCK :]

    def seal(self, prefix: bytes, payloads: Sequence[Body]) -> bytes:
        """HDR*, HASH(n), payloads; moves the IV. Raises EncodeError for what is too large."""
        rest = encode_chain(payloads)
        digest = self.sa.prf(self.mid + prefix + rest)
        following = payloads[0].TYPE if payloads else PayloadType.NONE
        plain = encode_chain([HashPayload(digest)], following) + rest
        body = cipher.encrypt(self.sa.keys.encryption_key.reveal(), self.iv, plain)
        header = Header(
            self.sa.cky_i,
            self.sa.cky_r,
            PayloadType.HASH,
            self.exchange_type,
            Flags.ENCRYPTION,
            self.message_id,
        )
        datagram = with_body(header, PayloadType.HASH, body)
        self.iv = body[-cipher.BLOCK :]
        return datagram


@contextmanager
def authentic() -> Iterator[None]:
    """What is malformed in a message that has proved itself is told its sender."""
    try:
        yield
    except DecodeError as error:
        section, notify = "RFC 2408 section 5.1", NotifyType.PAYLOAD_MALFORMED
        raise ProtocolError(str(error), section, notify) from error


@dataclass(frozen=True, slots=True)
class Informational:
    """What a protected Informational exchange said."""

    notifications: tuple[Notification, ...]
    deletes: tuple[Delete, ...]


def open_informational(sa: IsakmpSa, header: Header, datagram: bytes) -> Informational:
    """HDR*, HASH(1), N/D with HASH(1) = prf(SKEYID_a, M-ID | N/D), RFC 2409 section 5.7.

    Raises DecodeError or AuthError.
    """
    channel = Phase2Channel(sa, ExchangeType.INFORMATIONAL, header.message_id)
    message = channel.decrypt(header, datagram)
    rules.check(rules.INFORMATIONAL, message)
    channel.verify(message, b"")
    return Informational(
        tuple(p.parse(Notification) for p in message.all(PayloadType.NOTIFY)),
        tuple(p.parse(Delete) for p in message.all(PayloadType.DELETE)),
    )


def status_notification(cookies: bytes, notify: NotifyType, data: bytes = b"") -> Notification:
    """The status types are the IPsec DOI's, whatever DOI the SA has (RFC 2407 section 4.6.3,
    RFC 3706 section 5.3)."""
    return Notification(Doi.IPSEC, Protocol.PROTO_ISAKMP, cookies, notify, data)


def seal_notify(sa: IsakmpSa, message_id: int, notify: NotifyType, data: bytes = b"") -> bytes:
    if notify < FIRST_STATUS_NOTIFY:
        payload = Notification(sa.doi, Protocol.PROTO_ISAKMP, sa.cookies, notify, data)
    else:
        payload = status_notification(sa.cookies, notify, data)
    channel = Phase2Channel(sa, ExchangeType.INFORMATIONAL, message_id)
    return channel.seal(b"", [payload])


def seal_delete(sa: IsakmpSa, message_id: int) -> bytes:
    """ "This ISAKMP SA is gone", RFC 2408 section 3.15: its SPI is the cookie pair."""
    payload = Delete(sa.doi, Protocol.PROTO_ISAKMP, (sa.cookies,))
    channel = Phase2Channel(sa, ExchangeType.INFORMATIONAL, message_id)
    return channel.seal(b"", [payload])


def clear_notify(header: Header, notify: NotifyType) -> bytes:
    """HDR, N before there are keys (RFC 2408 section 5.1): never believed, kept for people."""
    payload = Notification(Doi.GDOI, Protocol.PROTO_ISAKMP, header.spi, notify)
    answer = Header(header.cky_i, header.cky_r, PayloadType.NOTIFY, ExchangeType.INFORMATIONAL)
    return with_body(answer, PayloadType.NOTIFY, encode_chain([payload]))


def fresh_message_id(octets: bytes) -> int:
    """A message ID from 4 random octets; zero means phase 1 (RFC 2408 section 3.1)."""
    return int.from_bytes(octets, "big") or 1
