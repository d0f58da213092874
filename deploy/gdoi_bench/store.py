"""The key server's state: a restart, the ledger's memory, what saving takes.

The restart is a real gdoi-gcks, from the start of the process to the event ``started``, when its
sockets are bound and every member is known; the bound is the same one without members, which is
Python and its libraries: rounds of both in turns, and the median of them. It is done on a SQLite
file and on Debian's PostgreSQL on this machine. What is saved is sealed, and Python's bytecode lies
ready, as it does where a program is installed.
The ledger is full in the last figures: every page has who was to acknowledge it, and when each did.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory

from gdoi_bench.figure import Figure
from gdoi_plugin.daemon.config_gcks import KeyServerDaemonConfig
from gdoi_plugin.daemon.store import Store
from gdoi_plugin.daemon.store.sealing import read_master_key
from gdoi_plugin.protocol.actions import Peer, Persist
from gdoi_plugin.protocol.group import LEDGER_LENGTH, Group
from gdoi_plugin.protocol.group_record import (
    group_record,
    member_record,
    rekey_record,
    tree_persists,
)
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.key_server import KeyServer
from gdoi_plugin.protocol.nat import Path as Route
from tests.support.postgres import running_postgres

MEMBERS = 100_000
PAGES = LEDGER_LENGTH
ROUNDS = 5
PATIENCE = 120.0
PORT = 20848
PROGRAM = Path(sys.executable).parent / "gdoi-gcks"
FIRST = IPv4Address("10.0.0.1")
READING = "Python makes an object of each member and each page before it serves"
CONFIG = """
[key_server]
address = "127.0.0.1"
port = {port}
nat_traversal = false
{state}
control = "{folder}/control"
log = "{folder}/log"
master_key = "master.key"

[[peer]]
address = "0.0.0.0/0"
psk = "of a benchmark"

[[group]]
name = "large"
id = 1
members = ["%any"]
rekey.address = "239.192.0.1"
rekey.signature = "ecdsa256"
rekey.kek_management = "lkh"
[[group.tek]]
destination = "239.192.1.1"
proposal = "aes256-sha256"
lifetime = "10h"
"""


def measure() -> list[Figure]:
    with TemporaryDirectory(prefix="gdoi-bench-") as few, TemporaryDirectory() as many:
        empty, large = (_Server(Path(folder), Path(few) / "bytecode") for folder in (few, many))
        empty.fill(0, 0)
        large.fill(MEMBERS, 1)
        empty.start()  # writes the bytecode
        bare, full = _in_turns(empty, large)
        figures = [
            Figure(f"restart with {MEMBERS:,} members", full.wall, "s", 2, bare.wall, why=READING),
            Figure("its processor time", full.processor, "s", None, bare.processor),
        ]
        large.fill(0, PAGES)
        bare, pages = _in_turns(empty, large)
        more = pages.memory - full.memory
        return [
            *figures,
            Figure(
                f"restart with {PAGES} pages of all of them",
                pages.wall,
                "s",
                2,
                bare.wall,
                why=READING,
            ),
            Figure("memory of a member", 1024 * (full.memory - bare.memory) / MEMBERS, "octets"),
            Figure("memory of it on a page", 1024 * more / (PAGES * MEMBERS), "octets"),
            *_on_postgresql(Path(few) / "bytecode"),
        ]


def _on_postgresql(bytecode: Path) -> list[Figure]:
    with (
        running_postgres() as postgres,
        TemporaryDirectory() as few,
        TemporaryDirectory() as many,
    ):
        empty, large = (
            _Server(Path(folder), bytecode, postgres.url(postgres.create_database()))
            for folder in (few, many)
        )
        empty.fill(0, 0)
        large.fill(MEMBERS, 1)
        empty.start()
        bare, full = _in_turns(empty, large)
        what = f"restart with {MEMBERS:,} members, PostgreSQL"
        return [
            Figure(what, full.wall, "s", 2, bare.wall),
            Figure(
                "its processor time, without the database's",
                full.processor,
                "s",
                None,
                bare.processor,
            ),
        ]


@dataclass(frozen=True, slots=True)
class _Start:
    wall: float
    processor: float
    memory: float  # KiB


class _Server:
    """A gdoi-gcks with its configuration and state in ``folder``."""

    def __init__(self, folder: Path, bytecode: Path, database: str | None = None) -> None:
        """``database``: PostgreSQL's URL, or None for a file."""
        self._folder = folder
        self._environment = os.environ | {"PYTHONPYCACHEPREFIX": str(bytecode)}
        self._environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self._path = folder / "gcks.toml"
        state = f'state = "{folder}/gcks.sqlite"'
        if database is not None:
            state += f'\ndatabase = "{database}"'
        self._path.write_text(CONFIG.format(folder=folder, port=PORT, state=state))
        key = folder / "master.key"
        key.touch(0o600)
        key.write_text(os.urandom(32).hex())
        self._config = KeyServerDaemonConfig(self._path)

    def fill(self, members: int, pages: int) -> None:
        """As if so many had registered, and acknowledged so many rekeys."""
        key = read_master_key(self._folder / "master.key")
        with closing(Store(self._config.settings.place(self._path), key)) as store:
            server = KeyServer(self._config.groups, lambda _: None, os.urandom)
            now = time.time()
            started = server.start(now, store.load())
            (group,) = server.groups.values()
            store.save(action for action in started if isinstance(action, Persist))
            store.save(_registered(group, members, now))
            for _ in range(pages):
                store.save(_acknowledged(group, now))

    def start(self) -> _Start:
        """A process from its first moment until it has started; then it is stopped."""
        log = self._folder / "log"
        log.unlink(missing_ok=True)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        child = subprocess.Popen([PROGRAM, "--config", self._path], env=self._environment)
        while not any(event == "started" for event in _events(log)):
            if child.poll() is not None or time.perf_counter() - began > PATIENCE:
                child.kill()
                raise RuntimeError(f"gdoi-gcks has not started: {log.read_text()[-500:]}")
            time.sleep(0.001)
        wall = time.perf_counter() - began
        memory = _resident(child.pid)
        child.kill()
        child.wait()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return _Start(wall, spent, memory)


def _events(log: Path) -> Iterator[str]:
    if log.exists():
        for line in log.read_text().rpartition("\n")[0].splitlines():
            yield json.loads(line)["event"]


def _resident(pid: int) -> float:
    """KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return float(line.split()[1])
    raise RuntimeError(f"no VmRSS of {pid}")


def _in_turns(*servers: _Server) -> list[_Start]:
    rounds = [[server.start() for server in servers] for _ in range(ROUNDS)]
    return [
        _Start(
            statistics.median(start.wall for start in starts),
            statistics.median(start.processor for start in starts),
            statistics.median(start.memory for start in starts),
        )
        for starts in zip(*rounds, strict=True)
    ]


def _registered(group: Group, members: int, now: float) -> list[Persist]:
    found = []
    for number in range(members):
        host = FIRST + number
        identity = Identity.of_address(host)
        route = Route(group.config.source, Peer(host, 848))
        member = group.registrant(identity, route, now)
        if all(sa.full for sa in group.sas):
            group.plant(group.current_kek().signer, os.urandom, now)
        group.admit(member, group.offer(identity, route, now), os.urandom)
        group.roster.add(member)
        found.append(Persist("member", member_record(group, member)))
    return [*found, *tree_persists(group), Persist("group", group_record(group))]


def _acknowledged(group: Group, now: float) -> list[Persist]:
    """One page more, of everybody."""
    group.epoch += 1
    everybody = list(group.members.values())
    under = group.current_kek()
    rekey = group.open_rekey(
        under, "operator", now, with_kek=False, deletes_all=False, members=everybody
    )
    under.seq += 1
    rekey.seqs.append(under.seq)
    rekey.attempts, rekey.closed = 1, True
    for member in everybody:
        rekey.acknowledged.note(member.number, now + 1)
    return [Persist("group", group_record(group)), Persist("rekey", rekey_record(group, rekey))]
