"""Version 2: members have numbers, the ledger has sets of those; a revision for each group.

The formats are written out here as they were then: those of the program may change.
"""

from __future__ import annotations

import json
from array import array
from base64 import b64decode
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from struct import Struct
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"

_DOCUMENTS = ("groups", "members", "rekeys", "pages")
_TIMES = Struct(">dI")
_STANDING = Struct(">IIIdd")
_NEVER = float("nan")
_BIG = sa.BigInteger()


def upgrade() -> None:
    connection = op.get_bind()
    there = sa.inspect(connection).get_table_names()
    old = [name for name in _DOCUMENTS if name in there]  # there were no pages at first
    for name in old:
        op.rename_table(name, f"{name}_1")
    tables = _create()
    rows = {name: list(_documents(connection, name)) for name in old}
    acks: dict[tuple[int, int], dict[str, float]] = defaultdict(dict)
    for group, epoch, identity, at in connection.execute(
        sa.text('SELECT "group", epoch, identity, at FROM acks')
    ):
        acks[group, epoch][identity] = at
    for record in rows["groups"]:
        group = record["group"]
        ledger = [page for page in rows["rekeys"] if page["group"] == group]
        heard = {epoch: times for (number, epoch), times in acks.items() if number == group}
        members = [member for member in rows["members"] if member["group"] == group]
        _move_group(connection, tables, record, members, ledger, heard)
    for page in rows.get("pages", ()):
        nodes = b64decode(page["nodes"], validate=True)
        keys = {name: page[name] for name in ("group", "tree", "page")}
        connection.execute(sa.insert(tables["pages"]).values(**keys, nodes=nodes))
    for name in (*(f"{name}_1" for name in old), "acks", "schema_version"):
        op.drop_table(name)


def _documents(connection: sa.Connection, table: str) -> Iterator[dict[str, Any]]:
    for (text,) in connection.execute(sa.text(f"SELECT record FROM {table}_1")):  # noqa: S608
        yield json.loads(text)


def _move_group(
    connection: sa.Connection,
    tables: Mapping[str, sa.Table],
    record: dict[str, Any],
    members: list[dict[str, Any]],
    ledger: list[dict[str, Any]],
    acks: Mapping[int, Mapping[str, float]],
) -> None:
    group = record["group"]
    numbers = {member["identity"]: place for place, member in enumerate(members, 1)}
    gone: dict[str, int] = {}  # no members any more, and the last page that names them
    for page in ledger:
        for identity in (*page["expected"], *page["missing"], *acks.get(page["epoch"], ())):
            if identity not in numbers or identity in gone:
                numbers.setdefault(identity, len(numbers) + 1)
                gone[identity] = max(page["epoch"], gone.get(identity, 0))
    connection.execute(
        sa.insert(tables["groups"]).values(
            group=group,
            revision=1,
            step="",
            record=json.dumps(record | {"next_number": len(numbers) + 1}).encode(),
        )
    )
    rows = [_member_row(member, numbers[member["identity"]]) for member in members]
    rows += [_gone_row(group, text, numbers[text], epoch) for text, epoch in gone.items()]
    if rows:
        connection.execute(sa.insert(tables["members"]), rows)
    by_sa: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for member in members:
        by_sa[member.get("sa", 0)].append(member)
    for place, theirs in by_sa.items():
        standing = {
            "group": group,
            "sa": place,
            "at": max(member["registered_at"] for member in theirs),
            "entries": b"".join(_standing(m, numbers[m["identity"]]) for m in theirs),
        }
        connection.execute(sa.insert(tables["standings"]).values(**standing))
    for page in ledger:
        expected, missing = page.pop("expected"), page.pop("missing")
        heard = acks.get(page["epoch"], {})
        values = {
            "group": group,
            "epoch": page["epoch"],
            "record": page,
            "expected": _set(numbers[text] for text in expected),
            "missing": _set(numbers[text] for text in missing),
            "acknowledged": _times(
                page["first_sent"], {numbers[text]: at for text, at in heard.items()}
            ),
        }
        connection.execute(sa.insert(tables["rekeys"]).values(**values))


def _member_row(member: Mapping[str, Any], number: int) -> dict[str, Any]:
    host, port = member.get("local") or (None, None)
    former = member.get("former_leaf")
    return {
        "group": member["group"],
        "number": number,
        "identity": _identity(member["identity"]),
        "removed": None,
        "address": ip_address(member["address"]).packed,
        "port": member["port"],
        "registered_at": member["registered_at"],
        "local_address": None if host is None else ip_address(host).packed,
        "local_port": port,
        "behind_nat": member.get("behind_nat", False),
        "asked": member.get("asked", True),
        "sa": member.get("sa", 0),
        "leaf": member.get("leaf", 0),
        "former_leaf": bytes.fromhex(former) if former else None,
    }


def _identity(text: str) -> bytes:
    kind, _, data = text.partition(":")
    return bytes((int(kind),)) + bytes.fromhex(data)


def _gone_row(group: int, identity: str, number: int, epoch: int) -> dict[str, Any]:
    nowhere = {"group": group, "address": "0.0.0.0", "port": 0, "registered_at": 0.0}  # noqa: S104
    return _member_row(nowhere | {"identity": identity}, number) | {"removed": epoch}


def _standing(member: Mapping[str, Any], number: int) -> bytes:
    last, rtt = member["last_ack"], member["rtt"]
    return _STANDING.pack(
        number,
        member["acknowledged"],
        member["missed"],
        _NEVER if last is None else last,
        _NEVER if rtt is None else rtt,
    )


def _set(numbers: Iterable[int]) -> bytes:
    bits = 0
    for number in numbers:
        bits |= 1 << number
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def _times(since: float, times: Mapping[int, float]) -> bytes:
    heard = _set(times)
    after = array("f", [_NEVER]) * (8 * len(heard))
    for number, at in times.items():
        after[number] = at - since
    return _TIMES.pack(since, len(heard)) + heard + after.tobytes()


def _create() -> dict[str, sa.Table]:
    """The tables as they were in this version."""

    def key(name: str, kind: sa.types.TypeEngine[Any] | None = None) -> sa.Column[Any]:
        return sa.Column(name, kind or sa.Integer, primary_key=True, autoincrement=False)

    def octets(name: str) -> sa.Column[bytes]:
        return sa.Column(name, sa.LargeBinary, nullable=False)

    def must(name: str, kind: Any) -> sa.Column[Any]:
        return sa.Column(name, kind, nullable=False)

    group = ("group", _BIG)
    wanted = {
        "groups": (key(*group), must("revision", _BIG), must("step", sa.String), octets("record")),
        "members": (
            key(*group),
            key("number"),
            octets("identity"),
            sa.Column("removed", _BIG),
            octets("address"),
            must("port", sa.Integer),
            must("registered_at", sa.Float(53)),
            sa.Column("local_address", sa.LargeBinary),
            sa.Column("local_port", sa.Integer),
            must("behind_nat", sa.Boolean),
            must("asked", sa.Boolean),
            must("sa", sa.Integer),
            must("leaf", sa.Integer),
            sa.Column("former_leaf", sa.LargeBinary),
        ),
        "rekeys": (
            key(*group),
            key("epoch", _BIG),
            must("record", sa.JSON),
            octets("expected"),
            octets("acknowledged"),
            octets("missing"),
        ),
        "standings": (key(*group), key("sa"), must("at", sa.Float(53)), octets("entries")),
        "pages": (key(*group), key("tree"), key("page"), octets("nodes")),
        "sealing": (key("id"), must("key_id", sa.String), must("cleaned", sa.Boolean)),
    }
    tables = {name: op.create_table(name, *columns) for name, columns in wanted.items()}
    op.create_table(
        "ack_batches",
        sa.Column("serial", sa.Integer, primary_key=True, autoincrement=True),
        must("group", _BIG),
        must("epoch", _BIG),
        octets("entries"),
        sqlite_autoincrement=True,
    )
    op.create_index("ack_batches_of", "ack_batches", ["group", "epoch"])
    return tables
