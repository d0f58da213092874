"""How each member of a group stands towards what it was last told: for commands, metrics and the
status page alike."""

from __future__ import annotations

from enum import StrEnum

from ..protocol.group import Group
from ..protocol.page import Rekey
from ..protocol.roster import Registrant
from ..protocol.silence import REMINDER


class State(StrEnum):
    """``CURRENT``: nothing was asked of it since it registered, or it is never asked."""

    ACKNOWLEDGED = "acknowledged"
    CURRENT = "current"
    RE_REGISTERED = "re-registered"
    PENDING = "pending"
    MISSING = "missing"
    DEAD = "dead"


class Standing:
    """A look at many members: the pages that they are judged by are found once."""

    def __init__(self, group: Group) -> None:
        # By Rekey SA, the newest first, down to the last one that was for everybody.
        self._pages: dict[int, list[Rekey]] = {}
        complete: set[int] = set()
        for page in reversed(group.ledger.values()):
            if page.sa not in complete:
                self._pages.setdefault(page.sa, []).append(page)
                if page.reason != REMINDER:
                    complete.add(page.sa)

    def of(self, member: Registrant) -> State:
        if member.dead:
            return State.DEAD
        number = member.number
        for page in self._pages.get(member.sa, ()):
            if page.expected.has(number):
                return _towards(page, member)
            if page.reason != REMINDER:
                break
        return State.CURRENT


def _towards(page: Rekey, member: Registrant) -> State:
    if page.acknowledged.has(member.number):
        return State.ACKNOWLEDGED
    if member.registered_at > page.first_sent:
        return State.RE_REGISTERED
    return State.MISSING if page.closed else State.PENDING
