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
    # Of members that have left as well: pages of the ledger know them by number alone, and who
    # comes back has the one it had.
    _names: dict[int, Identity] = field(default_factory=dict, compare=False)
    _numbers: dict[Identity, int] = field(default_factory=dict, compare=False)
    _by_endpoint: dict[Peer, Identity] = field(default_factory=dict)
    _by_claim: dict[IPAddress, set[Identity]] = field(default_factory=dict)
    # The same for many ACKs, octets as they come: who is at an endpoint, and whom alone an ID
    # payload means; None where it means several.
    endpoints: dict[bytes, Registrant] = field(default_factory=dict)
    sole: dict[bytes, Registrant | None] = field(default_factory=dict)
    _numbered: dict[int, Registrant] = field(default_factory=dict)

    def add(self, member: Registrant) -> None:
        """In place of what was known under its identity, and of who was at its endpoint before."""
        known = self.members.get(member.identity)
        if known is not None:
            self.remove(member.identity)
        if not member.number:
            member.number = self._numbers.get(member.identity, self.next_number)
        self.note_name(member.number, member.identity)
        self.members[member.identity] = self._numbered[member.number] = member
        member.sole = False
        self._by_endpoint[member.address] = member.identity
        self.endpoints[endpoint_octets(member.address)] = member
        for address in member.claims:
            self._by_claim.setdefault(address, set()).add(member.identity)
            self._weigh(address)

    def remove(self, identity: Identity) -> Registrant:
        member = self.members.pop(identity)
        del self._numbered[member.number]
        member.sole = False
        if self._by_endpoint.get(member.address) == identity:
            del self._by_endpoint[member.address]
            del self.endpoints[endpoint_octets(member.address)]
        for address in member.claims:
            self._by_claim[address].discard(identity)
            if not self._by_claim[address]:
                del self._by_claim[address]
            self._weigh(address)
        return member

    def _weigh(self, address: IPAddress) -> None:
        """Whom an ACK with this address means."""
        those = self._by_claim.get(address, ())
        payload = ack_id(address)
        if not those:
            self.sole.pop(payload, None)
        elif len(those) == 1:
            (identity,) = those
            member = self.sole[payload] = self.members[identity]
            counts = [len(self._by_claim.get(claim, ())) for claim in member.claims]
            member.sole = counts == [1] * len(counts)
        else:
            self.sole[payload] = None
            if len(those) == 2:  # of more, the others are told apart already
                for identity in those:
                    self.members[identity].sole = False

    def note_name(self, number: int, identity: Identity) -> None:
        """This number is, or was, this member's."""
        self._names[number] = identity
        self._numbers[identity] = number
        self.next_number = max(self.next_number, number + 1)

    def number_of(self, identity: object) -> int:
        """Also of a member that has left; 0 where there never was one."""
        return self._numbers.get(identity, 0) if isinstance(identity, Identity) else 0

    def name_of(self, number: int) -> Identity:
        """Also of a member that has left. Raises KeyError where there never was one."""
        return self._names[number]

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
        there = self._by_endpoint.get(source)
        if there is not None and (claimed == source.host or self.members[there].behind_nat):
            return self.members[there]
        found = self._by_claim.get(claimed, set())
        return self.members[next(iter(found))] if len(found) == 1 else None

    def at(self, source: Peer) -> Registrant | None:
        """Who is at this endpoint, or alone at its address: for an ACK whose ID is no address."""
        there = self._by_endpoint.get(source)
        if there is not None:
            return self.members[there]
        found = self._by_claim.get(source.host, set())
        return self.members[next(iter(found))] if len(found) == 1 else None

    def other_at(self, source: Peer, member: Registrant) -> Registrant | None:
        """Another member than this one that is registered from exactly there."""
        there = self._by_endpoint.get(source)
        return None if there in (None, member.identity) else self.members[there]

    def why_not(self, claimed: IPAddress, source: Peer) -> str:
        """For the log, where :meth:`whose` has found nobody: what came, what was expected."""
        there = self._by_endpoint.get(source)
        if there is not None:
            return f"ID {claimed} from {source}: {there} is there, with the ID {source.host}"
        many = len(self._by_claim.get(claimed, ()))
        if many:
            return f"ID {claimed} from {source}: {many} members have that ID, none is at that port"
        return f"ID {claimed} from {source}: no member registered from there"


def endpoint_octets(peer: Peer) -> bytes:
    """As it stands in struct sockaddr_in or sockaddr_in6 behind the family: port, flow, address."""
    flow = b"" if peer.host.version == 4 else bytes(4)
    return peer.port.to_bytes(2, "big") + flow + peer.host.packed


def peer_of(octets: bytes) -> Peer:
    """What :func:`endpoint_octets` was made of."""
    start = 2 if len(octets) == 6 else 6
    return Peer(ip_address(octets[start:]), int.from_bytes(octets[:2], "big"))


def ack_id(address: IPAddress) -> bytes:
    """The ID payload of an ACK, whole, RFC 8263 section 3.4."""
    kind = IdType.ID_IPV4_ADDR if address.version == 4 else IdType.ID_IPV6_ADDR
    length = GENERIC_HEADER_LENGTH + 4 + len(address.packed)
    return bytes((PayloadType.NONE, 0, 0, length, kind, 0, 0, 0)) + address.packed
