"""Rekeys of the key server: what is said to whom, and how often, RFC 6407 sections 4 and 7.3."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..crypto.lkh import Tree, Update
from ..crypto.signature import Scheme, SigningKey
from ..wire.buffer import EncodeError
from ..wire.delete import Delete
from ..wire.registry import Doi, TekProtocol
from .ack_ledger import close_rekey
from .actions import Action, Peer, Persist, Random, Send
from .forest import RekeySa, ServerKek
from .group import Group, Rekey, group_event, too_large
from .group_record import (
    group_record,
    member_record,
    rekey_record,
    removal_record,
    tree_persists,
)
from .identity import Identity
from .nat import Path
from .policy import GroupPolicy
from .push import ALL_KEKS, Content, all_teks, build_push, split_content
from .roster import Registrant
from .tek_policy import given_up

# The reason of the rekey that carries Delete payloads and nothing else.
DELETE = "delete"
DELETE_TEK = "delete-tek"
# New keys for other reasons are not to be waited for: somebody has left, or has none yet.
IN_ADVANCE = ("tek-lifetime", "tek-kilobytes", "esn", "kek-lifetime", "operator")


@dataclass(slots=True)
class Rekeyer:
    """Opens epochs, says rekeys, repeats them to the silent until their windows are over."""

    random: Random = field(repr=False)
    make_signer: Callable[[Scheme], SigningKey]
    # Rekeys said in this step, whose datagrams may not have left yet.
    _leaving: list[tuple[Group, Rekey]] = field(default_factory=list, init=False)

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
        actions: list[Action] = []
        if kek and group.config.lkh is not None:
            actions += self.renew_trees(
                group, dict.fromkeys(range(len(group.sas)), ()), now, reason
            )
            kek = False
        unders = [(n, group.sas[n].kek) for n in group.served()]
        in_advance = reason in IN_ADVANCE
        self.open_epoch(group, now, kek=kek, replace_old=replace_old, in_advance=in_advance)
        for n, under in unders:
            rekey = group.open_rekey(
                under, reason, now, with_kek=kek, deletes_all=replace_old, sa=n
            )
            actions += [*self._asked_anew(group, rekey), *self.send(group, rekey, now)]
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
        return [*self._asked_anew(group, rekey), *self.send(group, rekey, now)]

    def welcome(
        self, group: Group, member: Registrant, told: GroupPolicy, now: float
    ) -> list[Action]:
        """RFC 6407 section 7.4.2: the Rekey SA that message 2 spoke of is made now, and brought to
        the others under the one they have. Raises TreeFull.

        The TEKs that are used from now on follow under it, when the member is on the roster.
        """
        spi = told.kek.spi if told.kek else b""
        member.sa = next(n for n, sa in enumerate(group.sas) if sa.next_spi == spi)
        sa = group.sas[member.sa]
        member.leaf, update = _tree(sa).welcome(self.random)
        return self._bring_kek(group, member.sa, update, sa.kek.signer, now, "join")

    def remove(
        self,
        group: Group,
        gone: Sequence[Identity],
        now: float,
        reason: str,
        *,
        replace_old: bool = False,
        every_kek: bool = False,
    ) -> list[Action]:
        """Members are forgotten; the others get keys that those cannot read.

        ``every_kek``: those of trees too that nobody leaves.
        """
        leaves: dict[int, Sequence[int]] = dict.fromkeys(
            range(len(group.sas)) if every_kek else (), ()
        )
        leaves |= group.leaves_of(group.members[identity] for identity in gone)
        actions = self.forget(group, gone)
        if group.config.lkh is not None:
            actions += self.renew_trees(group, leaves, now, reason)
            return [*actions, *self.rekey(group, now, reason, replace_old=replace_old)]
        # Whoever has the old KEK reads what is pushed under it, a new KEK included, and unicast may
        # be overheard too: the others fetch theirs instead.
        return [*actions, *self.delete_group(group, now)]

    @staticmethod
    def _asked_anew(group: Group, rekey: Rekey) -> list[Action]:
        """A new SAK may change who is asked for ACKs: that outlives a crash."""
        if not rekey.with_kek or not group.config.ack_exempt:
            return []
        return [Persist("member", member_record(group, m)) for m in group.members.values()]

    @staticmethod
    def forget(group: Group, gone: Sequence[Identity]) -> list[Action]:
        actions: list[Action] = []
        for identity in gone:
            member = group.roster.remove(identity)
            actions += [
                Persist("member-removed", removal_record(group, member)),
                group_event(group, "member-removed", member=str(identity)),
            ]
        return actions

    def delete_group(self, group: Group, now: float) -> list[Action]:
        """RFC 6407 section 5.9, a clean slate: SEQ, D, D, SIG; members must register again."""
        told = [(group.sas[n].kek, group.members_of(n)) for n in group.served()]
        self.open_epoch(group, now, kek=True, replace_old=True)
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
            actions += self.send(group, rekey, now, members)
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
            actions += self.send(group, rekey, now)
        return actions

    def open_epoch(
        self,
        group: Group,
        now: float,
        *,
        kek: bool,
        replace_old: bool,
        in_advance: bool = False,
    ) -> None:
        group.epoch += 1
        if kek:
            signer = self.make_signer(group.config.scheme)
            group.replant(signer, self.random, now)
        group.renew_teks(self.random, now, replace_old=replace_old, in_advance=in_advance)

    def send(
        self, group: Group, rekey: Rekey, now: float, told: Iterable[Registrant] = ()
    ) -> list[Action]:
        """Says a rekey, for the first time or again: each time new messages with the next SEQs.

        By unicast to those who are ``told``, if that is not its Rekey SA's members.
        """
        rekey.attempts += 1
        rekey.sent_at = now
        rekey.deadline = now + group.config.ack_wait
        self._leaving.append((group, rekey))
        try:
            sends = self._say(group, rekey, self._paths(group, rekey, told), now)
        except EncodeError as error:
            return [
                too_large(group, "GROUPKEY-PUSH", error),
                Persist("group", group_record(group)),
                *close_rekey(group, rekey, now),
            ]
        sent = group_event(
            group,
            "rekey-sent",
            epoch=rekey.epoch,
            seq=rekey.seqs[-1],
            kek_spi=rekey.kek_spi.hex(),
            reason=rekey.reason,
            attempt=rekey.attempts,
            parts=rekey.parts,
            expected=len(rekey.expected),
            window=round(self.window(group, rekey), 3),
        )
        actions: list[Action] = [
            Persist("group", group_record(group)),
            *tree_persists(group),
            Persist("rekey", rekey_record(group, rekey)),
            *sends,
            sent,
        ]
        if not rekey.expected:
            actions += close_rekey(group, rekey, now)
        return actions

    def _say(
        self, group: Group, rekey: Rekey, paths: Mapping[Path, bool], now: float
    ) -> list[Send]:
        """Every part to everybody it is for. Raises EncodeError."""
        if rekey.deletes_its_kek and rekey.said:
            # Who has given up the KEK knows its last PUSH by its octets, and no other under it.
            return _to(dict.fromkeys(paths, rekey.said))
        under = group.kek_of(rekey.kek_spi)
        if under is None:
            raise AssertionError("rekey under a KEK that is gone")
        parts = self._parts(group, rekey, under, now)
        updates = [part for part in parts if part.policy is not None and part.policy.updates]
        teks = tuple(tek.spi for p in parts if p.policy is not None for tek in p.policy.teks)
        rekey.split_into(len(parts), len(updates), teks)
        asked = [path for path, asks in paths.items() if asks]
        unasked = [path for path, asks in paths.items() if not asks]
        sends: list[Send] = []
        if asked or not unasked:
            said = [_next(rekey, under, part) for part in parts]
            sends += _to({path: _for(group, rekey, parts, path, said) for path in asked})
            if rekey.deletes_its_kek:
                rekey.said = said
        if unasked:
            said = [_next(rekey, under, part.unasked()) for part in parts]
            sends += _to({path: _for(group, rekey, parts, path, said) for path in unasked})
        if rekey.attempts == 1:
            rekey.first_seqs = len(rekey.seqs)
        return sends

    @classmethod
    def _parts(cls, group: Group, rekey: Rekey, under: ServerKek, now: float) -> list[Content]:
        if rekey.reason == DELETE:
            return [Content(None, (*cls._all_teks(group), ALL_KEKS))]
        deletes = [Delete(Doi.GDOI, kind, (spi,)) for kind, spi in rekey.deleted]
        if rekey.deletes_all:
            deletes += cls._all_teks(group)
        policy = None if rekey.bare else group.push_policy(rekey, now)
        if policy is not None and policy.teks and not rekey.deletes_all:
            dropped = given_up(group.teks, group.config.teks)
            deletes += [Delete(Doi.GDOI, tek.protocol, (tek.spi,)) for tek in dropped]
        content = Content(policy, tuple(deletes))
        parts = split_content(under.kek.scheme, content, group.config.push_limit)
        if rekey.deletes_its_kek:
            # The KEK of this very message, so only once nothing more is to come under it.
            gone = Delete(Doi.GDOI, TekProtocol.KEK, (under.kek.spi,))
            parts[-1] = replace(parts[-1], deletes=(*parts[-1].deletes, gone))
        return parts

    @staticmethod
    def _all_teks(group: Group) -> list[Delete]:
        """A Delete for each protocol that the group's members may hold SAs of."""
        protocols = {policy.protocol for policy in group.config.teks}
        protocols |= {tek.tek.protocol for tek in group.teks}
        return [all_teks(protocol) for protocol in sorted(protocols)]

    @staticmethod
    def window(group: Group, rekey: Rekey) -> float:
        """Seconds until the last ACK of this rekey can count as in time."""
        left = max(0, Rekeyer._repetitions(group, rekey) + 1 - rekey.attempts)
        return group.config.ack_wait * (left + 1)

    def _paths(
        self, group: Group, rekey: Rekey, told: Iterable[Registrant] = ()
    ) -> dict[Path, bool]:
        """From where to where, and whether what goes there may ask for ACKs.

        Once to each endpoint, though a NAT may have given it to two.
        """
        config, under = group.config, group.kek_of(rekey.kek_spi)
        if under is not None and under.kek.destination is not None:
            # Where members listen that have this KEK, whatever the configuration says since.
            return {Path(config.source, Peer(under.kek.destination, under.kek.port)): True}
        if rekey.attempts > 1:
            told = [group.members[identity] for identity in self.still_silent(group, rekey)]
        elif rekey.reason != DELETE:
            told = group.members_of(rekey.sa)
        paths: dict[Path, bool] = {}
        for member in told:
            path = Path(member.local or config.source, member.address)
            asks = not (rekey.with_kek and group.is_exempt(member.identity))
            paths[path] = asks and paths.get(path, True)
        return paths

    @staticmethod
    def _repetitions(group: Group, rekey: Rekey) -> int:
        """A deleted group is not deleted again: members that are back would lose it once more.

        Nor are TEKs said again under a KEK that who has left since knows: see Group.overtaken.
        """
        return group.config.retransmissions if Rekeyer.repeatable(group, rekey) else 0

    @staticmethod
    def repeatable(group: Group, rekey: Rekey) -> bool:
        """Whether it would still be understood, and tell nobody what is not for them."""
        if rekey.reason == DELETE or group.kek_of(rekey.kek_spi) is None:
            return False
        if group.overtaken(rekey):
            return False
        return rekey.update is None or group.kek_of(rekey.brings) is not None

    def still_silent(self, group: Group, rekey: Rekey) -> list[Identity]:
        """Members that have neither acknowledged nor registered since: worth another PUSH."""
        return [
            identity
            for identity in sorted(rekey.silent, key=str)
            if identity in group.members
            and group.members[identity].registered_at <= rekey.first_sent
        ]

    def window_over(self, group: Group, rekey: Rekey, now: float) -> list[Action]:
        if rekey.attempts <= self._repetitions(group, rekey) and self.still_silent(group, rekey):
            return self.send(group, rekey, now)
        return close_rekey(group, rekey, now)

    def sent(self, now: float) -> None:
        """The step's datagrams have left: only now do the ACK windows of its rekeys open.

        Making keys, signing and the store's commit may take a while, and RFC 8263 section 6 wants
        at least 10 seconds of waiting for the members.
        """
        for group, rekey in self._leaving:
            rekey.sent_at = now
            rekey.deadline = now + group.config.ack_wait
            if rekey.attempts == 1:
                rekey.first_sent = now
        self._leaving.clear()


def _next(rekey: Rekey, under: ServerKek, content: Content) -> bytes:
    """No SEQ of a KEK is used for two messages."""
    under.seq += 1
    rekey.seqs.append(under.seq)
    return build_push(under.kek, under.seq, under.signer, content)


def _tree(sa: RekeySa) -> Tree:
    if sa.tree is None:
        raise AssertionError("an LKH group's Rekey SA without a tree")
    return sa.tree


def _for(
    group: Group, rekey: Rekey, parts: Sequence[Content], path: Path, said: Sequence[bytes]
) -> Sequence[bytes]:
    """By multicast everything; by unicast, of LKH updates, the part with the member's own."""
    member = group.roster.at(path.remote)
    if rekey.update is None or member is None:
        return said
    own = rekey.update.arrays.get(rekey.update.start_of(member.leaf) or 0)
    holds = [part.policy is not None and own in part.policy.updates for part in parts]
    return [datagram for datagram, mine in zip(said, holds, strict=True) if mine]


def _to(datagrams: Mapping[Path, Sequence[bytes]]) -> list[Send]:
    return [Send(d, path.remote, path.local) for path, chosen in datagrams.items() for d in chosen]
