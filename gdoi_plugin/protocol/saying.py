"""How a rekey is said: to whom, from which SEQ on, and how often, RFC 6407 section 7.3.

A round says it to everybody it is for, by multicast at once, by unicast in waves that the uplink
can carry. Each member's window begins with its own datagram: when the first wave's is over the
next round begins, to those of each wave who are silent when theirs is over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ..wire.buffer import EncodeError
from ..wire.delete import Delete
from ..wire.registry import Doi, TekProtocol
from .actions import Action, Peer, Persist, Send
from .closing import close_rekey
from .forest import ServerKek
from .group import Group, group_event, too_large
from .group_record import group_record, rekey_record, tree_persists
from .identity import Identity
from .nat import Path
from .page import Rekey
from .push import ALL_KEKS, Content, all_teks, build_push, split_content
from .roster import Registrant
from .rounds import TURN, TURNS_SAVED, Round, Wave, spread, wave_size, waves
from .silence import REMINDER
from .tek_policy import given_up

# The reason of the rekey that carries Delete payloads and nothing else.
DELETE = "delete"


@dataclass(frozen=True, slots=True)
class _Said:
    """The messages of one round, for who may be asked for ACKs and for who must not."""

    rekey: Rekey
    parts: Sequence[Content] = field(repr=False)
    asked: Sequence[bytes] = field(repr=False)
    unasked: Sequence[bytes] = field(repr=False)


@dataclass(slots=True)
class Sayer:
    """Says rekeys, repeats them to the silent until their windows are over.

    Of several key servers the one that ``leads`` says what all of them open.
    """

    leads: bool = field(default=True, init=False)
    # By group and epoch: what the rounds under way say.
    _said: dict[tuple[int, int], _Said] = field(default_factory=dict, init=False)
    # Waves said in this step, whose datagrams may not have left yet.
    _leaving: list[tuple[Group, Rekey, Wave, Round, int]] = field(default_factory=list, init=False)

    def send(
        self, group: Group, rekey: Rekey, now: float, told: Iterable[Registrant] = ()
    ) -> list[Action]:
        """Says a rekey, for the first time or again: each time new messages with the next SEQs.

        By unicast to those who are ``told``, if that is not its Rekey SA's members.
        """
        if not self.leads:
            return [
                Persist("group", group_record(group)),
                *tree_persists(group),
                Persist("rekey", rekey_record(group, rekey)),
            ]
        rekey.attempts += 1
        multicast = self._under(group, rekey).kek.destination is not None
        if multicast and rekey.reason != REMINDER:
            rekey.waiting = deque([Wave(None, now)])
        else:
            if rekey.attempts > 1:
                told = [group.members[identity] for identity in self.still_silent(group, rekey)]
            elif rekey.reason not in (DELETE, REMINDER):
                told = group.members_of(rekey.sa)
            numbers = (member.number for member in told)
            rekey.waiting = deque(waves(numbers, group.config.pace, now))
        rekey.waves.clear()
        return self._begin(group, rekey, now)

    def resume(self, group: Group, rekey: Rekey, now: float) -> list[Action]:
        """Goes on after a crash in the middle of the first round: the rest is told now, and those
        who have been told have their windows once more, for their ACKs may have been lost."""
        last = rekey.told or 0
        silent = (
            rekey.silent
            if rekey.reason == DELETE
            else group.roster.set_of(
                m for m in group.members_of(rekey.sa) if not rekey.acknowledged.has(m.number)
            )
        )
        pace = group.config.pace
        numbers = list(silent.numbers)
        # What was saved is ahead of what was said. Who may not have heard of a KEK is not left to
        # the next round: what is said meanwhile, a clean slate perhaps, is said under it.
        ahead = TURNS_SAVED * wave_size(pace) if rekey.with_kek else 0
        sure = max(0, sum(number <= last for number in numbers) - ahead)
        rekey.waves = list(waves(numbers[:sure], pace, now))
        rekey.waiting = deque(waves(numbers[sure:], pace, now))
        return self._begin(group, rekey, now)

    def turn(self, group: Group, rekey: Rekey, now: float) -> list[Action]:
        """The next wave is due, or the first window of the last round is over."""
        if not rekey.attempts:
            # Another key server has opened it. Of a deleted group everybody is told.
            told = list(group.members.values()) if rekey.reason == DELETE else ()
            return self.send(group, rekey, now, told)
        if rekey.waiting:
            return [*self._tell(group, rekey, now), *self._settle(group, rekey, now)]
        if next(_unheard(group, rekey), None) is None:
            return close_rekey(group, rekey, now)
        if rekey.attempts > self._repetitions(group, rekey):
            self._set_deadline(group, rekey)
            return [] if rekey.deadline > now else close_rekey(group, rekey, now)
        wait = group.config.ack_wait
        rekey.attempts += 1
        rekey.waiting = deque(Wave(wave.numbers, wave.at + wait) for wave in rekey.waves)
        rekey.waves.clear()
        return self._begin(group, rekey, now)

    def _begin(self, group: Group, rekey: Rekey, now: float) -> list[Action]:
        """A round: its messages, with SEQs that are saved before the first of them leaves."""
        try:
            self._said[_key(group, rekey)] = self._make(group, rekey, now)
        except EncodeError as error:
            return [
                too_large(group, "GROUPKEY-PUSH", error),
                Persist("group", group_record(group)),
                *close_rekey(group, rekey, now),
            ]
        rekey.sent_at = now
        _save_ahead(rekey)
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
        return [
            Persist("group", group_record(group)),
            *tree_persists(group),
            Persist("rekey", rekey_record(group, rekey)),
            *self._tell(group, rekey, now),
            sent,
            *self._settle(group, rekey, now),
        ]

    def _tell(self, group: Group, rekey: Rekey, now: float) -> list[Action]:
        """The waves that are due, as far as the uplink can carry them."""
        said, round_ = self._said[_key(group, rekey)], rekey.rounds[-1]
        actions: list[Action] = []
        while rekey.waiting and self._due(group, rekey) <= now:
            if rekey.told is not None and rekey.waiting[0].last > rekey.told:
                _save_ahead(rekey)
                actions.append(Persist("rekey", rekey_record(group, rekey)))
            wave = rekey.waiting.popleft()
            paths = self._paths(group, rekey, wave)
            if not paths:
                continue
            wave = replace(wave, at=now)
            rekey.waves.append(wave)
            self._leaving.append((group, rekey, wave, round_, round_.note(wave)))
            if wave.numbers is not None:
                begun = max(group.paced_until, now)
                group.paced_until = begun + len(paths) / group.config.pace
            for path, asks in paths.items():
                if not (said.asked if asks else said.unasked):
                    said = self._say_also(group, said, asks=asks)
                    actions.append(Persist("group", group_record(group)))
                    actions.append(Persist("rekey", rekey_record(group, rekey)))
                chosen = _for(group, rekey, said.parts, path, said.asked if asks else said.unasked)
                once = rekey.reason == DELETE
                actions += [Send(part, path.remote, path.local, once=once) for part in chosen]
        return actions

    def _say_also(self, group: Group, said: _Said, *, asks: bool) -> _Said:
        """Who must not be asked for ACKs has changed since the round began."""
        rekey = said.rekey
        under = self._under(group, rekey)
        parts = said.parts if asks else [part.unasked() for part in said.parts]
        made = [_next(rekey, under, part) for part in parts]
        if rekey.attempts == 1:
            rekey.first_seqs = len(rekey.seqs)
        more = replace(said, asked=made) if asks else replace(said, unasked=made)
        self._said[_key(group, rekey)] = more
        return more

    def _settle(self, group: Group, rekey: Rekey, now: float) -> list[Action]:
        """When to look at it next; closes it where there is nothing to wait for."""
        if not rekey.waiting and (rekey.all_heard or not rekey.waves):
            return close_rekey(group, rekey, now)
        self._set_deadline(group, rekey)
        return []

    def _set_deadline(self, group: Group, rekey: Rekey) -> None:
        if rekey.waiting:
            rekey.deadline = self._due(group, rekey)
            return
        over = rekey.attempts > self._repetitions(group, rekey)
        # Without waves it is one that a crash cut short, and that cannot be said again.
        begun = rekey.waves[-1 if over else 0].at if rekey.waves else rekey.sent_at
        rekey.deadline = begun + group.config.ack_wait

    @staticmethod
    def _due(group: Group, rekey: Rekey) -> float:
        return max(rekey.waiting[0].at, group.paced_until - TURN)

    def _make(self, group: Group, rekey: Rekey, now: float) -> _Said:
        """Every part, for everybody it is for. Raises EncodeError."""
        if rekey.deletes_its_kek and rekey.said:
            # Who has given up the KEK knows its last PUSH by its octets, and no other under it.
            rekey.rounds.append(Round(len(rekey.seqs)))
            return _Said(rekey, (), rekey.said, rekey.said)
        under = self._under(group, rekey)
        parts = self._parts(group, rekey, under, now)
        updates = [part for part in parts if part.policy is not None and part.policy.updates]
        teks = tuple(tek.spi for p in parts if p.policy is not None for tek in p.policy.teks)
        rekey.split_into(len(parts), len(updates), teks)
        rekey.rounds.append(Round(len(rekey.seqs)))
        some_ask, some_do_not = self._who_asks(group, rekey)
        asked: list[bytes] = []
        unasked: list[bytes] = []
        if some_ask or not some_do_not:
            asked = [_next(rekey, under, part) for part in parts]
            if rekey.deletes_its_kek:
                rekey.said = asked
        if some_do_not:
            unasked = [_next(rekey, under, part.unasked()) for part in parts]
        if rekey.attempts == 1:
            rekey.first_seqs = len(rekey.seqs)
        return _Said(rekey, parts, asked, unasked)

    @staticmethod
    def _who_asks(group: Group, rekey: Rekey) -> tuple[bool, bool]:
        """Whether the round has members that may be asked for ACKs, and such that must not be."""
        if not rekey.with_kek or not group.config.ack_exempt:
            return True, False
        numbers = (n for wave in rekey.waiting for n in wave.numbers or ())
        members = (group.roster.numbered(number) for number in numbers)
        exempt = {group.is_exempt(member.identity) for member in members if member is not None}
        return False in exempt, True in exempt

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
    def _under(group: Group, rekey: Rekey) -> ServerKek:
        under = group.kek_of(rekey.kek_spi)
        if under is None:
            raise AssertionError("rekey under a KEK that is gone")
        return under

    @staticmethod
    def window(group: Group, rekey: Rekey) -> float:
        """Seconds until the last ACK of this rekey can count as in time."""
        left = max(0, Sayer._repetitions(group, rekey) + 1 - rekey.attempts)
        return group.config.ack_wait * (left + 1) + spread(
            sum(len(wave.numbers or ()) for wave in rekey.waiting), group.config.pace
        )

    def _paths(self, group: Group, rekey: Rekey, wave: Wave) -> dict[Path, bool]:
        """From where to where, and whether what goes there may ask for ACKs.

        Once to each endpoint, though a NAT may have given it to two.
        """
        config = group.config
        if wave.numbers is None:
            # Where members listen that have this KEK, whatever the configuration says since.
            kek = self._under(group, rekey).kek
            if kek.destination is None:
                raise AssertionError("a wave for everybody, and no multicast address")
            return {Path(config.source, Peer(kek.destination, kek.port)): True}
        paths: dict[Path, bool] = {}
        for member in self._still_to_tell(group, rekey, wave.numbers):
            # Where it registered, here: it may have done so with another key server.
            port = member.local.port if member.local else config.source.port
            path = Path(Peer(config.source.host, port), member.address)
            asks = not (rekey.with_kek and group.is_exempt(member.identity))
            paths[path] = asks and paths.get(path, True)
        return paths

    @staticmethod
    def _still_to_tell(group: Group, rekey: Rekey, numbers: Iterable[int]) -> Iterable[Registrant]:
        """Not who has left, acknowledged or registered since; from the second round on only who is
        to acknowledge."""
        for number in numbers:
            member = group.roster.numbered(number)
            if member is None or member.registered_at > rekey.first_sent:
                continue
            asked = rekey.attempts == 1 or rekey.expected.has(number)
            if asked and not rekey.acknowledged.has(number):
                yield member

    @staticmethod
    def _repetitions(group: Group, rekey: Rekey) -> int:
        """A deleted group is not deleted again: members that are back would lose it once more.

        Nor are TEKs said again under a KEK that who has left since knows: see Group.overtaken.
        """
        once = rekey.reason == REMINDER or not Sayer.repeatable(group, rekey)
        return 0 if once else group.config.retransmissions

    @staticmethod
    def repeatable(group: Group, rekey: Rekey) -> bool:
        """Whether it would still be understood, and tell nobody what is not for them."""
        return rekey.reason != DELETE and Sayer.understood(group, rekey)

    @staticmethod
    def understood(group: Group, rekey: Rekey) -> bool:
        if group.kek_of(rekey.kek_spi) is None or group.overtaken(rekey):
            return False
        return rekey.update is None or group.kek_of(rekey.brings) is not None

    def still_silent(self, group: Group, rekey: Rekey) -> list[Identity]:
        """Members that have neither acknowledged nor registered since: worth another PUSH."""
        return [member.identity for member in _unheard(group, rekey)]

    def forget(self) -> None:
        """What is in memory is read anew: nothing is under way."""
        self._said.clear()
        self._leaving.clear()

    def sent(self, now: float) -> None:
        """The step's datagrams have left: only now do the ACK windows of its rekeys open.

        Making keys, signing and the store's commit may take a while, and RFC 8263 section 6 wants
        at least 10 seconds of waiting for the members.
        """
        for group, rekey, wave, round_, place in self._leaving:
            wave.at = rekey.sent_at = now
            round_.left(place, now)
            if round_.first == 0 and place == 0:
                rekey.first_sent = now
            if not rekey.closed:
                self._set_deadline(group, rekey)
        self._leaving.clear()
        # Whoever has closed them: what was said holds keys.
        for key in [key for key, said in self._said.items() if said.rekey.closed]:
            del self._said[key]


def _unheard(group: Group, rekey: Rekey) -> Iterator[Registrant]:
    for number in rekey.silent.numbers:
        member = group.roster.numbered(number)
        if member is not None and member.registered_at <= rekey.first_sent:
            yield member


def _key(group: Group, rekey: Rekey) -> tuple[int, int]:
    return group.config.group_id.key, rekey.epoch


def _save_ahead(rekey: Rekey) -> None:
    """What the next record says of how far the first round has come."""
    more = rekey.attempts == 1 and len(rekey.waiting) > TURNS_SAVED
    rekey.told = rekey.waiting[TURNS_SAVED - 1].last if more else None


def _next(rekey: Rekey, under: ServerKek, content: Content) -> bytes:
    """No SEQ of a KEK is used for two messages."""
    under.seq += 1
    rekey.seqs.append(under.seq)
    return build_push(under.kek, under.seq, under.signer, content)


def _for(
    group: Group, rekey: Rekey, parts: Sequence[Content], path: Path, said: Sequence[bytes]
) -> Sequence[bytes]:
    """By multicast everything; by unicast, of LKH updates, the part with the member's own."""
    member = group.roster.at(path.remote)
    # After a clean slate nobody has a leaf, and needs this KEK all the same: to read of the slate.
    if rekey.update is None or member is None or not member.leaf:
        return said
    own = rekey.update.arrays.get(rekey.update.start_of(member.leaf) or 0)
    holds = [part.policy is not None and own in part.policy.updates for part in parts]
    return [datagram for datagram, mine in zip(said, holds, strict=True) if mine]
