"""Manual pages: what is in them, and that groff has nothing to say against them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gdoi_plugin.cli import arguments
from gdoi_plugin.cli.gdoictl import COMMANDS
from gdoi_plugin.manual import roff
from gdoi_plugin.manual.__main__ import main, write
from gdoi_plugin.manual.options import FILES, tables
from gdoi_plugin.manual.pages import commands, pages

NAMES = {"gdoictl.1", "gm.toml.5", "gcks.toml.5", "gdoi-gm.8", "gdoi-gcks.8"}


def rendered(page: str) -> str:
    """As plain text of one long line for each paragraph; warnings are errors."""
    done = subprocess.run(
        ["groff", "-ww", "-man", "-Tutf8", "-P-cbou", "-rLL=2000n"],
        input=page,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.replace("\u2010", "-").replace("\u2212", "-")


@pytest.mark.parametrize("name", sorted(NAMES))
def test_groff_has_no_warning(name: str) -> None:
    text = rendered(pages()[name])
    for heading in ("NAME", "DESCRIPTION", "SEE ALSO"):
        assert f"\n{heading}\n" in text


def test_all_pages_are_there() -> None:
    assert pages().keys() == NAMES


@pytest.mark.parametrize("file", FILES)
def test_every_option_is_on_its_page(file: str) -> None:
    text = rendered(pages()[f"{file}.5"])
    for table in tables(file):
        assert f"\n{table.header}\n" in text
        for option in table.options:
            assert f"\n       {option.name}  ({option.allowed}" in text


def test_every_command_is_on_the_page_of_gdoictl() -> None:
    subs = commands(arguments.parser())
    assert subs.keys() == COMMANDS.keys()
    text = rendered(pages()["gdoictl.1"])
    for name, sub in subs.items():
        assert f"\n   {name}" in text
        for action in sub._actions:
            for option in action.option_strings:
                assert option in text
    for code, meaning in arguments.EXITS.items():
        assert f"\n       {code} " in text
        assert meaning in text


def test_options_of_the_daemons_are_on_their_pages() -> None:
    for name in ("gdoi-gm", "gdoi-gcks"):
        text = rendered(pages()[f"{name}.8"])
        for option in ("--config", "--check", "--keylog", "--log-level", "--version"):
            assert f"\n       {option}" in text
    assert "--rotate-master-key FILE" in rendered(pages()["gdoi-gcks.8"])


def test_text_that_looks_like_macros_is_text() -> None:
    page = "\n".join(
        (
            roff.title("x", 7, "1"),
            roff.heading('a "quoted" - heading'),
            roff.text(".TH at the beginning\n'and this\nback\\slash"),
            roff.item(".B", "--long-option"),
        )
    )
    text = rendered(page + "\n")
    for words in (".TH at the beginning 'and this back\\slash", 'a "quoted" - heading', ".B"):
        assert words in text
    assert "--long-option" in text


def test_where_files_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--reference", str(tmp_path / "options.md")]) == 0
    said = {Path(line).relative_to(tmp_path) for line in capsys.readouterr().out.splitlines()}
    assert {path.relative_to(tmp_path) for path in write(tmp_path)} < said
    there = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert there == said
    assert (tmp_path / "share/man/man5/gm.toml.5").is_file()
    assert (tmp_path / "share/bash-completion/completions/gdoictl").is_file()
    with pytest.raises(SystemExit):
        main([])
