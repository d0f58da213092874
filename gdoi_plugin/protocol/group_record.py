"""A key server's group as JSON values and octets, for the store."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import Any

from ..crypto.lkh import Update
from ..crypto.secret import Secret
from ..crypto.signature import load_private
from ..wire.registry import AckType
from .actions import IPAddress, Peer, Persist
from .forest import ServerKek, dirty_pages, read_sa, sa_record
from .group import Group, Pending
from .identity import Identity
from .member_set import MAX_NUMBER, AckTimes, MemberSet
from .page import Rekey
from .push import MAX_SEQ
from .record import (
    Record,
    any_tek_record,
    expect_number,
    expect_text,
    kek_record,
    read_any_tek,
    read_kek,
)
from .roster import Registrant
from .sender_ids import SidCounter
from .tek_policy import ServerTek

AckEntries = Sequence[tuple[int, int, float]]


def group_record(group: Group) -> Record:
    """Epoch, KEKs with SEQ and signing keys, TEKs, the Sender-IDs given out."""
    keks = [*group.old_keks.values(), *(sa.kek for sa in group.sas)]
    return {
        "group": group.config.group_id.key,
        "epoch": group.epoch,
        "next_number": group.roster.next_number,
        "sids": {"bits": group.sids.bits, "next": group.sids.next},
        "keks": [_server_kek_record(kek) for kek in keks],
        "sas": [sa_record(sa) for sa in group.sas],
        "pending": group.pending
        and {
            "due": group.pending.due,
            "reason": group.pending.reason,
            "leaves": [[sa, leaves] for sa, leaves in group.pending.leaves.items()],
        },
        "denied": sorted(_identity_text(identity) for identity in group.denied),
        "teks": [
            {
                "tek": any_tek_record(t.tek),
                "created": t.created,
                "expires": t.expires,
                "retire_at": t.retire_at,
            }
            for t in group.teks
        ],
    }


def restore_group(group: Group, record: Mapping[str, Any]) -> None:
    """Raises KeyError, ValueError or TypeError for a record that is not one."""
    group.epoch = int(record["epoch"])
    group.roster.next_number = int(record["next_number"])
    sids = record.get("sids", {"next": 0})
    if sids["next"]:  # until then the configuration says how long they are
        group.sids = SidCounter(int(sids["bits"]), int(sids["next"]))
    keks = [_read_server_kek(entry) for entry in record["keks"]]
    if not keks:
        raise ValueError("no KEK in it")
    last = {"spi": keks[-1].kek.spi.hex(), "tree": None}  # before there were several
    group.old_keks = {kek.kek.spi: kek for kek in keks}
    group.sas = [read_sa(entry, group.old_keks) for entry in record.get("sas", [last])]
    group.denied = {_read_identity(text) for text in record.get("denied", ())}
    group.pending = None
    if (pending := record.get("pending")) is not None:
        leaves = {int(sa): [int(leaf) for leaf in some] for sa, some in pending["leaves"]}
        group.pending = Pending(float(pending["due"]), expect_text(pending["reason"]), leaves)
    group.teks = [
        ServerTek(
            read_any_tek(entry["tek"]), entry["created"], entry["expires"], entry["retire_at"]
        )
        for entry in record["teks"]
    ]


def tree_persists(group: Group) -> list[Persist]:
    """The pages of its trees that have changed: with the group's record or not at all."""
    pages = dirty_pages(group.config.group_id.key, group.sas)
    return [Persist("page", record) for record in pages]


# Of a member's record, in the order in which the store gives them back.
MEMBER_COLUMNS = (
    "number",
    "identity",
    "removed",
    "address",
    "port",
    "registered_at",
    "local_address",
    "local_port",
    "behind_nat",
    "asked",
    "sa",
    "leaf",
    "former_leaf",
)


def member_record(group: Group, member: Registrant) -> Record:
    """Where it is and what it holds. What it has acknowledged is in the ledger."""
    local = member.local
    return {
        "group": group.config.group_id.key,
        "number": member.number,
        "identity": bytes((member.identity.id_type,)) + member.identity.data,
        "removed": None,
        "address": member.address.host.packed,
        "port": member.address.port,
        "registered_at": member.registered_at,
        "local_address": None if local is None else local.host.packed,
        "local_port": None if local is None else local.port,
        "behind_nat": member.behind_nat,
        "asked": member.asked,
        "sa": member.sa,
        "leaf": member.leaf,
        "former_leaf": member.former_leaf.reveal() if member.former_leaf else None,
    }


def removal_record(group: Group, member: Registrant) -> Record:
    """``removed``: the epoch at which it was a member still. Pages up to that may name it."""
    return member_record(group, member) | {"removed": group.epoch, "former_leaf": None}


def restore_members(group: Group, rows: Iterable[Sequence[Any]]) -> None:
    """Rows of MEMBER_COLUMNS. Raises ValueError or TypeError for rows that are not."""
    roster = group.roster
    for row in rows:
        number, who, removed, host, port, since, own, own_port, nat, asked, sa, leaf, former = row
        if not 0 < number <= MAX_NUMBER or not isinstance(who, bytes):
            raise ValueError(f"a member with the number {number}")
        if not 0 <= sa < len(group.sas):
            raise ValueError(f"member {number} in Rekey SA {sa} of {len(group.sas)}")
        identity = Identity(who[0], who[1:])
        if removed is not None:
            roster.note_former(number, identity)
            continue
        member = Registrant(
            identity,
            Peer(_address(host), port),
            since,
            local=None if own is None else Peer(_address(own), own_port),
            behind_nat=bool(nat),
            asked=bool(asked),
            sa=sa,
            leaf=leaf,
            former_leaf=None if former is None else Secret(former),
            number=number,
        )
        roster.add(member)


def _address(octets: bytes) -> IPAddress:
    if len(octets) == 4:
        return IPv4Address(int.from_bytes(octets, "big"))
    return IPv6Address(octets)


# -- what members have acknowledged in all -------------------------------------------------------

_STANDING = Struct(">IIIdd")  # number, acknowledged, missed, last ACK, round trip
_NEVER = float("nan")


def standing_record(group: Group, rekey: Rekey, now: float) -> Record:
    """Of the members of a Rekey SA, when a page of it is closed: one record, not one for each."""
    members = {m.number: m for m in group.members.values() if m.sa == rekey.sa}
    for number in rekey.expected.numbers:
        if number not in members and (gone := group.roster.numbered(number)) is not None:
            members[number] = gone  # it has moved to another
    entries = (
        _STANDING.pack(
            number,
            member.acknowledged,
            member.missed,
            _NEVER if member.last_ack is None else member.last_ack,
            _NEVER if member.rtt is None else member.rtt,
        )
        for number, member in members.items()
    )
    return {
        "group": group.config.group_id.key,
        "sa": rekey.sa,
        "at": now,
        "entries": b"".join(entries),
    }


def restore_standings(group: Group, records: Iterable[Mapping[str, Any]]) -> None:
    """Raises KeyError, ValueError or TypeError for records that are not such."""
    for record in sorted(records, key=lambda record: float(record["at"])):
        if len(record["entries"]) % _STANDING.size:
            raise ValueError(f"a standing of {len(record['entries'])} octets")
        for number, acked, missed, last, rtt in _STANDING.iter_unpack(record["entries"]):
            member = group.roster.numbered(number)
            if member is None:
                continue
            member.acknowledged, member.last_ack = acked, None if last != last else last
            member.rtt = None if rtt != rtt else rtt
            # Registering again clears what was missed.
            member.missed = missed if member.registered_at <= record["at"] else 0


# -- the ledger ----------------------------------------------------------------------------------


def rekey_record(group: Group, rekey: Rekey) -> Record:
    return {
        "group": group.config.group_id.key,
        "epoch": rekey.epoch,
        "reason": rekey.reason,
        "kek_spi": rekey.kek_spi.hex(),
        "seqs": rekey.seqs,
        "first_sent": rekey.first_sent,
        "sent_at": rekey.sent_at,
        "expected": rekey.expected.pack(),
        "acknowledged": rekey.acknowledged.pack(),
        "missing": rekey.missing.pack(),
        "attempts": rekey.attempts,
        "closed": rekey.closed,
        "told": rekey.told,
        "deletes_all": rekey.deletes_all,
        "with_kek": rekey.with_kek,
        "deleted": [[protocol, spi.hex()] for protocol, spi in rekey.deleted],
        "bare": rekey.bare,
        "asks": rekey.asks,
        "ack_types": list(rekey.ack_types),
        "parts": rekey.parts,
        "update_parts": rekey.update_parts,
        "first_seqs": rekey.first_seqs,
        "sa": rekey.sa,
        "brings": rekey.brings.hex(),
        "update": _update_record(rekey),
    }


def _update_record(rekey: Rekey) -> Record | None:
    """Kept for as long as it may have to be said again."""
    if rekey.update is None or rekey.closed:
        return None
    arrays = {
        str(start): b64encode(octets).decode() for start, octets in rekey.update.arrays.items()
    }
    return {"arity": rekey.update.arity, "arrays": arrays}


def _read_update(record: Mapping[str, Any] | None) -> Update | None:
    if record is None:
        return None
    arrays = {int(start): b64decode(text) for start, text in record["arrays"].items()}
    return Update(arrays, record["arity"])


def acks_record(group: Group, rekey: Rekey, entries: AckEntries) -> Record:
    """ACKs that are saved together: number, SEQ and time of each."""
    return {
        "group": group.config.group_id.key,
        "epoch": rekey.epoch,
        "entries": tuple(entries),
    }


def restore_acks(group: Group, records: Iterable[tuple[int, AckEntries]]) -> None:
    """By epoch, in the order in which they were saved; a page may have some of them already."""
    for epoch, entries in records:
        rekey = group.ledger.get(epoch)
        if rekey is None:
            continue
        sent = dict.fromkeys(rekey.seqs[: rekey.first_seqs], rekey.first_sent)
        for number, seq, at in entries:
            if not 0 < number < group.roster.next_number:
                raise ValueError(f"an ACK of epoch {epoch} by number {number}, which is nobody's")
            rekey.acknowledged.note(number, at)
            member = group.roster.numbered(number)
            if member is not None and (member.last_ack is None or at > member.last_ack):
                member.acknowledged, member.missed = member.acknowledged + 1, 0
                member.last_ack, member.rtt = at, at - sent.get(seq, rekey.sent_at)


def restore_rekey(group: Group, record: Mapping[str, Any], ack_wait: float) -> None:
    """Raises KeyError, ValueError or TypeError for a record that is not one."""
    kek_spi = bytes.fromhex(record["kek_spi"])
    if group.kek_of(kek_spi) is None:
        group.note_gone(kek_spi)
    group.ledger[record["epoch"]] = Rekey(
        epoch=record["epoch"],
        reason=record["reason"],
        kek_spi=kek_spi,
        seqs=list(record["seqs"]),
        first_sent=record["first_sent"],
        sent_at=record["sent_at"],
        expected=MemberSet(group.roster, record["expected"]),
        acknowledged=AckTimes.unpack(group.roster, record["acknowledged"]),
        missing=MemberSet(group.roster, record["missing"]),
        attempts=record["attempts"],
        deadline=record["sent_at"] + ack_wait,
        closed=record["closed"],
        told=record.get("told"),
        deletes_all=record["deletes_all"],
        with_kek=record["with_kek"],
        deleted=tuple((int(p), bytes.fromhex(spi)) for p, spi in record.get("deleted", ())),
        bare=record.get("bare", record["reason"] == "delete"),
        asks=record.get("asks", True),
        ack_types=tuple(record.get("ack_types", (AckType.REKEY_ACK_KEK_SHA256,))),
        parts=record.get("parts", 1),
        update_parts=record.get("update_parts", 0),
        first_seqs=record.get("first_seqs", 1),
        sa=record.get("sa", 0),
        brings=bytes.fromhex(record.get("brings", "")),
        update=_read_update(record.get("update")),
    )


def _server_kek_record(kek: ServerKek) -> Record:
    return {
        "kek": kek_record(kek.kek),
        "signer": kek.signer.private_der().reveal().hex(),
        "seq": kek.seq,
        "created": kek.created,
        "expires": kek.expires,
        "retire_at": kek.retire_at,
    }


def _read_server_kek(entry: Mapping[str, Any]) -> ServerKek:
    kek = read_kek(entry["kek"])
    signer = load_private(kek.scheme, Secret(bytes.fromhex(entry["signer"])))
    seq = expect_number(entry["seq"], MAX_SEQ)
    return ServerKek(kek, signer, seq, entry["created"], entry["expires"], entry["retire_at"])


def _identity_text(identity: Identity) -> str:
    """Exact, unlike ``str``: the ID type and the octets."""
    return f"{identity.id_type}:{identity.data.hex()}"


def _read_identity(text: str) -> Identity:
    kind, _, data = text.partition(":")
    return Identity(int(kind), bytes.fromhex(data))
