"""Where a key server keeps its state, as its configuration says."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.daemon.config_store import StoreSection
from gdoi_plugin.daemon.errors import StoreError
from gdoi_plugin.daemon.store import postgres
from gdoi_plugin.daemon.store.postgres import PostgresServer
from gdoi_plugin.daemon.store.sealing import CREDENTIAL, MasterKey

PASSWORD = "hunter2 is no password"


def test_a_file_by_default() -> None:
    section = StoreSection()
    assert section.place(Path("gcks.toml")) == Path("/var/lib/gdoi/gcks.sqlite")
    assert section.key(Path("gcks.toml"), {}) is None


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("postgresql://gdoi:hunter2@db/gdoi", "a password in it: give database_password"),
        ("postgresql://gdoi@db/gdoi?password=hunter2", "a password in it: give database_password"),
        ("mysql://gdoi@db/gdoi", "mysql://; must be postgresql://"),
        ("db.example.org", "must be postgresql://USER@HOST:PORT/NAME"),
        ("", "must be postgresql://USER@HOST:PORT/NAME"),
    ],
)
def test_what_is_no_database(url: str, what: str) -> None:
    with pytest.raises(ValidationError) as caught:
        StoreSection.model_validate({"database": url})
    (error,) = caught.value.errors(include_input=False)
    assert what in error["msg"]
    assert "hunter2" not in error["msg"]


def test_a_password_is_for_a_database() -> None:
    with pytest.raises(ValidationError, match="database_password is for a PostgreSQL database"):
        StoreSection.model_validate({"database_password": "password"})


def section(folder: Path, mode: int = 0o600) -> StoreSection:
    (folder / "password").write_text(PASSWORD + "\n")
    (folder / "password").chmod(mode)
    return StoreSection.model_validate(
        {"database": "postgresql://gdoi@db.example.org/gdoi", "database_password": "password"}
    )


def test_the_password_is_read_from_a_file_and_shown_nowhere(tmp_path: Path) -> None:
    place = section(tmp_path).place(tmp_path / "gcks.toml")
    assert isinstance(place, PostgresServer)
    engine = place.engine()
    assert engine.url.password == PASSWORD
    for text in (place.name, repr(engine), str(engine.url), repr(engine.url)):
        assert PASSWORD not in text
    assert place.name == "postgresql database gdoi at db.example.org"


def test_without_its_driver_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = section(tmp_path).place(tmp_path / "gcks.toml")
    assert isinstance(place, PostgresServer)
    monkeypatch.setattr(postgres, "find_spec", lambda name: None if name == "psycopg" else 1)
    with pytest.raises(StoreError, match=r"pip install 'gdoi-plugin\[postgresql\]'"):
        place.engine()


@pytest.mark.parametrize(
    ("octets", "mode", "what"),
    [
        (b"x", 0o644, "others may read it"),
        (b"\n", 0o600, "empty"),
        (b"\xff", 0o600, "not UTF-8"),
    ],
)
def test_a_password_file_that_is_none(tmp_path: Path, octets: bytes, mode: int, what: str) -> None:
    made = section(tmp_path, mode)
    (tmp_path / "password").write_bytes(octets)
    with pytest.raises(StoreError, match=f"password: {what}"):
        made.place(tmp_path / "gcks.toml")


def test_the_file_that_is_named_before_the_credential(tmp_path: Path) -> None:
    key = tmp_path / "master.key"
    key.touch(0o600)
    key.write_text("01" * 32)
    (tmp_path / CREDENTIAL).write_text("02" * 32)
    (tmp_path / CREDENTIAL).chmod(0o440)  # systemd's access control lists look like that
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    named = StoreSection.model_validate({"master_key": "master.key"})
    config = tmp_path / "gcks.toml"
    assert named.key(config, environment) == MasterKey(Secret(b"\1" * 32))
    assert StoreSection().key(config, environment) == MasterKey(Secret(b"\2" * 32))
