"""Who has acknowledged which rekey, RFC 8263 sections 5 and 6: the key server's ledger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from ..crypto.ack_key import ACK_PRFS
from ..wire.buffer import DecodeError
from ..wire.registry import AckType, IdType
from .ack import Ack, base_key, read_ack
from .ack_gate import AckGate
from .ack_page import Page
from .actions import Action, Drop, Peer, Persist
from .arrival import Arrival
from .closing import close_rekey
from .forest import ServerKek
from .group import Group, group_event
from .group_record import AckEntries, acks_record
from .identity import Identity
from .page import Rekey
from .roster import Registrant

# ACKs saved at once that are told of one by one; of more there is one event, and one of each member
# for those who listen to them.
TOLD_SINGLY = 32


class _Refused(Exception):
    """This ACK does not count."""

    def __init__(self, reason: Drop, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(slots=True)
class AckLedger:
    """Judges and counts acknowledgements of every group, and closes the pages of rekeys.

    An ACK counts once it is saved: nobody is told of it before, and after a crash its member is
    asked again. ``deferred``: whoever runs the engine saves many at a time (:meth:`unsaved`,
    :meth:`saved`); otherwise each is part of the step that it came in.
    """

    groups: Mapping[int, Group]
    deferred: bool = False
    # Of several key servers all count, and the one that leads closes pages: it may not be done
    # telling them.
    leads: bool = True
    gate: AckGate = field(init=False)

    def __post_init__(self) -> None:
        self.gate = AckGate(self.groups)

    def receive(self, arrival: Arrival) -> list[Action]:
        """RFC 8263 section 5: a group that asks for ACKs, then the form, then the HASH."""
        try:
            actions = self._judge(arrival)
        except _Refused as refused:
            return [arrival.drop(refused.reason, refused.detail)]
        return actions if self.deferred else [*actions, *self.save_now(arrival.now)]

    @property
    def has_unsaved(self) -> bool:
        return any(page.fresh for page in self.gate.pages.values())

    def unsaved(self) -> list[Persist]:
        """What has been counted since this was asked last: to be saved, and then told of."""
        taken = []
        for page in self.gate.pages.values():
            if page.fresh:
                taken.append(Persist("acks", acks_record(page.group, page.rekey, page.fresh)))
                page.fresh = []
        return taken

    def save_now(self, now: float) -> list[Action]:
        """Both in one step."""
        records = self.unsaved()
        return [*records, *self.saved(records, now)]

    def saved(self, records: Iterable[Persist], now: float, *, each: bool = True) -> list[Action]:
        """What ``unsaved`` gave is durable. ``each``: somebody listens to every single ACK."""
        actions: list[Action] = []
        for persist in records:
            record: Mapping[str, Any] = persist.record
            group = self.groups.get(record["group"])
            rekey = group.ledger.get(record["epoch"]) if group is not None else None
            if group is None or rekey is None:
                continue  # it has gone in the meantime
            actions += self._note(group, rekey, record["entries"], each=each)
            if self.leads and not rekey.closed and rekey.all_heard:
                actions += close_rekey(group, rekey, now)
        return actions

    def _note(self, group: Group, rekey: Rekey, entries: AckEntries, *, each: bool) -> list[Action]:
        lengths = self.gate.page(group, rekey).lengths
        note, numbered = rekey.acknowledged.note, group.roster.numbered
        departures = {seq: rekey.departures(seq) for seq in {seq for _, seq, _ in entries}}
        many = len(entries) > TOLD_SINGLY
        told: list[Action] = []
        for number, seq, at in entries:
            first = note(number, at)  # or another key server was sent the same
            member = numbered(number)
            if member is None or not first:
                continue
            member.last_ack, member.rtt = at, at - departures[seq](number)
            member.dead = False
            member.acknowledged += 1
            member.missed = 0
            if each or not many:
                level = "debug" if many else "info"
                fields = _told(rekey, member, seq, lengths.pop(number, None))
                told.append(group_event(group, "rekey-acked", level, **fields))
        if many:
            total, expected = len(rekey.acknowledged), len(rekey.expected)
            told.append(
                group_event(
                    group,
                    "rekey-acks",
                    epoch=rekey.epoch,
                    count=len(entries),
                    acknowledged=total,
                    expected=expected,
                )
            )
        return told

    def _judge(self, arrival: Arrival) -> list[Action]:
        """Cheapest first: SPI, policy, form, member, SEQ, duplicate, HMAC. Raises _Refused."""
        group, under = self._find(arrival.header.spi)
        if group.config.ack is None:
            raise _Refused(Drop.ACK_NOT_REQUESTED, group.config.name)
        try:
            ack = read_ack(arrival.header, arrival.datagram)
        except DecodeError as error:
            raise _Refused(Drop.ACK_MALFORMED, str(error)) from None
        member = _member(group, ack, arrival.source)
        what = f"{member.identity}: SEQ {ack.seq}"
        if group.is_exempt(member.identity):
            raise _Refused(Drop.ACK_MEMBER_EXEMPT, what)
        rekey = group.rekey_of(under.kek.spi, ack.seq)
        if rekey is None:
            raise _Refused(Drop.ACK_UNKNOWN_SEQ, what)
        heard = self.gate.has_heard(group, rekey, member.number)
        heard = heard or rekey.has_acknowledged(member.number, ack.seq)
        if heard or arrival.datagram in self.gate.bad_acks:
            raise _Refused(Drop.ACK_DUPLICATE, what)
        l_bits = self._verify(group, rekey, under, member, ack, arrival.datagram)
        return self._count(self.gate.page(group, rekey), member, ack.seq, arrival.now, l_bits)

    def _find(self, spi: bytes) -> tuple[Group, ServerKek]:
        for group in self.groups.values():
            under = group.kek_of(spi)
            if under is not None:
                return group, under
        for group in self.groups.values():
            if spi in group.gone_keks:
                raise _Refused(Drop.ACK_KEK_RETIRED, f"{group.config.name}: {spi.hex()}")
        raise _Refused(Drop.ACK_UNKNOWN_SPI, spi.hex())

    def _verify(
        self,
        group: Group,
        rekey: Rekey,
        under: ServerKek,
        member: Registrant,
        ack: Ack,
        datagram: bytes,
    ) -> int | None:
        """The L it was made with where that is another than ours, else None. Raises _Refused."""
        what = f"{member.identity}: SEQ {ack.seq}"
        types = [t for t in rekey.ack_types if ACK_PRFS[t].octets == len(ack.hash)]
        if not types:
            asked = " or ".join(AckType(t).name for t in rekey.ack_types) or "none"
            detail = f"{what}, HASH of {len(ack.hash)} octets, asked for was {asked}"
            raise _Refused(Drop.ACK_WRONG_TYPE, detail)
        leaves = {group.leaf_key(member.identity), member.former_leaf}
        lengths: tuple[int | None, ...] = (None, *group.config.ack_l)
        for ack_type, leaf, l_bits in product(types, leaves, lengths):
            base = base_key(ack_type, under.kek, leaf)
            if base is not None and ack.verify(ack_type, base, under.kek, l_bits):
                return l_bits
        self.gate.bad_acks.add(datagram)
        raise _Refused(Drop.ACK_BAD_HASH, what)

    @staticmethod
    def _count(
        page: Page, member: Registrant, seq: int, now: float, l_bits: int | None
    ) -> list[Action]:
        group, rekey = page.group, page.rekey
        if l_bits is not None:
            page.lengths[member.number] = l_bits
        if rekey.hear(member.number, seq):
            page.note(member.number)
            page.fresh.append((member.number, seq, now))
            return []
        member.last_ack, member.rtt = now, now - rekey.sent_to(member.number, seq)
        member.dead = False
        return [group_event(group, "rekey-part-acked", **_told(rekey, member, seq, l_bits))]


def _told(rekey: Rekey, member: Registrant, seq: int, l_bits: int | None) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "epoch": rekey.epoch,
        "seq": seq,
        "member": str(member.identity),
        "rtt": round(member.rtt or 0.0, 4),
        "late": "yes" if rekey.closed else "no",
    }
    return fields if l_bits is None else fields | {"l": l_bits}


def _member(group: Group, ack: Ack, source: Peer) -> Registrant:
    """Whose ACK it says it is, RFC 8263 section 3.4. Raises _Refused."""
    identity = Identity.of_payload(ack.who)
    address, roster = identity.address, group.roster
    if address is None:
        # ID_OID names the group, as it did in GROUPKEY-PULL: the source address names the member.
        ours = ack.who.id_type == IdType.ID_OID and ack.who == group.config.group_id.payload()
        member = roster.at(source) if ours else None
        why = f"ID {identity} from {source}: neither an address nor the OID of this group"
        if ours:
            why = f"ID {identity} from {source}: no single member registered from there"
    else:
        member, why = roster.whose(address, source), roster.why_not(address, source)
    if member is None:
        raise _Refused(Drop.ACK_UNKNOWN_MEMBER, why)
    other = roster.other_at(source, member)
    if other is not None:
        # "MUST match the source IP address used for the most recent GROUPKEY-PULL exchange"
        raise _Refused(Drop.ACK_WRONG_SOURCE, f"ID {identity} from {source}, {other.identity}'s")
    return member
