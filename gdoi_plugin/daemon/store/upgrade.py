"""Which version of the tables a database has, and how it gets to ours, by Alembic."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from ..errors import StoreError
from .schema import metadata

VERSION = "2"
_MIGRATIONS = Path(__file__).parent / "migrations"


def bring_up_to_date(connection: Connection) -> None:
    """A new database gets its tables, an older one is changed in place, all within the
    connection's transaction; another program's, or a newer one, is not touched.

    Raises StoreError.
    """
    tables = inspect(connection).get_table_names()
    if not tables:
        metadata.create_all(connection)
        _stamp(connection, VERSION)
        return
    found = version_of(connection, tables)
    if found == VERSION:
        return
    if not found.isdecimal() or int(found) > int(VERSION):
        raise StoreError(f"schema version {found}, this program knows {VERSION}")
    if "alembic_version" not in tables:
        _stamp(connection, found)
    try:
        _upgrade(connection)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        what = f"version {found} of the tables cannot be brought up to date: {error!r}"
        raise StoreError(what) from error


def version_of(connection: Connection, tables: list[str]) -> str:
    """Version 1 had a table of its own for that. Raises StoreError for another program's tables."""
    for name, column in (("alembic_version", "version_num"), ("schema_version", "version")):
        if name in tables:
            return str(connection.execute(text(f"SELECT {column} FROM {name}")).scalar())  # noqa: S608
    raise StoreError("a database, but not a key server's")


def _stamp(connection: Connection, version: str) -> None:
    """As Alembic would, which takes a while to import and is not needed to start."""
    connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)"))
    connection.execute(
        text("INSERT INTO alembic_version (version_num) VALUES (:version)"), {"version": version}
    )


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    command.upgrade(config, "head")
