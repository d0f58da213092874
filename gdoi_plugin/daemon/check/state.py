"""A key server's database: reachable, of a version that is understood, under the right key."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from sqlalchemy import Connection, Engine, create_engine, func, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError

from ..config_gcks import KeyServerDaemonConfig
from ..errors import StoreError
from ..state_file import StateDirectory
from ..store.mark import Mark
from ..store.postgres import PostgresServer
from ..store.reading import load
from ..store.schema import members
from ..store.sealed_rows import check_seal
from ..store.sealing import MasterKey, Seal
from ..store.upgrade import VERSION, version_of
from .account import daemon_user, making
from .finding import Area, Finding

STATE = Area("state")
_BACKUP = "# put the newest backup in its place"


@dataclass(slots=True)
class Database:
    """``largest``: how many members its largest group has."""

    findings: list[Finding] = field(default_factory=list)
    largest: int = 0


def check_database(config: KeyServerDaemonConfig) -> Database:
    """Nothing is written, and a key server that runs is not disturbed."""
    result, settings = Database(), config.settings
    try:
        key = settings.key(config.path, os.environ)
    except StoreError as error:
        result.findings.append(STATE.fail("master key", str(error), _mend_key(config)))
        return result
    result.findings.append(_master_key(config, key))
    try:
        place = settings.place(config.path)
        if isinstance(place, Path):
            if not place.exists():
                result.findings.append(STATE.ok(f"database {place}", "none yet: it will be made"))
                return result
            name, engine = str(place), _reading(place)
        else:
            name, engine = place.name, place.engine()
    except StoreError as error:
        result.findings.append(STATE.fail("database", str(error), _mend_password(config, error)))
        return result
    _look(result, name, engine, key, config, shared=isinstance(place, PostgresServer))
    return result


def _master_key(config: KeyServerDaemonConfig, key: MasterKey | None) -> Finding:
    if key is None:
        found = "none here, unless systemd gives one: else keys lie in the database as they are"
        return STATE.warn("master key", found, _mend_key(config))
    return STATE.ok("master key", f"there, its name is {key.name}")


def _mend_key(config: KeyServerDaemonConfig) -> str:
    path = config.path.parent / (config.settings.master_key or "master.key")
    if path.exists():
        return f"chmod 600 {quote(str(path))}   # and in it what openssl rand -hex 32 gives"
    user, settings = daemon_user(), config.settings
    make = making("openssl rand -hex 32", path, user)
    told = f'{make}   # and master_key = "{path.name}" in [key_server]'
    if settings.database is None and not settings.state.exists():
        return told
    # With a key configured, rows that are not sealed keep it from starting.
    seal = f"gdoi-gcks --config {quote(str(config.path))} --seal"
    seal = seal if user is None else f"runuser -u {user} -- {seal}"
    return f"{told}; then once, with the key server stopped: {seal}"


def _mend_password(config: KeyServerDaemonConfig, error: StoreError) -> str:
    if "psycopg" in str(error):
        return "pip install 'gdoi-plugin[postgresql]'"
    path = config.path.parent / (config.settings.database_password or "database.password")
    return f"chmod 600 {quote(str(path))}   # one line, the password"


def _reading(path: Path) -> Engine:
    return create_engine(f"sqlite:///file:{path}?mode=ro&uri=true", hide_parameters=True)


def _look(
    result: Database,
    name: str,
    engine: Engine,
    key: MasterKey | None,
    config: KeyServerDaemonConfig,
    *,
    shared: bool,
) -> None:
    test = f"database {name}"
    try:
        with closing(engine.connect()) as connection:
            result.findings += _contents(connection, test, key, config, shared=shared)
            tables = inspect(connection).get_table_names()
            if "members" in tables:
                counted = select(func.count()).where(members.c.removed.is_(None))
                counts = connection.execute(counted.group_by(members.c.group)).scalars()
                result.largest = max(counts, default=0)
    except SQLAlchemyError as error:
        # PostgreSQL's DETAIL is the row.
        cause = getattr(error, "orig", None) or error
        said = str(cause).strip().splitlines()[0]
        result.findings.append(STATE.fail(test, said, _mend_database(name, shared=shared)))
    finally:
        engine.dispose()


def _mend_database(name: str, *, shared: bool) -> str:
    if shared:
        return "systemctl start postgresql   # on the database's host; pg_isready --host HOST"
    return f"sqlite3 {quote(name)} 'PRAGMA integrity_check'   # and put a backup in its place"


def _contents(
    connection: Connection,
    test: str,
    key: MasterKey | None,
    config: KeyServerDaemonConfig,
    *,
    shared: bool,
) -> Iterator[Finding]:
    yield STATE.ok(test, "it answers")
    if shared:
        yield from _may_write(connection, test)
    tables = inspect(connection).get_table_names()
    if not tables:
        yield STATE.ok("tables", "none yet: they will be made")
        return
    try:
        found = version_of(connection, tables)
    except StoreError as error:
        yield STATE.fail("tables", str(error), "# another state or database in [key_server]")
        return
    if found == VERSION:
        yield STATE.ok("tables", f"version {found}")
    elif found.isdecimal() and int(found) < int(VERSION):
        said = f"version {found}: brought to {VERSION} at the next start, with no way back"
        yield STATE.warn("tables", said, "# make a backup of the database before that")
        return
    else:
        said = f"version {found}, and this program knows {VERSION}"
        yield STATE.fail("tables", said, "# install the version of gdoi-plugin that made them")
        return
    try:
        unsealed = check_seal(connection, key)
    except StoreError as error:
        yield _wrong_seal(error, key, config)
        return
    if key is not None:
        yield STATE.ok(
            "seal", "to be sealed at the first start" if unsealed else "the key is right"
        )
    yield _rows(connection, key, config)


def _wrong_seal(error: StoreError, key: MasterKey | None, config: KeyServerDaemonConfig) -> Finding:
    said = str(error)
    if said.startswith("table "):
        return STATE.fail("rows", said, _BACKUP)
    if "--seal" in said:
        mend = f"gdoi-gcks --config {quote(str(config.path))} --seal   # if they are its own"
        return STATE.fail("seal", said, mend)
    mend = "# put the key of that name into master_key: gdoictl check tells the name of each"
    # A credential of the unit is for the daemon alone: from here it cannot be told.
    return (STATE.warn if key is None else STATE.fail)("seal", said, mend)


def _rows(connection: Connection, key: MasterKey | None, config: KeyServerDaemonConfig) -> Finding:
    """As a start reads them, and looks whether they are older than they were."""
    state = config.settings.state
    try:
        saved, _ = load(connection, Seal(key))
        Mark(StateDirectory(state.parent), f"{state.stem}-reached").check(saved)
    except StoreError as error:
        return STATE.fail("rows", str(error), _BACKUP)
    return STATE.ok("rows", f"{len(saved)} groups can be read")


def _may_write(connection: Connection, test: str) -> Iterator[Finding]:
    if connection.execute(text("SHOW transaction_read_only")).scalar() == "on":
        mend = "# in database the primary's URL; is default_transaction_read_only set?"
        yield STATE.fail(test, "read-only: a standby, or told so", mend)
        return
    schema = (
        "SELECT current_schema(), has_schema_privilege(current_schema(), 'CREATE'), current_user"
    )
    name, allowed, user = connection.execute(text(schema)).one()
    if not allowed:
        mend = f"psql -d NAME -c 'GRANT CREATE ON SCHEMA {name or 'public'} TO {user}'"
        yield STATE.fail(test, f"{user} may not make tables in it", mend)
