"""Writes manual pages and completions below PREFIX/share, or the reference of options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..cli.completion import script
from .options import Undescribed
from .pages import pages
from .reference import markdown

COMPLETIONS = {
    "bash": "share/bash-completion/completions/gdoictl",
    "zsh": "share/zsh/vendor-completions/_gdoictl",
}


def write(prefix: Path) -> list[Path]:
    """Manual pages and completions; the files that were written."""
    made = {f"share/man/man{name[-1]}/{name}": text for name, text in pages().items()}
    made |= {path: script(shell) for shell, path in COMPLETIONS.items()}
    return [_write(prefix / path, text) for path, text in made.items()]


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gdoi_plugin.manual", description=__doc__)
    parser.add_argument("prefix", type=Path, metavar="PREFIX", nargs="?", help="as /usr")
    parser.add_argument("--reference", type=Path, metavar="FILE", help="the options, as Markdown")
    chosen = parser.parse_args(arguments)
    if chosen.prefix is None and chosen.reference is None:
        parser.error("give PREFIX, or --reference FILE")
    try:
        written = [] if chosen.prefix is None else write(chosen.prefix)
        if chosen.reference is not None:
            written.append(_write(chosen.reference, markdown()))
    except Undescribed as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    for path in written:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
