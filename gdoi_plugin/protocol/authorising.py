"""Groups with ``authorise = "ike"``: who may be a member, and whose IKE_SA has gone since.

What is not known for certain vouches for nobody (charon gone or silent), and takes nothing from
anybody either: members stay and are rekeyed. A table that says no is asked for anew once, for an
IKE_SA may be up before its event is here; meanwhile the member says message 1 again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .actions import Action, Drop, EndIke, Event, IPAddress, KeepIke
from .group import Group, group_event
from .identity import Identity
from .ike_sas import IkeSa, IkeSas, NotVouched, OnIkeDown, Phase1Peer
from .silence import MAX_NAMED

# Addresses that charon is asked about anew, and seconds for which that is remembered: longer than a
# member goes on with one message 1.
MAX_DOUBTS, DOUBT_LIFETIME = 1024, 60.0
NOT_ASKED = "charon has not been asked yet"


@dataclass(slots=True)
class IkeAuthority:
    """``unknown``: why the table of IKE_SAs is not to be relied on, None where it is."""

    groups: dict[int, Group]
    sas: IkeSas = field(default_factory=IkeSas)
    unknown: str | None = NOT_ASKED
    # No other key server has IKE_SAs with members.
    alone: bool = True
    # When charon was asked for all that the table began with.
    _as_of: float = -1.0
    _doubts: dict[IPAddress, float] = field(default_factory=dict)
    # By group: members without an IKE_SA, and since when; the longest first.
    _down: dict[int, dict[Identity, float]] = field(default_factory=dict)

    # -- who may be a member ---------------------------------------------------------------------

    def vouched(self, peer: Phase1Peer, now: float, *, final: bool) -> Identity:
        """Who the peer is. ``final``: there is no time to ask anew. Raises NotVouched."""
        if self.unknown is not None:
            soon = self.unknown == NOT_ASKED and not final
            reason = Drop.IKE_ASKED if soon else Drop.IKE_UNKNOWN
            raise NotVouched(reason, f"nobody can be vouched for: {self.unknown}")
        try:
            identity = self.sas.vouched(peer)
        except NotVouched:
            if final or not self._doubtful(peer.host, now):
                raise
            what = f"charon is asked anew about {peer.host}"
            raise NotVouched(Drop.IKE_ASKED, what) from None
        self._doubts.pop(peer.host, None)
        return identity

    def _doubtful(self, host: IPAddress, now: float) -> bool:
        """Whether what there is now may still be unknown."""
        old = [h for h, since in self._doubts.items() if since + DOUBT_LIFETIME <= now]
        for each in old:
            del self._doubts[each]
        since = self._doubts.get(host)
        if since is None:
            if len(self._doubts) >= MAX_DOUBTS:
                return False
            self._doubts[host] = now
            return True
        if since <= self._as_of:
            del self._doubts[host]
            return False
        return True

    # -- what charon says ------------------------------------------------------------------------

    def take(self, sas: Iterable[IkeSa], asked: float, now: float) -> list[Action]:
        """All that there are; ``asked``: when charon was."""
        anew, self.unknown, self._as_of = self.unknown is not None, None, asked
        before = None if self.alone else self.sas.identities()
        self.sas.replace(sas)
        actions: list[Action] = []
        for key, group in self._vouched_groups():
            down = self._down.setdefault(key, {})
            for identity in [i for i in down if i not in group.members]:
                del down[identity]  # put out meanwhile
            back = [i for i in down if i in self.sas]
            known = group.members if before is None else before & group.members.keys()
            gone = [i for i in known if i not in down and i not in self.sas]
            for identity in back:
                del down[identity]
            if anew:
                # Nobody knows since when, so the time of grace begins here.
                down.update(dict.fromkeys(down, now))
            down.update(dict.fromkeys(gone, now))
            actions += [*_back(group, back), *_lost(group, gone)]
        return actions

    def lose(self, why: str) -> None:
        """charon does not answer: from here on nothing is known."""
        self.unknown = why

    def up(self, sa: IkeSa) -> list[Action]:
        """New, authenticated again, or from another address now."""
        self.sas.put(sa)
        identity, actions = sa.identity, list[Action]()
        if identity is None:
            return []
        for key, group in self._vouched_groups():
            was_down = self._down.get(key, {}).pop(identity, None) is not None
            if was_down and identity in group.members:
                actions += _back(group, [identity])
        return actions

    def down(self, number: str, now: float) -> list[Action]:
        """An IKE_SA has gone; others of the same identity may be left."""
        sa = self.sas.remove(number)
        if sa is None or sa.identity is None or sa.identity in self.sas:
            return []
        actions: list[Action] = []
        for key, group in self._vouched_groups():
            down = self._down.setdefault(key, {})
            if sa.identity in group.members and sa.identity not in down:
                down[sa.identity] = now
                actions += _lost(group, [sa.identity])
        return actions

    def _vouched_groups(self) -> list[tuple[int, Group]]:
        return [(key, group) for key, group in self.groups.items() if group.config.ike is not None]

    # -- what follows ----------------------------------------------------------------------------

    def due(self, key: int, group: Group) -> float | None:
        """When somebody's time of grace is over."""
        policy, down = group.config.ike, self._down.get(key)
        if policy is None or policy.on_down is not OnIkeDown.EVICT or not down or self.unknown:
            return None
        return next(iter(down.values())) + policy.grace

    def overdue(self, key: int, group: Group, now: float) -> list[Identity]:
        """Whose time is over; they are asked about no more."""
        gone: list[Identity] = []
        while (due := self.due(key, group)) is not None and due <= now:
            identity = next(iter(self._down[key]))
            del self._down[key][identity]
            if identity in group.members:
                gone.append(identity)
        return gone

    def end(self, identities: Iterable[Identity]) -> list[Action]:
        """Their IKE_SAs are to go as well, where it is those that make members."""
        named = tuple(identities)
        return [EndIke(named)] if named and self._vouched_groups() else []

    def keep(self, identities: Iterable[Identity]) -> list[Action]:
        """Who is readmitted before that has been done keeps them."""
        named = tuple(identities)
        return [KeepIke(named)] if named and self._vouched_groups() else []

    def state_of(self, group: Group, identity: Identity) -> str | None:
        """For operators; None where IKE has no say."""
        if group.config.ike is None:
            return None
        if self.unknown is not None:
            return "unknown"
        if identity in self.sas:
            return "up"
        down = self._down.get(group.config.group_id.key, {})
        return "down" if self.alone or identity in down else "elsewhere"


def _lost(group: Group, members: Sequence[Identity]) -> list[Event]:
    told = [group_event(group, "ike-lost", "warning", member=str(i)) for i in members[:MAX_NAMED]]
    more = len(members) - MAX_NAMED
    if more > 0:
        told.append(group_event(group, "ike-lost-more", "warning", count=more))
    return told


def _back(group: Group, members: Sequence[Identity]) -> list[Event]:
    told = [group_event(group, "ike-up", "info", member=str(i)) for i in members[:MAX_NAMED]]
    more = len(members) - MAX_NAMED
    if more > 0:
        told.append(group_event(group, "ike-up-more", "info", count=more))
    return told
