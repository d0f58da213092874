"""The daemons as the operator has them: processes on loopback, their words and exit codes."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from gdoi_plugin import __version__
from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.protocol.actions import Action, Peer, Send
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.isakmp import SUITES
from gdoi_plugin.protocol.phase1 import Phase1Config, PreSharedKey
from gdoi_plugin.protocol.registration import KeyServerEntry, Registration
from gdoi_plugin.wire.header import pull_header
from tests.daemon.children import NOBODY, eventually, finished, running
from tests.daemon.configs import GCKS, GM, PSK, write
from tests.daemon.test_udp import TAKEN, free_port

BIN = Path(sys.executable).parent
PROGRAMS = ("gdoi-gcks", "gdoi-gm")
HOST = "127.0.0.1"


class Server:
    """A folder for one gdoi-gcks: its file, control socket, state, log and port."""

    def __init__(self, folder: Path, text: str = GCKS) -> None:
        self.folder = folder
        self.port = free_port()
        self.control = folder / "gcks.vici"
        self.log = folder / "log"
        self.state = folder / "gcks.sqlite"
        settings = f"""
port = {self.port}
state = "{self.state}"
control = "{self.control}"
log = "{self.log}"
proposals = ["aes128-sha256-ecp256"]
"""
        member = f'members = ["{HOST}"]\nrekey.signature = "ecdsa256"\n'
        text = text.replace('address = "127.0.0.1"\n', 'address = "127.0.0.1"\n' + settings, 1)
        text = text.replace('members = ["127.0.0.2"]\n', member, 1)
        self.config = write(folder, text, "gcks.toml")

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[str]]:
        before = self.events("started")
        with running([BIN / "gdoi-gcks", "--config", self.config, "--log-level=debug"]) as child:
            eventually(
                lambda: len(self.events("started")) > len(before) or child.poll() is not None,
                "gdoi-gcks starts",
            )
            assert child.poll() is None, child.communicate()
            yield child

    def ctl(self, *words: str) -> Any:
        done = finished([BIN / "gdoictl", "--socket", self.control, "--json", *words])
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def group(self) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        def look(value: Any) -> None:
            if isinstance(value, dict):
                if "kek-spi" in value:
                    found.append(value)
                for inner in value.values():
                    look(inner)
            elif isinstance(value, list):
                for inner in value:
                    look(inner)

        look(self.ctl("status"))
        (group,) = found
        return group

    def lines(self) -> list[dict[str, Any]]:
        if not self.log.exists():
            return []
        complete = self.log.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in complete.splitlines()]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line["event"] == name]


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


def failed(program: str, *arguments: object) -> tuple[int, str]:
    """Exit code, and the one line on standard error."""
    done = finished([BIN / program, *arguments])
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert PSK not in done.stderr
    return done.returncode, done.stderr.strip()


# -- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", PROGRAMS)
def test_version_and_help(program: str) -> None:
    done = finished([BIN / program, "--version"])
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{program} {__version__}\n", "")
    done = finished([BIN / program, "--help"])
    assert (done.returncode, done.stderr) == (0, "")
    for option in ("--config", "--check", "--keylog", "--log-level", "--version"):
        assert option in done.stdout


def test_check_does_nothing_but_check(server: Server, tmp_path: Path) -> None:
    done = finished([BIN / "gdoi-gcks", "--config", server.config, "--check"])
    said = f"{server.config}: 1 groups, address 127.0.0.1:{server.port}\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    config = write(tmp_path, GM, "gm.toml")
    done = finished([BIN / "gdoi-gm", "--config", config, "--check"])
    said = f"{config}: 1 groups, local address 127.0.0.1:848\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gcks.toml", "gm.toml"]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("check", [[], ["--check"]])
def test_a_bad_file(tmp_path: Path, program: str, check: list[str]) -> None:
    config = write(
        tmp_path, GCKS.replace("[[peer]]", "[[peers]]").replace("[key", "[member]\n[key")
    )
    if program == "gdoi-gm":
        config = write(tmp_path, GM.replace("id = 1", "id = true"))
    code, line = failed(program, "--config", config, *check)
    assert code == 2
    key = "peer: missing" if program == "gdoi-gcks" else "group.0.id: must be a number or a string"
    assert line == f"{program}: {config}: {key}"
    code, line = failed(program, "--config", tmp_path / "none", *check)
    assert (code, line) == (2, f"{program}: {tmp_path}/none: No such file or directory")


def test_no_esp_in_this_kernel(tmp_path: Path) -> None:
    """Nobody may not ask; root is told that there is none. Either way one sentence."""
    config = write(
        tmp_path,
        GM.replace(
            '[member]\naddress = "127.0.0.1"',
            f'[member]\naddress = "127.0.0.1"\nport = {free_port()}\n'
            f'state = "{tmp_path}/gm"\ncontrol = "{tmp_path}/gm.vici"',
        ),
    )
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    tmp_path.chmod(0o777)
    done = finished([*NOBODY, BIN / "gdoi-gm", "--config", config])
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("gdoi-gm: this kernel cannot hold the group's ESP SAs: ")
    assert "CAP_NET_ADMIN" in last or "EPROTONOSUPPORT" in last or "EPERM" in last
    assert not (tmp_path / "gm.vici").exists()


# -- starting, twice -----------------------------------------------------------------------------


def test_port_taken(server: Server) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((HOST, server.port))
        said = f"cannot bind UDP 127.0.0.1:{server.port}: {TAKEN}"
        assert failed("gdoi-gcks", "--config", server.config) == (1, f"gdoi-gcks: {said}")
    assert not server.control.exists()


def test_a_second_daemon(server: Server, tmp_path: Path) -> None:
    with server.running():
        said = f"{server.state}: another key server is using it"
        assert failed("gdoi-gcks", "--config", server.config) == (1, f"gdoi-gcks: {said}")
        text = server.config.read_text().replace("gcks.sqlite", "other.sqlite")
        config = write(tmp_path, text, "other.toml")
        said = f"control socket {server.control}: another daemon is serving it"
        assert failed("gdoi-gcks", "--config", config) == (1, f"gdoi-gcks: {said}")
        assert server.ctl("status")


def test_state_that_cannot_be_read(server: Server) -> None:
    server.state.write_text("no database " * 500)
    said = f"{server.state}: file is not a database"
    assert failed("gdoi-gcks", "--config", server.config) == (1, f"gdoi-gcks: {said}")


def test_a_log_that_cannot_be_opened(server: Server) -> None:
    server.log.mkdir()
    said = f"log {server.log}: Is a directory"
    assert failed("gdoi-gcks", "--config", server.config) == (1, f"gdoi-gcks: {said}")


# -- stopping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_clean_stop(server: Server, number: signal.Signals) -> None:
    with server.running() as child:
        assert server.control.exists()
        child.send_signal(number)
        out, err = child.communicate(timeout=90)
    assert (child.returncode, out, err) == (0, "", "")
    assert not server.control.exists()
    assert [line["event"] for line in server.lines()][-1] == "stopped"


def test_kill_9_and_again(server: Server) -> None:
    """Epoch, KEK and SEQ go on where they were; what was sent is never reused."""
    with server.running() as child:
        for _ in range(3):
            server.ctl("rekey", "--group", "video")
        server.ctl("rekey", "--group", "video", "--kek")
        server.ctl("rekey", "--group", "video")
        before = server.group()
        child.kill()
    with server.running():
        after = server.group()
        assert before["epoch"] == "6"
        keys = ("epoch", "seq", "kek-spi", "id", "members")
        assert {key: after[key] for key in keys} == {key: before[key] for key in keys}
        server.ctl("rekey", "--group", "video")
        assert int(server.group()["seq"]) == int(before["seq"]) + 1
    assert server.events("group-created")[1:] == []
    assert len(server.events("group-restored")) == 1


# -- floods --------------------------------------------------------------------------------------


def memory(child: subprocess.Popen[str]) -> int:
    """Resident, in KB."""
    status = Path(f"/proc/{child.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


class Client:
    """A member's engine at the end of a socket, to have true datagrams to spoil."""

    def __init__(self, server: Server) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((HOST, 0))
        self.socket.settimeout(10)
        self.there = (HOST, server.port)
        address = ip_address(HOST)
        local = Peer(address, self.socket.getsockname()[1])
        me = Identity.of_address(address)
        auth = PreSharedKey(me, me, Secret(PSK.encode()))
        phase1 = Phase1Config((auth,), (SUITES["aes128-sha256-ecp256"],))
        entry = KeyServerEntry(Peer(address, server.port), phase1)
        self.registration = Registration(
            entry, GroupId.of_number(1), local, random.Random(1).randbytes
        )
        self.entry = entry
        self.sent: list[bytes] = []

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self.sent.append(action.datagram)
                self.socket.sendto(action.datagram, self.there)

    def register(self) -> None:
        self._carry_out(self.registration.start(0.0))
        while self.registration.result is None:
            assert self.registration.failure is None, self.registration.failure
            datagram = self.socket.recv(65535)
            header = pull_header(datagram)
            if self.registration.owns(header):
                self._carry_out(self.registration.receive(header, datagram, self.entry.remote, 0.0))


def spoiled(rng: random.Random, true: list[bytes]) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        return rng.randbytes(rng.choice((0, 1, 27, 28, 29, 60, 200, 1400, 9000)))
    octets = bytearray(rng.choice(true))
    if kind == 1:
        for _ in range(rng.randint(1, 8)):
            octets[rng.randrange(len(octets))] = rng.randrange(256)
    elif kind == 2:
        del octets[rng.randrange(len(octets)) :]
    else:
        # The beginning of a true header: exchange, cookies and length are right, the rest is not.
        octets[28:] = rng.randbytes(len(octets) - 28)
    return bytes(octets)


def test_a_flood_of_rubbish(server: Server) -> None:
    rng = random.Random(20240607)
    with server.running() as child:
        client = Client(server)
        try:
            client.register()
            resting = memory(child)
            for number in range(10_000):
                client.socket.sendto(spoiled(rng, client.sent), client.there)
                if number % 500 == 0:
                    server.ctl("status")  # it answers meanwhile
            assert server.group()["members"] == "1"
            other = Client(server)
            try:
                other.register()  # and still lets members in
            finally:
                other.socket.close()
            assert memory(child) < resting + 40_000
        finally:
            client.socket.close()
        child.terminate()
        out, err = child.communicate(timeout=90)
    assert (child.returncode, out, err) == (0, "", "")
    assert server.events("bug") == []
    assert sum(line["count"] for line in server.events("dropped-more")) > 1000
    assert server.log.stat().st_size < 2_000_000
