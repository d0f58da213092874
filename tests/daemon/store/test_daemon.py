"""gdoi-gcks itself, a process, with a master key and on either database."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gdoi_plugin.daemon.store.sealing import CREDENTIAL, read_master_key
from tests.daemon.children import finished
from tests.daemon.test_processes import BIN, Server, failed


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


def key_file(folder: Path, name: str) -> Path:
    path = folder / name
    path.touch(0o600)
    path.write_text(os.urandom(32).hex())
    return path


def configure(server: Server, line: str) -> None:
    text = server.config.read_text()
    server.config.write_text(text.replace("state =", f"{line}\nstate =", 1))


def started(server: Server) -> dict[str, object]:
    with server.running():
        return server.group()


def test_without_a_master_key_there_is_a_warning(server: Server) -> None:
    started(server)
    (warning,) = server.events("unsealed")
    assert "set master_key" in warning["hint"]


def test_rotation_of_a_key_in_a_file(server: Server, tmp_path: Path) -> None:
    old, new = key_file(tmp_path, "master.key"), key_file(tmp_path, "new.key")
    configure(server, 'master_key = "master.key"')
    with server.running():
        before = server.group()
        server.ctl("rekey", "--group", "video")
        said = f"{server.state}: another key server is using it"
        rotate = ("--config", server.config, "--rotate-master-key", new)
        assert failed("gdoi-gcks", *rotate) == (1, f"gdoi-gcks: {said}")
    assert server.events("unsealed") == []
    done = finished([BIN / "gdoi-gcks", *rotate])
    assert (done.returncode, done.stderr) == (0, "")
    assert read_master_key(new).name in done.stdout
    names = read_master_key(new).name, read_master_key(old).name
    said = f"{server.state}: sealed with master key {names[0]}, the one configured is {names[1]}"
    assert failed("gdoi-gcks", "--config", server.config) == (1, f"gdoi-gcks: {said}")
    new.replace(old)
    assert started(server)["epoch"] == str(int(str(before["epoch"])) + 1)


def test_a_database_that_was_in_clear_is_sealed_by_command(server: Server, tmp_path: Path) -> None:
    before = started(server)
    key = key_file(tmp_path, "master.key")
    configure(server, 'master_key = "master.key"')
    code, said = failed("gdoi-gcks", "--config", server.config)
    assert (code, said.startswith(f"gdoi-gcks: {server.state}: not sealed, and a")) == (1, True)
    done = finished([BIN / "gdoi-gcks", "--config", server.config, "--seal"])
    told = f"{server.state}: 1 rows sealed with master key {read_master_key(key).name}\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, told, "")
    assert started(server)["kek-spi"] == before["kek-spi"]


def test_a_backup_that_was_put_back_is_refused(server: Server, tmp_path: Path) -> None:
    started(server)
    backup = tmp_path / "backup"
    with closing(sqlite3.connect(server.state)) as source, closing(sqlite3.connect(backup)) as copy:
        source.backup(copy)
    with server.running():
        server.ctl("rekey", "--group", "video")
    for file in server.state.parent.glob(f"{server.state.name}-*"):
        file.unlink()  # the log of the one that is lost
    backup.replace(server.state)
    code, said = failed("gdoi-gcks", "--config", server.config)
    mark = server.state.with_name(f"{server.state.stem}-reached.json")
    assert (code, f"group 1 is older than {mark.name}" in said) == (1, True)
    mark.unlink()
    started(server)


def test_a_new_database_is_not_an_older_one(server: Server) -> None:
    """Neither at the start that makes it nor at any later one."""
    with server.running():
        for _ in range(2):
            server.ctl("rekey", "--group", "video")
    for file in server.state.parent.glob(f"{server.state.name}*"):
        file.unlink()
    new = started(server)
    assert started(server)["kek-spi"] == new["kek-spi"]
    assert json.loads(server.state.with_name(f"{server.state.stem}-reached.json").read_text()) == {}


def test_a_credential_and_postgresql(
    server: Server, tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    key_file(credentials, CREDENTIAL)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    configure(server, f'database = "{database}"')
    with server.running() as child:
        server.ctl("rekey", "--group", "video")
        before = server.group()
        child.kill()
        child.wait()
    assert not server.state.exists()
    after = started(server)
    assert server.events("unsealed") == []
    assert (after["epoch"], after["kek-spi"]) == (before["epoch"], before["kek-spi"])
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    code, said = failed("gdoi-gcks", "--config", server.config)
    assert code == 1
    assert said.startswith("gdoi-gcks: postgresql database gdoi")
    assert said.endswith(", and key_server.master_key is not set")


@pytest.mark.parametrize("option", [[], ["--check"]])
def test_a_master_key_that_others_may_read(
    server: Server, tmp_path: Path, option: list[str]
) -> None:
    file = key_file(tmp_path, "master.key")
    file.chmod(0o644)
    configure(server, 'master_key = "master.key"')
    code, said = failed("gdoi-gcks", "--config", server.config, *option)
    assert (code, server.state.exists()) == (1, False)
    assert said == f"gdoi-gcks: master key {file}: others may read it; its mode must be 0600"
