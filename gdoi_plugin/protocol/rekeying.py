"""Rekeys of the key server: what is said to whom, and how often, RFC 6407 sections 4 and 7.3."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..crypto.signature import Scheme, SigningKey
from ..wire.buffer import EncodeError
from .ack_ledger import close_rekey
from .actions import Action, Peer, Persist, Random, Send
from .group import Group, Rekey, ServerKek, Transport, group_event, too_large
from .group_record import group_record, rekey_record
from .identity import Identity
from .nat import Path
from .push import ALL_KEKS, ALL_TEKS, build_push

# The reason of the rekey that carries Delete payloads and nothing else.
DELETE = "delete"


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
        under = group.current_kek()
        self.open_epoch(group, now, kek=kek, replace_old=replace_old)
        rekey = group.open_rekey(under.kek.spi, reason, now, with_kek=kek, deletes_all=replace_old)
        return self.send(group, rekey, now)

    def delete_group(self, group: Group, now: float) -> list[Action]:
        """RFC 6407 section 5.9, a clean slate: SEQ, D, D, SIG; members must register again."""
        under = group.current_kek()
        self.open_epoch(group, now, kek=True, replace_old=True)
        rekey = group.open_rekey(under.kek.spi, DELETE, now, with_kek=False, deletes_all=True)
        return self.send(group, rekey, now)

    def open_epoch(self, group: Group, now: float, *, kek: bool, replace_old: bool) -> None:
        group.epoch += 1
        if kek:
            group.renew_kek(self.make_signer(group.config.scheme), self.random, now)
        group.renew_teks(self.random, now, replace_old=replace_old)

    def send(self, group: Group, rekey: Rekey, now: float) -> list[Action]:
        """Says a rekey, for the first time or again: each time a new message with the next SEQ."""
        under = group.kek_of(rekey.kek_spi)
        if under is None:
            raise AssertionError("rekey under a KEK that is gone")
        under.seq += 1
        rekey.seqs.append(under.seq)
        rekey.attempts += 1
        rekey.sent_at = now
        rekey.deadline = now + group.config.ack_wait
        self._leaving.append((group, rekey))
        try:
            datagram = self._push(group, rekey, under, now)
        except EncodeError as error:
            return [
                too_large(group, "GROUPKEY-PUSH", error),
                Persist("group", group_record(group)),
                *close_rekey(group, rekey, now),
            ]
        paths = self._paths(group, rekey)
        sent = group_event(
            group,
            "rekey-sent",
            epoch=rekey.epoch,
            seq=under.seq,
            kek_spi=under.kek.name,
            reason=rekey.reason,
            attempt=rekey.attempts,
            expected=len(rekey.expected),
            window=round(self.window(group, rekey), 3),
        )
        actions: list[Action] = [
            Persist("group", group_record(group)),
            Persist("rekey", rekey_record(group, rekey)),
            *(Send(datagram, path.remote, path.local) for path in paths),
            sent,
        ]
        if not rekey.expected:
            actions += close_rekey(group, rekey, now)
        return actions

    @staticmethod
    def _push(group: Group, rekey: Rekey, under: ServerKek, now: float) -> bytes:
        """Raises EncodeError."""
        if rekey.reason == DELETE:
            return build_push(under.kek, under.seq, under.signer, None, [ALL_TEKS, ALL_KEKS])
        deletes = [ALL_TEKS] if rekey.deletes_all else []
        policy = group.push_policy(rekey, now)
        return build_push(under.kek, under.seq, under.signer, policy, deletes)

    @staticmethod
    def window(group: Group, rekey: Rekey) -> float:
        """Seconds until the last ACK of this rekey can count as in time."""
        left = max(0, Rekeyer._repetitions(group, rekey) + 1 - rekey.attempts)
        return group.config.ack_wait * (left + 1)

    def _paths(self, group: Group, rekey: Rekey) -> list[Path]:
        """From where to where: once to each endpoint, though a NAT may have given it to two."""
        config = group.config
        if config.transport is Transport.MULTICAST and config.rekey_address is not None:
            return [Path(config.source, Peer(config.rekey_address, config.rekey_port))]
        told = list(group.members) if rekey.attempts == 1 else self.still_silent(group, rekey)
        members = [group.members[identity] for identity in told]
        paths = [Path(member.local or config.source, member.address) for member in members]
        return list(dict.fromkeys(paths))

    @staticmethod
    def _repetitions(group: Group, rekey: Rekey) -> int:
        """A deleted group is not deleted again: members that are back would lose it once more."""
        return 0 if rekey.reason == DELETE else group.config.retransmissions

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
