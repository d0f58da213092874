"""What follows from silence, RFC 8263 section 6: what the operator chose, by the count of rekeys
that a member has missed one after another.

A member that has never acknowledged anything may be one that cannot, and is not called gone:
it is named in the log and nothing more. Registering again clears the record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .roster import Registrant

# The reason of a rekey that is said once more to members that have missed one.
REMINDER = "reminder"
# A reminder leaves so many ACK windows after the last one has closed.
REMINDER_WAIT = 2
# Members that events name one by one, of those missing in one rekey; the ledger has them all.
MAX_NAMED = 64


@dataclass(frozen=True, slots=True)
class SilencePolicy:
    """From how many missed rekeys on; 0 for never."""

    log: int = 1
    alert: int = 3
    reminder: int = 0
    evict: int = 0


DEFAULT_SILENCE = SilencePolicy()


@dataclass(frozen=True, slots=True)
class Reminder:
    """Members, by number, of which the rekey of this epoch is to be reminded."""

    due: float
    epoch: int
    numbers: Sequence[int]


@dataclass(slots=True)
class Consequences:
    """``alert``: those that have become silent by this very rekey."""

    log: list[Registrant] = field(default_factory=list)
    alert: list[Registrant] = field(default_factory=list)
    remind: list[Registrant] = field(default_factory=list)
    evict: list[Registrant] = field(default_factory=list)


def consequences(policy: SilencePolicy, missing: Sequence[Registrant]) -> Consequences:
    """Of members whose ``missed`` counts this rekey already."""
    found = Consequences()
    for member in missing:
        # Who registered while the windows were open has missed this one, and nothing is counted.
        if policy.log and max(1, member.missed) >= policy.log:
            found.log.append(member)
        if not member.acknowledged:
            continue
        if member.missed == policy.alert:
            found.alert.append(member)
        if policy.evict and member.missed >= policy.evict:
            found.evict.append(member)
        elif policy.reminder and member.missed >= policy.reminder:
            found.remind.append(member)
    return found
