"""The key server: admits members, pushes rekeys, counts acknowledgements, acts on silence."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..crypto.signature import BadSignatureKey, Scheme, SigningKey, generate
from ..wire.buffer import DecodeError
from ..wire.header import pull_header
from ..wire.registry import ExchangeType, NotifyType, Protocol
from .ack import read_ack
from .actions import Action, Drop, Dropped, Event, Peer, Persist, Random, Send
from .arrival import Arrival
from .errors import AuthError, ProtocolError
from .group import Group, GroupConfig, Registrant, Rekey, Transport
from .group_record import (
    ack_record,
    group_record,
    member_record,
    rekey_record,
    restore_group,
    restore_member,
    restore_rekey,
)
from .identity import Identity
from .isakmp import fresh_message_id, open_informational, seal_notify
from .main_mode import NONCE_LENGTH, Phase1Config
from .policy import encode_kd, encode_sa
from .pull import PullResponder, PullState, read_group_id
from .push import ALL_KEKS, ALL_TEKS, build_push
from .responder import PULL_LIFETIME, IsakmpResponder, Pull, Session

# RFC 8263 section 5: recently refused ACKs are known by all their octets and cost no second HMAC.
# By the HASH alone, a copy with another SEQ or ID would have the true one refused.
REMEMBERED_BAD_ACKS = 4096
# A clock is called set back where what it wrote lies this far in the future (seconds).
CLOCK_STEP = 60.0
# The reason of the rekey that carries Delete payloads and nothing else.
DELETE = "delete"


@dataclass(frozen=True, slots=True)
class SavedGroup:
    """What a store gives back. ``acks``: per epoch, when each identity acknowledged."""

    group: Mapping[str, Any]
    members: tuple[Mapping[str, Any], ...] = ()
    rekeys: tuple[Mapping[str, Any], ...] = ()
    acks: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


@dataclass(slots=True)
class KeyServer:
    """The engine. ``phase1_for``: the phase-1 policy towards an address, None for strangers."""

    configs: Iterable[GroupConfig]
    phase1_for: Callable[[Peer], Phase1Config | None]
    random: Random = field(repr=False)
    make_signer: Callable[[Scheme], SigningKey] = generate
    groups: dict[int, Group] = field(init=False)
    isakmp: IsakmpResponder = field(init=False)
    # Rekeys said in this step, whose datagrams may not have left yet.
    _leaving: list[tuple[Group, Rekey]] = field(default_factory=list, init=False)
    _bad_acks: OrderedDict[bytes, None] = field(default_factory=OrderedDict, init=False)

    def __post_init__(self) -> None:
        self.groups = {config.group_id: Group(config) for config in self.configs}
        self.isakmp = IsakmpResponder(self.phase1_for, self.random)

    # -- life ------------------------------------------------------------------------------------

    def start(self, now: float, saved: Mapping[int, SavedGroup]) -> list[Action]:
        """Takes up every saved group, repeats rekeys that a crash cut short, makes new groups.

        Raises KeyError, ValueError or TypeError for a saved record that cannot be read: a key
        server must not start over with a SEQ that has been used.
        """
        actions: list[Action] = []
        for group_id, group in self.groups.items():
            if group_id in saved:
                actions += self._take_up(group, saved[group_id], now)
            else:
                self._open_epoch(group, now, kek=True, replace_old=True)
                actions += [Persist("group", group_record(group)), self._created(group)]
        return actions

    def _take_up(self, group: Group, saved: SavedGroup, now: float) -> list[Action]:
        try:
            restore_group(group, saved.group)
        except BadSignatureKey as error:
            raise ValueError(str(error)) from error
        for record in saved.members:
            restore_member(group, record)
        actions = self._expel(group)
        expelled = bool(actions)
        for record in saved.rekeys:
            acks = saved.acks.get(record["epoch"], {})
            restore_rekey(group, record, acks, group.config.ack_wait)
        actions.append(self._event(group, "group-restored", epoch=group.epoch))
        kek = group.current_kek()
        wanted = {(t.flow, t.suite, t.mode) for t in group.config.teks}
        have = {(t.tek.flow, t.tek.suite, t.tek.mode) for t in group.teks if t.retire_at is None}
        told = (kek.kek.scheme, kek.kek.destination, kek.kek.ack_type, 8 * len(kek.kek.key))
        config = group.config
        told_now = (config.scheme, config.rekey_address, config.ack, config.kek_bits)
        # Lifetimes that a clock set back since has made too long.
        ahead = max([kek.created, *(t.created for t in group.teks)]) > now + CLOCK_STEP
        if expelled and config.transport is Transport.MULTICAST:
            # Whoever has the old KEK reads what is pushed under it, the new KEK included: the
            # others fetch theirs instead.
            return actions + self.delete_group(config.group_id, now)
        if wanted != have or told != told_now or ahead or expelled:
            reason = "clock" if ahead else "policy-change"
            new_kek = told != told_now or ahead or expelled
            return actions + self.rekey(config.group_id, now, reason, kek=new_kek)
        for rekey in group.open_rekeys():
            if group.kek_of(rekey.kek_spi) is None:
                actions += self._close(group, rekey, now)
            elif rekey.silent and rekey.reason != DELETE:
                actions += self._send(group, rekey, now)
        return actions

    def _expel(self, group: Group) -> list[Action]:
        """Members that the configuration no longer admits: forgotten, and never sent a key."""
        gone = [identity for identity in group.members if identity not in group.config.members]
        actions: list[Action] = []
        for identity in sorted(gone, key=str):
            record = member_record(group, group.forget_member(identity))
            actions += [
                Persist("member-removed", record),
                self._event(group, "member-removed", member=str(identity)),
            ]
        return actions

    def _created(self, group: Group) -> Event:
        return self._event(group, "group-created", epoch=group.epoch)

    @property
    def deadline(self) -> float | None:
        times: list[float] = []
        for group in self.groups.values():
            times.append(group.next_rekey()[0])
            times += [rekey.deadline for rekey in group.open_rekeys()]
            retirement = group.next_retirement()
            if retirement is not None:
                times.append(retirement)
        if self.isakmp.deadline is not None:
            times.append(self.isakmp.deadline)
        return min(times, default=None)

    def tick(self, now: float) -> list[Action]:
        actions: list[Action] = []
        self.isakmp.tick(now)
        for group_id, group in self.groups.items():
            for rekey in group.open_rekeys():
                if rekey.deadline <= now:
                    actions += self._window_over(group, rekey, now)
            if group.retire(now):
                actions.append(Persist("group", group_record(group)))
            due, kek = group.next_rekey()
            if due <= now:
                reason = "kek-lifetime" if kek else "tek-lifetime"
                actions += self.rekey(group_id, now, reason, kek=kek)
        return actions

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

    # -- datagrams -------------------------------------------------------------------------------

    def receive(self, datagram: bytes, source: Peer, local: Peer, now: float) -> list[Action]:
        """No exception for any datagram, no state for a peer that has proved nothing."""
        try:
            arrival = Arrival(pull_header(datagram), datagram, source, local, now)
        except DecodeError as error:
            return [Dropped(Drop.MALFORMED, source, str(error))]
        kind = arrival.header.exchange_type
        if kind == ExchangeType.GROUPKEY_PUSH_ACK:
            return self._receive_ack(arrival)
        if kind == ExchangeType.MAIN_MODE:
            return self.isakmp.main_mode(arrival)
        if kind in (ExchangeType.GROUPKEY_PULL, ExchangeType.INFORMATIONAL):
            return self._phase2(arrival)
        ignored = kind == ExchangeType.UNREGISTERED_34
        reason = Drop.IGNORED_EXCHANGE if ignored else Drop.UNKNOWN_EXCHANGE
        return [arrival.drop(reason, f"exchange {kind}")]

    def _phase2(self, arrival: Arrival) -> list[Action]:
        header = arrival.header
        session = self.isakmp.sessions.get(header.spi)
        if session is None or session.sa.expires <= arrival.now:
            return [arrival.drop(Drop.UNKNOWN_COOKIES, header.spi.hex())]
        if arrival.source.host != session.sa.remote.host:
            # The address of a PULL becomes the member's identity in ACKs (RFC 8263 section 3.4).
            return [arrival.drop(Drop.UNKNOWN_PEER, f"SA belongs to {session.sa.remote}")]
        if not header.message_id:
            return [arrival.drop(Drop.MALFORMED, "phase 2 with message id 0")]
        try:
            if header.exchange_type == ExchangeType.INFORMATIONAL:
                return self._informational(session, arrival)
            return self._pull(session, arrival)
        except DecodeError as error:
            return [arrival.drop(Drop.MALFORMED, str(error))]
        except AuthError as error:
            return [arrival.drop(Drop.AUTHENTICATION, str(error))]
        except ProtocolError as error:
            return [arrival.drop(Drop.UNEXPECTED, str(error))]

    def _informational(self, session: Session, arrival: Arrival) -> list[Action]:
        told = open_informational(session.sa, arrival.header, arrival.datagram)
        for delete in told.deletes:
            if delete.protocol_id == Protocol.PROTO_ISAKMP and session.sa.cookies in delete.spis:
                self.isakmp.sessions.pop(session.sa.cookies, None)
        return []

    # -- GROUPKEY-PULL ---------------------------------------------------------------------------

    def _pull(self, session: Session, arrival: Arrival) -> list[Action]:
        session.prune(arrival.now)
        pull = session.pulls.get(arrival.header.message_id)
        if pull is None:
            return self._pull_1(session, arrival)
        reply = pull.exchange.replay(arrival.datagram)
        if reply is not None:
            drop = arrival.drop(Drop.DUPLICATE, "GROUPKEY-PULL message repeated")
            return [drop, arrival.reply(reply)]
        return self._pull_3(session, pull, arrival)

    def _pull_1(self, session: Session, arrival: Arrival) -> list[Action]:
        """RFC 6407 section 3.4: validate, authorise by the phase-1 identity, offer the policy."""
        message_id, now = arrival.header.message_id, arrival.now
        nonce = self.random(NONCE_LENGTH)
        exchange = PullResponder(session.sa, message_id, nonce, now + PULL_LIFETIME)
        identification = exchange.read_1(arrival.header, arrival.datagram)
        group_id = read_group_id(identification)
        group = None if group_id is None else self.groups.get(group_id)
        identity = session.sa.remote_identity
        if group is None:
            what = f"{identity} asked for group {identification.data.hex()}"
            drop = arrival.drop(Drop.UNKNOWN_GROUP, what)
            return [drop, self._refusal(session, arrival, NotifyType.INVALID_ID_INFORMATION)]
        if identity not in group.config.members:
            drop = arrival.drop(
                Drop.NOT_AUTHORISED, f"{identity} is no member of {group.config.name}"
            )
            return [drop, self._refusal(session, arrival, NotifyType.AUTHENTICATION_FAILED)]
        policy = group.offer(arrival.source.host, now)
        reply = exchange.answer_1(arrival.datagram, encode_sa(policy))
        session.pulls[message_id] = Pull(exchange, group.config.group_id, group.epoch, policy)
        return [arrival.reply(reply)]

    def _pull_3(self, session: Session, pull: Pull, arrival: Arrival) -> list[Action]:
        """Only now is the member live; until here nothing of it has been recorded."""
        if pull.exchange.state is not PullState.SENT_2:
            return [arrival.drop(Drop.UNEXPECTED, "GROUPKEY-PULL is complete")]
        pull.exchange.read_3(arrival.header, arrival.datagram)
        group = self.groups[pull.group_id]
        if group.epoch != pull.epoch:
            # A rekey came in between: keys of message 2's SPIs would be old ones.
            refusal = self._refusal(session, arrival, NotifyType.INVALID_SPI)
            pull.exchange.refuse_3(arrival.datagram, refusal.datagram)
            what = f"{group.config.name} was rekeyed during GROUPKEY-PULL"
            return [arrival.drop(Drop.STALE_POLICY, what), refusal]
        member = group.record_member(session.sa.remote_identity, arrival.source, arrival.now)
        seq = group.current_kek().seq
        reply = pull.exchange.answer_3(arrival.datagram, seq, encode_kd(pull.policy))
        registered = self._event(
            group,
            "member-registered",
            member=str(member.identity),
            address=str(arrival.source.host),
            epoch=group.epoch,
            seq=seq,
        )
        saved = Persist("member", member_record(group, member))
        return [saved, arrival.reply(reply), registered]

    def _refusal(self, session: Session, arrival: Arrival, notify: NotifyType) -> Send:
        return arrival.reply(seal_notify(session.sa, fresh_message_id(self.random(4)), notify))

    # -- GROUPKEY-PUSH ---------------------------------------------------------------------------

    def rekey(
        self,
        group_id: int,
        now: float,
        reason: str,
        *,
        kek: bool = False,
        replace_old: bool = False,
    ) -> list[Action]:
        """New TEKs, with ``kek`` a new KEK as well; ``replace_old`` deletes the old SAs at once."""
        group = self.groups[group_id]
        under = group.current_kek()
        self._open_epoch(group, now, kek=kek, replace_old=replace_old)
        rekey = group.open_rekey(under.kek.spi, reason, now, with_kek=kek, deletes_all=replace_old)
        return self._send(group, rekey, now)

    def delete_group(self, group_id: int, now: float) -> list[Action]:
        """RFC 6407 section 5.9, a clean slate: SEQ, D, D, SIG; members must register again."""
        group = self.groups[group_id]
        under = group.current_kek()
        self._open_epoch(group, now, kek=True, replace_old=True)
        rekey = group.open_rekey(under.kek.spi, DELETE, now, with_kek=False, deletes_all=True)
        return self._send(group, rekey, now)

    def _open_epoch(self, group: Group, now: float, *, kek: bool, replace_old: bool) -> None:
        group.epoch += 1
        if kek:
            group.renew_kek(self.make_signer(group.config.scheme), self.random, now)
        group.renew_teks(self.random, now, replace_old=replace_old)

    def _send(self, group: Group, rekey: Rekey, now: float) -> list[Action]:
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
        deletes = [ALL_TEKS] if rekey.deletes_all else []
        policy = group.push_policy(rekey, now)
        if rekey.reason == DELETE:
            datagram = build_push(under.kek, under.seq, under.signer, None, [ALL_TEKS, ALL_KEKS])
        else:
            datagram = build_push(under.kek, under.seq, under.signer, policy, deletes)
        targets = self._targets(group, rekey)
        sent = self._event(
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
            *(Send(datagram, target, group.config.source) for target in targets),
            sent,
        ]
        if not rekey.expected:
            actions += self._close(group, rekey, now)
        return actions

    @staticmethod
    def window(group: Group, rekey: Rekey) -> float:
        """Seconds until the last ACK of this rekey can count as in time."""
        left = max(0, KeyServer._repetitions(group, rekey) + 1 - rekey.attempts)
        return group.config.ack_wait * (left + 1)

    def _targets(self, group: Group, rekey: Rekey) -> list[Peer]:
        config = group.config
        if config.transport is Transport.MULTICAST and config.rekey_address is not None:
            return [Peer(config.rekey_address, config.rekey_port)]
        if rekey.attempts == 1:
            return [member.address for member in group.members.values()]
        return [group.members[identity].address for identity in self._still_silent(group, rekey)]

    @staticmethod
    def _repetitions(group: Group, rekey: Rekey) -> int:
        """A deleted group is not deleted again: members that are back would lose it once more."""
        return 0 if rekey.reason == DELETE else group.config.retransmissions

    def _still_silent(self, group: Group, rekey: Rekey) -> list[Identity]:
        """Members that have neither acknowledged nor registered since: worth another PUSH."""
        return [
            identity
            for identity in sorted(rekey.silent, key=str)
            if identity in group.members
            and group.members[identity].registered_at <= rekey.first_sent
        ]

    def _window_over(self, group: Group, rekey: Rekey, now: float) -> list[Action]:
        if rekey.attempts <= self._repetitions(group, rekey) and self._still_silent(group, rekey):
            return self._send(group, rekey, now)
        return self._close(group, rekey, now)

    def _close(self, group: Group, rekey: Rekey, now: float) -> list[Action]:
        """RFC 8263 section 6: non-receipt triggers a log line, one for each member."""
        rekey.closed = True
        rekey.missing = rekey.silent
        # RFC 8263 section 6: the old KEK stays until members had time to acknowledge under it.
        # Another rekey may still be open under it.
        old = group.old_keks.get(rekey.kek_spi)
        waited_for = {other.kek_spi for other in group.open_rekeys()}
        if old is not None and old.retire_at is None and rekey.kek_spi not in waited_for:
            old.retire_at = now + group.config.ack_wait
        actions: list[Action] = [
            Persist("rekey", rekey_record(group, rekey)),
            Persist("group", group_record(group)),
        ]
        for identity in sorted(rekey.missing, key=str):
            member = group.members.get(identity)
            if member is not None:
                member.missed += 1
                actions.append(Persist("member", member_record(group, member)))
            actions.append(self._missing(group, rekey, identity))
        done = self._event(
            group,
            "rekey-closed",
            epoch=rekey.epoch,
            expected=len(rekey.expected),
            acknowledged=len(rekey.expected) - len(rekey.missing),
        )
        return [*actions, done]

    def _missing(self, group: Group, rekey: Rekey, identity: Identity) -> Event:
        return Event(
            "ack-missing",
            {
                "group": group.config.name,
                "epoch": rekey.epoch,
                "seq": rekey.seqs[-1],
                "member": str(identity),
            },
            "warning",
        )

    # -- GROUPKEY-PUSH-ACK -----------------------------------------------------------------------

    def _receive_ack(self, arrival: Arrival) -> list[Action]:
        """RFC 8263 section 5, cheapest first: SPI, policy, form, member, SEQ, duplicate, HMAC."""
        spi = arrival.header.spi
        found = [(g, k) for g in self.groups.values() if (k := g.kek_of(spi)) is not None]
        if not found:
            return [arrival.drop(Drop.UNKNOWN_COOKIES, spi.hex())]
        group, under = found[0]
        if group.config.ack is None:
            return [arrival.drop(Drop.ACK_NOT_REQUESTED, group.config.name)]
        try:
            ack = read_ack(arrival.header, arrival.datagram)
        except DecodeError as error:
            return [arrival.drop(Drop.MALFORMED, str(error))]
        address = ack.identity.address
        identity = None if address is None else group.by_address.get(address)
        if identity is None:
            what = f"{ack.identity} from {arrival.source.host}: no member registered from there"
            return [arrival.drop(Drop.ACK_UNKNOWN_MEMBER, what)]
        rekey, what = group.rekey_of(spi, ack.seq), f"{identity}: SEQ {ack.seq}"
        if rekey is None:
            return [arrival.drop(Drop.ACK_UNKNOWN_SEQ, what)]
        if identity in rekey.acknowledged or arrival.datagram in self._bad_acks:
            return [arrival.drop(Drop.DUPLICATE, what)]
        if not ack.verify(under.kek):
            self._remember_bad(arrival.datagram)
            return [arrival.drop(Drop.ACK_BAD_HASH, what)]
        return self._count(group, rekey, group.members[identity], ack.seq, arrival.now)

    def _remember_bad(self, datagram: bytes) -> None:
        self._bad_acks[datagram] = None
        if len(self._bad_acks) > REMEMBERED_BAD_ACKS:
            self._bad_acks.popitem(last=False)

    def _count(
        self, group: Group, rekey: Rekey, member: Registrant, seq: int, now: float
    ) -> list[Action]:
        rekey.acknowledged[member.identity] = now
        sent = rekey.first_sent if seq == rekey.seqs[0] else rekey.sent_at
        member.acknowledged += 1
        member.missed = 0
        member.last_ack, member.rtt = now, now - sent
        actions: list[Action] = [
            Persist("ack", ack_record(group, rekey, member.identity, seq, now)),
            Persist("member", member_record(group, member)),
            self._event(
                group,
                "rekey-acked",
                epoch=rekey.epoch,
                seq=seq,
                member=str(member.identity),
                rtt=round(now - sent, 4),
                late="yes" if rekey.closed else "no",
            ),
        ]
        if not rekey.closed and not rekey.silent:
            actions += self._close(group, rekey, now)
        return actions

    def _event(self, group: Group, name: str, **fields: str | int | float) -> Event:
        named = {key.replace("_", "-"): value for key, value in fields.items()}
        return Event(name, {"group": group.config.name, **named})
