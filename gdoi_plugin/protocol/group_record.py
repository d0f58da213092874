"""A key server's group as plain JSON values, for the store."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from ..crypto.lkh import Update
from ..crypto.secret import Secret
from ..crypto.signature import load_private
from ..wire.registry import AckType
from .actions import Peer, Persist
from .forest import ServerKek, dirty_pages, read_sa, sa_record
from .group import Group, Rekey
from .identity import Identity
from .record import Record, any_tek_record, expect_text, kek_record, read_any_tek, read_kek
from .roster import Registrant
from .sender_ids import SidCounter
from .tek_policy import ServerTek


def group_record(group: Group) -> Record:
    """Epoch, KEKs with SEQ and signing keys, TEKs, the Sender-IDs given out."""
    keks = [*group.old_keks.values(), *(sa.kek for sa in group.sas)]
    return {
        "group": group.config.group_id.key,
        "epoch": group.epoch,
        "sids": {"bits": group.sids.bits, "next": group.sids.next},
        "keks": [_server_kek_record(kek) for kek in keks],
        "sas": [sa_record(sa) for sa in group.sas],
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


def member_record(group: Group, member: Registrant) -> Record:
    return {
        "group": group.config.group_id.key,
        "identity": _identity_text(member.identity),
        "address": str(member.address.host),
        "port": member.address.port,
        "registered_at": member.registered_at,
        "acknowledged": member.acknowledged,
        "missed": member.missed,
        "last_ack": member.last_ack,
        "rtt": member.rtt,
        "local": None if member.local is None else [str(member.local.host), member.local.port],
        "behind_nat": member.behind_nat,
        "asked": member.asked,
        "sa": member.sa,
        "leaf": member.leaf,
        "former_leaf": member.former_leaf.reveal().hex() if member.former_leaf else None,
    }


def restore_member(group: Group, record: Mapping[str, Any]) -> None:
    identity = _read_identity(record["identity"])
    address = Peer(ip_address(expect_text(record["address"])), record["port"])
    local = record.get("local")
    former = record.get("former_leaf")
    group.roster.add(
        Registrant(
            identity,
            address,
            record["registered_at"],
            record["acknowledged"],
            record["missed"],
            record["last_ack"],
            record["rtt"],
            None if local is None else Peer(ip_address(expect_text(local[0])), local[1]),
            record.get("behind_nat", False),
            record.get("asked", True),
            record.get("sa", 0),
            record.get("leaf", 0),
            Secret(bytes.fromhex(former)) if former else None,
        )
    )


def rekey_record(group: Group, rekey: Rekey) -> Record:
    return {
        "group": group.config.group_id.key,
        "epoch": rekey.epoch,
        "reason": rekey.reason,
        "kek_spi": rekey.kek_spi.hex(),
        "seqs": rekey.seqs,
        "first_sent": rekey.first_sent,
        "sent_at": rekey.sent_at,
        "expected": sorted(_identity_text(i) for i in rekey.expected),
        "missing": sorted(_identity_text(i) for i in rekey.missing),
        "attempts": rekey.attempts,
        "closed": rekey.closed,
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


def ack_record(group: Group, rekey: Rekey, identity: Identity, seq: int, at: float) -> Record:
    return {
        "group": group.config.group_id.key,
        "epoch": rekey.epoch,
        "identity": _identity_text(identity),
        "seq": seq,
        "at": at,
    }


def restore_rekey(
    group: Group, record: Mapping[str, Any], acks: Mapping[str, float], ack_wait: float
) -> None:
    """``acks``: when each identity acknowledged, as the store has it."""
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
        expected=frozenset(_read_identity(text) for text in record["expected"]),
        acknowledged={_read_identity(text): at for text, at in acks.items()},
        missing=frozenset(_read_identity(text) for text in record["missing"]),
        attempts=record["attempts"],
        deadline=record["sent_at"] + ack_wait,
        closed=record["closed"],
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
    return ServerKek(
        kek, signer, entry["seq"], entry["created"], entry["expires"], entry["retire_at"]
    )


def _identity_text(identity: Identity) -> str:
    """Exact, unlike ``str``: the ID type and the octets."""
    return f"{identity.id_type}:{identity.data.hex()}"


def _read_identity(text: str) -> Identity:
    kind, _, data = text.partition(":")
    return Identity(int(kind), bytes.fromhex(data))
