"""charon's IKE_SAs as a key server knows them, and whom they vouch for (RFC 6407 section 3.1).

Phase 1 of GDOI proves that its peer is at an address, and who it is as well as its credentials do.
An IKE_SA says who is at an address, too. Somebody is a member for whom the two speak together:

* Phase 1 names whom the IKE_SA names, and proves it with what nobody else has: a certificate, or a
  pre-shared key that the configuration gives one identity.
* Phase 1 names only the address, or is by a key that several have: then the address is all that
  ties the two, and it does so as long as there is one host behind it. So not through a NAT, and not
  where IKE_SAs of several identities come from there.

Distinguished names are text in vici, where ``O="Example, CN=gm1"`` reads like two names. Therefore
one of those counts only where phase 1 has proved the same name by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from ..wire.registry import IdType
from .actions import Drop, IPAddress
from .identity import Identity

DEFAULT_GRACE = 300.0


class OnIkeDown(StrEnum):
    """What becomes of a member whose last IKE_SA has gone, after the time of grace."""

    MARK = "mark"
    EVICT = "evict"


@dataclass(frozen=True, slots=True)
class IkePolicy:
    """Of a group whose members are who IKE says they are. ``grace`` in seconds: an IKE_SA that is
    authenticated again is gone in between, and every one of them when charon restarts."""

    on_down: OnIkeDown = OnIkeDown.MARK
    grace: float = DEFAULT_GRACE


class NotVouched(Exception):
    """No IKE_SA says that this peer is a member."""

    def __init__(self, reason: Drop, why: str) -> None:
        super().__init__(why)
        self.reason, self.why = reason, why


@dataclass(frozen=True, slots=True)
class IkeSa:
    """An established IKE_SA. ``identity``: its other end, in canonical form; None where charon's
    text of it cannot be read."""

    number: str
    host: IPAddress
    identity: Identity | None
    behind_nat: bool = False


@dataclass(frozen=True, slots=True)
class Phase1Peer:
    """What phase 1 says. ``proven``: by what belongs to this identity alone."""

    host: IPAddress
    identity: Identity
    proven: bool
    behind_nat: bool


@dataclass(slots=True)
class IkeSas:
    """All of them, by number, address and identity."""

    _all: dict[str, IkeSa] = field(default_factory=dict)
    _at: dict[IPAddress, dict[str, IkeSa]] = field(default_factory=dict)
    _of: dict[Identity, dict[str, IkeSa]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, identity: Identity) -> bool:
        return identity in self._of

    def replace(self, sas: Iterable[IkeSa]) -> None:
        """These, and no others."""
        self._all.clear()
        self._at.clear()
        self._of.clear()
        for sa in sas:
            self.put(sa)

    def put(self, sa: IkeSa) -> None:
        """A new one, or what has become of one that is known."""
        self.remove(sa.number)
        self._all[sa.number] = sa
        self._at.setdefault(sa.host, {})[sa.number] = sa
        if sa.identity is not None:
            self._of.setdefault(sa.identity, {})[sa.number] = sa

    def remove(self, number: str) -> IkeSa | None:
        sa = self._all.pop(number, None)
        if sa is None:
            return None
        at = self._at[sa.host]
        del at[number]
        if not at:
            del self._at[sa.host]
        if sa.identity is not None:
            of = self._of[sa.identity]
            del of[number]
            if not of:
                del self._of[sa.identity]
        return sa

    def identities(self) -> set[Identity]:
        return set(self._of)

    def of(self, identity: Identity) -> list[IkeSa]:
        return list(self._of.get(identity, {}).values())

    def vouched(self, peer: Phase1Peer) -> Identity:
        """Who this peer is, by both. Raises NotVouched."""
        there = list(self._at.get(peer.host, {}).values())
        if not there:
            what = f"no established IKE_SA from {peer.host}"
            raise NotVouched(Drop.IKE_NOT_ESTABLISHED, what)
        names = {sa.identity for sa in there}
        shown = " and ".join(sorted("what cannot be read" if n is None else str(n) for n in names))
        if peer.proven and peer.identity in names:
            return peer.identity
        (one, *others) = names
        nat = peer.behind_nat or any(sa.behind_nat for sa in there)
        if peer.identity not in names and peer.identity != Identity.of_address(peer.host):
            what = f"phase 1 is with {peer.identity}, IKE from {peer.host} with {shown}"
        elif others or nat:
            where = "come through a NAT" if nat else "are of several"
            what = (
                f"IKE_SAs from {peer.host} {where}, {shown}, and phase 1 does not tell which:"
                " it needs a certificate, or a key of that identity alone"
            )
        elif one is None or one.id_type == IdType.ID_DER_ASN1_DN:
            what = f"IKE from {peer.host} is with {shown}, which phase 1 has to prove as well"
        else:
            return one
        raise NotVouched(Drop.IKE_MISMATCH, what)
