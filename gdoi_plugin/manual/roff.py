"""Text as man(7)'s macros want it."""

from __future__ import annotations

import re


def text(words: str) -> str:
    """Running text; no line of it is taken for a macro."""
    escaped = words.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", escaped, flags=re.MULTILINE)


def quoted(words: str) -> str:
    """One argument of a macro."""
    return '"' + text(words).removeprefix("\\&").replace('"', "\\(dq") + '"'


def title(name: str, section: int, version: str) -> str:
    product = quoted(f"gdoi-plugin {version}")
    return f'.TH {quoted(name)} {section} "" {product} "Group VPN (GDOI)"'


def heading(words: str) -> str:
    return f".SH {quoted(words)}"


def subheading(words: str) -> str:
    return f".SS {quoted(words)}"


def item(term: str, words: str, note: str = "") -> str:
    """``term`` in bold, ``note`` behind it, and indented what it is."""
    line = f".B {quoted(term)}" if not note else f".BR {quoted(term)} {quoted(f'  {note}')}"
    return f".TP\n{line}\n{text(words)}"


def paragraph(words: str) -> str:
    return f".PP\n{text(words)}"


def example(lines: str) -> str:
    body = text(lines.rstrip("\n"))
    return f".PP\n.nf\n.RS\n{body}\n.RE\n.fi"
