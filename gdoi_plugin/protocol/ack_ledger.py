"""Who has acknowledged which rekey, RFC 8263 sections 5 and 6: the key server's ledger."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from ..crypto.ack_key import ACK_PRFS
from ..wire.buffer import DecodeError
from ..wire.registry import AckType, IdType
from .ack import Ack, base_key, read_ack
from .actions import Action, Drop, Event, Peer, Persist
from .arrival import Arrival
from .forest import ServerKek
from .group import Group, Rekey, group_event
from .group_record import acks_record, group_record, rekey_record, standing_record
from .identity import Identity
from .roster import Registrant

# RFC 8263 section 5: recently refused ACKs are known by all their octets and cost no second HMAC.
# By the HASH alone, a copy with another SEQ or ID would have the true one refused.
REMEMBERED_BAD_ACKS = 4096


class _Refused(Exception):
    """This ACK does not count."""

    def __init__(self, reason: Drop, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(slots=True)
class AckLedger:
    """Judges and counts acknowledgements of every group, and closes the pages of rekeys."""

    groups: Mapping[int, Group]
    _bad_acks: OrderedDict[bytes, None] = field(default_factory=OrderedDict, init=False)

    def receive(self, arrival: Arrival) -> list[Action]:
        """RFC 8263 section 5: a group that asks for ACKs, then the form, then the HASH."""
        try:
            return self._judge(arrival)
        except _Refused as refused:
            return [arrival.drop(refused.reason, refused.detail)]

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
        if rekey.has_acknowledged(member.number, ack.seq) or arrival.datagram in self._bad_acks:
            raise _Refused(Drop.ACK_DUPLICATE, what)
        l_bits = self._verify(group, rekey, under, member, ack, arrival.datagram)
        return self._count(group, rekey, member, ack.seq, arrival.now, l_bits)

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
        self._remember_bad(datagram)
        raise _Refused(Drop.ACK_BAD_HASH, what)

    def _remember_bad(self, datagram: bytes) -> None:
        self._bad_acks[datagram] = None
        if len(self._bad_acks) > REMEMBERED_BAD_ACKS:
            self._bad_acks.popitem(last=False)

    def _count(
        self,
        group: Group,
        rekey: Rekey,
        member: Registrant,
        seq: int,
        now: float,
        l_bits: int | None,
    ) -> list[Action]:
        sent = rekey.first_sent if rekey.is_first(seq) else rekey.sent_at
        member.last_ack, member.rtt, member.dead = now, now - sent, False
        complete = rekey.acknowledge(member.number, seq, now)
        fields: dict[str, Any] = {
            "epoch": rekey.epoch,
            "seq": seq,
            "member": str(member.identity),
            "rtt": round(now - sent, 4),
            "late": "yes" if rekey.closed else "no",
        }
        if l_bits is not None:
            fields["l"] = l_bits
        if not complete:
            return [group_event(group, "rekey-part-acked", **fields)]
        member.acknowledged += 1
        member.missed = 0
        actions: list[Action] = [
            Persist("acks", acks_record(group, rekey, ((member.number, seq, now),))),
            group_event(group, "rekey-acked", **fields),
        ]
        if not rekey.closed and rekey.all_heard:
            actions += close_rekey(group, rekey, now)
        return actions


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


def close_rekey(group: Group, rekey: Rekey, now: float) -> list[Action]:
    """RFC 8263 section 6: non-receipt triggers a log line, one for each member."""
    rekey.closed = True
    rekey.said.clear()
    rekey.missing = rekey.silent
    silent = [m for n in rekey.missing.numbers if (m := group.roster.numbered(n))]
    for member in silent:
        member.missed += 1
    # RFC 8263 section 6: the old KEK stays until members had time to acknowledge under it.
    # Another rekey may still be open under it.
    old = group.old_keks.get(rekey.kek_spi)
    waited_for = {other.kek_spi for other in group.open_rekeys()}
    if old is not None and old.retire_at is None and rekey.kek_spi not in waited_for:
        old.retire_at = now + group.config.ack_wait
    actions: list[Action] = [
        Persist("rekey", rekey_record(group, rekey)),
        Persist("standing", standing_record(group, rekey, now)),
        Persist("group", group_record(group)),
        *(_missing(group, rekey, identity) for identity in sorted(rekey.missing, key=str)),
    ]
    done = group_event(
        group,
        "rekey-closed",
        epoch=rekey.epoch,
        expected=len(rekey.expected),
        acknowledged=len(rekey.expected) - len(rekey.missing),
    )
    return [*actions, done]


def _missing(group: Group, rekey: Rekey, identity: Identity) -> Event:
    return group_event(
        group,
        "ack-missing",
        "warning",
        epoch=rekey.epoch,
        seq=rekey.seqs[-1],
        member=str(identity),
    )
