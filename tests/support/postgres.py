"""A PostgreSQL of the tests' own: Debian's programs, a directory and a Unix socket, no port.

It runs as ``postgres`` where the tests run as root, with every setting that makes commits durable
as PostgreSQL has it. ``stop`` and ``start`` are for tests of what becomes of key servers.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import psycopg

PATIENCE = 120.0
USER = "postgres"
PORT = 5432  # names the socket file


def programs() -> Path:
    """Of the newest version that is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))
    if not found:
        raise AssertionError(
            "no PostgreSQL in /usr/lib/postgresql: deploy/bootstrap.sh installs it"
        )
    return found[-1]


class Postgres:
    """One server with its data in ``place``."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._data = place / "data"
        self._log = place / "log"
        self._child: subprocess.Popen[bytes] | None = None
        self._databases = count(1)

    @property
    def socket(self) -> Path:
        return self._place / f".s.PGSQL.{PORT}"

    def create(self) -> None:
        """The data directory; ``--no-sync`` is for this alone, commits later are durable."""
        options = ("--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync")
        self._run("initdb", "-D", self._data, "-U", USER, *options)

    def start(self) -> None:
        """Returns when it answers."""
        options = ("listen_addresses=", f"unix_socket_directories={self._place}", f"port={PORT}")
        settings = [word for option in options for word in ("-c", option)]
        with self._log.open("ab") as log:
            # It ends with the tests, also where those are killed.
            self._child = subprocess.Popen(
                [
                    *_as_user(),
                    "--pdeathsig=QUIT",
                    programs() / "postgres",
                    "-D",
                    self._data,
                    *settings,
                ],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if self._child.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"PostgreSQL did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends every connection and shuts down in order, SIGQUIT as if the power went."""
        child, self._child = self._child, None
        if child is None:
            return
        child.send_signal(how)
        try:
            child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            raise

    def restart(self, how: signal.Signals = signal.SIGINT) -> None:
        self.stop(how)
        self.start()

    def signal_all(self, number: signal.Signals) -> None:
        """The server and every process of it: after SIGSTOP nothing of it answers, and nothing of
        it is gone."""
        assert self._child is not None
        children = Path(f"/proc/{self._child.pid}/task/{self._child.pid}/children").read_text()
        for pid in (self._child.pid, *map(int, children.split())):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def create_database(self) -> str:
        """The name of a new, empty one."""
        name = f"gdoi{next(self._databases)}"
        with psycopg.connect(self.conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return name

    def conninfo(self, database: str) -> str:
        return f"host={self._place} port={PORT} user={USER} dbname={database}"

    def url(self, database: str) -> str:
        """As in a key server's configuration."""
        return f"postgresql://{USER}@/{database}?host={self._place}&port={PORT}"

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.conninfo("postgres"), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            [*_as_user(), programs() / program, *map(str, arguments)],
            cwd=self._place,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if done.returncode:
            raise AssertionError(f"{program}: {done.stdout}{done.stderr}")


def _as_user() -> list[str]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid():
        return ["setpriv"]
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    # Not pytest's directory: that lets nobody but root in, and its names are long for a socket.
    place = Path(tempfile.mkdtemp(prefix="gdoi-postgres-"))
    server = Postgres(place)
    try:
        if os.geteuid() == 0:
            entry = pwd.getpwnam(USER)
            os.chown(place, entry.pw_uid, entry.pw_gid)
        server.create()
        server.start()
        yield server
    finally:
        server.stop(signal.SIGQUIT)
        shutil.rmtree(place)
