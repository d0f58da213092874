"""What README and the example configurations say is there, is there."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gdoi_plugin
from gdoi_plugin.daemon.config_gcks import KeyServerDaemonConfig
from gdoi_plugin.daemon.config_member import MemberDaemonConfig
from gdoi_plugin.protocol.actions import Peer
from gdoi_plugin.protocol.identity_pattern import IdentityList

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path: path.read_text() for path in sorted((ROOT / "deploy" / "docs").glob("*.md"))}
DOCS = "".join(PAGES.values())
_RFCS = README[README.index("## RFC to file and test\n") : README.index("\n## Rekeys and ack")]


def _paths() -> list[str]:
    """Everything in backquotes that looks like a path of the project."""
    words = re.findall(r"`([a-z_./-]+)`", README.replace(_RFCS, "") + DOCS)
    return sorted({word for word in words if "/" in word and not word.startswith("/")})


@pytest.mark.parametrize("path", _paths())
def test_every_path_in_the_readme_exists(path: str) -> None:
    assert (ROOT / path).exists() or (ROOT / "gdoi_plugin" / path).exists()


def test_readme_names_many_paths() -> None:
    assert len(_paths()) > 10


def _links() -> list[tuple[Path, str]]:
    """Of README and each page: where it stands, and where it leads to from there."""
    pages = {ROOT / "README.md": README, **PAGES}
    return sorted(
        {(page, link) for page in pages for link in re.findall(r"\]\(([^)]+)\)", pages[page])}
    )


@pytest.mark.parametrize(("page", "link"), _links(), ids=lambda part: str(part))
def test_links_lead_to_a_file_and_a_heading(page: Path, link: str) -> None:
    path, _, anchor = link.partition("#")
    text = ((page.parent / path) if path else page).read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    names = [re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert not anchor or anchor in names


def _table() -> list[list[str]]:
    """RFC section, what, files, tests: the cells of each row."""
    lines = _RFCS.split("\n\n| section | ")[1].splitlines()[2:]
    rows = [line.strip("|").split(" | ") for line in lines if line.startswith("| ")]
    assert {len(row) for row in rows} == {4}
    return rows


@pytest.mark.parametrize("row", _table(), ids=lambda row: row[0].strip())
def test_what_the_table_of_rfcs_names_exists(row: list[str]) -> None:
    files, tests = (re.findall(r"`([^`]+)`", cell) for cell in row[2:])
    assert files
    assert tests
    for file in files:
        assert (ROOT / "gdoi_plugin" / file).is_file() or (ROOT / file).is_dir(), file
    for test in tests:
        assert (ROOT / "tests" / test).is_file(), test
        assert Path(test).name.startswith("test_")


def test_changelog_knows_the_version() -> None:
    assert f"## {gdoi_plugin.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """The example configurations with the pre-shared keys they name."""
    for example in (ROOT / "deploy" / "config").glob("*.toml"):
        shutil.copy(example, tmp_path)
    for name in ("lan.psk", "branch7.psk"):
        (tmp_path / name).write_text(f"key of {name}")
    return tmp_path


def test_example_of_the_key_server(examples: Path) -> None:
    config = KeyServerDaemonConfig(examples / "gcks.toml")
    (group,) = config.groups
    assert isinstance(group.members, IdentityList)
    counts = (len(group.members.patterns), len(group.teks))
    assert (group.name, group.group_id.number, *counts) == ("video", 1234, 4, 3)
    assert str(group.rekey_address) == "239.192.0.1"
    assert isinstance(config.local, Peer)


def test_example_of_a_member(examples: Path) -> None:
    """With the loopback interface in place of eth0, which this machine may not have."""
    text = (examples / "gm.toml").read_text().replace('"eth0"', '"lo"')
    (examples / "gm.toml").write_text(text)
    config = MemberDaemonConfig(examples / "gm.toml")
    (group,) = config.groups
    assert (group.name, group.group_id.number, group.ack_jitter) == ("video", 1234, 2.0)
    assert [str(server.remote) for server in group.key_servers] == ["192.0.2.1:848"]


def test_example_of_a_router(examples: Path) -> None:
    text = (examples / "gm-router.toml").read_text().replace('"eth0"', '"lo"')
    (examples / "gm-router.toml").write_text(text)
    config = MemberDaemonConfig(examples / "gm-router.toml")
    (group,) = config.groups
    assert (group.name, group.forwards) == ("video", True)
    assert (config.lans, config.joins) == ({"video": ("eth1",)}, {"video": ("lo",)})


@pytest.mark.parametrize("program", ["gdoi-gm", "gdoi-gcks", "gdoictl"])
def test_programs_of_the_readme_have_help(program: str) -> None:
    command = [str(Path(sys.prefix) / "bin" / program), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"usage: {program}")
