"""Where several key servers serve a group: what another one has written is taken up into memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..crypto.lkh import Tree
from ..crypto.signature import BadSignatureKey
from .actions import Action
from .forest import restore_pages
from .group import LEDGER_LENGTH, Group, GroupConfig
from .group_record import (
    MEMBER_COLUMNS,
    restore_acks,
    restore_group,
    restore_members,
    restore_rekey,
    restore_standings,
)
from .roster import Registrant

if TYPE_CHECKING:
    from .keeper import SavedGroup
    from .key_server import KeyServer

_NUMBER, _REMOVED = MEMBER_COLUMNS.index("number"), MEMBER_COLUMNS.index("removed")


def take_up(group: Group, changed: SavedGroup) -> None:
    """What has changed since memory and store were the same; an empty record has not.

    Raises KeyError, ValueError or TypeError for what cannot be read: then memory is neither.
    """
    try:
        if changed.group:
            _take_group(group, changed.group)
        restore_pages(group.sas, changed.pages)
        _take_members(group, changed.members)
        restore_standings(group, changed.standings)
        for record in changed.rekeys:
            restore_rekey(group, record, group.config.ack_wait)
        while len(group.ledger) > LEDGER_LENGTH:
            del group.ledger[min(group.ledger)]
        restore_acks(group, changed.acks)
    except (BadSignatureKey, AttributeError, OverflowError) as error:
        raise ValueError(str(error)) from error
    hasten(group)


def adopt(
    engine: KeyServer,
    configs: Iterable[GroupConfig],
    saved: Mapping[int, SavedGroup],
    now: float,
) -> list[Action]:
    """What another configuration says, for who does not lead: the leader rekeys. ``saved``: all
    there is. Raises as :meth:`KeyServer.start`."""
    wanted = {config.group_id.key: config for config in configs}
    before = {i for group in engine.groups.values() for i in group.members}
    for key in engine.groups.keys() - wanted.keys():
        del engine.groups[key]
    # What this server took out while it led is for the leader to end, or is back.
    engine.keeper.leaving.clear()
    engine.groups.update((key, Group(config)) for key, config in wanted.items())
    actions = engine.join(saved, now)
    over = sorted((i for i in before if not engine.admitted_somewhere(i)), key=str)
    return [*actions, *engine.isakmp.forget(over), *engine.ike.end(over)]


def hasten(group: Group) -> None:
    """A rekey that nobody has said yet is due at once, and one that nobody is waited for."""
    for rekey in group.open_rekeys():
        if not rekey.attempts or rekey.all_heard:
            rekey.deadline = rekey.sent_at


def _take_group(group: Group, record: Mapping[str, Any]) -> None:
    trees = [sa.tree for sa in group.sas]
    keks = {*group.old_keks, *(sa.kek.kek.spi for sa in group.sas)}
    restore_group(group, record)
    for sa, tree in zip(group.sas, trees, strict=False):
        # Its keys are in pages, of which only those come that have changed.
        if tree is not None and sa.tree is not None and _shape(tree) == _shape(sa.tree):
            sa.tree = tree
    for spi in keks - {*group.old_keks, *(sa.kek.kek.spi for sa in group.sas)}:
        group.note_gone(spi)


def _shape(tree: Tree) -> tuple[int, int, int]:
    return tree.arity, tree.capacity, tree.octets


def _take_members(group: Group, rows: Sequence[Sequence[Any]]) -> None:
    """What they have acknowledged is no part of their rows."""
    known: dict[int, Registrant] = {}
    for row in rows:
        before = group.roster.numbered(row[_NUMBER])
        if before is not None:
            known[before.number] = before
            if row[_REMOVED] is not None:
                group.roster.remove(before.identity)
    restore_members(group, rows)
    for number, before in known.items():
        after = group.roster.numbered(number)
        if after is not None:
            again = after.registered_at != before.registered_at
            after.acknowledged, after.last_ack, after.rtt = (
                before.acknowledged,
                before.last_ack,
                before.rtt,
            )
            after.missed = 0 if again else before.missed
