"""Completion in real shells, with names that come through the control socket."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gdoi_plugin.cli.completion import script
from gdoi_plugin.cli.gdoictl import COMMANDS
from tests.cli.test_gdoictl import Daemon, one

# Those that complete are asked from within the shell; the daemons are in a folder of the test.
SHIM = '#!/bin/sh\nexec {python} -c "{program}" {folder} "$@"\n'
PROGRAM = (
    "import sys; from pathlib import Path; from gdoi_plugin.cli import gdoictl, sockets;"
    " sockets.RUN_DIR = Path(sys.argv.pop(1)); sys.exit(gdoictl.main())"
)


@pytest.fixture
def shim(tmp_path: Path) -> Path:
    """A folder for PATH with a gdoictl that finds its daemons in `tmp_path`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "gdoictl"
    program.write_text(SHIM.format(python=sys.executable, program=PROGRAM, folder=tmp_path))
    program.chmod(0o755)
    return folder


def bash(shim: Path, *words: str) -> set[str]:
    """What bash offers for the last of the words."""
    file = shim / "completion"
    file.write_text(script("bash"))
    line = " ".join(f"'{word}'" for word in ("gdoictl", *words))
    run = f"source {file}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _shtab_gdoictl;"
    run += ' printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "--norc", "-c", run],
        env={"PATH": f"{shim}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return set(done.stdout.split())


def test_bash_completes_commands_and_options(shim: Path) -> None:
    assert bash(shim, "") >= COMMANDS.keys() - {"names"}  # which is for completion itself
    assert bash(shim, "nam") == set()
    assert bash(shim, "rev") == {"revoke"}
    assert {"--group", "--kek", "--replace"} <= bash(shim, "rekey", "--")


def test_bash_completes_nothing_where_no_daemon_is(shim: Path) -> None:
    assert bash(shim, "rekey", "--group", "") == set()


def test_names_are_those_that_there_are(tmp_path: Path) -> None:
    assert one(tmp_path, "names", "groups", gcks=Daemon()).out == "7\n"
    found = one(tmp_path, "names", "members", "evict", "--group", "7", gcks=Daemon())
    assert found.out.split() == ["gm1", "gm2", "gm3"]
    found = one(tmp_path, "names", "members", "evict", "--group=8", gcks=Daemon())
    assert (found.code, found.out, found.err) == (0, "", "")
    found = one(tmp_path, "names", "spis", "--gm", gm=Daemon("gdoi-gm"))
    assert found.out == "0xc0ffee01\n"
    found = one(tmp_path, "names", "groups", "--socket", str(tmp_path / "none"), gcks=Daemon())
    assert (found.code, found.out) == (0, "")


def test_a_name_that_a_shell_would_run_is_not_offered(tmp_path: Path) -> None:
    evil = ["$(touch x)", "a b", "`id`", ";", "good.example.org"]
    members: list[dict[str, object]] = [{"group": 7, "identity": name} for name in evil]
    found = one(tmp_path, "names", "members", gcks=Daemon(members=members))
    assert found.out == "good.example.org\n"


@pytest.mark.parametrize(
    ("load", "function"),
    [
        ('compinit -D -u && eval "$(cat _gdoictl)"', "_shtab_gdoictl"),
        ("fpath=($PWD $fpath) && compinit -D -u && autoload -U +X _gdoictl", "_gdoictl"),
    ],
    ids=["eval", "fpath"],
)
def test_zsh_takes_the_script(tmp_path: Path, load: str, function: str) -> None:
    (tmp_path / "_gdoictl").write_text(script("zsh"))
    done = subprocess.run(
        ["zsh", "-f", "-c", f"autoload -U compinit && {load} && print ${{_comps[gdoictl]}}"],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == function
