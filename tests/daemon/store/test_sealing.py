"""Keys in the database are sealed: the file is without any, and only the right key opens it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import insert

from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.daemon.errors import StoreError
from gdoi_plugin.daemon.store import Store
from gdoi_plugin.daemon.store.postgres import PostgresServer
from gdoi_plugin.daemon.store.schema import sealing
from gdoi_plugin.daemon.store.sealing import (
    CREDENTIAL,
    MasterKey,
    credential_of,
    read_master_key,
)
from gdoi_plugin.daemon.store.store import Database
from gdoi_plugin.protocol.actions import Persist
from gdoi_plugin.protocol.group import Group
from gdoi_plugin.protocol.keeper import restore
from gdoi_plugin.protocol.key_server import KeyServer
from tests.daemon.children import python, running
from tests.protocol.test_lkh import BINARY, evict
from tests.support.postgres import Postgres
from tests.support.simnet import Network
from tests.support.worlds import (
    GROUP_ID,
    World,
    build,
    group_config,
    server_phase1,
    signers,
)

OLD, NEW = (MasterKey(Secret(bytes([n]) * 32)) for n in (1, 2))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gcks.sqlite"


@pytest.fixture(scope="module")
def world() -> World:
    """A group that has done everything that keys are saved for."""
    network = Network(5)
    made = build(network, 5, group=group_config(5, lkh=BINARY))
    made.start()
    network.run(5)
    made.rekey()
    network.run(30)
    evict(made, 3)
    network.run(30)
    made.server.carry_out(made.server.engine.delete_group(GROUP_ID, network.now))
    network.run(90)  # everybody has a former leaf, then one in a new tree
    return made


def steps(world: World) -> list[Persist]:
    return [action for action in world.server.actions if isinstance(action, Persist)]


def save(store: Store, world: World) -> None:
    for persist in steps(world):
        store.save([persist])


def secrets_of(world: World) -> set[bytes]:
    """Every key that the group has ever had, as octets."""
    found = set()
    for step in steps(world):
        if step.kind == "group":
            for entry in step.record["keks"]:  # type: ignore[attr-defined]
                found |= {bytes.fromhex(entry["kek"]["key"]), bytes.fromhex(entry["signer"])}
            for entry in step.record["teks"]:  # type: ignore[attr-defined]
                found.add(bytes.fromhex(entry["tek"]["encryption_key"]))
                found.add(bytes.fromhex(entry["tek"]["integrity_key"]))
        if step.kind == "member" and step.record["former_leaf"]:
            found.add(step.record["former_leaf"])  # type: ignore[arg-type]
    for sa in world.group.sas:
        assert sa.tree is not None
        found |= {sa.tree.leaf_key(m.leaf).reveal() for m in world.group.members.values()}
        found |= {node.key.reveal() for node in sa.tree.path(40)}
    return {secret for secret in found if any(secret)}


def traces(folder: Path, secrets: set[bytes]) -> list[str]:
    """Which files hold one, as octets or in hex."""
    texts = {*secrets, *(secret.hex().encode() for secret in secrets)}
    files = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    return [name for name, octets in files.items() if any(text in octets for text in texts)]


def taken_up(database: Path | Database, key: MasterKey | None, *, clear: bool = False) -> Group:
    engine = KeyServer([group_config(5, lkh=BINARY)], server_phase1, os.urandom, signers())
    with closing(Store(database, key, clear=clear)) as store:
        restore(engine.groups[GROUP_ID], store.load()[GROUP_ID])
    return engine.groups[GROUP_ID]


def assert_same(group: Group, world: World) -> None:
    assert group.members == world.group.members
    assert group.current_kek().kek == world.group.current_kek().kek
    assert group.teks == world.group.teks
    assert group.sas[0].tree is not None
    assert world.group.sas[0].tree is not None
    for member in world.group.members.values():
        assert group.sas[0].tree.path(member.leaf) == world.group.sas[0].tree.path(member.leaf)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, path: Path) -> Callable[[], Path | Database]:
    """To be opened again and again."""
    if request.param == "sqlite":
        return lambda: path
    server = request.getfixturevalue("postgres")
    url = server.url(server.create_database())
    return lambda: PostgresServer(url)


# -- what is there -------------------------------------------------------------------------------


def test_no_key_is_in_the_file_or_its_log(world: World, path: Path) -> None:
    secrets = secrets_of(world)
    assert len(secrets) > 12
    with closing(Store(path, OLD)) as store:
        save(store, world)
        assert (path.parent / "gcks.sqlite-wal").stat().st_size > 0
        assert traces(path.parent, secrets) == []
    assert traces(path.parent, secrets) == []


def test_the_search_for_keys_finds_them_where_they_are_not_sealed(world: World, path: Path) -> None:
    with closing(Store(path)) as store:
        save(store, world)
        assert "gcks.sqlite-wal" in traces(path.parent, secrets_of(world))
    assert "gcks.sqlite" in traces(path.parent, secrets_of(world))


def test_what_was_sealed_comes_back(world: World, database: Callable[[], Path | Database]) -> None:
    with closing(Store(database(), OLD)) as store:
        save(store, world)
    assert_same(taken_up(database(), OLD), world)


def test_an_unsealed_database_is_sealed_once_that_is_said(
    world: World, database: Callable[[], Path | Database]
) -> None:
    with closing(Store(database())) as store:
        save(store, world)
    with pytest.raises(StoreError, match=r": not sealed, and a master key .* gdoi-gcks --seal$"):
        Store(database(), OLD)
    assert_same(taken_up(database(), None), world)
    assert_same(taken_up(database(), OLD, clear=True), world)
    assert_same(taken_up(database(), OLD), world)
    with pytest.raises(StoreError, match=f"sealed with master key {OLD.name}, and key_server"):
        Store(database())


@pytest.mark.parametrize("also", [False, True])
def test_rows_in_clear_are_not_believed(
    world: World, database: Callable[[], Path | Database], *, also: bool
) -> None:
    """By whoever can write the database, who has taken away what said that it was sealed, or has
    left it: with a master key no key comes from a row that it has not sealed."""
    with closing(Store(database())) as store:
        save(store, world)
        if also:
            with store._engine.begin() as connection:
                connection.execute(insert(sealing).values(id=1, key_id=OLD.name, cleaned=True))
    with pytest.raises(StoreError, match=r"not sealed, and|damaged, or another row's"):
        taken_up(database(), OLD)
    if also:
        with pytest.raises(StoreError, match="damaged, or another row's"):
            taken_up(database(), OLD, clear=True)


def test_nothing_of_before_is_left_once_it_is_sealed(world: World, path: Path) -> None:
    with closing(Store(path)) as store:
        save(store, world)
    with closing(Store(path, OLD, clear=True)):
        assert traces(path.parent, secrets_of(world)) == []
    assert traces(path.parent, secrets_of(world)) == []


def test_a_crash_before_free_pages_were_cleaned_is_made_up_for(
    world: World, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Store(path)) as store:
        save(store, world)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_clean", lambda _: None)
        Store(path, OLD, clear=True).close()
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT cleaned FROM sealing").fetchall() == [(0,)]
    with closing(Store(path, OLD, clear=True)):
        assert traces(path.parent, secrets_of(world)) == []
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT cleaned FROM sealing").fetchall() == [(1,)]


def test_nothing_of_before_is_left_in_tables_of_postgresql(
    world: World, postgres: Postgres
) -> None:
    """The write-ahead log has it until its files are used again."""
    name = postgres.create_database()
    secrets = secrets_of(world)

    def tables_with_keys() -> list[str]:
        with psycopg.connect(postgres.conninfo(name), autocommit=True) as connection:
            connection.execute("CHECKPOINT")
            (folder,) = connection.execute(
                "SELECT current_setting('data_directory') || '/base/' || oid"
                " FROM pg_database WHERE datname = current_database()"
            ).fetchone() or ("",)
        return traces(Path(folder), secrets)

    with closing(Store(PostgresServer(postgres.url(name)))) as store:
        save(store, world)
    assert tables_with_keys() != []
    with closing(Store(PostgresServer(postgres.url(name)), OLD, clear=True)):
        assert tables_with_keys() == []


def test_who_reads_it_meanwhile_does_not_keep_what_was_there_before(
    world: World, path: Path
) -> None:
    with closing(Store(path)) as store:
        save(store, world)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN")
        assert other.execute("SELECT count(*) FROM groups").fetchone() == (1,)
        with pytest.raises(StoreError, match=r"gcks\.sqlite: another process reads it"):
            Store(path, OLD, clear=True)
        assert traces(path.parent, secrets_of(world)) == ["gcks.sqlite"]
    with closing(Store(path, OLD, clear=True)):
        assert traces(path.parent, secrets_of(world)) == []
    assert_same(taken_up(path, OLD), world)


# -- what does not open --------------------------------------------------------------------------


def test_a_wrong_master_key_is_told_from_a_damaged_row(
    world: World, database: Callable[[], Path | Database]
) -> None:
    with closing(Store(database(), OLD)) as store:
        save(store, world)
    with pytest.raises(StoreError) as caught:
        Store(database(), NEW)
    assert str(caught.value).endswith(
        f": sealed with master key {OLD.name}, the one configured is {NEW.name}"
    )
    assert_same(taken_up(database(), OLD), world)  # and it has changed nothing


@pytest.mark.parametrize("key", [OLD, None])
def test_sealed_rows_are_not_sealed_again_where_nothing_says_that_they_are(
    world: World, path: Path, key: MasterKey | None
) -> None:
    with closing(Store(path, OLD)) as store:
        save(store, world)
    with closing(sqlite3.connect(path)) as other:
        other.execute("DELETE FROM sealing")
        other.commit()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=f"table groups, group {GROUP_ID}: not JSON, and"):
        Store(path, key, clear=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ("UPDATE pages SET nodes = zeroblob(40) WHERE page = 0", f"pages, row {GROUP_ID}/0/0"),
        ("UPDATE groups SET record = substr(record, 1, 99)", f"groups, row {GROUP_ID}"),
        ("UPDATE groups SET record = x''", f"groups, row {GROUP_ID}"),
        (
            "UPDATE members SET former_leaf ="
            " (SELECT former_leaf FROM members WHERE number = 1) WHERE number = 2",
            f"members, row {GROUP_ID}/2",
        ),
    ],
)
def test_a_damaged_row_is_named_and_the_file_left(
    world: World, path: Path, change: str, where: str
) -> None:
    with closing(Store(path, OLD)) as store:
        save(store, world)
    with closing(sqlite3.connect(path)) as other:
        assert other.execute(change).rowcount > 0
        other.commit()
    before = path.read_bytes()
    with pytest.raises(StoreError) as caught:
        taken_up(path, OLD)
    assert str(caught.value).startswith(f"{path}: table {where}: damaged, or another row's")
    assert path.read_bytes() == before


# -- the master key ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["0f" * 32 + "\n", "Dw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8=", b"0F" * 32]
)
def test_hex_and_base64(tmp_path: Path, text: str | bytes) -> None:
    file = tmp_path / "master.key"
    file.touch(0o600)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert read_master_key(file) == MasterKey(Secret(b"\x0f" * 32))


@pytest.mark.parametrize("octets", [b"", b"0f" * 31, b"0f" * 33, b"0f" * 500, b"\xff" * 32])
def test_what_is_no_key(tmp_path: Path, octets: bytes) -> None:
    file = tmp_path / "master.key"
    file.touch(0o600)
    file.write_bytes(octets)
    with pytest.raises(StoreError, match=r"master.key: must hold 32 random octets"):
        read_master_key(file)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_others_may_not_use_it(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "master.key"
    file.write_text("0f" * 32)
    file.chmod(mode)
    with pytest.raises(StoreError, match="others may read it; its mode must be 0600"):
        read_master_key(file)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="absent: No such file or directory"):
        read_master_key(tmp_path / "absent")


def test_systemd_gives_it(tmp_path: Path) -> None:
    assert credential_of({}) is None
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert credential_of(environment) is None
    (tmp_path / CREDENTIAL).write_text("0f" * 32)
    assert credential_of(environment) == tmp_path / CREDENTIAL


def test_a_key_shows_in_no_repr() -> None:
    assert repr(OLD) == f"MasterKey(secret=Secret(32 octets), name='{OLD.name}')"


# -- another one ---------------------------------------------------------------------------------


def test_rotation(world: World, database: Callable[[], Path | Database]) -> None:
    with closing(Store(database(), OLD)) as store:
        save(store, world)
        assert store.rotate(NEW) > 3
        save(store, world)  # it goes on with the new one
    assert_same(taken_up(database(), NEW), world)
    with pytest.raises(StoreError, match=f"the one configured is {OLD.name}"):
        Store(database(), OLD)


ROTATING = """
import sys
from pathlib import Path
from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.daemon.store import Store
from gdoi_plugin.daemon.store.sealing import MasterKey
old, new = (MasterKey(Secret(bytes([n]) * 32)) for n in (1, 2))
store = Store(Path(sys.argv[1]), old)
print("rotating", flush=True)
for _ in range(1000):
    store.rotate(new)
    store.rotate(old)
    print("round", flush=True)
"""


def test_killed_in_a_rotation_one_of_the_two_opens_all(world: World, path: Path) -> None:
    with closing(Store(path, OLD)) as store:
        save(store, world)
    for lines in (1, 2, 4):
        with running(python(ROTATING, path)) as child:
            assert child.stdout is not None
            for _ in range(lines):
                assert child.stdout.readline()
            child.kill()
        opened = None
        for key in (OLD, NEW):
            with suppress(StoreError):
                opened = taken_up(path, key)
                last = key
        assert opened is not None
        assert_same(opened, world)
        with closing(Store(path, last)) as store:
            store.rotate(OLD)
