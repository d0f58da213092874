"""Who has acknowledged which rekey, RFC 8263 sections 5 and 6: the key server's ledger."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..wire.buffer import DecodeError
from .ack import read_ack
from .actions import Action, Drop, Event, Persist
from .arrival import Arrival
from .group import Group, Rekey, group_event
from .group_record import ack_record, group_record, member_record, rekey_record
from .identity import Identity
from .roster import Registrant

# RFC 8263 section 5: recently refused ACKs are known by all their octets and cost no second HMAC.
# By the HASH alone, a copy with another SEQ or ID would have the true one refused.
REMEMBERED_BAD_ACKS = 4096


@dataclass(slots=True)
class AckLedger:
    """Judges and counts acknowledgements of every group, and closes the pages of rekeys."""

    groups: Mapping[int, Group]
    _bad_acks: OrderedDict[bytes, None] = field(default_factory=OrderedDict, init=False)

    def receive(self, arrival: Arrival) -> list[Action]:
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
        if address is None:
            return [arrival.drop(Drop.ACK_UNKNOWN_MEMBER, f"{ack.identity} is no address")]
        member = group.roster.whose(address, arrival.source)
        if member is None:
            what = group.roster.why_not(address, arrival.source)
            return [arrival.drop(Drop.ACK_UNKNOWN_MEMBER, what)]
        identity = member.identity
        rekey, what = group.rekey_of(spi, ack.seq), f"{identity}: SEQ {ack.seq}"
        if rekey is None:
            return [arrival.drop(Drop.ACK_UNKNOWN_SEQ, what)]
        if identity in rekey.acknowledged or arrival.datagram in self._bad_acks:
            return [arrival.drop(Drop.DUPLICATE, what)]
        if not ack.verify(under.kek):
            self._remember_bad(arrival.datagram)
            return [arrival.drop(Drop.ACK_BAD_HASH, what)]
        return self._count(group, rekey, member, ack.seq, arrival.now)

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
            group_event(
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
            actions += close_rekey(group, rekey, now)
        return actions


def close_rekey(group: Group, rekey: Rekey, now: float) -> list[Action]:
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
        actions.append(_missing(group, rekey, identity))
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
