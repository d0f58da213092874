"""NAT traversal in phase 1, RFC 3947 sections 3 and 4: is there a NAT, and before whom?

::

    Initiator                          Responder
    UDP(848,848) HDR, SA, VID -->
                                  <-- UDP(848,X) HDR, SA, VID
    UDP(848,848) HDR, KE, Ni, NAT-D, NAT-D -->
                                  <-- UDP(848,X) HDR, KE, Nr, NAT-D, NAT-D
    UDP(4500,4500) HDR*, IDii, HASH_I -->
                                  <-- UDP(4500,Y) HDR*, IDir, HASH_R

Each end sends hashes of where it sends to and where it sends from. What a NAT has rewritten does
not match, and phase 1 with all that follows moves to port 4500.

NAT-OA (section 5.2) has no place here: Quick Mode carries it, for hosts whose TCP checksums a NAT
has spoilt. A group's data is multicast ESP; no NAT rewrites it and nothing encapsulates it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from ..crypto.prf import digest, equal
from ..wire.encapsulation import KEEPALIVE
from ..wire.message import Message
from ..wire.opaque import NatDiscovery
from ..wire.registry import Hash, PayloadType
from .actions import Action, Peer, Send

# RFC 3948 section 4: "The default value of the keepalive interval SHOULD be 20 seconds"
KEEPALIVE_INTERVAL = 20.0
# Hashed in place of our own endpoint where encapsulation is wanted whatever the path is like:
# nothing comes from there, so the peer finds a NAT.
_NOWHERE = (bytes(4), 0)


class Traversal(Enum):
    """``FORCED``: move to the other port even where there is no NAT."""

    OFF = auto()
    ON = auto()
    FORCED = auto()


class Path(NamedTuple):
    """Our endpoint and the peer's."""

    local: Peer
    remote: Peer


@dataclass(frozen=True, slots=True)
class Nat:
    """Who has a NAT before it: this end, the other one, both or (not ``found``) none."""

    here: bool = False
    there: bool = False

    @property
    def found(self) -> bool:
        return self.here or self.there

    def __str__(self) -> str:
        ends = [name for name, is_so in (("here", self.here), ("there", self.there)) if is_so]
        return " and ".join(ends) or "none"


NO_NAT = Nat()


@dataclass(frozen=True, slots=True)
class Detection:
    """What the hashes of one exchange are made of. ``forced``: be taken for an end behind a NAT."""

    algorithm: Hash
    cky_i: bytes
    cky_r: bytes
    path: Path
    forced: bool = False

    def payloads(self) -> list[NatDiscovery]:
        """Ours: the remote end's first, then the local end's."""
        local, remote = self.path
        address, port = _NOWHERE if self.forced else (local.host.packed, local.port)
        return [
            NatDiscovery(self._hash(remote.host.packed, remote.port)),
            NatDiscovery(self._hash(address, port)),
        ]

    def judge(self, received: Sequence[bytes]) -> Nat:
        """The peer's hashes, in the order they came; at least two."""
        local, remote = self.path
        # "If the first check fails [...] this end is behind the NAT"
        here = not equal(received[0], self._hash(local.host.packed, local.port))
        # "In this case, NAT is detected if and only if none of the hashes match."
        theirs = self._hash(remote.host.packed, remote.port)
        there = not any(equal(given, theirs) for given in received[1:])
        return Nat(here or self.forced, there)

    def _hash(self, address: bytes, port: int) -> bytes:
        # HASH = HASH(CKY-I | CKY-R | IP | Port)
        return digest(self.algorithm, self.cky_i + self.cky_r + address + port.to_bytes(2, "big"))


def hashes(message: Message) -> list[bytes]:
    """The NAT-D payloads of message 3 or 4; fewer than two say nothing and are none."""
    found = [p.parse(NatDiscovery).data for p in message.all(PayloadType.NAT_D)]
    return found if len(found) > 1 else []


@dataclass(slots=True)
class Keepalive:
    """Holds a NAT's mapping open, RFC 3948 section 4. ``interval`` in seconds."""

    path: Path
    interval: float
    next_at: float

    def tick(self, now: float) -> list[Action]:
        if now < self.next_at:
            return []
        self.next_at = now + self.interval
        return [Send(KEEPALIVE, self.path.remote, self.path.local)]


def keepalive(path: Path, nat: Nat, interval: float, now: float) -> Keepalive | None:
    """Only the end behind the NAT sends them; an interval of zero sends none."""
    return Keepalive(path, interval, now + interval) if nat.here and interval else None
