"""What a member knows of a group before it has registered."""

from __future__ import annotations

from dataclasses import dataclass

from ..wire.identification import Identification
from .actions import Peer
from .group_id import GroupId
from .identity import Identity
from .nat import KEEPALIVE_INTERVAL
from .registration import KeyServerEntry


@dataclass(frozen=True, slots=True)
class MemberConfig:
    """One group at a member. Delays in seconds; ``local`` is the address of PULL, PUSH and ACK."""

    name: str
    group_id: GroupId
    local: Peer
    key_servers: tuple[KeyServerEntry, ...]
    ack_jitter: float = 2.0
    recovery_delay: float = 2.0
    ack_with_oid: bool = False
    nat_local: Peer | None = None
    keep_alive: float = KEEPALIVE_INTERVAL
    sender_ids: int = 0
    accept_private_algs: bool = False  # transforms without a number of their own
    exports: bool = False  # there is a place for keys of applications, RFC 8052
    forwards: bool = False  # a router between the group and its LANs
    channel: bool = False  # UDP 848 with its key servers is inside ESP, or does not come through

    def outside(self, source: Peer, arrived: Peer) -> bool:
        """Whether a datagram has come round the channels, through which nobody but the key servers
        can send. Rekeys by multicast are for everybody, and are protected by the KEK alone."""
        if not self.channel or arrived.host.is_multicast:
            return False
        servers = {server.remote.host for server in self.key_servers}
        return source.host not in servers or arrived.port != self.local.port

    @property
    def acknowledges_as(self) -> Identification:
        """The ID of its ACKs, RFC 8263 section 3.4: its address; or ID_OID, which RFC 8052 has for
        groups, so the group's."""
        if self.ack_with_oid:
            return self.group_id.payload()
        return Identity.of_address(self.local.host).payload()
