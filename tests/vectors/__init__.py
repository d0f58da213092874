"""Test vectors as text: records of ``name = hex``, a blank line between records, ``#`` comments.

An indented line goes on with the value above it. Each file's head names its origin.
"""

from __future__ import annotations

from pathlib import Path

Record = dict[str, bytes]


def load(name: str) -> list[Record]:
    """The records of ``tests/vectors/<name>.txt``."""
    text = (Path(__file__).parent / f"{name}.txt").read_text("ascii")
    blocks = text.split("\n\n")
    return [record for block in blocks if (record := _record(block))]


def _record(block: str) -> Record:
    values: dict[str, str] = {}
    name = ""
    for line in block.splitlines():
        bare = line.split("#")[0].rstrip()
        if "=" in bare:
            name, _, bare = (part.strip() for part in bare.partition("="))
            values[name] = ""
        if bare:
            values[name] += bare
    return {key: bytes.fromhex(value) for key, value in values.items()}
