"""Rekeys of the key server: which keys are made, and for whom, RFC 6407 sections 4 and 7.4."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..crypto.lkh import Tree, Update
from ..crypto.signature import Scheme, SigningKey
from .actions import Action, Persist, Random
from .forest import RekeySa
from .group import Group, Pending, group_event
from .group_record import (
    group_record,
    member_record,
    removal_record,
)
from .identity import Identity
from .page import Rekey
from .roster import Registrant
from .saying import DELETE, Sayer
from .silence import MAX_NAMED, REMINDER, Reminder

DELETE_TEK = "delete-tek"
# New keys for other reasons are not to be waited for: somebody has left, or has none yet.
IN_ADVANCE = ("tek-lifetime", "tek-kilobytes", "esn", "kek-lifetime", "operator")


@dataclass(slots=True)
class Rekeyer:
    """Opens epochs, makes keys, and has members told of them."""

    random: Random = field(repr=False)
    make_signer: Callable[[Scheme], SigningKey]
    sayer: Sayer = field(default_factory=Sayer, init=False)

    def rekey(
        self,
        group: Group,
        now: float,
        reason: str,
        *,
        kek: bool = False,
        replace_old: bool = False,
    ) -> list[Action]:
        """New TEKs, with ``kek`` a new KEK as well; ``replace_old`` deletes the old SAs at once."""
        if group.pending is not None:
            # What is said under a KEK that those know is not for them.
            trees = range(len(group.sas)) if kek else ()
            leaves: dict[int, Sequence[int]] = dict.fromkeys(trees, ())
            return self._shut_out(group, leaves, now, reason, replace_old=replace_old)
        actions: list[Action] = []
        if kek and group.config.lkh is not None:
            actions += self.renew_trees(
                group, dict.fromkeys(range(len(group.sas)), ()), now, reason
            )
            kek = False
        unders = [(n, group.sas[n].kek) for n in group.served()]
        in_advance = reason in IN_ADVANCE
        self.open_epoch(group, now, reason, kek=kek, replace_old=replace_old, in_advance=in_advance)
        for n, under in unders:
            rekey = group.open_rekey(
                under, reason, now, with_kek=kek, deletes_all=replace_old, sa=n
            )
            actions += [*self._asked_anew(group, rekey), *self.sayer.send(group, rekey, now)]
        return actions

    def renew_trees(
        self, group: Group, leaving: Mapping[int, Iterable[int]], now: float, reason: str
    ) -> list[Action]:
        """New KEKs, by LKH updates that those ``leaving``, by Rekey SA and leaf, cannot use.

        No TEK is said here: RFC 6407 section 7.4.1, "new Data-Security SAs MUST NOT be included in
        a GROUPKEY-PUSH message that changes group membership", because who has the old KEK reads
        it. They follow under the new one.
        """
        signer = self.make_signer(group.config.scheme)
        actions: list[Action] = []
        for n, leaves in leaving.items():
            update = _tree(group.sas[n]).leave(leaves, self.random)
            actions += self._bring_kek(group, n, update, signer, now, reason)
        return actions

    def _bring_kek(
        self, group: Group, n: int, update: Update, signer: SigningKey, now: float, reason: str
    ) -> list[Action]:
        """The root of a tree, new by this update, becomes the KEK."""
        sa = group.sas[n]
        under = sa.kek
        group.renew_kek(sa, signer, self.random, now)
        if not update.arrays:
            under.retire_at = now + group.config.ack_wait
            return []
        group.epoch += 1
        rekey = group.open_rekey(
            under, reason, now, with_kek=True, deletes_all=False, sa=n, update=update
        )
        return [*self._asked_anew(group, rekey), *self.sayer.send(group, rekey, now)]

    def welcome(
        self, group: Group, n: int, members: Sequence[Registrant], now: float
    ) -> list[Action]:
        """RFC 6407 section 7.4.2: the Rekey SA that message 2 spoke of is made now, and brought to
        the others under the one they have; by the same update as for those who have just left.
        Raises TreeFull.

        The TEKs that are used from now on follow under it, when the members are on the roster.
        """
        sa, leaving = group.sas[n], group.pending.leaves.pop(n, []) if group.pending else []
        leaves, update = _tree(sa).change(leaving, len(members), self.random)
        for member, leaf in zip(members, leaves, strict=True):
            member.sa, member.leaf = n, leaf
        return self._bring_kek(group, n, update, sa.kek.signer, now, "join")

    @staticmethod
    def room(group: Group, n: int) -> int:
        """How many can be welcomed in this Rekey SA."""
        leaving = group.pending.leaves.get(n, []) if group.pending else []
        return _tree(group.sas[n]).room + len(leaving)

    def remove(
        self,
        group: Group,
        gone: Sequence[Identity],
        now: float,
        reason: str,
        *,
        at_once: bool = False,
        replace_old: bool = False,
        every_kek: bool = False,
    ) -> list[Action]:
        """Members are forgotten; the others get keys that those cannot read, ``at_once`` or with
        whoever else leaves in a while.

        ``every_kek``: those of trees too that nobody leaves.
        """
        leaves: dict[int, Sequence[int]] = dict.fromkeys(
            range(len(group.sas)) if every_kek else (), ()
        )
        leaves |= group.leaves_of(group.members[identity] for identity in gone)
        actions = self.forget(group, gone)
        if group.config.batch and not at_once:
            if group.pending is None:
                group.pending = Pending(now + group.config.batch, reason)
            for n, some in leaves.items():
                group.pending.leaves.setdefault(n, []).extend(some)
            return [*actions, Persist("group", group_record(group))]
        shut_out = self._shut_out(group, leaves, now, reason, replace_old=replace_old)
        return [*actions, *shut_out]

    def flush(self, group: Group, now: float) -> list[Action]:
        """Those who have left in the last while have had their time."""
        if group.pending is None:
            return []
        return self._shut_out(group, {}, now, group.pending.reason)

    def _shut_out(
        self,
        group: Group,
        leaves: Mapping[int, Sequence[int]],
        now: float,
        reason: str,
        *,
        replace_old: bool = False,
    ) -> list[Action]:
        """Keys that those who have left, now or shortly before, cannot read."""
        pending, group.pending = group.pending, None
        everybody = {n: list(some) for n, some in leaves.items()}
        for n, some in pending.leaves.items() if pending else ():
            everybody[n] = [*everybody.get(n, []), *some]
        if group.config.lkh is not None:
            told = self.renew_trees(group, everybody, now, reason)
            return [*told, *self.rekey(group, now, reason, replace_old=replace_old)]
        # Whoever has the old KEK reads what is pushed under it, a new KEK included, and unicast may
        # be overheard too: the others fetch theirs instead.
        return self.delete_group(group, now)

    def heed_silence(self, group: Group, now: float) -> list[Action]:
        """What silence has led to: reminders that are due, and evictions, all by one rekey."""
        actions: list[Action] = []
        due = [reminder for reminder in group.reminders if reminder.due <= now]
        group.reminders = [reminder for reminder in group.reminders if reminder.due > now]
        for reminder in due:
            actions += self._remind(group, reminder, now)
        gone = sorted((i for i in group.overdue if i in group.members), key=str)
        group.overdue.clear()
        if not gone:
            return actions
        told = (str(group.members[identity].missed) for identity in gone)
        actions += [
            group_event(group, "member-evicted", "warning", member=str(i), missed=missed)
            for i, missed in zip(gone[:MAX_NAMED], told, strict=False)
        ]
        return [*actions, *self.let_go(group, gone, now, "silence")]

    def heed_ike(self, group: Group, gone: Sequence[Identity], now: float) -> list[Action]:
        """Members whose IKE_SA has been gone for too long."""
        if not gone:
            return []
        told = [
            group_event(group, "member-evicted", "warning", member=str(i), reason="ike-lost")
            for i in gone[:MAX_NAMED]
        ]
        return [*told, *self.let_go(group, gone, now, "ike-lost")]

    def let_go(
        self, group: Group, gone: Sequence[Identity], now: float, reason: str
    ) -> list[Action]:
        """They are gone, or seem to be, and may come back."""
        if group.config.lkh is not None:
            return self.remove(group, gone, now, reason)
        # They are told nothing more. To have all others register again would be a high price for
        # hosts that nobody distrusts.
        return self.forget(group, gone)

    def _remind(self, group: Group, reminder: Reminder, now: float) -> list[Action]:
        """A page of its own, said once and by unicast. Not where a later rekey has taken its place,
        nor where it would not be understood: such members register again."""
        page = group.ledger.get(reminder.epoch)
        members = [
            member
            for number in reminder.numbers
            if (member := group.roster.numbered(number)) is not None and member.missed
        ]
        if page is None or not members or not Sayer.repeatable(group, page):
            return []
        later = (p for p in group.ledger.values() if p.epoch > page.epoch and p.sa == page.sa)
        under = group.kek_of(page.kek_spi)
        if under is None or any(p.reason != REMINDER for p in later):
            return []
        group.epoch += 1
        rekey = group.open_rekey(
            under,
            REMINDER,
            now,
            with_kek=page.with_kek,
            deletes_all=page.deletes_all,
            deleted=page.deleted,
            bare=page.bare,
            sa=page.sa,
            members=members,
        )
        return self.sayer.send(group, rekey, now, members)

    @staticmethod
    def _asked_anew(group: Group, rekey: Rekey) -> list[Action]:
        """A new SAK may change who is asked for ACKs: that outlives a crash."""
        if not rekey.with_kek or not group.config.ack_exempt:
            return []
        return [Persist("member", member_record(group, m)) for m in group.members.values()]

    @staticmethod
    def forget(group: Group, gone: Sequence[Identity]) -> list[Action]:
        actions: list[Action] = []
        for place, identity in enumerate(gone):
            member = group.roster.remove(identity)
            actions.append(Persist("member-removed", removal_record(group, member)))
            if place < MAX_NAMED:
                actions.append(group_event(group, "member-removed", member=str(identity)))
        more = len(gone) - MAX_NAMED
        if more > 0:
            actions.append(group_event(group, "member-removed-more", count=more))
        return actions

    def delete_group(self, group: Group, now: float) -> list[Action]:
        """RFC 6407 section 5.9, a clean slate: SEQ, D, D, SIG; members must register again."""
        group.pending = None
        told = [(group.sas[n].kek, group.members_of(n)) for n in group.served()]
        self.open_epoch(group, now, DELETE, kek=True, replace_old=True)
        # RFC 6407 section 3.5 item 5: no member has the new data SAs, so none has a SID for them.
        group.sids.reset(group.config.sid_bits)
        actions: list[Action] = [
            Persist("pages-removed", {"group": group.config.group_id.key}),
            *(Persist("member", member_record(group, m)) for m in group.members.values()),
        ]
        for under, members in told:
            rekey = group.open_rekey(
                under,
                DELETE,
                now,
                with_kek=False,
                deletes_all=True,
                bare=True,
                members=members,
            )
            actions += self.sayer.send(group, rekey, now, members)
        return actions

    def delete_tek(self, group: Group, spi: bytes, now: float) -> list[Action] | None:
        """RFC 6407 section 5.9: one data SA goes at once, with SEQ, D, SA, KD, SIG where another
        takes its place and SEQ, D, SIG where one has long done so. None where there is none."""
        gone = group.remove_tek(spi, self.random, now)
        if gone is None:
            return None
        group.epoch += 1
        actions: list[Action] = []
        for n in group.served():
            rekey = group.open_rekey(
                group.sas[n].kek,
                DELETE_TEK,
                now,
                with_kek=False,
                deletes_all=False,
                deleted=[(gone.tek.protocol, spi)],
                bare=gone.retire_at is not None,
                sa=n,
            )
            actions += self.sayer.send(group, rekey, now)
        return actions

    def open_epoch(
        self,
        group: Group,
        now: float,
        reason: str,
        *,
        kek: bool,
        replace_old: bool,
        in_advance: bool = False,
    ) -> None:
        group.epoch += 1
        if kek:
            signer = self.make_signer(group.config.scheme)
            group.replant(signer, self.random, now)
        group.renew_teks(self.random, now, reason, replace_old=replace_old, in_advance=in_advance)


def _tree(sa: RekeySa) -> Tree:
    if sa.tree is None:
        raise AssertionError("an LKH group's Rekey SA without a tree")
    return sa.tree
