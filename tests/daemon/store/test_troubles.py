"""Disks that are full, databases that are gone or read-only: a sentence each, and on afterwards."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

import psycopg
import pytest
from sqlalchemy import Connection

from gdoi_plugin.daemon.errors import StaleError, StoreError
from gdoi_plugin.daemon.store import Store
from gdoi_plugin.daemon.store.postgres import PostgresServer
from gdoi_plugin.daemon.store.store import MAX_DOUBTFUL
from gdoi_plugin.protocol.actions import Persist
from tests.daemon.children import eventually, finished, running
from tests.daemon.test_processes import BIN, Server
from tests.support.postgres import Postgres

T = TypeVar("T")
SECRET = "5ec2e7" * 10
# As root of a mount namespace: a file system of its own, gone with the process.
SMALL = 'mount -t tmpfs -o size=8m none "$1" && shift && exec "$@"'
READ_ONLY = (
    'mount -t tmpfs none "$1" && cp "$2" "$1" && mount -o remount,ro "$1" && shift 2 && exec "$@"'
)

# A rekey that was not sent is soon over.
SHORT = """\
rekey.retransmissions = 0
rekey.activation_delay = "1s"
rekey.deactivation_delay = "2s"
"""


def group(epoch: int, number: int = 1) -> Persist:
    return Persist("group", {"group": number, "epoch": epoch, "key": SECRET})


def acks(at: float) -> Persist:
    return Persist("acks", {"group": 1, "epoch": 1, "entries": ((1, 1, at),)})


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


@pytest.fixture
def place(server: Server, tmp_path: Path) -> Path:
    """Where the key server's state lies, on a file system of its own."""
    place = tmp_path / "small"
    place.mkdir()
    text = server.config.read_text().replace("[[group.tek]]", f"{SHORT}[[group.tek]]", 1)
    server.config.write_text(text.replace(str(server.state), str(place / server.state.name)))
    return place


# -- a disk --------------------------------------------------------------------------------------


def fill(file: Path) -> None:
    """Up to the last block."""
    with file.open("wb", buffering=0) as filler:
        for size in (1 << 20, 4096):
            try:
                while filler.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


def test_a_full_disk_and_room_again(server: Server, place: Path) -> None:
    """Nothing is sent that is not saved, commands say so, and it goes on by itself."""
    command = ["unshare", "--mount", "sh", "-c", SMALL, "sh", place]
    rekey = [BIN / "gdoictl", "--socket", server.control, "--json", "rekey", "--group", "video"]
    with running([*command, BIN / "gdoi-gcks", "--config", server.config]) as child:
        eventually(lambda: server.events("started") or child.poll() is not None, "it starts")
        before = server.group()
        filler = Path(f"/proc/{child.pid}/root{place}/filler")
        fill(filler)
        said = ""
        for _ in range(100):  # some room there may be in the database's own files
            done = finished(rekey)
            if done.returncode:
                said = done.stderr
                break
        assert "not sent yet, the state cannot be saved: " in said
        assert f"{place}/gcks.sqlite: database or disk is full" in said
        sent = len(server.events("rekey-sent"))
        assert finished(rekey).returncode, "and again"
        assert len(server.events("rekey-sent")) == sent
        assert len(server.events("store-failed")) == 1
        filler.unlink()
        # The window of the rekey that was not sent ends, and with it all is saved.
        eventually(lambda: server.events("store-recovered"), "it goes on by itself")
        assert finished(rekey).returncode == 0
        assert int(server.group()["epoch"]) > int(before["epoch"])
        used = [(e["kek-spi"], e["seq"]) for e in server.events("rekey-sent")]
        assert len(set(used)) == len(used)


def test_a_read_only_file_system(server: Server, place: Path) -> None:
    with closing(Store(server.state)) as store:
        store.save([group(1)])
    command = ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", place, server.state]
    done = finished([*command, BIN / "gdoi-gcks", "--config", server.config])
    said = f"gdoi-gcks: {place}/gcks.sqlite: Read-only file system\n"
    assert (done.returncode, done.stderr) == (1, said)


# -- a database server ---------------------------------------------------------------------------


@pytest.fixture
def shared(database: str) -> Iterator[Store]:
    with closing(Store(PostgresServer(database))) as opened:
        yield opened


def test_a_database_that_is_gone_and_back(postgres: Postgres, shared: Store) -> None:
    shared.save([group(1), acks(1.0)])
    postgres.stop(signal.SIGQUIT)
    try:
        for _ in range(2):
            with pytest.raises(StoreError) as caught:
                shared.save([group(2)])
            assert str(caught.value).startswith("postgresql database gdoi")
            assert "\n" not in str(caught.value)
    finally:
        postgres.start()
    shared.save([group(3), acks(2.0)])
    saved = shared.load()[1]
    assert saved.group["epoch"] == 3
    assert [at for _, entries in saved.acks for *_, at in entries] == [1.0, 2.0]


@contextmanager
def read_only(postgres: Postgres) -> Iterator[None]:
    def say(setting: str) -> None:
        conninfo = postgres.conninfo("postgres")
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(
                f"ALTER SYSTEM SET default_transaction_read_only = {setting}".encode()
            )
            connection.execute("SELECT pg_reload_conf()")

    say("on")
    try:
        yield
    finally:
        say("off")


def test_a_database_that_is_read_only_for_a_while(postgres: Postgres, shared: Store) -> None:
    shared.save([group(1)])

    def refused() -> str:
        try:
            shared.save([group(2)])
        except StoreError as error:
            return str(error)
        return ""

    with read_only(postgres):
        eventually(refused, "the server reads its configuration")
        assert refused().endswith("in a read-only transaction")
    eventually(lambda: not refused(), "it may be written again")
    assert shared.load()[1].group["epoch"] == 2


def test_no_row_is_quoted(shared: Store) -> None:
    """PostgreSQL's DETAIL shows the row that it refuses."""
    shared.save([group(1)])
    with shared._engine.begin() as other:
        other.exec_driver_sql("ALTER TABLE groups ADD CHECK (length(record) < 10) NOT VALID")
    with pytest.raises(StoreError, match="violates check constraint") as caught:
        shared.save([group(2)])
    error: BaseException | None = caught.value
    hidden = json.dumps(SECRET)[1:-1].encode().hex()
    while error is not None:
        assert SECRET not in str(error)
        assert hidden not in str(error)
        error = error.__cause__ or error.__context__


# -- a commit that nobody heard of ---------------------------------------------------------------


class Deaf(Store):
    """Its connection ends after the commit, before the answer, as often as it is told."""

    times = 0

    def _transaction(self, work: Callable[[Connection], T]) -> T:
        done = super()._transaction(work)
        if self.times:
            self.times -= 1
            raise StoreError("server closed the connection unexpectedly")
        return done


@pytest.fixture(params=["sqlite", "postgresql"])
def deaf(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Deaf]:
    sqlite = request.param == "sqlite"
    url = "" if sqlite else request.getfixturevalue("database")
    with closing(Deaf(tmp_path / "gcks.sqlite" if sqlite else PostgresServer(url))) as opened:
        yield opened


@pytest.mark.parametrize("first", [True, False], ids=["new", "known"])
@pytest.mark.parametrize("times", [1, 3])
def test_what_may_have_been_saved_is_no_stranger_s(deaf: Deaf, times: int, first: bool) -> None:
    """The shell repeats the step until it hears: its own former attempt is not another server's."""
    if not first:
        deaf.save([group(1)])
    deaf.times = times
    for epoch in range(times):
        with pytest.raises(StoreError, match="closed the connection"):
            deaf.save([group(2 + epoch)])
    deaf.save([group(9)])
    assert deaf.load()[1].group["epoch"] == 9
    with deaf._engine.begin() as other:
        other.exec_driver_sql("UPDATE groups SET revision = revision + 1, step = 'other'")
    with pytest.raises(StaleError):
        deaf.save([group(10)])


def test_doubts_are_bounded(deaf: Deaf) -> None:
    deaf.times = MAX_DOUBTFUL + 5
    for epoch in range(MAX_DOUBTFUL + 5):
        with pytest.raises(StoreError):
            deaf.save([group(epoch)])
    assert len(deaf._doubtful) == MAX_DOUBTFUL
    deaf.save([group(99)])
    assert deaf._doubtful == []
    assert deaf.load()[1].group["epoch"] == 99
