"""What becomes known of members between registrations: another address, a dead SA, a refusal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..wire.registry import NotifyType, name_of
from .actions import Action, Event, Persist
from .arrival import Arrival
from .group import Group, group_event
from .group_record import member_record
from .sessions import Session, Sessions

Groups = Mapping[int, Group]


def follow(
    groups: Groups, session: Session, arrival: Arrival, message_id: int | None = None
) -> list[Action]:
    """After a message has proved itself: where it came from is where the member is now."""
    before = session.follow(arrival.path, message_id)
    if before is None:
        return []
    actions: list[Action] = []
    for key, group in groups.items():
        member = group.members.get(session.member_of(key))
        if member is not None and member.address == before.remote:
            moved = group.move_member(member, arrival.path)
            # RFC 3947 section 8: "SHOULD AUDIT the event every time the mapping is changed"
            actions += [
                Persist("member", member_record(group, moved)),
                group_event(
                    group,
                    "member-moved",
                    member=str(member.identity),
                    address=str(moved.address),
                    before=str(before.remote),
                ),
            ]
    return actions


def mark_dead(groups: Groups, sessions: Sessions, dead: Iterable[Session]) -> None:
    """A member without a phase-1 SA is nothing unusual; one whose SA died unasked for is."""
    for session in dead:
        for key, group in groups.items():
            identity = session.member_of(key)
            if identity in group.members and not sessions.of(identity):
                group.members[identity].dead = True


def refused_offer(groups: Groups, session: Session, kind: int, reason: str) -> Event:
    """A member refuses what it was offered (RFC 6407 section 3.3), and says why."""
    asked = [
        groups[pull.group].config.name for pull in session.pulls.values() if pull.group in groups
    ]
    fields: dict[str, str] = {"group": asked[-1]} if asked else {}
    fields |= {
        "member": str(session.sa.remote_identity),
        "notify": name_of(NotifyType, kind),
        "error": reason,
    }
    return Event("member-refused", fields, "warning")
