"""gdoictl as a process of its own against control servers with sample daemons behind them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gdoi_plugin.cli import show
from gdoi_plugin.daemon.control import (
    CommandFailed,
    ControlServer,
    Handler,
    Message,
    StreamHandler,
    to_message,
)

PROGRAM = (
    "import sys; from pathlib import Path; from gdoi_plugin.cli import gdoictl, sockets;"
    "sockets.RUN_DIR = Path(sys.argv.pop(1)); gdoictl.WINDOW_MARGIN = 0.2;"
    "gdoictl.LEDGER_PAUSE = 0.05;"
    "sys.exit(gdoictl.main())"
)
PATIENCE = 90.0

EVENTS = (
    "ack-missing",
    "ack-missing-more",
    "member-registered",
    "rekey-acked",
    "rekey-sent",
    "sa-installed",
)

NOW = time.time()
GROUP: dict[str, object] = {
    "group": 7,
    "name": "substation",
    "epoch": 4,
    "kek-spi": "0102",
    "seq": 12,
    "members": 3,
    "next-rekey": int(NOW) + 3600,
}
MEMBERS: list[dict[str, object]] = [
    {"group": 7, "identity": f"gm{n}", "address": f"10.0.0.{n}", "registered": int(NOW) - 120}
    | {"rtt": 0.0123, "secret-extra": "only in json"}
    for n in (1, 2, 3)
]
SAS: list[dict[str, object]] = [
    {"group": 7, "spi": "0xc0ffee01", "destination": "239.1.1.1", "state": "sending"}
    | {"remaining": 3671, "bytes": 1234567, "packets": "many"}
]
KEY: dict[str, object] = {"group": 7, "spi": "0x00000001", "auth": "hmac-sha256-128"}


@dataclass
class Daemon:
    """A pretended gdoi-gcks or gdoi-gm; a rekey asks `after_rekey` what events follow. Each look at
    the ``ledger`` finds its next state; with ``closes`` nobody hears of events any more."""

    name: str = "gdoi-gcks"
    members: list[dict[str, object]] = field(default_factory=lambda: list(MEMBERS))
    answer: dict[str, object] = field(
        default_factory=lambda: {"group": 7, "epoch": 5, "seq": 13, "expected": 3, "window": 20}
    )
    differences: dict[str, object] = field(default_factory=dict)
    after_rekey: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    ledger: list[dict[str, object]] = field(
        default_factory=lambda: [{"acknowledged": 1, "missing": ["gm2", "gm3"]}]
    )
    closes: bool = False
    asked: list[tuple[str, Message]] = field(default_factory=list)
    server: ControlServer | None = None

    def serve(self, path: Path) -> ControlServer:
        commands: dict[str, Handler] = {
            "stats": lambda _: to_message({"uptime": 5, "drops": {"bad-hash": 2}}),
            "register": self.register,
        }
        streams: dict[str, StreamHandler] = {
            "list-groups": ("list-group", lambda _: iter([to_message(GROUP)])),
            "list-sas": ("list-sa", lambda _: iter([to_message(sa) for sa in SAS])),
            "list-rekeys": ("list-rekey", self.list_rekeys),
            "list-keys": ("list-key", self.list_keys),
        }
        if self.name == "gdoi-gcks":
            for name in ("rekey", "delete-tek", "delete-group", "revoke"):
                commands[name] = partial(self.rekey, name)
            commands |= {"evict": self.evict, "admit": self.admit, "reload": self.reload}
            streams["list-members"] = ("list-member", self.list_members)
        about = {"daemon": self.name, "version": "0.1.0"}
        self.server = ControlServer(path, commands, streams, EVENTS, about=about)
        return self.server

    def register(self, request: Message) -> Message:
        self.asked.append(("register", request))
        return to_message({"groups": 1})

    def list_members(self, request: Message) -> Iterator[Message]:
        self.asked.append(("list-members", request))
        for member in self.members:
            if request.get("group", "7") == str(member["group"]):
                yield to_message(member)

    def list_rekeys(self, _request: Message) -> Iterator[Message]:
        page = self.ledger.pop(0) if len(self.ledger) > 1 else self.ledger[0]
        yield to_message({"group": 7, "epoch": 4, "acknowledged": 9, "missing": ["old"]})
        yield to_message({"group": 7, "epoch": 5, "expected": 3, **page})

    def list_keys(self, request: Message) -> Iterator[Message]:
        yield to_message(KEY | ({"auth-key": "c0de"} if request.get("secrets") == "yes" else {}))

    def rekey(self, command: str, request: Message) -> Message:
        if request["group"] != "7":
            raise CommandFailed(f"no group {request['group']}")
        self.asked.append((command, request))
        loop = asyncio.get_running_loop()
        for event, fields in self.after_rekey:
            loop.call_soon(self.emit, event, fields)
        if self.closes:
            loop.call_soon(self.close_listeners)
        return to_message(self.answer)

    def close_listeners(self) -> None:
        """As the server does with clients that read too slowly."""
        assert self.server is not None
        for client in [client for client in self.server._clients if client.events]:
            self.server._drop_reader(client)

    def evict(self, request: Message) -> Message:
        self.asked.append(("evict", request))
        counts = {"evicted": 2, "registered": 1, "denied": request["identities"]}
        return to_message({"group": request["group"], **counts})

    def admit(self, request: Message) -> Message:
        self.asked.append(("admit", request))
        return to_message({"group": request["group"], "admitted": 1, "denied": []})

    def reload(self, request: Message) -> Message:
        self.asked.append(("reload", request))
        return to_message({"done": request["dry-run"] == "no"} | self.differences)

    def emit(self, event: str, fields: dict[str, object]) -> None:
        assert self.server is not None
        self.server.emit(event, to_message(fields))


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


async def gdoictl(folder: Path, *arguments: str) -> Result:
    command = [sys.executable, "-c", PROGRAM, str(folder), *arguments]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode is not None
    assert "Traceback" not in err.decode()
    return Result(process.returncode, out.decode(), err.decode())


def run(
    folder: Path, scenario: Callable[[], Awaitable[None]], *, gcks: Any = None, gm: Any = None
) -> None:
    """`scenario` while the given daemons serve in `folder`."""

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            for name, daemon in (("gcks", gcks), ("gm", gm)):
                if daemon is not None:
                    server = daemon.serve(folder / f"{name}.vici")
                    await server.start()
                    stack.push_async_callback(server.close)
            await scenario()

    asyncio.run(main())


def one(folder: Path, *arguments: str, gcks: Any = None, gm: Any = None) -> Result:
    """One call of gdoictl."""
    results: list[Result] = []

    async def scenario() -> None:
        results.append(await gdoictl(folder, *arguments))

    run(folder, scenario, gcks=gcks, gm=gm)
    return results[0]


# ---------------------------------------------------------------- lists and status


def test_members_table(tmp_path: Path) -> None:
    result = one(tmp_path, "members", gcks=Daemon())
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert re.split(r"\s{2,}", lines[0].strip()) == [
        "group",
        "identity",
        "address",
        "registered",
        "ACK time",
    ]
    assert len(lines) == 4
    assert "10.0.0.1" in lines[1]
    assert re.search(r"\(\d+m \d+s ago\) +12\.3 ms", lines[1])
    assert "only in json" not in result.out


def test_members_json_and_filter(tmp_path: Path) -> None:
    daemon = Daemon()
    result = one(tmp_path, "--json", "members", "--group", "7", gcks=daemon)
    assert result.code == 0
    assert [member["identity"] for member in result.json] == ["gm1", "gm2", "gm3"]
    assert result.json[0]["secret-extra"] == "only in json"
    assert daemon.asked == [("list-members", {"group": "7"})]
    result = one(tmp_path, "members", "--group", "8", "--json", gcks=daemon)
    assert (result.code, result.json) == (0, [])
    assert one(tmp_path, "members", "--group", "8", gcks=daemon).out == "no members\n"


def test_sas_and_rekeys(tmp_path: Path) -> None:
    result = one(tmp_path, "sas", gm=Daemon("gdoi-gm"))
    assert result.code == 0
    assert "1h 1m" in result.out
    assert "1,234,567" in result.out
    assert "many" in result.out  # not a number: shown as it came
    result = one(tmp_path, "rekeys", gcks=Daemon())
    assert "gm2, gm3" in result.out


def test_keys_are_shown_on_request_alone(tmp_path: Path) -> None:
    result = one(tmp_path, "keys", gm=Daemon("gdoi-gm"))
    assert (result.code, "0x00000001" in result.out, "c0de" in result.out) == (0, True, False)
    result = one(tmp_path, "keys", "--secrets", gm=Daemon("gdoi-gm"))
    assert "c0de" in result.out
    assert one(tmp_path, "keys", "--group", "7", "--json", gm=Daemon("gdoi-gm")).json == [
        {name: str(value) for name, value in KEY.items()}
    ]


def test_status_of_both_daemons(tmp_path: Path) -> None:
    result = one(tmp_path, "status", gcks=Daemon(), gm=Daemon("gdoi-gm"))
    assert (result.code, result.err) == (0, "")
    assert f"gdoi-gcks 0.1.0 at {tmp_path}/gcks.vici" in result.out
    assert f"gdoi-gm 0.1.0 at {tmp_path}/gm.vici" in result.out
    assert "  drops.bad-hash: 2" in result.out
    assert "substation" in result.out
    assert re.search(r"\(in \d+m \d+s\)", result.out)
    result = one(tmp_path, "status", "--json", gcks=Daemon(), gm=Daemon("gdoi-gm"))
    assert [daemon["version"]["daemon"] for daemon in result.json] == ["gdoi-gcks", "gdoi-gm"]
    assert result.json[0]["stats"]["drops"] == {"bad-hash": "2"}
    assert result.json[0]["groups"][0]["epoch"] == "4"


def test_a_dead_daemon_does_not_hide_the_other(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "gm.vici"))
    result = one(tmp_path, "status", gcks=Daemon())
    assert result.code == 1
    assert "gdoi-gcks 0.1.0" in result.out
    assert result.err.startswith(f"gdoictl: no daemon at {tmp_path}/gm.vici: the socket is left")


def test_which_daemon_is_asked(tmp_path: Path) -> None:
    gcks, gm = Daemon(), Daemon("gdoi-gm")
    result = one(tmp_path, "members", gcks=gcks, gm=gm)
    assert result.code == 0
    assert "both daemons have a socket here: asking gdoi-gcks (--gm asks" in result.err
    result = one(tmp_path, "register", gcks=gcks, gm=gm)
    assert result.out == "registration of all groups accepted: groups=1\n"
    assert "asking gdoi-gm (--gcks asks" in result.err
    assert gm.asked == [("register", {})]
    result = one(tmp_path, "--gcks", "register", "--group", "7", "--json", gcks=gcks, gm=gm)
    assert (result.err, result.json) == ("", [{"groups": "1"}])
    assert gcks.asked[-1] == ("register", {"group": "7"})
    result = one(tmp_path / "none", "members", "--socket", str(tmp_path / "gcks.vici"), gcks=None)
    assert result.code == 1


def test_control_characters_of_a_peer_do_not_reach_the_terminal(tmp_path: Path) -> None:
    evil = "gm\x1b]0;owned\x07\n[red]\u202e"
    daemon = Daemon(members=[{"group": 7, "identity": evil, "address": "10.0.0.1"}])
    result = one(tmp_path, "members", gcks=daemon)
    assert r"gm\x1b]0;owned\x07\n[red]\u202e" in result.out
    assert "\x1b" not in result.out
    assert one(tmp_path, "--json", "members", gcks=daemon).json[0]["identity"] == evil


def test_columns_show_what_came_when_it_is_not_what_it_should_be() -> None:
    for value in ("soon", "nan", "1e400", "-1e30"):
        for column in (column for columns in show.COLUMNS.values() for column in columns):
            assert column.cell({column.key: value})
    assert show.duration(0) == "0s"
    assert show.duration(90061) == "1d 1h"


# ---------------------------------------------------------------- errors


def test_no_daemon(tmp_path: Path) -> None:
    result = one(tmp_path, "status")
    assert (result.code, result.out) == (1, "")
    assert "no daemon: there is neither" in result.err
    result = one(tmp_path, "--gm", "sas", "--json")
    assert (result.code, result.out) == (1, "")
    assert result.err == f"gdoictl: no daemon at {tmp_path}/gm.vici: there is no such socket\n"


def test_usage(tmp_path: Path) -> None:
    for arguments in (
        [],
        ["rekey"],
        ["nonsense"],
        ["--gm", "--gcks", "status"],
        ["--timeout", "0", "status"],
        ["--timeout", "x", "status"],
        ["revoke", "192.0.2.13"],
        ["--gm", "check"],
    ):
        result = one(tmp_path, *arguments)
        assert result.code == 2
        assert "usage: gdoictl" in result.err


def test_command_the_daemon_does_not_have(tmp_path: Path) -> None:
    for command, asked in ((["members"], "list-members"), (["rekey", "--group", "7"], "rekey")):
        result = one(tmp_path, *command, gm=Daemon("gdoi-gm"))
        assert result.code == 1
        assert result.err == (
            f"gdoictl: gdoi-gm at {tmp_path}/gm.vici does not know the command {asked};"
            " a key server does\n"
        )


def test_refusal_is_one_sentence(tmp_path: Path) -> None:
    result = one(tmp_path, "rekey", "--group", "9", gcks=Daemon())
    assert (result.code, result.out, result.err) == (1, "", "gdoictl: rekey: no group 9\n")


def test_permission_denied(tmp_path: Path) -> None:
    """By a child that gives up root after it has loaded the program."""
    program = PROGRAM.replace("sys.exit", "import os; os.setgid(65534); os.setuid(65534); sys.exit")

    async def scenario() -> None:
        for arguments in (["--gcks", "status"], ["members"]):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", program, str(tmp_path), *arguments),
                stderr=asyncio.subprocess.PIPE,
            )
            _, err = await asyncio.wait_for(process.communicate(), PATIENCE)
            assert process.returncode == 1
            assert b"permission denied at" in err
            assert err.count(b"\n") == 1

    run(tmp_path, scenario, gcks=Daemon())


@contextlib.contextmanager
def pretender(path: Path, answer: bytes) -> Iterator[None]:
    """Something that accepts one connection, says `answer` and then nothing."""
    release = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(answer)
            release.wait(PATIENCE)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        release.set()
        thread.join()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "no answer from PATH in 0.3 s"),
        (b"\x00\x00", "no answer from PATH in 0.3 s"),
        (struct.pack("!I", 50) + b"\x01", "no answer from PATH in 0.3 s"),
        (b"HTTP/1.1 400", "cannot understand the answer from PATH: packet of 1213486160 octets"),
        (struct.pack("!IB", 1, 9), "cannot understand the answer from PATH"),
        (struct.pack("!IBB", 2, 1, 3), "cannot understand the answer from PATH"),
        (struct.pack("!IBB", 2, 1, 2), "cannot understand the answer from PATH"),
    ],
)
def test_a_daemon_that_hangs_or_talks_nonsense(tmp_path: Path, answer: bytes, error: str) -> None:
    path = tmp_path / "gm.vici"
    with pretender(path, answer):
        result = one(tmp_path, "--timeout", "0.3", "status")
    assert result.code == 1
    assert error.replace("PATH", str(path)) in result.err


# ---------------------------------------------------------------- events


def test_events_of_both_daemons_until_interrupted(tmp_path: Path) -> None:
    gcks, gm = Daemon(), Daemon("gdoi-gm")

    async def watch(*arguments: str) -> list[str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, str(tmp_path), "events", *arguments),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        await until(lambda: all(registered(daemon) for daemon in (gcks, gm)))
        gcks.emit("rekey-acked", {"group": 7, "member": "gm\x07"})
        first = await asyncio.wait_for(process.stdout.readline(), PATIENCE)
        gm.emit("sa-installed", {"spi": "0x1", "in": {"a": "b"}})
        second = await asyncio.wait_for(process.stdout.readline(), PATIENCE)
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), PATIENCE) == 0
        await until(lambda: not any(registered(daemon) for daemon in (gcks, gm)))
        return [first.decode(), second.decode()]

    async def scenario() -> None:
        first, second = await watch()
        assert re.match(r"\d\d:\d\d:\d\d\.\d{3}  gcks  rekey-acked +group=7 member=gm\\x07$", first)
        assert re.search(r" gm +sa-installed +spi=0x1 in\.a=b$", second)
        lines = [json.loads(line) for line in await watch("--json")]
        assert [line["event"] for line in lines] == ["rekey-acked", "sa-installed"]
        assert lines[0]["fields"] == {"group": "7", "member": "gm\x07"}
        assert lines[1]["socket"] == str(tmp_path / "gm.vici")
        assert abs(lines[0]["time"] - time.time()) < PATIENCE

    run(tmp_path, scenario, gcks=gcks, gm=gm)


def test_events_end_with_the_daemon(tmp_path: Path) -> None:
    gcks = Daemon()

    async def scenario() -> None:
        watching = asyncio.create_task(gdoictl(tmp_path, "events"))
        await until(lambda: registered(gcks))
        assert gcks.server is not None
        await gcks.server.close()
        result = await watching
        assert result.code == 1
        assert f"the daemon at {tmp_path}/gcks.vici closed the connection" in result.err

    run(tmp_path, scenario, gcks=gcks)


def registered(daemon: Daemon) -> bool:
    """A client has registered for the last of the events that gdoictl registers for."""
    assert daemon.server is not None
    return any(EVENTS[-1] in client.events for client in daemon.server._clients)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def test_evict_and_admit(tmp_path: Path) -> None:
    gcks = Daemon()

    async def scenario() -> None:
        out = await gdoictl(tmp_path, "evict", "--group", "7", "10.0.0.1", "gm2.example.org")
        assert out.code == 0
        assert out.out == (
            "7: 2 evicted, of whom 1 were registered; kept out: 10.0.0.1, gm2.example.org\n"
        )
        out = await gdoictl(tmp_path, "admit", "--group", "7", "10.0.0.1")
        assert out.out == "7: 1 let in; kept out: nobody\n"
        out = await gdoictl(tmp_path, "--json", "evict", "--group", "7", "10.0.0.1")
        assert out.json == [
            {"group": "7", "evicted": "2", "registered": "1", "denied": ["10.0.0.1"]}
        ]

    run(tmp_path, scenario, gcks=gcks)
    assert [name for name, _ in gcks.asked] == ["evict", "admit", "evict"]
    assert gcks.asked[0][1]["identities"] == ["10.0.0.1", "gm2.example.org"]
