"""`gdoictl check` as an operator meets it: the table, what to mend, JSON, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gdoi_plugin.daemon.check import run as check_run
from gdoi_plugin.daemon.check.finding import Finding
from gdoi_plugin.daemon.check.run import check
from tests.daemon.configs import GCKS, GM, PSK, write
from tests.kernel.namespaces import Namespace

PROGRAM = [str(Path(sys.prefix) / "bin" / "gdoictl"), "check"]


@pytest.fixture(autouse=True)
def own_host() -> Iterator[None]:
    with Namespace() as fresh, fresh.entered():
        yield


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)


def key_server(folder: Path) -> Path:
    lines = f'[key_server]\nstate = "{folder}/gcks.sqlite"\ncontrol = "{folder}/gcks.vici"\n'
    text = GCKS.replace("[key_server]\n", f'{lines}control_group = "root"\n')
    path = write(folder, text, "gcks.toml")
    path.chmod(0o600)
    return path


def test_a_key_server_that_could_start(tmp_path: Path) -> None:
    """Warnings alone are no failure: no master key, a clock that nothing keeps right."""
    done = run("--gcks", key_server(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert " 0 fail\n" in done.stdout
    head, _, mend = done.stdout.partition("To mend:\n")
    assert head.split()[:3] == ["area", "tested", "found"]
    lines = mend.splitlines()
    place = lines.index("  warn  master key")
    assert lines[place + 1].strip().startswith("(umask 077; openssl rand -hex 32 > ")


def test_what_does_not_work(tmp_path: Path) -> None:
    path = key_server(tmp_path)
    path.chmod(0o644)
    done = run("--gcks", path, "--json")
    assert done.returncode == 5
    by_name = {one["test"]: one for one in json.loads(done.stdout)}
    one = by_name[f"configuration, with keys in it, {path}"]
    assert (one["area"], one["verdict"]) == ("permissions", "fail")
    assert one["mend"] == f"chmod 600 {path}"
    subprocess.run(["sh", "-c", one["mend"]], check=True)
    assert run("--gcks", path, "--json").returncode == 0


def found(**files: Path) -> dict[str, Finding]:
    """The same in this process: the program takes a second to start."""
    return {finding.test: finding for finding in check(**files)}


def test_both_and_what_is_wrong_with_their_files(tmp_path: Path) -> None:
    """One that cannot be read does not keep the other from being tested."""
    gm = write(tmp_path, GM.replace("id = 1", 'id = "x y"'), "gm.toml")
    there = found(gm=gm, gcks=key_server(tmp_path))
    assert there[str(gm)].found.startswith("group.0.id: ")
    assert there[str(gm)].mend == f"# edit {gm}"
    rest = there[f"all else of {gm}"]
    assert (rest.verdict, rest.mend.split("   ")[0]) == ("warn", f"gdoictl check --gm {gm}")
    assert there["UDP 127.0.0.1:848"].verdict == "ok"
    assert "ESP over IPv4" in there  # what any member needs


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    """And a secret is made as it stands, once for each fault that then shows."""
    named = GCKS.replace(f'psk = "{PSK}"', 'psk_file = "lan.psk"')
    path = write(tmp_path, named, "gcks.toml")
    one = found(gcks=path)[str(path)]
    assert one.found.endswith(f"{tmp_path}/lan.psk: No such file or directory")
    assert f"{tmp_path}/lan.psk" in one.mend
    subprocess.run(["sh", "-c", one.mend], check=True)
    assert found(gcks=path)[str(path)].verdict == "ok"
    files = 'certificate = "a.pem"\nprivate_key = "a.key"\ncacerts = ["ca.pem"]\n'
    text = GCKS.replace(f'psk = "{PSK}"', 'auth = "pubkey"\nidentity = "gm1"')
    path = write(tmp_path, text.replace("[key_server]\n", f"[key_server]\n{files}"), "cert.toml")
    one = found(gcks=path)[str(path)]
    assert f"{tmp_path}/a.key" in one.mend
    subprocess.run(["sh", "-c", one.mend], capture_output=True, check=True)
    one = found(gcks=path)[str(path)]
    assert one.mend.startswith("openssl req -new -key ")
    assert one.mend.endswith(f"{tmp_path}/a.pem")


def test_member_and_key_server_with_one_address(tmp_path: Path) -> None:
    lines = f'[member]\nstate = "{tmp_path}/gm"\ncontrol = "{tmp_path}/gm.vici"\n'
    gm = write(tmp_path, GM.replace("[member]\n", lines), "gm.toml")
    there = found(gm=gm, gcks=key_server(tmp_path))
    assert there["two daemons on one host"].verdict == "fail"


@pytest.mark.parametrize(
    "option", ['channel = "ike"', 'authorise = "ike"', '[member]\ncharon_trust = ["crls"]']
)
def test_charon_is_looked_for_where_an_option_needs_it(tmp_path: Path, option: str) -> None:
    path = write(tmp_path, f'charon = "{tmp_path}/vici"\n{option}\n')
    one = found(gcks=path)[f"charon at {tmp_path}/vici"]
    assert (one.verdict, one.area) == ("fail", "charon")


def test_a_namespace_that_is_not_there(tmp_path: Path) -> None:
    text = key_server(tmp_path).read_text()
    path = write(tmp_path, text.replace("[key_server]\n", '[key_server]\nnetns = "no-such"\n'))
    one = found(gcks=path)["namespace no-such"]
    assert one.verdict == "fail"
    assert "ip netns add" in one.mend


def test_credentials_of_a_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are there while it runs, and no fault of the configuration while it does not."""
    monkeypatch.setattr(check_run, "CREDENTIALS", tmp_path)
    text = key_server(tmp_path).read_text()
    named = text.replace(f'psk = "{PSK}"', 'psk_file = "$CREDENTIALS_DIRECTORY/lan.psk"')
    path = write(tmp_path, named, "gcks.toml")
    one = found(gcks=path)[str(path)]
    assert (one.verdict, "while the unit runs" in one.mend) == ("warn", True)
    (tmp_path / "gdoi-gcks.service").mkdir()
    (tmp_path / "gdoi-gcks.service" / "lan.psk").write_text("k")
    (tmp_path / "gdoi-gcks.service" / "gdoi-master-key").write_text("ab" * 32)
    there = found(gcks=path)
    assert there[str(path)].verdict == "ok"
    assert there["master key"].verdict == "ok"
    assert "CREDENTIALS_DIRECTORY" not in os.environ


def test_no_configuration_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a host has neither file in /etc/gdoi; this one may have."""
    for name in ("GM_CONFIG", "GCKS_CONFIG"):
        monkeypatch.setattr(check_run, name, tmp_path / "none.toml")
    one = found()["configuration"]
    assert one.verdict == "fail"
    assert one.found == f"neither {tmp_path}/none.toml nor {tmp_path}/none.toml is there"


def test_wrong_usage() -> None:
    assert run("--gm").returncode == 2
