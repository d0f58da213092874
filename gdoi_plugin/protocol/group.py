"""One group at the key server: its KEKs, TEKs, members and the ledger of rekeys.

Pure state with the rules that change it; :mod:`~gdoi_plugin.protocol.key_server` speaks for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import ceil

from ..crypto.cipher import BLOCK
from ..crypto.lkh import Tree, Update
from ..crypto.secret import Secret
from ..crypto.signature import Scheme, SigningKey
from ..wire.buffer import EncodeError
from ..wire.registry import GDOI_PORT, AckType
from .ack import MIN_WAIT
from .actions import Event, IPAddress, Peer, Random
from .forest import LkhPolicy, RekeySa, ServerKek, cookies, plant
from .group_id import GroupId
from .identity import Identity
from .identity_pattern import IdentityList
from .ike_sas import IkePolicy
from .member_set import AckTimes, MemberSet
from .nat import Path
from .page import Rekey
from .policy import AnyTek, GroupPolicy, Kek
from .push import DEFAULT_PUSH_LIMIT, MAX_SEQ
from .roster import Registrant, Roster
from .rounds import spread
from .sender_ids import DEFAULT_SID_BITS, DEFAULT_SIDS_LIMIT, SidCounter
from .silence import DEFAULT_SILENCE, REMINDER, Reminder, SilencePolicy
from .tek_policy import (
    AnyTekConfig,
    ServerTek,
    at_once,
    next_renewal,
    remaining,
    renewed,
    told_to,
)

# As other key servers do it: a KEK is replaced at least 200 s before it ends, or 5 % of its life.
KEK_LEAD = 200.0
# A KEK with fewer SEQs left is replaced: a rekey may be repeated 60 times, in dozens of parts each.
SPARE_SEQS = 1 << 16
# KEKs that are known to have been, after their ACK windows: a few minutes of a busy group.
GONE_KEKS = 64
# Rekeys whose ledger rows stay in memory for late ACKs and for operators.
LEDGER_LENGTH = 256
# With the 64 TEKs that a configuration may have, 192 of the 256 SATs a message may carry.
OFFERED_OUTGOING = 2


# A newcomer repeats its message 3 for longer than that.
MAX_BATCH = 10.0
# Some 20 Mbit/s of rekeys with one data SA.
DEFAULT_PACE = 2000
# What a rekey's delays are lengthened by at most, however long it takes to be said to everybody.
MAX_SPREAD = 3600
# The reason of a rekey to another policy. Old SAs stay for DTD, but for no longer than this part of
# a TEK's life, between these bounds (seconds).
POLICY_CHANGE = "policy-change"
SHORT_LIFE, SHORT_LIFE_BOUNDS = 0.05, (90, 3600)


class Transport(StrEnum):
    MULTICAST = "multicast"
    UNICAST = "unicast"


@dataclass(frozen=True, slots=True)
class GroupConfig:
    """What the operator wants of a group. Times in seconds, KEK length in bits."""

    name: str
    group_id: GroupId
    members: Container[Identity]
    teks: tuple[AnyTekConfig, ...]
    source: Peer
    rekey_address: IPAddress | None = None
    rekey_port: int = GDOI_PORT
    kek_bits: int = 256
    kek_lifetime: int = 86400
    scheme: Scheme = field(kw_only=True)
    ack: AckType | None = AckType.REKEY_ACK_KEK_SHA256
    # Other readings of L that ACKs may be made with, and members that are never asked for ACKs.
    ack_l: tuple[int, ...] = ()
    ack_exempt: Container[Identity] = IdentityList()
    ack_wait: float = MIN_WAIT
    retransmissions: int = 2
    # Members that are told in a second, where rekeys go by unicast.
    pace: int = DEFAULT_PACE
    # Octets of a PUSH above which its data SAs are spread over several.
    push_limit: int = DEFAULT_PUSH_LIMIT
    silence: SilencePolicy = DEFAULT_SILENCE
    # Seconds in which members join and leave by one rekey; 0: by one each.
    batch: float = 0.0
    activation_delay: int = 10
    deactivation_delay: int = 30
    # None: the KEK is one key that every member knows (RFC 6407 section 5.6.2).
    lkh: LkhPolicy | None = None
    # Members are who charon's IKE_SAs say they are; None: who phase 1 says.
    ike: IkePolicy | None = None
    sid_bits: int = DEFAULT_SID_BITS
    # Sender-IDs that one GROUPKEY-PULL gives at most, however many it asks for.
    sender_ids_limit: int = DEFAULT_SIDS_LIMIT

    @property
    def transport(self) -> Transport:
        return Transport.UNICAST if self.rekey_address is None else Transport.MULTICAST


@dataclass(slots=True)
class Pending:
    """Members have left; one rekey for all who do so in a while replaces their keys.

    ``leaves`` by Rekey SA, where there are key trees.
    """

    due: float
    reason: str
    leaves: dict[int, list[int]] = field(default_factory=dict)


@dataclass(slots=True)
class Group:
    """State of one group. ``epoch`` counts policies; every rekey opens a new one."""

    config: GroupConfig
    epoch: int = 0
    sas: list[RekeySa] = field(default_factory=list)
    old_keks: dict[bytes, ServerKek] = field(default_factory=dict)
    # SPIs of the last KEKs that are gone: an ACK that comes too late is told from a stray one.
    gone_keks: dict[bytes, None] = field(default_factory=dict)
    teks: list[ServerTek] = field(default_factory=list)
    roster: Roster = field(default_factory=Roster)
    ledger: dict[int, Rekey] = field(default_factory=dict)
    # Members that an operator has evicted: kept out although the configuration lists them.
    denied: set[Identity] = field(default_factory=set)
    pending: Pending | None = None
    # What silence has led to: see the module of that name. Not saved: the ledger says it again.
    reminders: list[Reminder] = field(default_factory=list, compare=False)
    overdue: set[Identity] = field(default_factory=set, compare=False)
    # When the uplink has had what was sent so far by unicast.
    paced_until: float = field(default=0.0, compare=False)
    sids: SidCounter = field(init=False)

    def __post_init__(self) -> None:
        self.sids = SidCounter(self.config.sid_bits)

    # -- lookups ---------------------------------------------------------------------------------

    @property
    def members(self) -> dict[Identity, Registrant]:
        return self.roster.members

    def admits(self, identity: Identity) -> bool:
        return identity in self.config.members and identity not in self.denied

    @property
    def kek(self) -> ServerKek | None:
        """The current KEK, of the first tree where there are several."""
        return self.sas[0].kek if self.sas else None

    def kek_of(self, spi: bytes) -> ServerKek | None:
        for sa in self.sas:
            if sa.kek.kek.spi == spi:
                return sa.kek
        return self.old_keks.get(spi)

    def current_kek(self) -> ServerKek:
        if not self.sas:
            raise AssertionError("group without KEK")
        return self.sas[0].kek

    def members_of(self, sa: int) -> list[Registrant]:
        """Who holds keys of this Rekey SA."""
        lkh = self.sas[sa].tree is not None
        return [m for m in self.members.values() if m.sa == sa and (m.leaf or not lkh)]

    def served(self) -> list[int]:
        """The Rekey SAs that have members; the first one in any case."""
        return [n for n, sa in enumerate(self.sas) if not n or (sa.tree and sa.tree.members)]

    def rekey_of(self, kek_spi: bytes, seq: int) -> Rekey | None:
        """The ledger page a SEQ belongs to: any SEQ of the epoch counts."""
        for rekey in reversed(self.ledger.values()):
            if rekey.kek_spi == kek_spi and seq in rekey.seqs:
                return rekey
        return None

    def overtaken(self, rekey: Rekey) -> bool:
        """Whether what a repetition would say is no longer for all who know the KEK it goes under.

        With LKH: its tree has another KEK, or a later rekey has brought other TEKs. In any group:
        it has been deleted since.
        """
        later = [r for r in self.ledger.values() if r.epoch > rekey.epoch and r.reason != REMINDER]
        if any(r.bare and r.deletes_all for r in later):
            return True
        if rekey.brings or not any(sa.tree for sa in self.sas):
            return False
        if not rekey.bare and rekey.kek_spi != self.sas[rekey.sa].kek.kek.spi:
            return True  # and where everybody has left the tree, no later rekey of it
        return any(r.sa == rekey.sa and not r.brings and not r.bare for r in later)

    def last_rekey(self) -> Rekey | None:
        """That was for everybody."""
        pages = (r for r in reversed(self.ledger.values()) if r.reason != REMINDER)
        return next(pages, None)

    def open_rekeys(self) -> list[Rekey]:
        return [rekey for rekey in self.ledger.values() if not rekey.closed]

    # -- policy ----------------------------------------------------------------------------------

    def offer(self, member: Identity, path: Path, now: float) -> GroupPolicy:
        """What a member that registers now gets: every TEK in use, the newest last."""
        sa = self.sas[self._place_for(member)]
        kek, new = sa.kek, self.is_new(member)
        told = replace(
            kek.kek,
            spi=sa.next_spi if new else kek.kek.spi,
            ack_type=None if self.is_exempt(member) else kek.kek.ack_type,
            lifetime=remaining(kek.expires, kek.kek.lifetime, now),
            destination=self.config.rekey_address or path.remote.host,
        )
        teks = (t.remaining(now) for t in ([] if new else self._in_use()))
        configs, host = self.config.teks, path.remote.host
        # While others are being told of new TEKs, nobody is to send with those yet.
        late = self.spread if any(t.retire_at is not None for t in self.teks) else 0
        return self._policy(told, tuple(told_to(configs, tek, host) for tek in teks), late)

    def is_new(self, identity: Identity) -> bool:
        """Whether keys in use must be kept from who registers, RFC 6407 section 7.4.2."""
        known, lkh = self.members.get(identity), self.config.lkh
        return lkh is not None and lkh.rekey_on_join and not (known and known.leaf)

    def _place_for(self, identity: Identity) -> int:
        """The Rekey SA of a member: the one it has been in, or the first with room."""
        known = self.members.get(identity)
        if known is not None and known.leaf:
            return known.sa
        return next((n for n, sa in enumerate(self.sas) if not sa.full), len(self.sas) - 1)

    def _in_use(self) -> list[ServerTek]:
        """Every current TEK and, for each flow, the last few that are on their way out.

        More rekeys than that within one DTD would make a policy too large for its message; whoever
        still sends under an older one is behind by several rekeys.
        """
        chosen: list[ServerTek] = []
        outgoing: Counter[Hashable] = Counter()
        for tek in reversed(self.teks):
            outgoing[tek.tek.flow] += tek.retire_at is not None
            if tek.retire_at is None or outgoing[tek.tek.flow] <= OFFERED_OUTGOING:
                chosen.append(tek)
        return chosen[::-1]

    def push_policy(self, rekey: Rekey, now: float) -> GroupPolicy:
        """What a PUSH of this epoch says: its TEKs, and the KEK where it brings one."""
        kek = None
        if rekey.with_kek:
            current = self.kek_of(rekey.brings) or self.current_kek()
            kek = replace(
                current.kek,
                ack_type=current.kek.ack_type if rekey.asks else None,
                lifetime=remaining(current.expires, current.kek.lifetime, now),
            )
        if rekey.update is not None:
            return GroupPolicy(kek, (), updates=tuple(rekey.update.arrays.values()))
        teks = tuple(t.remaining(now) for t in self.teks if t.retire_at is None)
        policy = self._policy(kek, teks, self.spread, rekey.reason)
        if rekey.deletes_all or rekey.deleted:
            # The old SAs go at once, so there is nothing to wait for.
            return replace(policy, activation_delay=0, deactivation_delay=0)
        return policy

    def _policy(
        self, kek: Kek | None, teks: tuple[AnyTek, ...], late: int, reason: str = ""
    ) -> GroupPolicy:
        deactivation = self._deactivation_delay(reason)
        return GroupPolicy(kek, teks, self.config.activation_delay + late, deactivation + 2 * late)

    def _deactivation_delay(self, reason: str) -> int:
        """DTD of a rekey: an old policy is not to be used for long, whatever the usual DTD is; but
        for as long after ATD as before it, and where the last repetition is the one that is heard,
        so that no packet is lost."""
        config = self.config
        if reason != POLICY_CHANGE:
            return config.deactivation_delay
        least, most = SHORT_LIFE_BOUNDS
        life = max((tek.lifetime for tek in config.teks), default=0)
        repeated = ceil(config.ack_wait * config.retransmissions)
        after = config.activation_delay + max(config.activation_delay, repeated)
        return min(config.deactivation_delay, max(least, min(int(SHORT_LIFE * life), most), after))

    @property
    def spread(self) -> int:
        """Seconds from the first member's hearing of a rekey to the last one's.

        Nobody sends with a new SA before the last one has it, so ATD is longer by that; who hears
        last may send with the old one for twice that longer, so DTD is.
        """
        if self.config.transport is Transport.MULTICAST:
            return 0
        return min(MAX_SPREAD, ceil(spread(len(self.members), self.config.pace)))

    # -- changes ---------------------------------------------------------------------------------

    def renew_teks(
        self,
        random: Random,
        now: float,
        reason: str,
        *,
        replace_old: bool,
        in_advance: bool = True,
    ) -> None:
        """A new TEK for each of the policy's; the old ones retire after DTD, or at once.

        ``in_advance``: what waits for its SA_ATD may do so, and its predecessor longer than DTD.
        """
        delay = None if replace_old else self._deactivation_delay(reason) + 2 * self.spread
        self.teks = renewed(
            self.teks, self.config.teks, random, now, delay=delay, in_advance=in_advance
        )

    def renew_kek(self, sa: RekeySa, signer: SigningKey, random: Random, now: float) -> None:
        """RFC 6407 section 4: a new cookie pair; SEQ starts again at 1 with its first PUSH."""
        self.old_keks[sa.kek.kek.spi] = sa.kek
        spi, sa.next_spi = sa.next_spi or cookies(random), cookies(random)
        sa.kek = self._make_kek(spi, sa.tree, signer, random, now)

    def plant(self, signer: SigningKey, random: Random, now: float) -> None:
        """One more Rekey SA, without members."""
        tree = plant(self.config.lkh, self.config.kek_bits, random)
        kek = self._make_kek(cookies(random), tree, signer, random, now)
        self.sas.append(RekeySa(kek, tree, cookies(random)))

    def replant(self, signer: SigningKey, random: Random, now: float) -> None:
        """A clean slate: no member holds anything of the one new Rekey SA."""
        for n in set(range(len(self.sas))) - set(self.served()):
            self.sas[n].kek.retire_at = now  # nobody is told, so no ACK is waited for
        self.old_keks |= {sa.kek.kek.spi: sa.kek for sa in self.sas}
        for member in self.members.values():
            member.former_leaf = self.leaf_key(member.identity) or member.former_leaf
            member.sa = member.leaf = 0
        self.sas.clear()
        self.plant(signer, random, now)

    def _make_kek(
        self, spi: bytes, tree: Tree | None, signer: SigningKey, random: Random, now: float
    ) -> ServerKek:
        config = self.config
        kek = Kek(
            spi=spi,
            iv=tree.root.iv if tree else random(BLOCK),
            key=tree.root.key if tree else Secret(random(config.kek_bits // 8)),
            scheme=config.scheme,
            public_der=signer.public_der,
            lifetime=config.kek_lifetime,
            destination=config.rekey_address,
            source=config.source.host,
            port=config.rekey_port,
            ack_type=config.ack,
        )
        return ServerKek(kek, signer, 0, now, now + config.kek_lifetime)

    def admit(
        self, member: Registrant, told: GroupPolicy, random: Random
    ) -> tuple[GroupPolicy, int]:
        """What was ``told`` in message 2, with the member's keys of the tree, and the SEQ.

        RFC 6407 section 3.4: the key server "will first insert the group member into the group
        management structure (e.g., a leaf in the LKH tree)". Raises TreeFull.
        """
        spi = told.kek.spi if told.kek else b""
        member.sa = next((n for n, sa in enumerate(self.sas) if sa.kek.kek.spi == spi), 0)
        sa = self.sas[member.sa]
        if told.kek is None or sa.tree is None:
            return told, sa.kek.seq
        if not sa.tree.holds(member.leaf):
            member.leaf = sa.tree.join(random)
        return replace(told, kek=replace(told.kek, path=sa.tree.path(member.leaf))), sa.kek.seq

    def turn_away(self, member: Registrant) -> None:
        """Where message 4 could not be said after all."""
        tree = self.sas[member.sa].tree
        if tree is not None and member.leaf and member.identity not in self.members:
            tree.give_back(member.leaf)

    @staticmethod
    def leaves_of(members: Iterable[Registrant]) -> dict[int, list[int]]:
        """By Rekey SA."""
        leaves: dict[int, list[int]] = {}
        for member in members:
            if member.leaf:
                leaves.setdefault(member.sa, []).append(member.leaf)
        return leaves

    def remove_tek(self, spi: bytes, random: Random, now: float) -> ServerTek | None:
        """Ends one data SA at once. Where it was its flow's current one, another takes its place.

        None where there is none with this SPI.
        """
        gone = next((t for t in self.teks if t.tek.spi == spi), None)
        if gone is None:
            return None
        self.teks.remove(gone)
        if gone.retire_at is None:
            taken = {spi, *(t.tek.spi for t in self.teks)}
            for policy in self.config.teks:
                if policy.flow == gone.tek.flow:
                    tek = at_once(policy.make(random, taken))
                    self.teks.append(ServerTek(tek, now, now + policy.lifetime))
        return gone

    # -- who is asked for acknowledgements -------------------------------------------------------

    def is_exempt(self, member: Identity) -> bool:
        """RFC 6407 section 5.3.2: a member that does not know KEK_ACK_REQUESTED "MUST abort if it
        encounters" it; such members are listed."""
        return bool(self.config.ack_exempt) and member in self.config.ack_exempt

    def leaf_key(self, member: Identity) -> Secret | None:
        """The LKH key that this member alone shares with us (RFC 8263 section 2.2), if any."""
        known = self.members.get(member)
        tree = None if known is None else self.sas[known.sa].tree
        return tree.leaf_key(known.leaf) if tree and known and tree.holds(known.leaf) else None

    def _expect(
        self, members: Iterable[Registrant], *, new_sak: bool, asks: bool
    ) -> Iterator[Registrant]:
        """RFC 8263 section 7.2: the SAK that each member received last decides."""
        if self.config.ack is None:
            return
        for member in members:
            exempt = self.is_exempt(member.identity)
            if new_sak:
                member.asked = asks and not exempt
            if member.asked and not exempt:
                yield member

    def _sak_for_all_asks(self) -> bool:
        """By unicast each is told its own; a multicast SAK that one member must not see asks none:
        the others are asked again in their next GROUPKEY-PULL."""
        if self.config.transport is Transport.UNICAST or not self.config.ack_exempt:
            return True
        return not any(self.is_exempt(member) for member in self.members)

    def open_rekey(
        self,
        under: ServerKek,
        reason: str,
        now: float,
        *,
        with_kek: bool,
        deletes_all: bool,
        deleted: Sequence[tuple[int, bytes]] = (),
        bare: bool = False,
        sa: int = 0,
        update: Update | None = None,
        members: Sequence[Registrant] | None = None,
    ) -> Rekey:
        """A new ledger page. Who is registered now, and asked to, is expected to acknowledge."""
        if self.epoch in self.ledger:
            self.epoch += 1  # a page for each Rekey SA
        if members is None:
            members = self.members_of(sa)
        asks = self._sak_for_all_asks()
        types = [under.kek.ack_type, self.current_kek().kek.ack_type if with_kek else None]
        rekey = Rekey(
            epoch=self.epoch,
            reason=reason,
            kek_spi=under.kek.spi,
            seqs=[],
            first_sent=now,
            sent_at=now,
            expected=self.roster.set_of(self._expect(members, new_sak=with_kek, asks=asks)),
            acknowledged=AckTimes(self.roster, now),
            missing=MemberSet(self.roster),
            attempts=0,
            deletes_all=deletes_all,
            with_kek=with_kek,
            deleted=tuple(deleted),
            bare=bare,
            sa=sa,
            update=update,
            brings=self.sas[sa].kek.kek.spi if update else b"",
            asks=asks,
            ack_types=tuple(dict.fromkeys(t for t in types if t is not None)),
        )
        self.ledger[rekey.epoch] = rekey
        while len(self.ledger) > LEDGER_LENGTH:
            del self.ledger[next(iter(self.ledger))]
        return rekey

    def registrant(
        self, identity: Identity, path: Path, now: float, *, behind_nat: bool = False
    ) -> Registrant:
        """A member that has proved itself, not yet on the roster. Registering again clears what it
        missed."""
        local = self._own(path.local)
        member = Registrant(identity, path.remote, now, local=local, behind_nat=behind_nat)
        member.asked = self.config.ack is not None and not self.is_exempt(identity)
        known = self.members.get(identity)
        if known is not None:
            member.acknowledged, member.last_ack = known.acknowledged, known.last_ack
            member.rtt, member.number = known.rtt, known.number
            member.sa, member.leaf = known.sa, known.leaf
            member.former_leaf = known.former_leaf
        return member

    def move_member(self, member: Registrant, path: Path) -> Registrant:
        """A NAT has given the member another address or port."""
        return self.roster.move(member.identity, path.remote, self._own(path.local))

    def _own(self, local: Peer) -> Peer | None:
        return None if local == self.config.source else local

    # -- timers ----------------------------------------------------------------------------------

    def next_rekey(self) -> tuple[float, bool]:
        """When the next scheduled rekey is due, and whether it is for the KEK."""
        kek = min((sa.kek for sa in self.sas), key=lambda kek: kek.expires)
        life = kek.expires - kek.created
        kek_due = kek.expires - min(max(KEK_LEAD, 0.05 * life) + self.spread, life / 2)
        tek_due = next_renewal(self.teks, self.config.teks, 2 * self.spread)
        if any(sa.kek.seq >= MAX_SEQ - SPARE_SEQS for sa in self.sas):
            return kek.created, True
        if tek_due is None or kek_due <= tek_due:
            return kek_due, True
        return tek_due, False

    def retire(self, now: float) -> bool:
        """Forgets TEKs after DTD and KEKs after their ACK window. True where something went."""
        teks = [t for t in self.teks if t.retire_at is None or t.retire_at > now]
        keks = {s: k for s, k in self.old_keks.items() if (k.retire_at or now + 1) > now}
        changed = len(teks) != len(self.teks) or len(keks) != len(self.old_keks)
        for spi in self.old_keks.keys() - keks.keys():
            self.note_gone(spi)
        self.teks, self.old_keks = teks, keks
        return changed

    def note_gone(self, spi: bytes) -> None:
        self.gone_keks[spi] = None
        if len(self.gone_keks) > GONE_KEKS:
            del self.gone_keks[next(iter(self.gone_keks))]

    def next_retirement(self) -> float | None:
        times = [t.retire_at for t in self.teks if t.retire_at is not None]
        times += [k.retire_at for k in self.old_keks.values() if k.retire_at is not None]
        return min(times, default=None)


def group_event(group: Group, name: str, level: str = "info", **fields: str | int | float) -> Event:
    """An event that names its group; underscores of field names become dashes."""
    named = {key.replace("_", "-"): value for key, value in fields.items()}
    return Event(name, {"group": group.config.name, **named}, level)


def too_large(group: Group, message: str, error: EncodeError) -> Event:
    """What this group's policy makes of a message; fewer data SAs or another group would help."""
    return group_event(group, "message-too-large", "error", message=message, error=str(error))
