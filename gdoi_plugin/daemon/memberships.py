"""Multicast memberships: what this host hears, on which interface, and from whom.

The sockets here hold memberships and receive nothing: what an interface hears is the sum of what
all sockets have asked for (RFC 3376 section 3.2), and a socket bound to a group's address
(:mod:`.udp`), or an application's, reads it. Sources are named to the network (IGMPv3, MLDv2)
where they are known, so that nobody else's packets come this far.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection
from typing import NamedTuple

from ..protocol.actions import IPAddress

# linux/in.h; not in Python's socket module. RFC 3678: one interface for IPv4 and IPv6.
MCAST_JOIN_GROUP, MCAST_JOIN_SOURCE_GROUP = 42, 46
# struct group_req and group_source_req: index, sockaddr_storage of the group, and of the source
_GROUP, _SOURCE = struct.Struct("@I0L128s"), struct.Struct("@I0L128s128s")
# struct sockaddr_in and sockaddr_in6; the rest of sockaddr_storage is zero
_ADDRESS_4, _ADDRESS_6 = struct.Struct("=HH4s"), struct.Struct("=HHI16sI")
# What a socket of its own for each membership cannot keep from being reached.
_LIMITS = {4: "net.ipv4.igmp_max_memberships", 6: "net.core.optmem_max"}


class Membership(NamedTuple):
    """One group on one interface, which its index names."""

    group: IPAddress
    ifindex: int


class Memberships:
    """Those of one daemon. A socket for each: a kernel allows one socket twenty groups."""

    def __init__(self) -> None:
        self._held: dict[Membership, tuple[frozenset[IPAddress], list[socket.socket]]] = {}

    @property
    def held(self) -> dict[Membership, frozenset[IPAddress]]:
        """With their sources; none are any."""
        return {membership: sources for membership, (sources, _) in self._held.items()}

    def hold(self, membership: Membership, sources: frozenset[IPAddress] = frozenset()) -> bool:
        """Joined from now on, for these sources alone if there are any. True where that is new.

        What was held before is let go only afterwards, so that a change loses nothing. Raises
        OSError with a sentence of its own, and what was held before is held on.
        """
        before = self._held.get(membership)
        if before is not None and before[0] == sources:
            return False
        joined = _join(membership, sources)
        self.drop(membership)
        self._held[membership] = sources, joined
        return True

    def drop(self, membership: Membership) -> None:
        """Left, also where the interface is gone."""
        _, sockets = self._held.pop(membership, (None, ()))
        for sock in sockets:
            sock.close()

    def forget(self, ifindex: int) -> None:
        """The interface is gone, and what was joined on it with it, though nobody was told."""
        for membership in [held for held in self._held if held.ifindex == ifindex]:
            self.drop(membership)

    def close(self) -> None:
        for membership in list(self._held):
            self.drop(membership)


def _join(membership: Membership, sources: Collection[IPAddress]) -> list[socket.socket]:
    """More than one socket where there are more sources than one may name."""
    sockets = [_socket(membership)]
    named = 0  # by the last socket
    wanted: list[IPAddress | None] = [*sorted(sources, key=int)] or [None]
    try:
        for source in wanted:
            try:
                _request(sockets[-1], membership, source)
            except OSError as error:
                if error.errno != errno.ENOBUFS or not named:
                    raise
                sockets.append(_socket(membership))
                named = 0
                _request(sockets[-1], membership, source)
            named += 1
    except OSError as error:
        for sock in sockets:
            sock.close()
        if error.errno == errno.ENOBUFS:
            limit = _LIMITS[membership.group.version]
            what = f"the kernel allows no more memberships, raise {limit}"
            raise OSError(error.errno, what) from error
        raise
    return sockets


def _socket(membership: Membership) -> socket.socket:
    family = socket.AF_INET if membership.group.version == 4 else socket.AF_INET6
    return socket.socket(family, socket.SOCK_DGRAM)


def _request(sock: socket.socket, membership: Membership, source: IPAddress | None) -> None:
    level = socket.IPPROTO_IP if membership.group.version == 4 else socket.IPPROTO_IPV6
    group = _address(membership.group)
    if source is None:
        sock.setsockopt(level, MCAST_JOIN_GROUP, _GROUP.pack(membership.ifindex, group))
    else:
        request = _SOURCE.pack(membership.ifindex, group, _address(source))
        sock.setsockopt(level, MCAST_JOIN_SOURCE_GROUP, request)


def _address(address: IPAddress) -> bytes:
    if address.version == 4:
        return _ADDRESS_4.pack(socket.AF_INET, 0, address.packed)
    return _ADDRESS_6.pack(socket.AF_INET6, 0, 0, address.packed, 0)
