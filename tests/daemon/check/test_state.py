"""Databases, SQLite and PostgreSQL: new, good, of other versions or keys, damaged, gone."""

from __future__ import annotations

import secrets
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from gdoi_plugin.daemon.check.finding import Finding
from gdoi_plugin.daemon.check.state import check_database
from gdoi_plugin.daemon.config_gcks import KeyServerDaemonConfig
from gdoi_plugin.daemon.gcks import sealed
from gdoi_plugin.daemon.state_file import StateDirectory
from gdoi_plugin.daemon.store import Store
from gdoi_plugin.daemon.store.mark import Mark
from gdoi_plugin.protocol.actions import Persist
from tests.daemon.configs import GCKS, write
from tests.support.postgres import Postgres
from tests.support.worlds import GROUP_ID, registered

from .mending import FAIL, OK, WARN, the, verdicts


class Place:
    """A key server's folder with its configuration."""

    def __init__(self, folder: Path, more: str = "") -> None:
        self.folder, self.file = folder, folder / "gcks.sqlite"
        lines = f'[key_server]\nstate = "{self.file}"\n{more}'
        self.path = write(folder, GCKS.replace("[key_server]\n", lines), "gcks.toml")

    def found(self) -> list[Finding]:
        return check_database(KeyServerDaemonConfig(self.path)).findings

    def make(self) -> None:
        """As a key server does at its first start."""
        config = KeyServerDaemonConfig(self.path)
        settings = config.settings
        Store(settings.place(config.path), settings.key(config.path, {})).close()

    def sql(self, statement: str) -> None:
        with closing(sqlite3.connect(self.file)) as connection, connection:
            connection.execute(statement)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def a_key(folder: Path, name: str = "master.key") -> Path:
    path = folder / name
    path.write_text(secrets.token_hex(32))
    path.chmod(0o600)
    return path


def test_none_yet(place: Place) -> None:
    found = place.found()
    assert "it will be made" in the(found, "database").found
    assert not place.file.exists()
    assert the(found, "master key").verdict is WARN


def test_good_and_in_use(place: Place) -> None:
    """A key server that runs has the file locked, and is not disturbed."""
    config = KeyServerDaemonConfig(place.path)
    with closing(Store(config.settings.place(config.path))) as store:
        assert the(place.found(), "tables").verdict is OK
        assert store.load() == {}
    assert the(place.found(), "database").verdict is OK


def test_sealed(tmp_path: Path) -> None:
    place = Place(tmp_path, 'master_key = "master.key"\n')
    key = a_key(tmp_path)
    place.make()
    assert set(verdicts(place.found()).values()) == {OK}
    key.write_text(secrets.token_hex(32))
    one = the(place.found(), "seal")
    assert one.verdict is FAIL
    assert "sealed with master key" in one.found
    key.chmod(0o644)
    one = the(place.found(), "master key")
    assert (one.verdict, one.mend.split("   ")[0]) == (FAIL, f"chmod 600 {key}")
    key.unlink()
    one = the(place.found(), "master key")
    assert "openssl rand -hex 32" in one.mend
    assert "No such file" in one.found


def test_a_database_that_is_not_sealed_yet(place: Place) -> None:
    """What is said to be done leaves a key server that starts."""
    place.make()
    make, _, told = the(place.found(), "master key").mend.partition("   # ")
    assert told == (
        'and master_key = "master.key" in [key_server]; then once, with the key server stopped:'
        f" gdoi-gcks --config {place.path} --seal"
    )
    subprocess.run(["sh", "-c", make], check=True)
    more = Place(place.folder, 'master_key = "master.key"\n')
    sealed(KeyServerDaemonConfig(more.path))  # --seal
    assert set(verdicts(more.found()).values()) == {OK}


def test_sealed_and_the_key_may_be_a_credential_of_the_unit(tmp_path: Path) -> None:
    a_key(tmp_path)
    Place(tmp_path, 'master_key = "master.key"\n').make()
    one = the(Place(tmp_path).found(), "seal")
    assert (one.verdict, "is not set" in one.found) == (WARN, True)


def used(place: Place) -> list[Persist]:
    """Steps of a key server that has rekeyed a group, each saved and marked as it does."""
    wire, world = registered(2)
    world.server.do(world.server.engine.rekey(GROUP_ID, world.now, "operator"))
    wire.run(11)
    steps = [action for action in world.server.actions if isinstance(action, Persist)]
    mark = Mark(StateDirectory(place.folder), "gcks-reached")
    with closing(Store(place.file)) as store:
        for step in steps:
            store.save([step])
            mark.note([step])
    return steps


def test_rows_that_are_read(place: Place) -> None:
    used(place)
    assert the(place.found(), "rows").found == "1 groups can be read"
    place.sql("UPDATE groups SET record = x'7b'")
    one = the(place.found(), "rows")
    assert one.verdict is FAIL
    assert "table groups, group " in one.found


def test_rows_from_before_there_was_a_master_key(tmp_path: Path) -> None:
    place = Place(tmp_path)
    used(place)
    a_key(tmp_path)
    sealed = Place(tmp_path, 'master_key = "master.key"\n')
    one = the(sealed.found(), "seal")
    assert (one.verdict, one.mend.split("   ")[0]) == (
        FAIL,
        f"gdoi-gcks --config {tmp_path}/gcks.toml --seal",
    )
    program = Path(sys.prefix) / "bin" / one.mend.split("   ")[0]
    subprocess.run(str(program).split(), check=True, capture_output=True)
    assert the(sealed.found(), "seal").verdict is OK
    assert the(sealed.found(), "rows").verdict is OK


def test_a_backup_that_was_put_back(place: Place) -> None:
    steps = used(place)
    place.file.unlink()
    with closing(Store(place.file)) as store:
        store.save([next(step for step in steps if step.kind == "group")])
    one = the(place.found(), "rows")
    assert one.verdict is FAIL
    assert "a backup that was put back?" in one.found


@pytest.mark.parametrize(
    ("statement", "verdict", "said"),
    [
        ("UPDATE alembic_version SET version_num = '99'", FAIL, "and this program knows 2"),
        ("UPDATE alembic_version SET version_num = '1'", WARN, "brought to 2 at the next start"),
        ("DROP TABLE alembic_version", FAIL, "not a key server's"),
    ],
)
def test_tables_of_others(place: Place, statement: str, verdict: str, said: str) -> None:
    place.make()
    place.sql(statement)
    one = the(place.found(), "tables")
    assert one.verdict == verdict
    assert said in one.found
    assert one.mend


def test_damaged(place: Place) -> None:
    place.make()
    octets = bytearray(place.file.read_bytes())
    octets[:100] = bytes(100)
    place.file.write_bytes(octets)
    failed = [one for one in place.found() if one.verdict is FAIL]
    assert [one.found for one in failed] == ["file is not a database"]
    assert "a backup" in failed[0].mend


def test_postgresql(tmp_path: Path, postgres: Postgres, database: str) -> None:
    place = Place(tmp_path, f'database = "{database}"\n')
    assert "none yet" in the(place.found(), "tables").found
    place.make()
    found = verdicts(place.found())
    assert (found.pop("master key"), set(found.values())) == (WARN, {OK})
    name = database.partition("?")[0].rpartition("/")[2]
    with psycopg.connect(postgres.conninfo(name), autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
    failed = [one for one in place.found() if one.verdict is FAIL]
    assert ["read-only" in one.found for one in failed] == [True]


def test_postgresql_that_lets_nobody_make_tables(
    tmp_path: Path, postgres: Postgres, database: str
) -> None:
    name = database.partition("?")[0].rpartition("/")[2]
    user = f"gdoi_{name}"
    place = Place(tmp_path, f'database = "{database.replace("postgres@", f"{user}@", 1)}"\n')
    with psycopg.connect(postgres.conninfo(name), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {user} LOGIN".encode())
        failed = [one for one in place.found() if one.verdict is FAIL]
        assert [one.found for one in failed] == [f"{user} may not make tables in it"]
        grant = failed[0].mend.partition("'")[2].removesuffix("'")
        connection.execute(grant.encode())
    assert FAIL not in verdicts(place.found()).values()


def test_postgresql_that_is_gone(tmp_path: Path) -> None:
    place = Place(tmp_path, f'database = "postgresql://gdoi@/gdoi?host={tmp_path}"\n')
    failed = [one for one in place.found() if one.verdict is FAIL]
    assert len(failed) == 1
    assert "No such file" in failed[0].found
    assert "pg_isready" in failed[0].mend


def test_postgresql_without_its_password(tmp_path: Path) -> None:
    more = 'database = "postgresql://gdoi@/gdoi"\ndatabase_password = "database.password"\n'
    one = the(Place(tmp_path, more).found(), "database")
    assert (one.verdict, "No such file" in one.found) == (FAIL, True)
    assert one.mend.startswith(f"chmod 600 {tmp_path}/database.password")
