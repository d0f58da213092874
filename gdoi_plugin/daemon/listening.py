"""What a member listens to: its own endpoints, the rekey group of every KEK it holds, and, where
the configuration says so, the groups of its data SAs."""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from ..protocol.actions import Event, IPAddress, Peer
from ..protocol.endpoints import is_source_specific
from ..protocol.member import GroupMember
from ..protocol.policy import Kek, Tek
from ..wire.registry import SaDirection
from .errors import StartError
from .memberships import Membership, Memberships
from .udp import UdpSockets

# A source, or None for any.
_Source = IPAddress | None
# What is wanted on each interface, by name: it may be gone, or another one by now.
_Wishes = dict[tuple[IPAddress, str], set[_Source]]


class Listening:
    """Brings sockets and memberships to what the groups want; what fails is told once."""

    def __init__(self, sockets: UdpSockets, tell: Callable[[Event], None]) -> None:
        self._sockets = sockets
        self._tell = tell
        self._memberships = Memberships()
        self._problems: dict[str, str] = {}

    @property
    def memberships(self) -> Mapping[Membership, frozenset[IPAddress]]:
        """What is joined, with the sources; none are any."""
        return self._memberships.held

    @property
    def complete(self) -> bool:
        """Nothing has failed that is worth another attempt."""
        return not self._problems

    def update(
        self,
        interface: str,
        own: Iterable[Peer],
        data: Mapping[str, Sequence[str]],
        groups: Iterable[GroupMember],
    ) -> None:
        """``interface``: where rekeys are joined; ``own``: the member's endpoints; ``data``: the
        interfaces on which each group's data is joined, by the group's name."""
        bound, problems = set(own), dict[str, str]()
        wishes: _Wishes = defaultdict(set)
        for group in groups:
            for kek in _multicast(group):
                # RFC 8263 section 3: an ACK leaves from the port that its PUSH came to.
                bound.add(Peer(group.config.local.host, kek.port))
                bound.add(Peer(_destination(kek), kek.port))
                wishes[_destination(kek), interface] |= rekey_sources(group, kek)
            for name in data.get(group.config.name, ()):
                for destination, source in data_sources(group):
                    wishes[destination, name].add(source)
        self._join(wishes, problems)
        self._bind(bound, interface, problems)
        self._report(problems)

    def interface_gone(self, index: int) -> None:
        """Deleted: its memberships went with it, and so did what the socket of an IPv6 group whose
        scope is one link was bound to."""
        self._memberships.forget(index)
        for peer in self._sockets.open:
            if peer.host.is_multicast and peer.host.version == 6:
                self._sockets.leave(peer)

    def close(self) -> None:
        self._memberships.close()

    # -- inside ----------------------------------------------------------------------------------

    def _join(self, wishes: _Wishes, problems: dict[str, str]) -> None:
        wanted: set[Membership] = set()
        for (group, name), sources in wishes.items():
            try:
                membership = Membership(group, socket.if_nametoindex(name))
                wanted.add(membership)
                if self._memberships.hold(membership, _named(group, sources)):
                    self._tell(Event("joined", _joined(group, name, sources)))
            except (OSError, ValueError) as error:
                problems[f"{group} on {name}"] = _why(error)
        for membership in self._memberships.held.keys() - wanted:
            self._memberships.drop(membership)

    def _bind(self, wanted: set[Peer], interface: str, problems: dict[str, str]) -> None:
        for peer in self._sockets.open - wanted:
            self._sockets.leave(peer)
        for peer in wanted - self._sockets.open:
            try:
                if peer.host.is_multicast:
                    self._sockets.listen(peer, socket.if_nametoindex(interface))
                else:
                    self._sockets.bind(peer, interface)
            except (OSError, StartError) as error:
                problems[str(peer)] = _why(error)

    def _report(self, problems: dict[str, str]) -> None:
        for address, error in problems.items():
            if self._problems.get(address) != error:
                self._tell(Event("join-failed", {"address": address, "error": error}, "error"))
        self._problems = problems


def _why(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _multicast(group: GroupMember) -> Iterator[Kek]:
    for held in group.rekey_sas.held:
        if held.kek.destination is not None and held.kek.destination.is_multicast:
            yield held.kek


def _destination(kek: Kek) -> IPAddress:
    if kek.destination is None:
        raise AssertionError("a KEK of a multicast group")
    return kek.destination


def rekey_sources(group: GroupMember, kek: Kek) -> set[_Source]:
    """Who may send rekeys: whom the SAK names (RFC 6407 section 5.3), if that is the only one.

    Where a group has several key servers the next one may rekey it from an address of its own, and
    one behind a NAT comes from another address than it knows. A source-specific group is joined
    for each of them, because it cannot be joined for any.
    """
    if kek.source is None or kek.source.version != _destination(kek).version:
        return {None}
    servers = {entry.remote.host for entry in group.config.key_servers}
    if is_source_specific(_destination(kek)):
        return {kek.source, *servers}
    known = len(servers) == 1 and not group.registrar.nat.there
    return {kek.source} if known else {None}


def data_sources(group: GroupMember) -> Iterator[tuple[IPAddress, _Source]]:
    """Destination and source of each data SA that this member receives with."""
    for held in group.rollover.held.values():
        if held.tek.direction is not SaDirection.SENDER_ONLY:
            yield held.tek.flow.destination, _source(held.tek)


def _source(tek: Tek) -> _Source:
    network = tek.flow.source
    if network is None or network.prefixlen != network.max_prefixlen:
        return None
    return network.network_address


def _named(group: IPAddress, sources: set[_Source]) -> frozenset[IPAddress]:
    """No source is any. Raises ValueError where that cannot be (RFC 4607 section 1)."""
    named = frozenset(source for source in sources if source is not None)
    if not is_source_specific(group):
        return frozenset() if None in sources else named
    if not named:
        raise ValueError("a source-specific group, and the policy names no source")
    return named


def _joined(group: IPAddress, name: str, sources: set[_Source]) -> dict[str, str | list[str]]:
    return {
        "address": str(group),
        "interface": name,
        "sources": sorted(str(source) for source in _named(group, sources)) or "any",
    }
