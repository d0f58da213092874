"""Phase-1 policy towards a peer, and how messages 5 and 6 prove who sends them (RFC 2409 5)."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from ..crypto.certificate import BadCertificate, Names, TrustStore, read_leaf
from ..crypto.keymat import skeyid_pre_shared, skeyid_signature
from ..crypto.phase1_signature import PrivateKey
from ..crypto.phase1_signature import verify as verify_signature
from ..crypto.prf import equal
from ..crypto.secret import Secret
from ..wire.certificate import Certificate, CertificateRequest
from ..wire.identification import Identification
from ..wire.message import Message
from ..wire.opaque import Hash as HashPayload
from ..wire.opaque import Signature
from ..wire.payload import Body, encode_body
from ..wire.registry import (
    AuthMethod,
    CertEncoding,
    Doi,
    Hash,
    IdType,
    NotifyType,
    PayloadType,
)
from . import rules
from .actions import IPAddress
from .errors import AuthError
from .identity import Identity
from .identity_pattern import IdentityPattern
from .isakmp import Suite
from .nat import Traversal

# CERTREQ payloads in one message; a daemon with more CAs than this asks for the first of them.
MAX_REQUESTS = 8


class Digest(Protocol):
    """HASH_I or HASH_R over the body of an ID payload (RFC 2409 section 5).

    With the prf of ``algorithm``, or of the hash that was negotiated.
    """

    def __call__(self, id_b: bytes, algorithm: Hash | None = None) -> bytes: ...


class Authentication(Protocol):
    """One way to authenticate main mode; holds what it takes and nothing of any exchange."""

    @property
    def methods(self) -> tuple[AuthMethod, ...]:
        """What it offers and accepts, its preference first."""
        ...

    def skeyid(self, algorithm: Hash, ni_b: bytes, nr_b: bytes, g_xy: Secret) -> Secret: ...

    def requests(self) -> list[Body]:
        """What message 3 or 4 asks the peer for, besides."""
        ...

    def prove(self, method: AuthMethod, digest: Digest, *, asked: bool) -> list[Body]:
        """The payloads of message 5 or 6, ID first. ``asked``: for a certificate."""
        ...

    def verify(
        self, method: AuthMethod, message: Message, digest: Digest, host: IPAddress, now: float
    ) -> Identity:
        """Who sent message 5 or 6 from ``host``, in canonical form. Raises DecodeError,
        AuthError."""
        ...


@dataclass(frozen=True, slots=True)
class PreSharedKey:
    """RFC 2409 section 5.4: whoever knows the key is the one expected.

    ``remote_identity`` None: the peer's own address. ``also``: others who have the same key. Behind
    one NAT it has to be one for all, since the address alone finds it (RFC 3947 section 8).
    """

    local_identity: Identity
    remote_identity: Identity | None
    psk: Secret
    also: frozenset[Identity] = frozenset()

    @property
    def methods(self) -> tuple[AuthMethod, ...]:
        return (AuthMethod.PRE_SHARED_KEY,)

    def skeyid(self, algorithm: Hash, ni_b: bytes, nr_b: bytes, g_xy: Secret) -> Secret:  # noqa: ARG002 -- of the signature methods
        return skeyid_pre_shared(algorithm, self.psk, ni_b, nr_b)

    def requests(self) -> list[Body]:
        return []

    def prove(self, method: AuthMethod, digest: Digest, *, asked: bool) -> list[Body]:  # noqa: ARG002 -- only one
        """IDii, HASH_I or IDir, HASH_R."""
        identity = self.local_identity.payload()
        return [identity, HashPayload(digest(encode_body(identity)))]

    def verify(
        self,
        method: AuthMethod,  # noqa: ARG002 -- only one
        message: Message,
        digest: Digest,
        host: IPAddress,
        now: float,  # noqa: ARG002 -- a key has no dates
    ) -> Identity:
        """HASH first, then the identity it covers."""
        rules.check(rules.AUTH_PRE_SHARED, message)
        identification = message.first(PayloadType.ID)
        given = message.first(PayloadType.HASH).parse(HashPayload).data
        if not equal(given, digest(identification.body)):
            what, notify = "phase 1 HASH does not verify", NotifyType.INVALID_HASH_INFORMATION
            raise AuthError(what, notify)
        identity = Identity.of_payload(identification.parse(Identification)).canonical
        expected = self.remote_identity or Identity.of_address(host)
        if not any(identity == each.canonical for each in (expected, *self.also)):
            what = f"peer proved to be {identity}, expected {expected}"
            raise AuthError(what, NotifyType.INVALID_ID_INFORMATION)
        return identity


class SendCertificate(StrEnum):
    """swanctl's ``send_cert``."""

    ALWAYS = "always"
    IFASKED = "ifasked"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Credential:
    """This side's key and certificates in DER, its own first, then CAs on the way to the root."""

    key: PrivateKey
    certificates: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Certificates:
    """RFC 2409 section 5.1, RFC 4754: a signature, and a certificate for its key.

    ``local_identity`` is a name of our certificate, ``remote`` the names a peer may have.
    ``trust`` is asked each time: CRLs change.
    """

    local_identity: Identity
    remote: IdentityPattern
    credential: Credential
    trust: Callable[[], TrustStore]
    send_cert: SendCertificate = SendCertificate.IFASKED
    send_certreq: bool = True

    @property
    def methods(self) -> tuple[AuthMethod, ...]:
        return (self.credential.key.method,)

    def skeyid(self, algorithm: Hash, ni_b: bytes, nr_b: bytes, g_xy: Secret) -> Secret:
        return skeyid_signature(algorithm, ni_b, nr_b, g_xy)

    def requests(self) -> list[Body]:
        if not self.send_certreq:
            return []
        names = self.trust().ca_names[:MAX_REQUESTS]
        return [CertificateRequest(CertEncoding.X509_SIGNATURE, name) for name in names]

    def prove(self, method: AuthMethod, digest: Digest, *, asked: bool) -> list[Body]:  # noqa: ARG002 -- only one
        """IDii, [CERT,] SIG_I or IDir, [CERT,] SIG_R."""
        identity = self.local_identity.payload()
        id_b = encode_body(identity)
        signature = self.credential.key.sign(lambda algorithm: digest(id_b, algorithm))
        payloads: list[Body] = [identity]
        if self.send_cert is SendCertificate.ALWAYS or (
            asked and self.send_cert is SendCertificate.IFASKED
        ):
            payloads += [
                Certificate(CertEncoding.X509_SIGNATURE, der)
                for der in self.credential.certificates
            ]
        return [*payloads, Signature(signature)]

    def verify(
        self,
        method: AuthMethod,
        message: Message,
        digest: Digest,
        host: IPAddress,  # noqa: ARG002 -- a certificate is good from everywhere
        now: float,
    ) -> Identity:
        """The signature first, then who stands for its key, then whether that is one we expect."""
        rules.check(rules.AUTH_SIGNATURE, message)
        identification = message.first(PayloadType.ID)
        identity = Identity.of_payload(identification.parse(Identification)).canonical
        chain = _certificates_of(message)
        if not chain:
            what, notify = f"{identity} sent no certificate", NotifyType.CERTIFICATE_UNAVAILABLE
            raise AuthError(what, notify)
        signature = message.first(PayloadType.SIG).parse(Signature).data
        try:
            leaf = read_leaf(chain[0])
            if not verify_signature(
                method,
                leaf.public_key,
                signature,
                lambda algorithm: digest(identification.body, algorithm),
            ):
                raise AuthError("phase 1 SIG does not verify", NotifyType.INVALID_SIGNATURE)
            self.trust().check(leaf, chain[1:], now)
        except BadCertificate as error:
            what = f"certificate of {identity}: {error}"
            raise AuthError(what, NotifyType.INVALID_CERTIFICATE) from None
        if not is_named(leaf.names, identity):
            what = f"{identity} is no name of the certificate that came with it"
            raise AuthError(what, NotifyType.INVALID_ID_INFORMATION)
        if not self.remote.matches(identity):
            what = f"peer proved to be {identity}, expected {self.remote}"
            raise AuthError(what, NotifyType.INVALID_ID_INFORMATION)
        return identity


def _certificates_of(message: Message) -> list[bytes]:
    """X.509 certificates, the sender's own first (RFC 4945 section 3.3.8); other kinds are not
    for us to read."""
    found = (p.parse(Certificate) for p in message.all(PayloadType.CERT))
    return [c.data for c in found if c.encoding == CertEncoding.X509_SIGNATURE]


def asks_for_certificate(message: Message) -> bool:
    """Whoever asks for one by a CA we have nothing of gets what we have, and may refuse it."""
    return any(
        p.parse(CertificateRequest).encoding == CertEncoding.X509_SIGNATURE
        for p in message.all(PayloadType.CERTREQ)
    )


def is_named(names: Names, identity: Identity) -> bool:
    """RFC 4945 section 3.1: ``identity`` is the subject or an alternative name of it."""
    if identity.address is not None:
        return identity.address in names.addresses
    if identity.id_type == IdType.ID_DER_ASN1_DN:
        subject = Identity(IdType.ID_DER_ASN1_DN, names.subject).canonical
        return subject == identity
    text = identity.data.decode("ascii", "replace")
    if identity.id_type == IdType.ID_FQDN:
        return text in names.domains
    return identity.id_type == IdType.ID_USER_FQDN and text in names.mailboxes


@dataclass(frozen=True, slots=True)
class Phase1Config:
    """One side's phase-1 policy towards one peer. ``lifetime`` in seconds.

    ``auth``: the ways to authenticate that are offered or accepted, the preferred one first.
    ``dois``: an initiator offers the first, a responder takes any of them.
    """

    auth: tuple[Authentication, ...]
    suites: tuple[Suite, ...]
    lifetime: int = 86400
    dois: tuple[Doi, ...] = (Doi.GDOI,)
    nat: Traversal = Traversal.ON

    @property
    def methods(self) -> tuple[AuthMethod, ...]:
        return tuple(method for way in self.auth for method in way.methods)

    @property
    def negotiation(self) -> Hashable:
        """All of it that the answer to a proposal depends on."""
        return self.methods, self.suites, self.lifetime, self.dois, self.nat

    def authentication(self, method: AuthMethod) -> Authentication:
        """The one that was negotiated: ``method`` is one of ``methods``."""
        return next(way for way in self.auth if method in way.methods)


def belongs_to_one(config: Phase1Config, method: AuthMethod) -> bool:
    """Whether what proved an identity by this method is nobody else's: a certificate's key, or a
    pre-shared key for one identity at one address."""
    if method is not AuthMethod.PRE_SHARED_KEY:
        return True
    ways = [way for way in config.auth if isinstance(way, PreSharedKey)]
    return bool(ways) and all(way.remote_identity is not None and not way.also for way in ways)
