"""Who registers: message 3 of a GROUPKEY-PULL, to be answered alone or with those of others."""

from __future__ import annotations

from dataclasses import dataclass, field

from .actions import Event
from .arrival import Arrival
from .group import Group, group_event
from .policy import Tek
from .roster import Registrant
from .sender_ids import SenderIds, sids_for
from .sessions import Pull, Session
from .tek_policy import wanted_by


@dataclass(frozen=True, slots=True)
class Newcomer:
    """``asked``: for so many Sender-IDs."""

    session: Session
    pull: Pull
    arrival: Arrival
    asked: int

    def sids(self, group: Group) -> int:
        """How many Sender-IDs it gets."""
        host = None if self.session.sa.nat.there else self.arrival.source.host
        teks = (t.tek for t in group.teks if isinstance(t.tek, Tek))
        return sids_for(teks, host, self.asked, group.config.sender_ids_limit)

    def registrant(self, group: Group) -> Registrant:
        path, now, nat = self.arrival.path, self.arrival.now, self.session.sa.nat
        return group.registrant(self.pull.member, path, now, behind_nat=nat.there)

    def why_rekey(self, group: Group, member: Registrant) -> str | None:
        """Of one that is none to the group: whether it needs other TEKs than it has."""
        again = member.identity in group.members
        delays = (group.config.activation_delay, group.config.deactivation_delay)
        return wanted_by(group.teks, self.arrival.now, again=again, delays=delays)

    def registered(
        self, group: Group, member: Registrant, seq: int, sids: SenderIds | None
    ) -> list[Event]:
        nat = self.session.sa.nat
        fields = {} if sids is None else {"sender_ids": str(sids)}
        address = member.address if nat.there else member.address.host
        told = [
            group_event(
                group,
                "member-registered",
                member=str(member.identity),
                address=str(address),
                nat=str(nat),
                epoch=group.epoch,
                seq=seq,
                **fields,
            )
        ]
        if sids is not None and self.asked > len(sids.values):
            limited: dict[str, str | int] = {"asked": self.asked, "given": len(sids.values)}
            limited["member"] = str(member.identity)
            told.append(group_event(group, "sender-ids-limited", "warning", **limited))
        return told


@dataclass(slots=True)
class Joining:
    """Newcomers that are let in together when it is due."""

    due: float
    waiting: list[Newcomer] = field(default_factory=list)
