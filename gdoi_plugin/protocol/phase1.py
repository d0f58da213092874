"""Phase-1 policy towards a peer, and how messages 5 and 6 prove who sends them (RFC 2409 5)."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

from ..crypto.keymat import skeyid_pre_shared
from ..crypto.prf import equal
from ..crypto.secret import Secret
from ..wire.identification import Identification
from ..wire.message import Message
from ..wire.opaque import Hash as HashPayload
from ..wire.payload import Body, encode_body
from ..wire.registry import AuthMethod, Doi, Hash, PayloadType
from . import rules
from .errors import AuthError
from .identity import Identity
from .isakmp import Suite

# HASH_I or HASH_R over the body of an ID payload (RFC 2409 section 5).
Digest = Callable[[bytes], bytes]


class Authentication(Protocol):
    """One way to authenticate main mode; holds what it takes and nothing of any exchange."""

    @property
    def methods(self) -> tuple[AuthMethod, ...]:
        """What it offers and accepts, its preference first."""
        ...

    def skeyid(self, algorithm: Hash, ni_b: bytes, nr_b: bytes, g_xy: Secret) -> Secret: ...

    def prove(self, method: AuthMethod, digest: Digest) -> list[Body]:
        """The payloads of message 5 or 6, ID first."""
        ...

    def verify(self, method: AuthMethod, message: Message, digest: Digest, now: float) -> Identity:
        """Who sent message 5 or 6. Raises DecodeError, AuthError."""
        ...


@dataclass(frozen=True, slots=True)
class PreSharedKey:
    """RFC 2409 section 5.4: whoever knows the key is the one expected."""

    local_identity: Identity
    remote_identity: Identity
    psk: Secret

    @property
    def methods(self) -> tuple[AuthMethod, ...]:
        return (AuthMethod.PRE_SHARED_KEY,)

    def skeyid(self, algorithm: Hash, ni_b: bytes, nr_b: bytes, g_xy: Secret) -> Secret:  # noqa: ARG002 -- of the signature methods
        return skeyid_pre_shared(algorithm, self.psk, ni_b, nr_b)

    def prove(self, method: AuthMethod, digest: Digest) -> list[Body]:  # noqa: ARG002 -- only one
        """IDii, HASH_I or IDir, HASH_R."""
        identity = self.local_identity.payload()
        return [identity, HashPayload(digest(encode_body(identity)))]

    def verify(self, method: AuthMethod, message: Message, digest: Digest, now: float) -> Identity:  # noqa: ARG002
        """HASH first, then the identity it covers."""
        rules.check(rules.AUTH_PRE_SHARED, message)
        identification = message.first(PayloadType.ID)
        given = message.first(PayloadType.HASH).parse(HashPayload).data
        if not equal(given, digest(identification.body)):
            raise AuthError("phase 1 HASH does not verify")
        identity = Identity.of_payload(identification.parse(Identification))
        if identity != self.remote_identity:
            raise AuthError(f"peer proved to be {identity}, expected {self.remote_identity}")
        return identity


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

    @property
    def methods(self) -> tuple[AuthMethod, ...]:
        return tuple(method for way in self.auth for method in way.methods)

    @property
    def negotiation(self) -> Hashable:
        """All of it that the answer to a proposal depends on."""
        return self.methods, self.suites, self.lifetime, self.dois

    def authentication(self, method: AuthMethod) -> Authentication:
        """The one that was negotiated: ``method`` is one of ``methods``."""
        return next(way for way in self.auth if method in way.methods)
