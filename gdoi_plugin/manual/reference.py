"""The reference of options as a page of the documentation, in Markdown."""

from __future__ import annotations

from .options import FILES, Option, tables
from .words import FILE_WORDS

HEAD = """# Every option

The configuration files are TOML. Times are written `30s`, `10m`, `1h` or `2d`. `gm.toml(5)` and
`gcks.toml(5)` say the same. This page is written by `python -m gdoi_plugin.manual`.
"""


def markdown() -> str:
    parts = [HEAD]
    for file in FILES:
        parts.append(f"## {file}\n\n{FILE_WORDS[file].description}\n")
        for table in tables(file):
            parts.append(f"### `{table.header}` of {file}\n\n{table.meaning}\n")
            rows = ["| option | may be | default | |", "|---|---|---|---|"]
            rows += [_row(option) for option in table.options]
            parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def _row(option: Option) -> str:
    default = "*required*" if option.required else f"`{option.default}`" if option.default else ""
    cells = (f"`{option.name}`", option.allowed, default, option.meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
