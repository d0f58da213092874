"""The key server: admits members, pushes rekeys, counts acknowledgements, acts on silence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..crypto.lkh import TreeFull
from ..crypto.signature import Scheme, SigningKey, generate
from ..wire.buffer import DecodeError, EncodeError
from ..wire.header import pull_header
from ..wire.identification import Identification
from ..wire.registry import ExchangeType, NotifyType, PayloadType
from .ack_check import Claim
from .ack_ledger import AckLedger
from .actions import Action, AskIke, Drop, Dropped, Peer, Persist, Random, Send
from .arrival import FRAGMENT, Arrival
from .authorising import IkeAuthority
from .dpd import OFF, DpdConfig
from .errors import AuthError, ProtocolError
from .follow import hasten, take_up
from .group import Group, GroupConfig, group_event, too_large
from .group_id import GroupId
from .group_record import group_record, member_record, tree_persists
from .identity import Identity
from .ike_sas import NotVouched, Phase1Peer
from .isakmp import fresh_message_id, seal_notify
from .keeper import Keeper, Plan, SavedGroup, restore
from .limits import Limits
from .main_mode import NONCE_LENGTH
from .newcomer import Joining, Newcomer
from .page import Rekey
from .phase1 import Phase1Config, belongs_to_one
from .policy import encode_kd, encode_sa
from .pull import PullResponder, PullState
from .rekeying import Rekeyer
from .responder import IsakmpResponder, is_first
from .roster import Registrant, peer_of
from .saying import Sayer
from .sessions import PULL_LIFETIME, Pull, Session
from .whereabouts import follow, mark_dead, refused_offer

__all__ = ["KeyServer", "SavedGroup"]


@dataclass(slots=True)
class KeyServer:
    """The engine. ``phase1_for``: the phase-1 policy towards an address, None for strangers."""

    configs: Iterable[GroupConfig]
    phase1_for: Callable[[Peer], Phase1Config | None]
    random: Random = field(repr=False)
    make_signer: Callable[[Scheme], SigningKey] = generate
    limits: Limits = field(default_factory=Limits)
    dpd: DpdConfig = OFF
    groups: dict[int, Group] = field(init=False)
    isakmp: IsakmpResponder = field(init=False)
    rekeyer: Rekeyer = field(init=False)
    ledger: AckLedger = field(init=False)
    keeper: Keeper = field(init=False)
    ike: IkeAuthority = field(init=False)
    # Newcomers that are let in together, by group.
    joining: dict[int, Joining] = field(default_factory=dict, init=False)
    # Of several key servers for the same groups one leads: sends rekeys, and runs their timers.
    leads: bool = field(default=True, init=False)
    # Groups that one of several does not hand out anything of.
    suspended: set[int] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.groups = {config.group_id.key: Group(config) for config in self.configs}
        self.isakmp = IsakmpResponder(self.phase1_for, self.random, self.limits, self.dpd)
        self.rekeyer = Rekeyer(self.random, self.make_signer)
        self.ledger = AckLedger(self.groups)
        self.keeper = Keeper(self.groups, self.rekeyer)
        self.ike = IkeAuthority(self.groups)

    # -- life ------------------------------------------------------------------------------------

    def start(self, now: float, saved: Mapping[int, SavedGroup]) -> list[Action]:
        """Takes up every saved group, repeats rekeys that a crash cut short, makes new groups.

        Raises KeyError, ValueError or TypeError for a saved record that cannot be read: a key
        server must not start over with a SEQ that has been used.
        """
        actions: list[Action] = []
        for key, group in self.groups.items():
            try:
                actions += self.keeper.take_up(group, saved.get(key), now)
            except (OverflowError, AttributeError) as error:
                # A number that was saved, and that no message has room for, or something else.
                raise ValueError(f"group {group.config.name}: {error}") from error
        return actions

    # -- one of several ----------------------------------------------------------------------------

    def join(self, saved: Mapping[int, SavedGroup], now: float) -> list[Action]:
        """Takes up what several key servers share, at a start or anew; makes groups that nobody has
        made. What it wants otherwise is for the time when it leads. Raises as :meth:`start`."""
        self.rekeyer.sayer.forget()
        actions: list[Action] = []
        for key, group in self.groups.items():
            fresh = Group(group.config)
            if key in saved:
                restore(fresh, saved[key])
                hasten(fresh)
                # What was under way, and was in memory only.
                actions += self.keeper.resume(fresh, now) if self.leads else []
            else:
                actions += self.keeper.take_up(fresh, None, now)
            self.groups[key] = fresh
        return actions

    def follow(self, changed: Mapping[int, SavedGroup]) -> None:
        """What others have written since. Raises as :meth:`start`."""
        for key, saved in changed.items():
            if key in self.groups:
                take_up(self.groups[key], saved)

    def lead(self, whether: bool, now: float) -> list[Action]:
        """From here on it is the one that rekeys; or no longer, and somebody else may be."""
        self.leads = self.rekeyer.sayer.leads = self.ledger.leads = whether
        actions: list[Action] = []
        for group in self.groups.values() if whether else ():
            actions += self.keeper.resume(group, now)
        return actions

    @property
    def deadline(self) -> float | None:
        times = (self.phase1_deadline, self.group_deadline)
        return min((deadline for deadline in times if deadline is not None), default=None)

    @property
    def phase1_deadline(self) -> float | None:
        joining = (joining.due for joining in self.joining.values())
        phase1 = (self.isakmp.deadline, self.isakmp.sessions.deadline, *joining)
        return min((deadline for deadline in phase1 if deadline is not None), default=None)

    @property
    def group_deadline(self) -> float | None:
        """None for who does not lead."""
        times: list[float] = []
        for key, group in self.groups.items() if self.leads else ():
            times.append(self.keeper.due(key))
            times += [rekey.deadline for rekey in group.open_rekeys()]
            times += [reminder.due for reminder in group.reminders]
            if group.pending is not None:
                times.append(group.pending.due)
            if group.overdue:
                times.append(0.0)
            soon = (group.next_retirement(), self.ike.due(key, group))
            times += [due for due in soon if due is not None]
        return min(times, default=None)

    def tick(self, now: float) -> list[Action]:
        return [*self.tick_phase1(now), *self.tick_groups(now)]

    def tick_phase1(self, now: float) -> list[Action]:
        self.isakmp.tick(now)
        actions, dead = self.isakmp.sessions.tick(now)
        mark_dead(self.groups, self.isakmp.sessions, dead)
        for key in [key for key, joining in self.joining.items() if joining.due <= now]:
            actions += self._let_in(key, now)
        return actions

    def tick_groups(self, now: float) -> list[Action]:
        """For who leads."""
        actions: list[Action] = []
        for key, group in self.groups.items():
            for rekey in group.open_rekeys():
                if rekey.deadline <= now:
                    actions += self.rekeyer.sayer.turn(group, rekey, now)
            if group.retire(now):
                actions.append(Persist("group", group_record(group)))
            if key in self.keeper.leaving:
                continue
            actions += self.rekeyer.heed_silence(group, now)
            actions += self.rekeyer.heed_ike(group, self.ike.overdue(key, group, now), now)
            if group.pending is not None and group.pending.due <= now:
                actions += self.rekeyer.flush(group, now)
            due, kek = group.next_rekey()
            if due <= now:
                reason = "kek-lifetime" if kek else "tek-lifetime"
                actions += self.rekey(key, now, reason, kek=kek)
        return [*actions, *self.keeper.tick()]

    def stop(self) -> list[Action]:
        """So that members do not try an SA that nobody has any more."""
        return [session.association.delete() for session in self.isakmp.sessions.values()]

    def sent(self, now: float) -> None:
        """The step's datagrams have left."""
        self.rekeyer.sayer.sent(now)

    # -- datagrams -------------------------------------------------------------------------------

    def receive(self, datagram: bytes, source: Peer, local: Peer, now: float) -> list[Action]:
        """No exception for any datagram, no state for a peer that has proved nothing."""
        answer = self.first(datagram, source, local, now)
        return [Send(answer, source, local)] if isinstance(answer, bytes) else answer

    def first(self, datagram: bytes, source: Peer, local: Peer, now: float) -> bytes | list[Action]:
        """The same; an answer to message 1 of main mode, for its sender, comes as bare octets."""
        if is_first(datagram):
            return self.isakmp.first(datagram, source, local, now)
        try:
            arrival = Arrival(pull_header(datagram), datagram, source, local, now)
        except DecodeError as error:
            return [Dropped(Drop.MALFORMED, source, str(error))]
        if arrival.header.next_payload == PayloadType.FRAGMENT:
            return [arrival.drop(Drop.FRAGMENT, FRAGMENT)]
        kind = arrival.header.exchange_type
        if kind == ExchangeType.GROUPKEY_PUSH_ACK:
            return self.ledger.receive(arrival)
        if kind == ExchangeType.MAIN_MODE:
            return self.isakmp.later(arrival)
        if kind in (ExchangeType.GROUPKEY_PULL, ExchangeType.INFORMATIONAL):
            return self._phase2(arrival)
        if kind == ExchangeType.UNREGISTERED_34:
            return [arrival.drop(Drop.IGNORED_EXCHANGE, f"exchange {kind}")]
        drop = arrival.drop(Drop.UNKNOWN_EXCHANGE, f"exchange {kind}")
        return [drop, *self.isakmp.tell(arrival, NotifyType.UNSUPPORTED_EXCHANGE_TYPE)]

    def acks(
        self,
        datagrams: Sequence[bytes],
        endpoints: Sequence[bytes],
        local: Peer,
        now: float,
        claims: Sequence[Claim] = (),
    ) -> tuple[Mapping[Drop, Sequence[int]], list[Action]]:
        """Many at a time, of what should be ACKs: the places of those that are refused, by reason,
        and what is to be done about the others. ``endpoints``: where each comes from, as
        :func:`~.roster.endpoint_octets` says it; ``claims``: what is known of them already."""
        verdicts = self.ledger.gate.judge(datagrams, endpoints, now, claims)
        actions: list[Action] = []
        for place in verdicts.undecided:
            actions += self.receive(datagrams[place], peer_of(endpoints[place]), local, now)
        if not self.ledger.deferred:
            actions += self.ledger.save_now(now)
        return verdicts.refused, actions

    def _phase2(self, arrival: Arrival) -> list[Action]:
        header = arrival.header
        session = self.isakmp.sessions.get(header.spi)
        if session is None or session.association.expired(arrival.now):
            drop = arrival.drop(Drop.UNKNOWN_COOKIES, header.spi.hex())
            if not header.encrypted:
                # A notify in clear is not answered with another one.
                return [drop]
            return [drop, *self.isakmp.tell(arrival, NotifyType.INVALID_COOKIE)]
        if not session.may_be_at(arrival.source.host):
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
            drop = arrival.drop(Drop.UNEXPECTED, str(error))
            if error.notify is None:
                return [drop]
            return [drop, self._refusal(session, arrival, error.notify)]

    def _informational(self, session: Session, arrival: Arrival) -> list[Action]:
        heard = session.association.hear(
            arrival.header, arrival.datagram, arrival.source, arrival.now
        )
        for kind, reason in zip(heard.errors, heard.reasons, strict=True):
            heard.actions.append(refused_offer(self.groups, session, kind, reason))
        heard.actions += follow(self.groups, session, arrival, arrival.header.message_id)
        if heard.initial_contact:
            heard.actions += self.isakmp.sessions.initial_contact(session)
        if heard.deleted:
            heard.actions.append(self.isakmp.sessions.end(session, "peer"))
        return heard.actions

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
        message_id, nonce = arrival.header.message_id, self.random(NONCE_LENGTH)
        exchange = PullResponder(session.sa, message_id, nonce, arrival.now + PULL_LIFETIME)
        identification = exchange.read_1(arrival.header, arrival.datagram)
        moved = follow(self.groups, session, arrival, message_id)
        return [*moved, *self._answer_1(session, exchange, identification, arrival)]

    def _answer_1(
        self,
        session: Session,
        exchange: PullResponder,
        identification: Identification,
        arrival: Arrival,
    ) -> list[Action]:
        identity = session.sa.remote_identity
        group, asked = self._group_asked_for(identification)
        if group is None:
            drop = arrival.drop(Drop.UNKNOWN_GROUP, f"{identity} asked for {asked}")
            return [drop, self._refusal(session, arrival, NotifyType.INVALID_ID_INFORMATION)]
        try:
            identity = self._member_of(group, session, arrival, final=False)
        except NotVouched as error:
            return self._not_admitted(group, session, arrival, error)
        policy = group.offer(identity, arrival.path, arrival.now)
        try:
            reply = exchange.answer_1(arrival.datagram, encode_sa(policy))
        except EncodeError as error:
            # No notify of the RFC says this; the member learns that there is nothing for it.
            refusal = self._refusal(session, arrival, NotifyType.NO_PROPOSAL_CHOSEN)
            return [too_large(group, "GROUPKEY-PULL 2", error), refusal]
        pull = Pull(exchange, group.config.group_id.key, group.epoch, policy, identity)
        session.pulls[exchange.message_id] = pull
        return [arrival.reply(reply)]

    def _member_of(
        self, group: Group, session: Session, arrival: Arrival, *, final: bool = True
    ) -> Identity:
        """Who asks, if that is somebody to be admitted. Raises NotVouched."""
        sa = session.sa
        identity = sa.remote_identity
        if group.config.ike is not None:
            config, host = self.phase1_for(sa.remote), arrival.source.host
            proven = config is not None and belongs_to_one(config, sa.method)
            peer = Phase1Peer(host, identity, proven, sa.nat.there)
            identity = self.ike.vouched(peer, arrival.now, final=final)
        if not group.admits(identity) or sa.remote_identity in group.denied:
            what = f"{identity} is no member of {group.config.name}"
            raise NotVouched(Drop.NOT_AUTHORISED, what)
        return identity

    def _not_admitted(
        self, group: Group, session: Session, arrival: Arrival, error: NotVouched
    ) -> list[Action]:
        drop = arrival.drop(error.reason, error.why)
        if error.reason is Drop.IKE_ASKED:
            return [drop, AskIke()]  # message 1 will come again, when charon has answered
        refusal = self._refusal(session, arrival, NotifyType.AUTHENTICATION_FAILED)
        if group.config.ike is None:
            return [drop, refusal]
        fields = {"member": str(session.sa.remote_identity), "address": str(arrival.source.host)}
        told = group_event(group, "member-refused", "warning", **fields, error=error.why)
        return [drop, told, refusal]

    def _group_asked_for(self, identification: Identification) -> tuple[Group | None, str]:
        """The group, or None and what was asked for instead."""
        try:
            group_id = GroupId.of_payload(identification)
        except DecodeError as error:
            return None, error.what
        return self._served(group_id.key), f"group {group_id}"

    def _served(self, key: int) -> Group | None:
        return None if key in self.suspended else self.groups.get(key)

    def _pull_3(self, session: Session, pull: Pull, arrival: Arrival) -> list[Action]:
        """Only now is the member live; until here nothing of it has been recorded."""
        if pull.exchange.state is not PullState.SENT_2:
            return [arrival.drop(Drop.UNEXPECTED, "GROUPKEY-PULL is complete")]
        if pull.held:
            return [arrival.drop(Drop.DUPLICATE, "GROUPKEY-PULL message 3 waits for others")]
        asked = pull.exchange.read_3(arrival.header, arrival.datagram)
        session.association.dpd.heard(arrival.now)
        return [
            *follow(self.groups, session, arrival),
            *self._answer_3(session, pull, arrival, asked),
        ]

    def _answer_3(self, session: Session, pull: Pull, arrival: Arrival, asked: int) -> list[Action]:
        group = self._served(pull.group)
        if group is None or not self._still_member(group, session, pull, arrival):
            # The configuration has changed since message 2, or the member's IKE_SA has gone.
            what = f"{pull.member} is no member any more"
            refusal = self._refusal(session, arrival, NotifyType.AUTHENTICATION_FAILED)
            pull.exchange.refuse_3(arrival.datagram, refusal.datagram)
            return [arrival.drop(Drop.NOT_AUTHORISED, what), refusal]
        if group.epoch != pull.epoch:
            # A rekey came in between: keys of message 2's SPIs would be old ones.
            what = f"{group.config.name} was rekeyed during GROUPKEY-PULL"
            return self._outdated(session, pull, arrival, what)
        newcomer = Newcomer(session, pull, arrival, asked)
        if not group.sids.has(newcomer.sids(group)):
            return self._sids_exhausted(session, pull, arrival, group)
        member = newcomer.registrant(group)
        if not group.is_new(member.identity):
            reason = newcomer.why_rekey(group, member)
            actions = self._admit(group, newcomer, member)
            return actions + (self.rekeyer.rekey(group, arrival.now, reason) if reason else [])
        # Others may come in this while: nothing has changed yet, and a crash loses nothing.
        pull.held = True
        joining = self.joining.setdefault(pull.group, Joining(arrival.now + group.config.batch))
        joining.waiting.append(newcomer)
        return [] if group.config.batch else self._let_in(pull.group, arrival.now)

    def _still_member(self, group: Group, session: Session, pull: Pull, arrival: Arrival) -> bool:
        try:
            return self._member_of(group, session, arrival) == pull.member
        except NotVouched:
            return False

    def _let_in(self, key: int, now: float) -> list[Action]:
        """RFC 6407 section 7.4.2, for all who wait: one new KEK, then the TEKs under it."""
        group, waiting, sids = self._served(key), self.joining.pop(key).waiting, 0
        actions: list[Action] = []
        if group is None:
            return actions  # it is gone; they learn that when they ask again
        trees: dict[int, list[tuple[Newcomer, Registrant]]] = {}
        for newcomer in waiting:
            session, pull = newcomer.session, newcomer.pull
            newcomer = replace(newcomer, arrival=replace(newcomer.arrival, now=now))
            kek, arrival = pull.policy.kek, newcomer.arrival
            places = (n for n, sa in enumerate(group.sas) if kek and sa.next_spi == kek.spi)
            place = next(places, None)
            taken = trees.get(place, []) if place is not None else []
            still = self._still_member(group, session, pull, arrival)
            if place is None or group.epoch != pull.epoch or not still:
                what = f"{group.config.name} was rekeyed during GROUPKEY-PULL"
                actions += self._outdated(session, pull, newcomer.arrival, what)
            elif not group.sids.has(sids + newcomer.sids(group)):
                what = f"{group.config.name}: others took the last Sender-IDs"
                actions += self._outdated(session, pull, newcomer.arrival, what)
            elif len(taken) >= self.rekeyer.room(group, place):
                what = f"{group.config.name}: others took the last leaves of the tree"
                actions += self._outdated(session, pull, newcomer.arrival, what)
            else:
                trees.setdefault(place, []).append((newcomer, newcomer.registrant(group)))
                sids += newcomer.sids(group)
        for place, joining in trees.items():
            members = [member for _, member in joining]
            actions += self.rekeyer.welcome(group, place, members, now)
        for newcomer, member in (one for joining in trees.values() for one in joining):
            actions += self._admit(group, newcomer, member)
        return [*actions, *(self.rekeyer.rekey(group, now, "join") if trees else [])]

    def _admit(self, group: Group, newcomer: Newcomer, member: Registrant) -> list[Action]:
        """Message 4, and the member is on the roster."""
        session, pull = newcomer.session, newcomer.pull
        arrival = newcomer.arrival
        count = newcomer.sids(group)
        try:
            policy, seq = group.admit(member, pull.policy, self.random)
            policy = replace(policy, sids=group.sids.take(count) if count else None)
            reply = pull.exchange.answer_3(arrival.datagram, seq, encode_kd(policy))
        except TreeFull:
            what = f"{group.config.name}: somebody else took the last leaf of the tree"
            return self._outdated(session, pull, arrival, what)
        except EncodeError as error:
            group.turn_away(member)
            refusal = self._refusal(session, arrival, NotifyType.NO_PROPOSAL_CHOSEN)
            pull.exchange.refuse_3(arrival.datagram, refusal.datagram)
            return [too_large(group, "GROUPKEY-PULL 4", error), refusal]
        group.roster.add(member)
        self.isakmp.sessions.know_as(session, pull.group, member.identity)
        saved = [
            *self._keep_room(group, arrival.now),
            Persist("member", member_record(group, member)),
            # The SIDs are used up in the same transaction, before message 4 leaves.
            *([] if policy.sids is None else [Persist("group", group_record(group))]),
        ]
        told = newcomer.registered(group, member, seq, policy.sids)
        return [*saved, arrival.reply(reply), *told]

    def _sids_exhausted(
        self, session: Session, pull: Pull, arrival: Arrival, group: Group
    ) -> list[Action]:
        """RFC 6407 section 3.5 items 5 and 6: "Before distributing any new SID values, the GCKS
        MUST delete the Data-Security SAs"; and the Rekey SA with them, so that nobody uses an old
        SID with a new SA. Whoever asked is asked to come again, as all others will.
        """
        told = group_event(
            group, "sender-ids-exhausted", "warning", bits=group.sids.bits, given=group.sids.next
        )
        what = f"{group.config.name}: no Sender-IDs left, all SAs are made anew"
        deleted = self.rekeyer.delete_group(group, arrival.now)
        return [told, *deleted, *self._outdated(session, pull, arrival, what)]

    def _outdated(self, session: Session, pull: Pull, arrival: Arrival, what: str) -> list[Action]:
        refusal = self._refusal(session, arrival, NotifyType.INVALID_SPI)
        pull.exchange.refuse_3(arrival.datagram, refusal.datagram)
        return [arrival.drop(Drop.STALE_POLICY, what), refusal]

    def _keep_room(self, group: Group, now: float) -> list[Action]:
        """Message 2 must not change the group (RFC 6407 section 7.2.5), so there is room before."""
        if all(sa.full for sa in group.sas):
            group.plant(group.current_kek().signer, self.random, now)
            return [Persist("group", group_record(group)), *tree_persists(group)]
        return [*tree_persists(group)]

    def _refusal(self, session: Session, arrival: Arrival, notify: NotifyType) -> Send:
        return arrival.reply(seal_notify(session.sa, fresh_message_id(self.random(4)), notify))

    # -- GROUPKEY-PUSH ---------------------------------------------------------------------------

    def rekey(
        self,
        key: int,
        now: float,
        reason: str,
        *,
        kek: bool = False,
        replace_old: bool = False,
    ) -> list[Action]:
        """New TEKs, with ``kek`` a new KEK as well; ``replace_old`` deletes the old SAs at once."""
        group = self.groups[key]
        return self.rekeyer.rekey(group, now, reason, kek=kek, replace_old=replace_old)

    def evict(self, key: int, identities: Iterable[Identity], now: float) -> list[Action]:
        """They are out, with keys that they cannot read for the others, until readmitted."""
        group, named = self.groups[key], set(identities)
        group.denied |= named
        self.isakmp.sessions.interrupt(named)
        out = sorted((i for i in named if not self.admitted_somewhere(i)), key=str)
        over = [*self.isakmp.forget(out), *self.ike.end(out)]
        gone = sorted((i for i in named if i in group.members), key=str)
        actions: list[Action] = [Persist("group", group_record(group)), *over]
        actions += [
            group_event(group, "member-evicted", member=str(i)) for i in sorted(named, key=str)
        ]
        if gone:
            actions += self.rekeyer.remove(group, gone, now, "evict")
        return actions

    def revoke(self, key: int, identities: Iterable[Identity], now: float) -> list[Action]:
        """They are compromised: out, whatever else they are members of, and no old key is used on.

        Whether they are registered or not, for their keys may be in other hands.
        """
        group, named = self.groups[key], sorted(set(identities), key=str)
        group.denied |= set(named)
        self.isakmp.sessions.interrupt(group.denied)
        actions: list[Action] = [
            Persist("group", group_record(group)),
            *self.isakmp.forget(named),
            *self.ike.end(named),
            *(group_event(group, "member-revoked", "warning", member=str(i)) for i in named),
        ]
        gone = [identity for identity in named if identity in group.members]
        removed = self.rekeyer.remove(
            group, gone, now, "revoke", at_once=True, replace_old=True, every_kek=True
        )
        return [*actions, *removed]

    def plan(self, configs: Iterable[GroupConfig], now: float) -> dict[int, Plan]:
        """What another configuration would do, by group. Changes nothing."""
        return self.keeper.plan(configs, now)

    def reconfigure(
        self,
        configs: Iterable[GroupConfig],
        saved: Mapping[int, SavedGroup],
        now: float,
        *,
        replace_old: bool = False,
    ) -> list[Action]:
        """Makes every group what its configuration says; see :meth:`Keeper.change`."""
        before = {i for group in self.groups.values() for i in group.members}
        actions = self.keeper.change(configs, saved, now, replace_old=replace_old)
        over = sorted((i for i in before if not self.admitted_somewhere(i)), key=str)
        return [*actions, *self.isakmp.forget(over), *self.ike.end(over)]

    def admit(self, key: int, identities: Iterable[Identity]) -> list[Action]:
        """Evicted members may register again."""
        group = self.groups[key]
        back = sorted(group.denied & set(identities), key=str)
        group.denied -= set(back)
        told = [group_event(group, "member-readmitted", member=str(i)) for i in back]
        return [Persist("group", group_record(group)), *self.ike.keep(back), *told]

    def admitted_somewhere(self, identity: Identity) -> bool:
        return any(group.admits(identity) for group in self.groups.values())

    def delete_group(self, key: int, now: float) -> list[Action]:
        """RFC 6407 section 5.9, a clean slate: members must register again."""
        return self.rekeyer.delete_group(self.groups[key], now)

    def delete_tek(self, group_id: int, spi: bytes, now: float) -> list[Action] | None:
        """One data SA goes at once; None where the group has none with this SPI."""
        return self.rekeyer.delete_tek(self.groups[group_id], spi, now)

    @staticmethod
    def window(group: Group, rekey: Rekey) -> float:
        """Seconds until the last ACK of this rekey can count as in time."""
        return Sayer.window(group, rekey)
