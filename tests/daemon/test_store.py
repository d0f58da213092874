"""The key server's database: what was reported saved is there, whole, and nobody else's to read."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gdoi_plugin.daemon.errors import StaleError, StoreError
from gdoi_plugin.daemon.store import Store
from gdoi_plugin.daemon.store.postgres import PostgresServer
from gdoi_plugin.daemon.store.sqlite import SqliteFile
from gdoi_plugin.daemon.store.upgrade import VERSION
from gdoi_plugin.protocol.actions import Persist
from gdoi_plugin.protocol.group import LEDGER_LENGTH
from gdoi_plugin.protocol.group_record import MEMBER_COLUMNS, group_record
from gdoi_plugin.protocol.key_server import KeyServer, SavedGroup
from tests.daemon.children import NOBODY, finished, python, running
from tests.support.simnet import Network
from tests.support.worlds import GROUP_ID, World, build, group_config, server_phase1, signers

KEY = "5ec2e7" * 10


def group(epoch: int = 1, number: int = 1, **more: Any) -> Persist:
    return Persist("group", {"group": number, "epoch": epoch, "key": KEY, **more})


def member(number: int = 1, **more: Any) -> Persist:
    fields = dict.fromkeys(MEMBER_COLUMNS) | {
        "group": 1,
        "number": number,
        "identity": b"\1\n\0\0" + bytes((number,)),
        "address": b"\n\0\0" + bytes((number,)),
        "port": 848,
        "registered_at": 4.5,
        "behind_nat": False,
        "asked": True,
        "sa": 0,
        "leaf": 0,
    }
    return Persist("member", fields | more)


def row(persist: Persist) -> tuple[Any, ...]:
    return tuple(persist.record[name] for name in MEMBER_COLUMNS)


def rekey(epoch: int = 1, number: int = 1, **more: Any) -> Persist:
    sets = {"expected": b"\x06", "acknowledged": b"times", "missing": b""}
    return Persist("rekey", {"group": number, "epoch": epoch, "closed": False, **sets, **more})


def acks(epoch: int = 1, *numbers: int, at: float = 5.0) -> Persist:
    entries = tuple((number, 3, at) for number in numbers or (1,))
    return Persist("acks", {"group": 1, "epoch": epoch, "entries": entries})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new folder" / "gcks?mode=ro#%41.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with closing(Store(path)) as opened:
        yield opened


@pytest.fixture(params=["sqlite", "postgresql"])
def both(request: pytest.FixtureRequest, path: Path) -> Iterator[Store]:
    """What is true of either database."""
    if request.param == "sqlite":
        place: Path | PostgresServer = path
    else:
        place = PostgresServer(request.getfixturevalue("database"))
    with closing(Store(place)) as opened:
        yield opened


def again(store: Store) -> Store:
    """Another one on the same database; the former one is closed."""
    store.close()
    database = store.database
    return Store(Path(database.name) if isinstance(database, SqliteFile) else database)


def reopened(path: Path) -> dict[int, SavedGroup]:
    with closing(Store(path)) as opened:
        return opened.load()


# -- what is saved -------------------------------------------------------------------------------


def test_a_new_store_is_empty(store: Store, path: Path) -> None:
    assert store.load() == {}
    assert path.exists()  # whatever an URL would make of its name


def test_every_kind_comes_back(both: Store) -> None:
    former = b"a key of sixteen"
    records = [group(4), member(), member(2, former_leaf=former, local_address=b"\n\0\0\x09")]
    pages = [rekey(3), rekey(2), acks(3, 1, 2), acks(3, 7)]
    standing = {"group": 1, "sa": 2, "at": 5.5, "entries": b"numbers"}
    page = {"group": 1, "tree": 0, "page": 3, "nodes": b"keys"}
    both.save([*records, *pages, Persist("standing", standing), Persist("page", page)])
    expected = {
        1: SavedGroup(
            records[0].record,
            [row(records[1]), row(records[2])],
            [pages[1].record, pages[0].record],
            [(3, [(1, 3, 5.0), (2, 3, 5.0)]), (3, [(7, 3, 5.0)])],
            [{"tree": 0, "page": 3, "nodes": b"keys"}],
            [{"at": 5.5, "entries": b"numbers"}],
        )
    }
    assert both.load() == expected
    with closing(again(both)) as other:
        assert other.load() == expected


def test_the_last_one_saved_counts_and_every_ack(both: Store) -> None:
    both.save([group(1), group(2), member(port=1), member(port=2), rekey(seqs=[1])])
    both.save([rekey(seqs=[1, 2]), acks(at=5.0), acks(at=6.0)])
    saved = both.load()[1]
    assert saved.group["epoch"] == 2
    assert [tuple(r) for r in saved.members] == [row(member(port=2))]
    assert [record["seqs"] for record in saved.rekeys] == [[1, 2]]
    assert saved.acks == [(1, [(1, 3, 5.0)]), (1, [(1, 3, 6.0)])]


def test_a_closed_page_holds_its_acks_itself(both: Store) -> None:
    both.save([group(), rekey(1), rekey(2), acks(1), acks(2)])
    both.save([rekey(1, closed=True)])
    assert both.load()[1].acks == [(2, [(1, 3, 5.0)])]
    both.save([acks(1, at=9.0)])  # one that is late
    assert both.load()[1].acks == [(2, [(1, 3, 5.0)]), (1, [(1, 3, 9.0)])]


def test_groups_do_not_mix(both: Store) -> None:
    both.save([group(), group(number=2), rekey(), rekey(7, number=2)])
    saved = both.load()
    assert [len(saved[number].rekeys) for number in (1, 2)] == [1, 1]


def test_old_ledger_pages_go(both: Store) -> None:
    last = LEDGER_LENGTH + 3
    both.save([group(number=1), group(number=2), rekey(number=2), member()])
    both.save([removal(member(n), epoch=n) for n in (2, 3, 4)])
    for epoch in range(1, last + 1):
        both.save([rekey(epoch), acks(epoch)])
    saved = both.load()
    assert [record["epoch"] for record in saved[1].rekeys] == list(range(4, last + 1))
    assert sorted(epoch for epoch, _ in saved[1].acks) == list(range(4, last + 1))
    assert len(saved[2].rekeys) == 1
    assert [r[0] for r in saved[1].members] == [1, 4], "no page names the two others any more"


def removal(persist: Persist, epoch: int = 1) -> Persist:
    return Persist("member-removed", {**persist.record, "removed": epoch})


def persisted(world: World) -> list[list[Persist]]:
    return [[action] for action in world.server.actions if isinstance(action, Persist)]


def test_a_new_engine_takes_up_what_the_old_one_left(both: Store) -> None:
    network = Network(7)
    world = build(network, 3)
    world.start()
    network.run(30)
    world.rekey()
    network.run(60)
    world.members[2].crash()
    world.rekey(kek=True)
    network.run(60)
    assert world.group.ledger[3].missing  # one member was silent
    for step in persisted(world):
        both.save(step)
    loaded = both.load()

    fresh = KeyServer([group_config(3)], server_phase1, os.urandom, signers())
    fresh.start(network.now, loaded)
    old, new = world.group, fresh.groups[GROUP_ID]
    assert group_record(new) == group_record(old)
    assert (new.epoch, new.teks, new.members) == (old.epoch, old.teks, old.members)
    assert new.roster == old.roster
    assert {i: (m.acknowledged, m.missed, m.last_ack) for i, m in new.members.items()} == {
        i: (m.acknowledged, m.missed, m.last_ack) for i, m in old.members.items()
    }
    # All pages are closed: until when they were open is nobody's business any more.
    pages = [{e: replace(r, deadline=0) for e, r in g.ledger.items()} for g in (old, new)]
    assert pages[0] == pages[1]


# -- durability ----------------------------------------------------------------------------------


def test_a_commit_that_returned_survives_a_crash_of_the_machine(store: Store) -> None:
    with store._engine.connect() as connection:
        pragmas = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous")
        ]
    assert pragmas == ["wal", 2]  # 2 is FULL


def test_all_of_a_step_or_nothing(store: Store, path: Path) -> None:
    store.save([group(1), member(port=1)])
    before = store.load()
    with closing(sqlite3.connect(path)) as other:
        other.execute(
            "CREATE TRIGGER no BEFORE INSERT ON ack_batches"
            " BEGIN SELECT RAISE(ABORT, 'no room'); END"
        )
        other.commit()
    with pytest.raises(StoreError, match="no room"):
        store.save([group(2), member(port=2), rekey(), acks()])
    assert store.load() == before


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "gcks.sqlite"
    path.touch(mode=0o644)
    path.chmod(0o644)
    mask = os.umask(0)
    try:
        with closing(Store(path)) as store:
            store.save([group()])
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    finally:
        os.umask(mask)
    assert modes == dict.fromkeys(("gcks.sqlite", "gcks.sqlite-wal", "gcks.sqlite-shm"), 0o600)


SAVING = """
import sys, os
from pathlib import Path
from gdoi_plugin.daemon.store import Store
from gdoi_plugin.protocol.actions import Persist
store = Store(Path(sys.argv[1]))
saved = store.load()
first = saved[1].group["epoch"] + 1 if saved else 1
for epoch in range(first, 1 << 30):
    store.save([
        Persist("group", {"group": 1, "epoch": epoch, "fill": "x" * 3000}),
        Persist("rekey", {"group": 1, "epoch": epoch, "closed": False,
                          "expected": b"", "acknowledged": b"", "missing": b""}),
        Persist("acks", {"group": 1, "epoch": epoch, "entries": ((1, 1, 1.0),)}),
    ])
    os.write(1, b"%d\\n" % epoch)
"""


def test_what_was_reported_saved_is_there_after_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "gcks.sqlite"
    for lines in (1, 30, 77):
        with running(python(SAVING, path)) as child:
            assert child.stdout is not None
            said = [child.stdout.readline() for _ in range(lines)]
            child.kill()
            said += child.stdout.readlines()
        saved = reopened(path)[1]
        epoch = saved.group["epoch"]
        reported = int(said[-1])
        # One more may have been saved and not yet been told.
        assert reported <= epoch <= reported + 1
        assert saved.rekeys[-1]["epoch"] == epoch == saved.acks[-1][0]


# -- what cannot be read or written --------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(StoreError) as caught:
        Store(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_one_key_server_at_a_time(store: Store, path: Path) -> None:
    """Two would give the same SEQ out twice."""
    assert refused(path) == f"{path}: another key server is using it"
    store.save([group()])
    store.close()
    assert reopened(path)


def test_a_directory(tmp_path: Path) -> None:
    assert refused(tmp_path) == f"{tmp_path}: Is a directory"


def test_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "gcks.sqlite"
    assert refused(path) == f"{path}: File exists"


def test_no_database(tmp_path: Path) -> None:
    path = tmp_path / "gcks.sqlite"
    path.write_text("state " * 1000)
    assert refused(path) == f"{path}: file is not a database"


def test_damaged(path: Path, store: Store) -> None:
    store.save([group(fill="x" * 100_000)])
    store.close()
    octets = bytearray(path.read_bytes())
    octets[4096:] = os.urandom(len(octets) - 4096)
    path.write_bytes(octets)
    with pytest.raises(StoreError) as caught, closing(Store(path)) as damaged:
        damaged.load()
    assert str(caught.value) == f"{path}: database disk image is malformed"


def test_a_record_that_is_no_json(path: Path, store: Store) -> None:
    store.save([group()])
    with closing(sqlite3.connect(path)) as other:
        other.execute("UPDATE groups SET record = CAST('{\"epoch\": ' AS BLOB)")
        other.commit()
    with pytest.raises(StoreError) as caught:
        store.load()
    assert str(caught.value).startswith(f"{path}: table groups, group 1: not JSON")


def test_another_version(path: Path, store: Store) -> None:
    store.close()
    with closing(sqlite3.connect(path)) as other:
        other.execute("DROP TABLE ack_batches")
        other.execute("UPDATE alembic_version SET version_num = '77'")
        other.commit()
    assert refused(path) == f"{path}: schema version 77, this program knows {VERSION}"
    with closing(sqlite3.connect(path)) as other:
        assert not other.execute("SELECT 1 FROM sqlite_master WHERE name LIKE 'ack%'").fetchall()


def test_somebody_elses_database(tmp_path: Path) -> None:
    path = tmp_path / "gcks.sqlite"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE recipes (name)")
    assert refused(path) == f"{path}: a database, but not a key server's"
    with closing(sqlite3.connect(path)) as other:
        tables = other.execute("SELECT name FROM sqlite_master").fetchall()
    assert tables == [("recipes",)]


def test_no_error_shows_a_key(path: Path, store: Store) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("DROP TABLE groups")
    with pytest.raises(StoreError) as caught:
        store.save([group()])
    error: BaseException | None = caught.value
    while error is not None:
        assert KEY not in str(error) + repr(error)
        error = error.__cause__ or error.__context__


OPENING = """
import sys
from pathlib import Path
from gdoi_plugin.daemon.errors import StoreError
from gdoi_plugin.daemon.store import Store
try:
    Store(Path(sys.argv[1]))
except StoreError as error:
    print(error)
"""


def as_nobody(path: Path) -> str:
    done: subprocess.CompletedProcess[str] = finished([*NOBODY, *python(OPENING, path)])
    assert done.stderr == ""
    return done.stdout.strip()


def test_no_permission(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    path = tmp_path / "gcks.sqlite"
    assert as_nobody(path) == f"{path}: Permission denied"
    Store(path).close()
    assert as_nobody(path) == f"{path}: Permission denied"


FILLING = """
import resource, signal, sys
from pathlib import Path
from gdoi_plugin.daemon.errors import StoreError
from gdoi_plugin.daemon.store import Store
from gdoi_plugin.protocol.actions import Persist
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Store(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
epoch = 0
try:
    while True:
        store.save([Persist("group", {"group": 1, "epoch": epoch + 1, "fill": "x" * 50_000})])
        epoch += 1
except StoreError as error:
    print(error)
assert store.load()[1].group["epoch"] == epoch, "half a step"
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
store.save([Persist("group", {"group": 1, "epoch": epoch + 1})])
print(store.load()[1].group["epoch"] - epoch)
"""


def test_a_full_disk_and_room_again(tmp_path: Path) -> None:
    path = tmp_path / "gcks.sqlite"
    done = finished(python(FILLING, path))
    assert done.stderr == ""
    sentence, more = done.stdout.splitlines()
    assert sentence in (f"{path}: disk I/O error", f"{path}: database or disk is full")
    assert more == "1"


def test_a_member_that_is_removed(both: Store) -> None:
    """It is remembered that it was one: pages of the ledger know it by its number."""
    both.save([group(), member(1), member(2)])
    both.save([removal(member(1), epoch=9)])
    found = [dict(zip(MEMBER_COLUMNS, row, strict=True)) for row in both.load()[1].members]
    assert [(m["identity"], m["removed"]) for m in found] == [
        (b"\1\n\0\0\1", 9),
        (b"\1\n\0\0\2", None),
    ]


def test_a_file_that_is_gone_or_another_keeps_nothing(store: Store, path: Path) -> None:
    """Commits to a deleted file succeed, and are lost with the process."""
    store.save([group(1)])
    moved = path.with_suffix(".moved")
    path.rename(moved)
    with pytest.raises(StoreError, match="No such file"):
        store.save([group(2)])
    path.write_bytes(moved.read_bytes())
    with pytest.raises(StoreError, match="another file has taken its place"):
        store.save([group(2)])
    path.unlink()
    moved.rename(path)
    store.save([group(3)])
    assert store.load()[1].group["epoch"] == 3


# -- several key servers -------------------------------------------------------------------------


def test_who_has_not_seen_the_last_change_cannot_save(both: Store) -> None:
    """As a key server that was paused while another went on: nothing of its step is saved."""
    both.save([group(1), member(1)])
    with both._engine.begin() as other:
        other.exec_driver_sql("UPDATE groups SET revision = revision + 1")
    for step in (
        [group(2)],
        [member(2)],
        [Persist("page", {"group": 1, "tree": 0, "page": 0, "nodes": b""})],
        [rekey(2)],
    ):
        with pytest.raises(StaleError, match="another key server has changed group 1 since"):
            both.save([acks(1), *step])
    assert both.load()[1].acks == []
    both.save([group(3), acks(1)])  # having read what there is
    assert both.load()[1].group["epoch"] == 3


def test_acks_count_whoever_rekeys(both: Store) -> None:
    both.save([group(1)])
    with both._engine.begin() as other:
        other.exec_driver_sql("UPDATE groups SET revision = revision + 1")
    both.save([acks(1, 1, 2)])
    assert both.load()[1].acks == [(1, [(1, 3, 5.0), (2, 3, 5.0)])]


def test_a_group_is_made_once_and_a_number_given_once(both: Store) -> None:
    both.save([group(1), member(1)])
    with pytest.raises(StaleError):
        both.save([member(1, identity=b"\1\n\0\0\xff")])
    both._revisions.clear()  # as one who found no group
    with pytest.raises(StaleError, match="group 1 since none was read"):
        both.save([group(7)])
    assert both.load()[1].group["epoch"] == 1
