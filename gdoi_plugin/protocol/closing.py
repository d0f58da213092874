"""The end of a rekey's windows: who is missing, and what follows, RFC 8263 section 6."""

from __future__ import annotations

from collections.abc import Sequence

from .actions import Action, Persist
from .group import Group, group_event
from .group_record import group_record, rekey_record, standing_record
from .page import Rekey
from .roster import Registrant
from .silence import MAX_NAMED, REMINDER, REMINDER_WAIT, Consequences, Reminder, consequences


def close_rekey(group: Group, rekey: Rekey, now: float) -> list[Action]:
    """RFC 8263 section 6: non-receipt triggers a log line, and what the operator chose."""
    rekey.closed = True
    rekey.said.clear()
    rekey.waves.clear()
    rekey.waiting.clear()
    rekey.missing = rekey.silent
    found = _heed(group, rekey, now)
    # RFC 8263 section 6: the old KEK stays until members had time to acknowledge under it.
    # Another rekey may still be open under it.
    old = group.old_keks.get(rekey.kek_spi)
    waited_for = {other.kek_spi for other in group.open_rekeys()}
    if old is not None and old.retire_at is None and rekey.kek_spi not in waited_for:
        windows = REMINDER_WAIT + 1 if found.remind else 1
        old.retire_at = now + windows * group.config.ack_wait
    return [
        Persist("rekey", rekey_record(group, rekey)),
        Persist("standing", standing_record(group, rekey, now)),
        Persist("group", group_record(group)),
        *_missing(group, rekey, found.log),
        *_silent(group, rekey, found.alert),
        group_event(
            group,
            "rekey-closed",
            epoch=rekey.epoch,
            expected=len(rekey.expected),
            acknowledged=len(rekey.expected) - len(rekey.missing),
        ),
    ]


def _heed(group: Group, rekey: Rekey, now: float) -> Consequences:
    """Counts it against those who are missing. Reminders and evictions are left for the next tick,
    where what several rekeys led to becomes one."""
    roster = group.roster
    missing = [m for n in rekey.missing.numbers if (m := roster.numbered(n)) is not None]
    if not _counts(rekey):
        return Consequences(log=missing)
    for member in missing:
        if member.registered_at <= rekey.first_sent:
            member.missed += 1
    found = consequences(group.config.silence, missing)
    if found.remind:
        group.reminders.append(_reminder(group, rekey, found.remind, now))
    group.overdue |= {member.identity for member in found.evict}
    return found


def _reminder(group: Group, rekey: Rekey, members: Sequence[Registrant], at: float) -> Reminder:
    """``at``: when its last window was over."""
    due = at + REMINDER_WAIT * group.config.ack_wait
    return Reminder(due, rekey.epoch, [member.number for member in members])


def forgotten_reminders(group: Group) -> list[Reminder]:
    """Those that were still to leave when the key server ended: of each Rekey SA its last rekey, if
    that is closed and nobody has been reminded of it."""
    newest: dict[int, Rekey] = {}
    for rekey in group.ledger.values():
        if rekey.reason == REMINDER:
            newest.pop(rekey.sa, None)
        else:
            newest[rekey.sa] = rekey
    found: list[Reminder] = []
    for rekey in newest.values():
        roster = group.roster
        missing = [m for n in rekey.missing.numbers if (m := roster.numbered(n)) is not None]
        again = [m for m in missing if m.missed and m.registered_at <= rekey.first_sent]
        members = consequences(group.config.silence, again).remind
        if rekey.closed and not rekey.brings and _counts(rekey) and members:
            found.append(_reminder(group, rekey, members, rekey.sent_at + group.config.ack_wait))
    return found


def _counts(rekey: Rekey) -> bool:
    """Not what was never said, said a second time, or brings the KEK of TEKs that follow: who
    misses those has missed one rekey, not two."""
    return rekey.was_said and rekey.reason != REMINDER and rekey.update is None


# Of very many members some are named, and one event is for the rest: the ledger has them all.


def _missing(group: Group, rekey: Rekey, members: Sequence[Registrant]) -> list[Action]:
    told: list[Action] = [
        group_event(group, "ack-missing", "warning", **_named(rekey, member))
        for member in members[:MAX_NAMED]
    ]
    more = len(members) - MAX_NAMED
    if more > 0:
        fields = {"epoch": rekey.epoch, "count": more}
        told.append(group_event(group, "ack-missing-more", "warning", **fields))
    return told


def _silent(group: Group, rekey: Rekey, members: Sequence[Registrant]) -> list[Action]:
    told: list[Action] = [
        group_event(group, "member-silent", "warning", **_named(rekey, member))
        for member in members[:MAX_NAMED]
    ]
    more = len(members) - MAX_NAMED
    if more > 0:
        fields = {"epoch": rekey.epoch, "count": more}
        told.append(group_event(group, "member-silent-more", "warning", **fields))
    return told


def _named(rekey: Rekey, member: Registrant) -> dict[str, str | int]:
    seq = rekey.seqs[-1] if rekey.seqs else 0
    return {
        "epoch": rekey.epoch,
        "seq": seq,
        "member": str(member.identity),
        "missed": member.missed,
    }
