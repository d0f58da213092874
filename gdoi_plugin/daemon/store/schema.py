"""The tables of the key server's database."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)

metadata = MetaData()


def _group() -> Column[int]:
    """A group's number has 32 bits or, for an OID, 64."""
    return Column("group", BigInteger, primary_key=True, autoincrement=False)


def _key(name: str) -> Column[int]:
    return Column(name, Integer, primary_key=True, autoincrement=False)


# KEKs, TEKs, SEQ and epoch of a group change together: one document, JSON. Whoever writes it says
# which ``revision`` it comes after. ``step`` names the transaction that wrote it, for who has not
# heard whether it was committed.
groups = Table(
    "groups",
    metadata,
    _group(),
    Column("revision", BigInteger, nullable=False),
    Column("step", String, nullable=False),
    Column("record", LargeBinary, nullable=False),
)
# Identities (type, one octet, and data) and addresses are octets, which are read fastest. Members
# that have left (``removed``: at which epoch) are kept while pages of the ledger name them.
members = Table(
    "members",
    metadata,
    _group(),
    _key("number"),
    Column("identity", LargeBinary, nullable=False),
    Column("removed", BigInteger),
    Column("address", LargeBinary, nullable=False),
    Column("port", Integer, nullable=False),
    Column("registered_at", Float(53), nullable=False),
    Column("local_address", LargeBinary),
    Column("local_port", Integer),
    Column("behind_nat", Boolean, nullable=False),
    Column("asked", Boolean, nullable=False),
    Column("sa", Integer, nullable=False),
    Column("leaf", Integer, nullable=False),
    Column("former_leaf", LargeBinary),
)
# The ledger: sets of members are bits by number.
rekeys = Table(
    "rekeys",
    metadata,
    _group(),
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("record", JSON, nullable=False),
    Column("expected", LargeBinary, nullable=False),
    Column("acknowledged", LargeBinary, nullable=False),
    Column("missing", LargeBinary, nullable=False),
)
# ACKs as they were counted, many a row, until their page is closed and holds them all.
ack_batches = Table(
    "ack_batches",
    metadata,
    Column(
        "serial",
        BigInteger().with_variant(Integer, "sqlite"),
        primary_key=True,
        autoincrement=True,
    ),
    Column("group", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("entries", LargeBinary, nullable=False),
    Index("ack_batches_of", "group", "epoch"),
    sqlite_autoincrement=True,
)
# What the members of a Rekey SA had acknowledged in all when a page of it was last closed.
standings = Table(
    "standings",
    metadata,
    _group(),
    _key("sa"),
    Column("at", Float(53), nullable=False),
    Column("entries", LargeBinary, nullable=False),
)
# The key trees of LKH groups, some nodes a row.
pages = Table(
    "pages",
    metadata,
    _group(),
    _key("tree"),
    _key("page"),
    Column("nodes", LargeBinary, nullable=False),
)
# One row where keys are sealed: under which master key, and whether what was there before they were
# is gone from free pages too.
sealing = Table(
    "sealing",
    metadata,
    _key("id"),
    Column("key_id", String, nullable=False),
    Column("cleaned", Boolean, nullable=False),
)
