"""A datagram as it arrived at the key server, and the two things that can be done with one."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..wire.header import Header
from .actions import Drop, Dropped, Peer, Send
from .nat import Path

# Large messages are IP's to fragment; nobody here announces the vendor ID that allows this.
FRAGMENT = "a fragment of an ISAKMP message: fragmentation is not supported"


@dataclass(frozen=True, slots=True)
class Arrival:
    """``local`` is the endpoint it came to: answers leave from there."""

    header: Header
    datagram: bytes = field(repr=False)
    source: Peer
    local: Peer
    now: float

    @property
    def path(self) -> Path:
        return Path(self.local, self.source)

    def drop(self, reason: Drop, detail: str) -> Dropped:
        return Dropped(reason, self.source, detail)

    def reply(self, datagram: bytes) -> Send:
        return Send(datagram, self.source, self.local)
