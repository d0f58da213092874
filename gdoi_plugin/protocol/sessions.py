"""The key server's established phase-1 SAs: whose they are, how many, and when each one ends."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from ..wire.registry import NotifyType
from .actions import Action, Event, IPAddress, Random
from .association import Association
from .dpd import OFF, DpdConfig
from .identity import Identity
from .isakmp import IsakmpSa
from .main_mode import Responder
from .nat import Path
from .policy import GroupPolicy
from .pull import PullResponder

# Stored answers of a PULL are kept for repeated requests as long as a member resends.
PULL_LIFETIME = 40.0
MAX_PULLS_PER_SA = 16
# Of one SA, remembered against copies: a member that says more is no longer followed.
MAX_MESSAGE_IDS = 4096
# An established SA holds about 3 KB.
MAX_ESTABLISHED_PER_IDENTITY = 8


@dataclass(slots=True)
class Pull:
    """One GROUPKEY-PULL under way: what message 2 promised must still hold at message 4."""

    exchange: PullResponder
    group: int
    epoch: int
    policy: GroupPolicy
    # Whom it makes a member.
    member: Identity
    # Message 3 has come, and waits for those of others: see KeyServer.joining.
    held: bool = False


@dataclass(slots=True)
class Session:
    """An established phase-1 SA. ``responder`` still answers a repeated message 5."""

    association: Association
    responder: Responder
    pulls: dict[int, Pull] = field(default_factory=dict)
    # Who its peer is as a member, by group, where that is not the identity of phase 1.
    known_as: dict[int, Identity] = field(default_factory=dict)
    # Message IDs of authentic messages: what is said again may be said by anybody.
    _used: set[int] = field(default_factory=set)

    def may_be_at(self, host: IPAddress) -> bool:
        """A NAT changes its hosts' addresses and ports as it likes."""
        return host == self.sa.remote.host or self.sa.nat.there

    def follow(self, path: Path, message_id: int | None) -> Path | None:
        """An authentic message came this way; the former path where that has changed.

        RFC 3947 section 7: a NAT may forget its mappings at any time, and "ends that are NOT behind
        NAT SHOULD use the last valid UDP encapsulated IKE [...] packet from the other end to
        determine which IP and port addresses should be used". However, a copy of an old one would
        do to lead rekeys astray: one with a message ID that was used before moves nothing.
        ``message_id`` None: a nonce of ours has shown that it is no copy.
        """
        if message_id is not None:
            if message_id in self._used or len(self._used) >= MAX_MESSAGE_IDS:
                return None
            self._used.add(message_id)
        before = self.sa.path
        if path == before or not self.sa.nat.there:
            return None
        self.association.sa = replace(self.sa, local=path.local, remote=path.remote)
        return before

    @property
    def sa(self) -> IsakmpSa:
        return self.association.sa

    def member_of(self, group: int) -> Identity:
        return self.known_as.get(group, self.sa.remote_identity)

    def prune(self, now: float) -> None:
        self.pulls = {mid: p for mid, p in self.pulls.items() if p.exchange.expires > now}
        while len(self.pulls) > MAX_PULLS_PER_SA:
            del self.pulls[next(iter(self.pulls))]

    def ended(self, reason: str, level: str = "info") -> Event:
        return self.sa.event("phase1-deleted", level, reason=reason)


@dataclass(slots=True, eq=False)
class Sessions(Mapping[bytes, Session]):
    """By cookies, oldest first."""

    random: Random = field(repr=False)
    dpd: DpdConfig = OFF
    _all: dict[bytes, Session] = field(default_factory=dict, init=False)
    _of: dict[Identity, dict[bytes, None]] = field(default_factory=dict, init=False)
    # When to look at a session again: never later than its own deadline.
    _due: list[tuple[float, bytes]] = field(default_factory=list, init=False)

    def __getitem__(self, cookies: bytes) -> Session:
        return self._all[cookies]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def of(self, identity: Identity) -> list[Session]:
        """With this identity, in phase 1 or as a member."""
        return [self._all[cookies] for cookies in self._of.get(identity, ())]

    def add(self, sa: IsakmpSa, responder: Responder, now: float) -> list[Action]:
        """One more; of an identity that has many, the oldest goes."""
        actions: list[Action] = []
        mine = self.of(sa.remote_identity)
        for session in mine[: max(0, len(mine) + 1 - MAX_ESTABLISHED_PER_IDENTITY)]:
            actions += [session.association.delete(), self.end(session, "too-many")]
        association = Association.start(sa, self.random, self.dpd, now)
        self._all[sa.cookies] = Session(association, responder)
        self._of.setdefault(sa.remote_identity, {})[sa.cookies] = None
        heapq.heappush(self._due, (association.deadline, sa.cookies))
        actions.append(sa.event("phase1-established"))
        if any(n.notify_type == NotifyType.INITIAL_CONTACT for n in responder.notifications):
            actions += self.initial_contact(self._all[sa.cookies])
        return actions

    def know_as(self, session: Session, group: int, identity: Identity) -> None:
        """It has made this identity a member of the group."""
        before = session.member_of(group)
        if identity == before:
            return
        session.known_as[group] = identity
        self._of.setdefault(identity, {})[session.sa.cookies] = None
        if before not in {session.sa.remote_identity, *session.known_as.values()}:
            self._of[before].pop(session.sa.cookies, None)
            if not self._of[before]:
                del self._of[before]

    def interrupt(self, identities: Iterable[Identity]) -> None:
        """Their GROUPKEY-PULLs lead to nothing any more."""
        for identity in identities:
            for session in self.of(identity):
                session.pulls.clear()

    def end(self, session: Session, reason: str, level: str = "info") -> Event:
        sa = session.sa
        del self._all[sa.cookies]
        for identity in {sa.remote_identity, *session.known_as.values()}:
            mine = self._of[identity]
            del mine[sa.cookies]
            if not mine:
                del self._of[identity]
        return session.ended(reason, level)

    def initial_contact(self, session: Session) -> list[Action]:
        """RFC 2407 section 4.6.3.3: the peer has started anew and knows none of its SAs from
        before. Those that began after this one did are of the same run, of another group."""
        begun = session.sa.begun
        actions: list[Action] = []
        for other in self.of(session.sa.remote_identity):
            if other is not session and other.sa.established < begun:
                # It may be a second agent with the same identity: that one is to be told.
                actions += [other.association.delete(), self.end(other, "initial-contact")]
        return actions

    def tick(self, now: float) -> tuple[list[Action], list[Session]]:
        """Questions of DPD and what they led to; who turned out to be dead."""
        actions: list[Action] = []
        dead: list[Session] = []
        while self._due and self._due[0][0] <= now:
            _, cookies = heapq.heappop(self._due)
            session = self._all.get(cookies)
            if session is None:
                continue
            if session.association.expired(now):
                self.end(session, "expired")
            elif session.association.dpd.dead(now):
                actions.append(self.end(session, "dead", "warning"))
                dead.append(session)
            else:
                actions += session.association.tick(now)
                heapq.heappush(self._due, (session.association.deadline, cookies))
        return actions, dead

    @property
    def deadline(self) -> float | None:
        """Constant work, however many SAs there are: it is asked at every wake-up."""
        return self._due[0][0] if self._due else None
