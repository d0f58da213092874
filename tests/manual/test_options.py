"""Every option of the configuration's models is described once, and with what the models check."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import pytest

from gdoi_plugin.manual import options
from gdoi_plugin.manual.options import FILES, Table, Undescribed, described, tables
from gdoi_plugin.manual.options_common import COMMON
from gdoi_plugin.manual.options_gm import GM

ROOT = Path(__file__).resolve().parents[2]


def all_tables() -> list[tuple[str, Table]]:
    return [(file, table) for file in FILES for table in tables(file)]


@pytest.mark.parametrize("file", FILES)
def test_nothing_is_described_that_there_is_not(file: str) -> None:
    sections = {tuple(table.path.rpartition(".")[::2]) for table in tables(file)}
    there = {(table.path, option.name) for table in tables(file) for option in table.options}
    assert described(file) - there - sections == set()


def test_what_is_common_is_used() -> None:
    names = {option.name for _, table in all_tables() for option in table.options}
    assert COMMON.keys() - names == set()


def test_an_option_that_is_not_described_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {**GM["member"]}
    del rows["keep_alive"]
    broken = {**GM, "member": rows}
    monkeypatch.setitem(options.FILES, "gm.toml", (FILES["gm.toml"][0], broken))
    said = r"option keep_alive of \[member\] in gm.toml is not described: add it to .*options_gm.py"
    with pytest.raises(Undescribed, match=said):
        tables("gm.toml")


def test_bounds_and_defaults_are_the_models() -> None:
    found = {
        (file, table.path, option.name): (option.allowed, option.default, option.required)
        for file, table in all_tables()
        for option in table.options
    }
    jitter = found["gm.toml", "group", "ack_jitter"]
    assert jitter == ("a time, 0s to 5s", '"2s"', False)
    assert found["gm.toml", "group", "id"] == ("a number or text", "", True)
    assert found["gcks.toml", "group.rekey", "ack_wait"] == ("a time, 10s to 1h", '"10s"', False)
    assert found["gcks.toml", "key_server", "port"] == ("a number, 1 to 65535", "848", False)
    assert found["gm.toml", "member", "crls"][0] == "an array of names of files"
    assert found["gm.toml", "member", "charon_trust"][0] == 'an array of "crls"'
    assert options._allowed(list[Literal["a", "b"]], ()) == "an array of any of a, b"
    assert found["gm.toml", "member", "log"][0] == 'the name of a file or "journal"'
    assert found["gcks.toml", "group.tek", "senders"][0] == 'an array of addresses or "members"'
    assert found["gcks.toml", "group.rekey", "signature"][0].startswith("one of rsa2048-sha256, ")


def test_every_section_is_there_once() -> None:
    headers = [(file, table.header) for file, table in all_tables()]
    assert len(set(headers)) == len(headers)
    assert ("gm.toml", "[[member.bypass]]") in headers
    assert ("gcks.toml", "[group.rekey]") in headers


@pytest.mark.parametrize("file", FILES)
def test_every_option_is_in_an_example_or_the_docs(file: str) -> None:
    """Where an operator looks first; the reference of all options does not count."""
    paths = [*(ROOT / "deploy" / "config").glob("*.toml"), ROOT / "README.md"]
    paths += (ROOT / "deploy" / "docs").glob("*.md")
    text = "".join(path.read_text() for path in paths if path.name != "options.md")
    words = set(re.findall(r"[a-z0-9_]+", text))
    names = {option.name for table in tables(file) for option in table.options}
    assert names - words == set()
