"""Tables of several key servers, beside those of the store."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, DateTime, Float, Integer, MetaData, String, Table

metadata = MetaData()


def _one_row() -> Column[int]:
    return Column("id", Integer, primary_key=True, autoincrement=False)


# One row. Its lock puts the steps of all servers in an order, ``revision`` counts those that have
# changed something.
head = Table("head", metadata, _one_row(), Column("revision", BigInteger, nullable=False))
# What the last of them have touched: kind, group and keys of each record.
changes = Table(
    "changes",
    metadata,
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("touched", JSON, nullable=False),
)
# One row. ``fence`` counts holders, ``beat`` the renewals of this one. The groups' time is
# ``ahead`` of the database's clock, by so many seconds.
lease = Table(
    "lease",
    metadata,
    _one_row(),
    Column("holder", String, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("beat", BigInteger, nullable=False),
    Column("ahead", Float(53), nullable=False),
)
# What each group is to be, as whoever leads was told; see the module of that name.
policies = Table(
    "policies",
    metadata,
    Column("group", String, primary_key=True),
    Column("fingerprint", String, nullable=False),
    Column("serial", BigInteger, nullable=False),
)
# For operators, and to compare what each was told.
servers = Table(
    "servers",
    metadata,
    Column("name", String, primary_key=True),
    Column("address", String, nullable=False),
    Column("seen", DateTime(timezone=True), nullable=False),
    Column("policies", JSON, nullable=False),
)
