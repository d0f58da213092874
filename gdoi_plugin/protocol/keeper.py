"""Groups come, change and go with the configuration: at a start, and while the key server runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from ..crypto.signature import BadSignatureKey
from .actions import Action, Persist
from .closing import close_rekey, forgotten_reminders
from .forest import restore_pages
from .group import POLICY_CHANGE, Group, GroupConfig, group_event
from .group_record import (
    AckEntries,
    group_record,
    restore_acks,
    restore_group,
    restore_members,
    restore_rekey,
    restore_standings,
    tree_persists,
)
from .identity import Identity
from .identity_pattern import IdentityList
from .rekeying import Rekeyer
from .sender_ids import SidCounter
from .tek_policy import outdated, transformed

# A clock is called set back where what it wrote lies this far in the future (seconds).
CLOCK_STEP = 60.0


@dataclass(frozen=True, slots=True)
class SavedGroup:
    """What a store gives back. ``members``: rows of MEMBER_COLUMNS. ``rekeys`` by epoch;
    ``acks`` in the order in which they were saved, each with its epoch."""

    group: Mapping[str, Any]
    members: Sequence[Sequence[Any]] = ()
    rekeys: Sequence[Mapping[str, Any]] = ()
    acks: Sequence[tuple[int, AckEntries]] = ()
    pages: Sequence[Mapping[str, Any]] = ()
    standings: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What a configuration makes of one group, carried out as one rekey at most.

    ``gone``: members that it admits no more. ``clean_slate``: nothing of the old keys can go on.
    """

    group: str
    reason: str = POLICY_CHANGE
    added: bool = False
    removed: bool = False
    gone: tuple[Identity, ...] = ()
    clean_slate: bool = False
    new_kek: bool = False
    new_teks: bool = False

    @property
    def steps(self) -> list[str]:
        """For an operator, in the order in which they are taken."""
        if self.added or self.removed:
            return ["new group"] if self.added else ["delete group: every key, then the group"]
        told = [f"remove {len(self.gone)} members: {_some(self.gone)}"] if self.gone else []
        if self.clean_slate:
            return [*told, "delete group: every key; members register again"]
        if self.new_kek:
            return [*told, "rekey: new KEK and TEKs"]
        return [*told, "rekey: new TEKs"] if self.new_teks else told


def _some(identities: Iterable[Identity], most: int = 8) -> str:
    named = [str(identity) for identity in identities]
    more = [f"{len(named) - most} more"] if len(named) > most else []
    return ", ".join([*named[:most], *more])


def plan_for(group: Group, config: GroupConfig, now: float) -> Plan:
    """What has to be done where ``group`` is to be as ``config`` says."""
    gone = tuple(
        sorted((i for i in group.members if i not in config.members or i in group.denied), key=str)
    )
    kek = group.current_kek()
    # Lifetimes that a clock set back since has made too long.
    ahead = max([kek.created, *(t.created for t in group.teks)]) > now + CLOCK_STEP
    # RFC 6054 section 3: each SID used with one SA "MUST have the same length".
    other_sids = group.sids.next and group.sids.bits != config.sid_bits
    if other_sids or not group.sas[0].fits(config.lkh, config.kek_bits):
        return Plan(config.name, gone=gone, clean_slate=True)
    if gone and config.lkh is None:
        # They have the KEK that a new one would be sent under: see Rekeyer.remove.
        return Plan(config.name, gone=gone, clean_slate=True)
    told = (kek.kek.scheme, kek.kek.destination, kek.kek.port, kek.kek.ack_type)
    told_now = (config.scheme, config.rekey_address, config.rekey_port, config.ack)
    sizes, wanted = (8 * len(kek.kek.key), kek.kek.lifetime), (config.kek_bits, config.kek_lifetime)
    new_kek = bool(gone) or ahead or (told, sizes) != (told_now, wanted)
    new_teks = new_kek or outdated(group.teks, config.teks)
    reason = "clock" if ahead else POLICY_CHANGE
    return Plan(config.name, reason, gone=gone, new_kek=new_kek, new_teks=new_teks)


@dataclass(slots=True)
class Keeper:
    """Takes groups up from what was saved, and changes them as the configuration changes."""

    groups: dict[int, Group]
    rekeyer: Rekeyer
    # Groups that the configuration has no more, until their last message has had its time.
    leaving: set[int] = field(default_factory=set, init=False)

    def take_up(self, group: Group, saved: SavedGroup | None, now: float) -> list[Action]:
        """At a start: the group as it was saved, as it is to be now; or a new one.

        Raises KeyError, ValueError or TypeError for a saved record that cannot be read.
        """
        if saved is None:
            self.rekeyer.open_epoch(group, now, "new", kek=True, replace_old=True)
            return [
                Persist("group", group_record(group)),
                *tree_persists(group),
                group_event(group, "group-created", epoch=group.epoch),
            ]
        restore(group, saved)
        leave_future(group, now)
        return self.resume(group, now)

    def resume(self, group: Group, now: float) -> list[Action]:
        """What was saved becomes what the configuration wants, or goes on where it was cut off."""
        told = group_event(group, "group-restored", epoch=group.epoch)
        plan = plan_for(group, group.config, now)
        group.reminders = forgotten_reminders(group)
        # What is said now is said under the KEK in use, a clean slate too: who was not told of that
        # yet is told first.
        again = self._say_again(group, now, keks=bool(plan.steps))
        return [told, *again, *self._change(group, group.config, plan, now)]

    def plan(self, configs: Iterable[GroupConfig], now: float) -> dict[int, Plan]:
        """What another configuration would do, by group. Changes nothing."""
        wanted = {config.group_id.key: config for config in configs}
        plans = {
            key: Plan(group.config.name, removed=True)
            for key, group in self.groups.items()
            if key not in wanted and key not in self.leaving
        }
        for key, config in wanted.items():
            group = self.groups.get(key)
            plans[key] = (
                Plan(config.name, added=True)
                if group is None or key in self.leaving
                else plan_for(group, config, now)
            )
        return plans

    def change(
        self,
        configs: Iterable[GroupConfig],
        saved: Mapping[int, SavedGroup],
        now: float,
        *,
        replace_old: bool,
    ) -> list[Action]:
        """Makes every group what the configuration says; one rekey for each that needs one.

        ``saved``: what the store has of groups that are new here, and may have been here before.
        Raises as :meth:`take_up`, before anything has changed.
        """
        wanted = {config.group_id.key: config for config in configs}
        plans = self.plan(wanted.values(), now)
        actions: list[Action] = []
        new: dict[int, Group] = {}
        for key, plan in plans.items():
            if plan.added and key not in self.leaving:
                new[key] = Group(wanted[key])
                actions += self.take_up(new[key], saved.get(key), now)
        self.groups.update(new)
        for key, plan in plans.items():
            if plan.removed:
                actions += self._end(key, now)
            elif key in self.leaving:
                # Back before its last message had its time; its keys are new ones already.
                self.leaving.discard(key)
                plan = plan_for(self.groups[key], wanted[key], now)
            if not (plan.added or plan.removed):
                actions += self._change(
                    self.groups[key], wanted[key], plan, now, replace_old=replace_old
                )
        return actions

    def _end(self, key: int, now: float) -> list[Action]:
        group = self.groups[key]
        self.leaving.add(key)
        # Nobody registers any more; who has been told so may still acknowledge it.
        group.config = replace(group.config, members=IdentityList())
        told = group_event(group, "group-removed", epoch=group.epoch)
        return [*self.rekeyer.delete_group(group, now), told]

    def due(self, key: int) -> float:
        """When something is to be done about this group as a whole."""
        group = self.groups[key]
        if key not in self.leaving:
            return group.next_rekey()[0]
        return inf if group.open_rekeys() else 0.0

    def tick(self) -> list[Action]:
        """Groups whose last message has had its time are forgotten here. The store keeps them: a
        group that comes back must not use an epoch or a SEQ again."""
        actions: list[Action] = []
        for key in [key for key in self.leaving if not self.groups[key].open_rekeys()]:
            self.leaving.discard(key)
            group = self.groups.pop(key)
            actions += self.rekeyer.forget(group, list(group.members))
        return actions

    def _change(
        self,
        group: Group,
        config: GroupConfig,
        plan: Plan,
        now: float,
        *,
        replace_old: bool = False,
    ) -> list[Action]:
        group.config = config
        if not group.sids.next:
            group.sids = SidCounter(config.sid_bits)
        if plan.clean_slate:
            return [*self.rekeyer.forget(group, plan.gone), *self.rekeyer.delete_group(group, now)]
        if not plan.new_teks:
            return []
        actions = _transformed(group)
        if plan.gone:
            gone = self.rekeyer.remove(
                group, plan.gone, now, plan.reason, at_once=True, replace_old=replace_old
            )
            return [*actions, *gone]
        rekeyed = self.rekeyer.rekey(
            group, now, plan.reason, kek=plan.new_kek, replace_old=replace_old
        )
        return [*actions, *rekeyed]

    def _say_again(self, group: Group, now: float, *, keks: bool) -> list[Action]:
        """The rekeys that a crash cut short; with ``keks`` only those that bring a KEK."""
        sayer, actions = self.rekeyer.sayer, list[Action]()
        for rekey in group.open_rekeys():
            if group.kek_of(rekey.kek_spi) is None:
                actions += close_rekey(group, rekey, now)
            elif keks and not rekey.with_kek:
                continue  # another one follows
            elif rekey.told is not None and sayer.understood(group, rekey):
                actions += sayer.resume(group, rekey, now)
            elif sayer.repeatable(group, rekey) and sayer.still_silent(group, rekey):
                actions += sayer.send(group, rekey, now)
        return actions


def restore(group: Group, saved: SavedGroup) -> None:
    """Raises KeyError, ValueError or TypeError."""
    try:
        restore_group(group, saved.group)
        restore_pages(group.sas, saved.pages)
        restore_members(group, saved.members)
        restore_standings(group, saved.standings)
        for record in saved.rekeys:
            restore_rekey(group, record, group.config.ack_wait)
        restore_acks(group, saved.acks)
        _check_newest(group)
    except (BadSignatureKey, AttributeError, OverflowError) as error:
        # A list where text must be, a number beyond all bounds: not what was written.
        raise ValueError(str(error)) from error


def _check_newest(group: Group) -> None:
    """With a group's record from before pages of its own ledger, SEQs would be used twice."""
    for page in group.ledger.values():
        kek = group.kek_of(page.kek_spi)
        if page.epoch > group.epoch or (kek is not None and max(page.seqs, default=0) > kek.seq):
            raise ValueError(f"older than its ledger, which knows epoch {page.epoch}")


def leave_future(group: Group, now: float) -> None:
    """Times that a clock set back since has put ahead: nothing waits for them to come again.

    Otherwise a window would stay open for as long as the clock went back, and who registered before
    would count as registered after every rekey, so that none was repeated to it. Keys that were
    made in the future are replaced: see :func:`plan_for`.
    """
    for member in group.members.values():
        member.registered_at = min(member.registered_at, now)
        if member.last_ack is not None:
            member.last_ack = min(member.last_ack, now)
    for rekey in group.open_rekeys():
        rekey.first_sent, rekey.sent_at = min(rekey.first_sent, now), min(rekey.sent_at, now)
        rekey.deadline = min(rekey.deadline, now + group.config.ack_wait)
    for kek in group.old_keks.values():
        if kek.retire_at is not None and kek.created > now:
            kek.retire_at = min(kek.retire_at, now + group.config.ack_wait)
    latest = now + group.config.deactivation_delay
    group.teks = [
        replace(tek, retire_at=min(tek.retire_at, latest))
        if tek.retire_at is not None and tek.created > now
        else tek
        for tek in group.teks
    ]


def _transformed(group: Group) -> list[Action]:
    """Linux receives one mode and protocol of a flow: packets of members that change over a
    little earlier or later than others are lost."""
    return [
        group_event(
            group,
            "data-sa-transformed",
            "warning",
            flow=str(tek.flow),
            before=f"{tek.mode.name.lower()} {tek.suite.keyword}",
            after=f"{new.mode.name.lower()} {new.suite.keyword}",
        )
        for tek, new in transformed(group.teks, group.config.teks)
    ]
