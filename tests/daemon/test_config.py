"""What both daemons' configurations have in common: files, times, keys that show nowhere."""

from __future__ import annotations

import os
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdoi_plugin.daemon.config_gcks import KeyServerDaemonConfig
from gdoi_plugin.daemon.config_member import MemberDaemonConfig
from gdoi_plugin.daemon.config_values import parse_duration
from gdoi_plugin.daemon.errors import ConfigError
from gdoi_plugin.protocol.actions import Peer
from gdoi_plugin.protocol.dpd import DpdConfig
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.phase1 import PreSharedKey
from gdoi_plugin.wire.registry import Doi
from tests.daemon.configs import (
    GCKS,
    GM,
    PSK,
    PSK_LINE,
    Config,
    gcks,
    gm,
    refused,
    write,
)


def test_the_examples_are_good(tmp_path: Path) -> None:
    """deploy/config is what people copy; its addresses are for documentation, not of this host."""
    folder = Path(__file__).parents[2] / "deploy" / "config"
    for name in ("lan.psk", "gcks.psk"):
        (tmp_path / name).write_text("secret")
    config = KeyServerDaemonConfig(write(tmp_path, (folder / "gcks.toml").read_text()))
    assert config.groups
    text = (folder / "gm.toml").read_text().replace('interface = "eth0"', 'interface = "lo"')
    assert MemberDaemonConfig(write(tmp_path, text)).groups


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("1.5s", 1.5), ("10m", 600), ("1h", 3600), ("2d", 172800), ("0s", 0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "value",
    ["", "s", "30", "-1s", "+1s", " 1s", "1s ", "1 s", "1S", "1w", "1h30m", ".5s", "1.s", "1e3s",
     "\u0661s", "nans", "infs", "0x1s", 30, 1.5, True, None, ["1s"], {}],
)  # fmt: skip
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="is no time; write it as 30s, 10m, 1h or 2d"):
        parse_duration(value)


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        assert parse_duration(text) >= 0


@pytest.mark.parametrize(
    ("written", "dois"),
    [
        ("gdoi", (Doi.GDOI,)),
        ("ipsec", (Doi.IPSEC,)),
        ("any", (Doi.GDOI, Doi.IPSEC)),
    ],
)
def test_phase_1_under_ipsecs_number(written: str, dois: tuple[Doi, ...], tmp_path: Path) -> None:
    line = f'\nphase1_doi = "{written}"\n\n'
    server = KeyServerDaemonConfig(write(tmp_path, gcks(f'"{PSK}"\n\n', f'"{PSK}"{line}')))
    phase1 = server.phase1_for(Peer(ip_address("127.0.0.2"), 848))
    assert phase1 is not None
    assert phase1.dois == dois
    if written != "any":
        member = MemberDaemonConfig(write(tmp_path, GM + line))
        assert member.groups[0].key_servers[0].phase1.dois == dois


def test_the_life_of_phase_1(tmp_path: Path) -> None:
    written = 'phase1_lifetime = "2h"\ndpd_delay = "1m"\ndpd_timeout = "20s"\n'
    server = KeyServerDaemonConfig(write(tmp_path, gcks("[[peer]]", f"{written}[[peer]]")))
    assert server.dpd == DpdConfig(60.0, 20.0)
    phase1 = server.phase1_for(Peer(ip_address("127.0.0.2"), 848))
    assert phase1 is not None
    assert phase1.lifetime == 7200
    member = MemberDaemonConfig(write(tmp_path, f"{GM}{written}initial_contact = false\n"))
    (entry,) = member.groups[0].key_servers
    assert entry.dpd == DpdConfig(60.0, 20.0)
    assert entry.phase1.lifetime == 7200
    assert not entry.initial_contact


@pytest.mark.parametrize("text", ["239.1.1.1", "ff05::1", "oid:1.2.3:05", "7"])
def test_group_named_otherwise(text: str, tmp_path: Path) -> None:
    written = f'id = "{text}"'
    server = KeyServerDaemonConfig(write(tmp_path, gcks("id = 1", written), "gcks.toml"))
    member = MemberDaemonConfig(write(tmp_path, gm("id = 1", written), "gm.toml"))
    assert server.groups[0].group_id == member.groups[0].group_id == GroupId.parse(text)


@pytest.mark.parametrize(
    ("octets", "said"),
    [
        (b"[key_server\n", "not TOML: Expected ']' at the end of a table declaration"),
        (b"x = 1\nx = 2\n", "not TOML: Cannot overwrite a value"),
        (b'x = "\xff"\n', "not TOML: 'utf-8' codec can't decode byte 0xff"),
        (b"x = " + b"[" * 5000, "not TOML: "),
        (b"x = " + b"9" * 5000, "not TOML: "),
        (b"x = 2026-13-01\n", "not TOML: "),
        (b"\0", "not TOML: "),
    ],
)
@pytest.mark.parametrize("make", [KeyServerDaemonConfig, MemberDaemonConfig])
def test_not_toml(tmp_path: Path, make: Config, octets: bytes, said: str) -> None:
    path = tmp_path / "daemon.toml"
    path.write_bytes(octets)
    assert str(refused(make, path)).startswith(f"{path}: {said}")


@pytest.mark.parametrize("make", [KeyServerDaemonConfig, MemberDaemonConfig])
def test_no_file(tmp_path: Path, make: Config) -> None:
    missing = tmp_path / "none.toml"
    assert str(refused(make, missing)) == f"{missing}: No such file or directory"
    assert str(refused(make, tmp_path)) == f"{tmp_path}: Is a directory"
    loop = tmp_path / "loop.toml"
    loop.symlink_to(loop)
    assert str(refused(make, loop)) == f"{loop}: Too many levels of symbolic links"


def test_no_permission(tmp_path: Path) -> None:
    """In a child that is nobody: root may read everything."""
    path = write(tmp_path, GCKS)
    path.chmod(0o600)
    tmp_path.chmod(0o755)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setuid(65534)
            KeyServerDaemonConfig(path)
        except ConfigError as error:
            code = 0 if str(error) == f"{path}: Permission denied" else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("psk", [f'psk = "{PSK}"', 'psk_file = "file.psk"'])
def test_the_key_shows_nowhere(tmp_path: Path, psk: str) -> None:
    (tmp_path / "file.psk").write_text(PSK)
    member = MemberDaemonConfig(write(tmp_path, gm(PSK_LINE, psk), "gm.toml"))
    server = KeyServerDaemonConfig(write(tmp_path, gcks(PSK_LINE, psk), "gcks.toml"))
    phase1 = server.phase1_for(Peer(ip_address("127.0.0.2"), 848))
    assert phase1 is not None
    (way,) = phase1.auth
    assert isinstance(way, PreSharedKey)
    assert way.psk.reveal() == PSK.encode()
    shown = repr((vars(member), vars(server), phase1))
    assert PSK not in shown
    assert PSK.encode().hex() not in shown


@pytest.mark.parametrize(
    "line", [f'psk = "{PSK}', f'psk = "{PSK}" x', f"psk = {PSK}", f'psk = "{PSK}\\q"']
)
def test_the_key_shows_in_no_syntax_error(tmp_path: Path, line: str) -> None:
    refused(KeyServerDaemonConfig, write(tmp_path, gcks(PSK_LINE, line)))


def test_a_file_that_systemd_has_put_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the unit's own folder for credentials no other place is looked at."""
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials/lan.psk").write_text(PSK)
    text = gm(PSK_LINE, 'psk_file = "$CREDENTIALS_DIRECTORY/lan.psk"')
    path = write(tmp_path, text, "gm.toml")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    assert MemberDaemonConfig(path).groups[0].name == "video"
    (tmp_path / "credentials/lan.psk").unlink()
    there = f"group.0.key_server.0.psk_file: {tmp_path}/credentials/lan.psk: No such file"
    assert there in str(refused(MemberDaemonConfig, path))
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    assert "systemd gave no credentials" in str(refused(MemberDaemonConfig, path))
