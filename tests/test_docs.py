"""What README, the pages and the example configurations say is there, is there."""

import argparse
import ast
import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import gdoi_plugin
import gdoi_plugin.daemon
from gdoi_plugin.cli.arguments import parser
from gdoi_plugin.daemon.config_gcks import KeyServerDaemonConfig
from gdoi_plugin.daemon.config_member import MemberDaemonConfig
from gdoi_plugin.daemon.config_values import Section
from gdoi_plugin.manual.reference import markdown
from gdoi_plugin.protocol.actions import Drop, Peer
from gdoi_plugin.protocol.identity_pattern import IdentityList

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path: path.read_text() for path in sorted((ROOT / "deploy" / "docs").glob("*.md"))}
DOCS = "".join(PAGES.values())
TROUBLE = PAGES[ROOT / "deploy" / "docs" / "troubleshooting.md"]
_RFCS = PAGES[ROOT / "deploy" / "docs" / "rfcs.md"]


def _paths() -> list[str]:
    """Everything in backquotes that looks like a path of the project."""
    words = re.findall(r"`([a-z_./-]+)`", README + DOCS.replace(_RFCS, ""))
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
    target = (page.parent / path) if path else page
    assert target.is_file() or target.is_dir()
    text = target.read_text() if anchor else ""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    names = [re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert not anchor or anchor in names


def _table() -> list[list[str]]:
    """RFC section, what, files, tests: the cells of each row."""
    lines = _RFCS.split("\n\n| section | ")[1].partition("\n\n")[0].splitlines()[2:]
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
    """The example configurations with the pre-shared key they name."""
    for example in (ROOT / "deploy" / "config").glob("*.toml"):
        shutil.copy(example, tmp_path)
    (tmp_path / "lan.psk").write_text("the one that the ten lines of README.md make")
    return tmp_path


def test_example_of_the_key_server(examples: Path) -> None:
    config = KeyServerDaemonConfig(examples / "gcks.toml")
    (group,) = config.groups
    assert isinstance(group.members, IdentityList)
    counts = (len(group.members.patterns), len(group.teks))
    assert (group.name, group.group_id.number, *counts) == ("video", 1234, 3, 3)
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


@cache
def _warned() -> set[str]:
    """Names of all events that the source gives the level ``warning`` or ``error``."""
    found = set[str]()
    for path in (ROOT / "gdoi_plugin").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                words = _words([*node.args, *(keyword.value for keyword in node.keywords)])
                if words & {"warning", "error"}:
                    found |= {word for word in words if _EVENT.fullmatch(word)} | (words & _SHORT)
    return found


_EVENT = re.compile(r"[a-z0-9]+(-[a-z0-9]+)+")
# Events whose names are one word.
_SHORT = {"bug", "control", "following", "lanes", "loop", "unsealed"}


def _words(values: list[ast.expr]) -> set[str]:
    return {
        value.value
        for value in values
        if isinstance(value, ast.Constant) and isinstance(value.value, str)
    }


def _first_cells() -> set[str]:
    """What stands in backquotes in the first column of a table of troubleshooting.md."""
    cells = re.findall(r"^\| ([^|]*) \|", TROUBLE, re.MULTILINE)
    return {word for cell in cells for word in re.findall(r"`([a-z0-9-]+)`", cell)}


def test_every_event_that_asks_for_action_is_in_troubleshooting() -> None:
    warned = _warned()
    assert len(warned) > 40
    # Levels of `phase1-deleted` come with the reason, and `dropped` has a table of its own.
    known = _first_cells() | {"dropped", "dropped-more"}
    missing = warned - known - _NO_EVENTS
    assert not missing, f"rows that deploy/docs/troubleshooting.md has not: {sorted(missing)}"


# Kinds that a rate limit is for, which stand beside the event's name.
_NO_EVENTS = {"ack-process"}


def test_troubleshooting_knows_no_event_that_there_is_not() -> None:
    reasons = {str(reason) for reason in Drop}
    invented = _first_cells() - _warned() - reasons - {"phase1-deleted", "group-deleted"}
    assert {word for word in invented if _EVENT.fullmatch(word)} == set()


def test_every_reason_of_a_drop_is_in_troubleshooting() -> None:
    assert {str(reason) for reason in Drop} - _first_cells() == set()


# -- commands and options that the pages show


def _shown_commands() -> set[str]:
    """Lines of sessions and examples, and what stands in backquotes, that begin with gdoictl."""
    text = README + DOCS
    found = re.findall(r"^(?: {4,}|gcks# |gm\d# |\$ )?(gdoictl [a-z-][^#\n]*)", text, re.MULTILINE)
    return {command.strip() for command in found + re.findall(r"`(gdoictl [a-z-][^`]*)`", text)}


@pytest.mark.parametrize("command", sorted(_shown_commands()))
def test_commands_of_gdoictl_that_are_shown_exist(command: str) -> None:
    """Its words are a command and options that the parser knows; places stand for values."""
    words = [word for word in command.split("&&")[0].split() if word not in ("...", "\\", "|")]
    names = [word for word in words[1:] if not word.startswith("-")]
    options = {word.partition("=")[0] for word in words[1:] if word.startswith("--")}
    top = parser()
    (commands,) = (a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    known = set(top._option_string_actions)
    if names:
        assert names[0] in commands.choices or {"--socket", "--timeout"} & options, command
        for name in names[:1]:
            if name in commands.choices:
                known |= set(commands.choices[name]._option_string_actions)
    assert options <= known, command


def _options() -> set[str]:
    """Every key that a configuration may have."""
    found = set[str]()
    for module in pkgutil.iter_modules(gdoi_plugin.daemon.__path__):
        if module.name.startswith("config"):
            importlib.import_module(f"gdoi_plugin.daemon.{module.name}")
    sections = [Section]
    while sections:
        section = sections.pop()
        found |= set(section.model_fields)
        sections += section.__subclasses__()
    return found


def _shown_options() -> set[str]:
    """Names with a value, ``ack_wait = "10s"``, in backquotes."""
    return set(re.findall(r"`([a-z_0-9]+) = [^`]+`", README + DOCS))


# Of swanctl.conf and of the kernel.
_OTHERS = {
    "start_action",
    "synchronous_commit",
    "fsync",
    "secrets",
    "local_ts",
    "remote_ts",
    "version",
    "local_addrs",
}


def test_options_that_are_shown_exist() -> None:
    shown = _shown_options()
    assert len(shown) > 20
    assert shown - _options() - _OTHERS == set()


def test_examples_of_configurations_on_pages_have_known_keys() -> None:
    """Blocks of TOML, fenced or indented: every key of theirs exists."""
    lines = re.findall(r"^(?: {4})?([a-z_0-9]+) = [\"\[{0-9tf]", README + DOCS, re.MULTILINE)
    assert len(lines) > 20
    assert set(lines) - _options() - _OTHERS == set()


def test_every_option_is_described_and_the_reference_is_up_to_date() -> None:
    """What an option means is told in gdoi_plugin/manual/options_*.py, its bounds by the models."""
    page = ROOT / "deploy" / "docs" / "options.md"
    write = "python -m gdoi_plugin.manual --reference deploy/docs/options.md"
    assert page.read_text() == markdown(), f"options have changed; write the page anew: {write}"
