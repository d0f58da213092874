"""What an engine asks of its shell, and what comes back.

The shell carries out the actions of one step in this order: every :class:`Persist` in one durable
transaction, then everything else as listed. So nothing is sent that a crash could make us forget.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .application_keys import HeldKey
    from .identity import Identity
    from .policy import Tek

IPAddress = IPv4Address | IPv6Address
Random = Callable[[int], bytes]


class Peer(NamedTuple):
    """A UDP endpoint."""

    host: IPAddress
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if self.host.version == 6 else str(self.host)
        return f"{host}:{self.port}"


class Drop(StrEnum):
    """Why a datagram was dropped: the closed set of triggers in the trace."""

    MALFORMED = "malformed"
    NOT_ISAKMP = "not-isakmp"
    FRAGMENT = "fragment"
    UNKNOWN_EXCHANGE = "unknown-exchange"
    IGNORED_EXCHANGE = "ignored-exchange"
    UNKNOWN_COOKIES = "unknown-cookies"
    UNKNOWN_PEER = "unknown-peer"
    OUTSIDE_CHANNEL = "outside-channel"
    UNEXPECTED = "unexpected-message"
    NO_PROPOSAL = "no-proposal-chosen"
    BAD_KEY_EXCHANGE = "bad-key-exchange"
    AUTHENTICATION = "authentication-failed"
    NOT_AUTHORISED = "not-authorised"
    IKE_NOT_ESTABLISHED = "ike-not-established"
    IKE_MISMATCH = "ike-identity-mismatch"
    IKE_UNKNOWN = "ike-unknown"
    IKE_ASKED = "ike-asked-again"
    UNKNOWN_GROUP = "unknown-group"
    DUPLICATE = "duplicate"
    REPLAY = "replay"
    UNACCEPTABLE_POLICY = "unacceptable-policy"
    STALE_POLICY = "stale-policy"
    CLEAR_NOTIFY = "unauthenticated-notify"
    IGNORED_NOTIFY = "ignored-notify"
    OFFER_LIMIT = "offer-limit"
    SOURCE_LIMIT = "source-limit"
    ACK_UNKNOWN_SPI = "ack-unknown-spi"
    ACK_KEK_RETIRED = "ack-kek-retired"
    ACK_NOT_REQUESTED = "ack-not-requested"
    ACK_MALFORMED = "ack-malformed"
    ACK_UNKNOWN_MEMBER = "ack-unknown-member"
    ACK_WRONG_SOURCE = "ack-wrong-source"
    ACK_MEMBER_EXEMPT = "ack-member-exempt"
    ACK_UNKNOWN_SEQ = "ack-unknown-seq"
    ACK_DUPLICATE = "ack-duplicate"
    ACK_WRONG_TYPE = "ack-wrong-type"
    ACK_BAD_HASH = "ack-bad-hash"


@dataclass(frozen=True, slots=True)
class Event:
    """Something an operator may want to know: goes to the log and to control clients."""

    name: str
    fields: Mapping[str, str | int | float | list[str]]
    level: str = "info"


@dataclass(frozen=True, slots=True)
class Send:
    """One datagram. ``source`` is the local endpoint to send from; ``told`` is an event that is
    true only once the datagram has left. ``once``: it is never said again, so that it waits where
    its step cannot be saved, and leaves when it is."""

    datagram: bytes = field(repr=False)
    destination: Peer
    source: Peer
    told: Event | None = None
    once: bool = False


@dataclass(frozen=True, slots=True)
class Dropped:
    """A datagram that changed nothing."""

    reason: Drop
    peer: Peer
    detail: str


# What tells the key server's records of one kind apart.
_SLOTS = {
    "group": ("group",),
    "member": ("group", "number"),
    "member-removed": ("group", "number"),
    "rekey": ("group", "epoch"),
    "standing": ("group", "sa"),
    "page": ("group", "tree", "page"),
    "pages-removed": ("group",),
}


@dataclass(frozen=True, slots=True)
class Persist:
    """A record the store must hold before anything of this step leaves the host.

    ``kind`` names the store's table (key server) or document (member).
    """

    kind: str
    record: Mapping[str, object] = field(repr=False)  # may hold keys

    @property
    def slot(self) -> Hashable:
        """A later record in the same slot takes the place of an earlier one."""
        if "entries" in self.record and self.kind == "acks":
            return self.kind, id(self)  # each adds to those before
        names = _SLOTS.get(self.kind, ("group",))
        return self.kind, *(self.record.get(name) for name in names)


@dataclass(frozen=True, slots=True)
class KeyLog:
    """Phase-1 cookie and encryption key, for an operator who asked for a key log."""

    cky_i: bytes
    encryption_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ApplyKernel:
    """One kernel transaction, with what applications are given: all of it or nothing.

    ``add`` are SAs to install for receiving (and, where the member may, sending), ``outbound``
    are the TEKs that outbound policies are to be pinned to from now on, ``inbound`` those whose
    mode and protocol inbound policies are to want (None: the last of each flow in ``add``),
    ``remove`` are SAs to take out. ``released``: the TEKs of flows whose packets others serve now;
    their policies go. ``silenced``: what each flow was sent with that is only received from now on;
    its outbound policy goes. ``keys`` is all that IEC 61850 applications are to have from now on,
    None where that does not change. The shell answers with the engine's ``kernel_done`` or
    ``kernel_refused``, before anything else goes into that engine: the tables it plans from are the
    ones this transaction changes.
    """

    transaction: int
    add: tuple[Tek, ...] = ()
    outbound: tuple[Tek, ...] = ()
    remove: tuple[Tek, ...] = ()
    inbound: tuple[Tek, ...] | None = None
    released: tuple[Tek, ...] = ()
    silenced: tuple[Tek, ...] = ()
    keys: tuple[HeldKey, ...] | None = None


@dataclass(frozen=True, slots=True)
class AskIke:
    """charon's IKE_SAs are wanted anew: one of them may be up, and its event not here yet."""


@dataclass(frozen=True, slots=True)
class EndIke:
    """Members are out; the IKE_SAs of these identities are to go as well."""

    identities: tuple[Identity, ...]


@dataclass(frozen=True, slots=True)
class KeepIke:
    """They may be members again: what :class:`EndIke` asked for, and is not done yet, is off."""

    identities: tuple[Identity, ...]


Action = Send | Dropped | Event | Persist | KeyLog | ApplyKernel | AskIke | EndIke | KeepIke
