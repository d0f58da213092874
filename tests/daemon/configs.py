"""Configuration files for the daemons' tests, as text."""

from __future__ import annotations

from pathlib import Path

PSK = "the-secret-of-the-tests-7f3a"

GCKS = """\
[key_server]
address = "127.0.0.1"

[[peer]]
address = "127.0.0.0/8"
psk = "the-secret-of-the-tests-7f3a"

[[group]]
name = "video"
id = 1
members = ["127.0.0.2"]

[[group.tek]]
destination = "239.192.1.1"
"""

GM = """\
[member]
address = "127.0.0.1"

[[group]]
name = "video"
id = 1

[[group.key_server]]
address = "127.0.0.9"
psk = "the-secret-of-the-tests-7f3a"
"""


def write(folder: Path, text: str, name: str = "daemon.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path
