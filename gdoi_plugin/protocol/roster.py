"""Who is registered with a group and from where, and so whose an acknowledgement is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

from ..crypto.secret import Secret
from ..wire.payload import GENERIC_HEADER_LENGTH
from ..wire.registry import IdType, PayloadType
from .actions import IPAddress, Peer
from .identity import Identity
from .member_set import MemberSet


@dataclass(slots=True)
class Registrant:
    """A registered member: ``address`` and port are the source of its last PULL.

    ``local`` is where that PULL came to, and unicast rekeys leave from: None for the key server's
    own port, otherwise the one for NAT traversal.
    """

    identity: Identity
    address: Peer
    registered_at: float
    acknowledged: int = 0
    missed: int = 0
    last_ack: float | None = None
    rtt: float | None = None
    local: Peer | None = None
    behind_nat: bool = False
    # Whether the SAK that it received last asks for ACKs.
    asked: bool = True
    # With LKH: its Rekey SA, by its place in the forest, and its leaf there; 0: no leaf.
    sa: int = 0
    leaf: int = 0
    # The key of its leaf before a clean slate: what it acknowledges that with.
    former_leaf: Secret | None = None
    # For ledger pages and the store: small, its own for ever. 0: it has none yet.
    number: int = 0
    # On the roster, and nobody else's ACKs may name an address that its own may.
    sole: bool = field(default=False, compare=False)
    dead: bool = False  # DPD found its last phase-1 SA dead; until it is heard of again

    @property
    def claims(self) -> set[IPAddress]:
        """The addresses its ACKs may name, RFC 8263 section 3.4."""
        own = self.identity.address
        return {self.address.host} | ({own} if self.behind_nat and own is not None else set())


@dataclass(slots=True)
class Roster:
    """The members of one group, found by identity, by endpoint and by what their ACKs name."""

    members: dict[Identity, Registrant] = field(default_factory=dict)
    next_number: int = field(default=1, compare=False)
    # Octets as they come with ACKs: who is at an endpoint, and whom alone an ID payload means; None
    # where it means several, who are in ``_several``.
    endpoints: dict[bytes, Registrant] = field(default_factory=dict)
    sole: dict[bytes, Registrant | None] = field(default_factory=dict)
    _several: dict[bytes, set[Identity]] = field(default_factory=dict)
    _numbered: dict[int, Registrant] = field(default_factory=dict)
    # Members that have left: pages of the ledger know them by number alone, and who comes back has
    # the one it had.
    _former: dict[int, Identity] = field(default_factory=dict, compare=False)
    _former_numbers: dict[Identity, int] = field(default_factory=dict, compare=False)

    def add(self, member: Registrant) -> None:
        """In place of what was known under its identity, and of who was at its endpoint before."""
        identity = member.identity
        if identity in self.members:
            self.remove(identity)
        if not member.number:
            member.number = self._former_numbers.get(identity, self.next_number)
        if member.number >= self.next_number:
            self.next_number = member.number + 1
        self.members[identity] = self._numbered[member.number] = member
        endpoint, payloads = _octets(member)
        self.endpoints[endpoint] = member
        member.sole = True
        for payload in payloads:
            other = self.sole.setdefault(payload, member)
            if other is member:
                continue
            member.sole = False
            if other is not None:
                other.sole = False
                self.sole[payload] = None
                self._several[payload] = {other.identity}
            self._several[payload].add(identity)

    def remove(self, identity: Identity) -> Registrant:
        member = self.members.pop(identity)
        del self._numbered[member.number]
        self.note_former(member.number, identity)
        member.sole = False
        endpoint, payloads = _octets(member)
        if self.endpoints.get(endpoint) is member:
            del self.endpoints[endpoint]
        for payload in payloads:
            those = self._several.get(payload)
            if those is None:
                del self.sole[payload]
                continue
            those.discard(identity)
            if len(those) == 1:
                del self._several[payload]
                other = self.sole[payload] = self.members[those.pop()]
                other.sole = all(self.sole[named] is other for named in _octets(other)[1])
        return member

    def note_former(self, number: int, identity: Identity) -> None:
        """This number was this member's, which has left."""
        self._former[number] = identity
        self._former_numbers[identity] = number
        self.next_number = max(self.next_number, number + 1)

    def number_of(self, identity: object) -> int:
        """Also of a member that has left; 0 where there never was one."""
        if not isinstance(identity, Identity):
            return 0
        member = self.members.get(identity)
        return self._former_numbers.get(identity, 0) if member is None else member.number

    def name_of(self, number: int) -> Identity:
        """Also of a member that has left. Raises KeyError where there never was one."""
        member = self._numbered.get(number)
        return self._former[number] if member is None else member.identity

    def numbered(self, number: int) -> Registrant | None:
        """None where it has left."""
        return self._numbered.get(number)

    def set_of(self, members: Iterable[Registrant]) -> MemberSet:
        return MemberSet.of(self, (member.number for member in members))

    def move(self, identity: Identity, address: Peer, local: Peer | None) -> Registrant:
        """A NAT has given the member another address or port."""
        moved = replace(self.members[identity], address=address, local=local)
        self.add(moved)
        return moved

    def whose(self, claimed: IPAddress, source: Peer) -> Registrant | None:
        """The member an ACK with this ID is from, None where that is nobody or not certain.

        RFC 8263 section 3.4: the ID "MUST match the source IP address used for the most recent
        GROUPKEY-PULL exchange". However, a member behind a NAT knows that address as one that
        nobody outside has ever seen, and others may have the same. Its ACK is known by where it
        comes from: a NAT keeps what goes to one endpoint behind one port.
        """
        there = self.endpoints.get(endpoint_octets(source))
        if there is not None and (claimed == source.host or there.behind_nat):
            return there
        return self.sole.get(ack_id(claimed))

    def at(self, source: Peer) -> Registrant | None:
        """Who is at this endpoint, or alone at its address: for an ACK whose ID is no address."""
        there = self.endpoints.get(endpoint_octets(source))
        return self.sole.get(ack_id(source.host)) if there is None else there

    def other_at(self, source: Peer, member: Registrant) -> Registrant | None:
        """Another member than this one that is registered from exactly there."""
        there = self.endpoints.get(endpoint_octets(source))
        return None if there is None or there.identity == member.identity else there

    def why_not(self, claimed: IPAddress, source: Peer) -> str:
        """For the log, where :meth:`whose` has found nobody: what came, what was expected."""
        there = self.endpoints.get(endpoint_octets(source))
        if there is not None:
            who = there.identity
            return f"ID {claimed} from {source}: {who} is there, with the ID {source.host}"
        many = len(self._several.get(ack_id(claimed), ()))
        if many:
            return f"ID {claimed} from {source}: {many} members have that ID, none is at that port"
        return f"ID {claimed} from {source}: no member registered from there"


def endpoint_octets(peer: Peer) -> bytes:
    """As it stands in struct sockaddr_in or sockaddr_in6 behind the family: port, flow, address."""
    return _endpoint(peer.port, peer.host.packed)


def _endpoint(port: int, packed: bytes) -> bytes:
    return port.to_bytes(2, "big") + (packed if len(packed) == 4 else bytes(4) + packed)


def peer_of(octets: bytes) -> Peer:
    """What :func:`endpoint_octets` was made of."""
    start = 2 if len(octets) == 6 else 6
    return Peer(ip_address(octets[start:]), int.from_bytes(octets[:2], "big"))


def _id_head(kind: IdType, octets: int) -> bytes:
    return bytes((PayloadType.NONE, 0, 0, GENERIC_HEADER_LENGTH + 4 + octets, kind, 0, 0, 0))


# By the octets of the address.
_HEADS = {4: _id_head(IdType.ID_IPV4_ADDR, 4), 16: _id_head(IdType.ID_IPV6_ADDR, 16)}


def ack_id(address: IPAddress) -> bytes:
    """The ID payload of an ACK, whole, RFC 8263 section 3.4."""
    packed = address.packed
    return _HEADS[len(packed)] + packed


def ack_ids(member: Registrant) -> list[bytes]:
    """Of all that its ACKs may name."""
    if not member.behind_nat:
        packed = member.address.host.packed
        return [_HEADS[len(packed)] + packed]
    return [ack_id(address) for address in member.claims]


def _octets(member: Registrant) -> tuple[bytes, list[bytes]]:
    """Its endpoint, and the ID payloads of what it claims."""
    return endpoint_octets(member.address), ack_ids(member)
