"""Imports point one way: a table, read from the source without running it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("gdoi_plugin", "gdoi_xfrm")

# Per package: which of our packages it may import, and which libraries of others.
ALLOWED = {
    "gdoi_plugin": (set(), set()),
    "gdoi_plugin.wire": ({"gdoi_plugin.wire"}, set()),
    "gdoi_plugin.crypto": ({"gdoi_plugin.crypto", "gdoi_plugin.wire"}, {"cryptography"}),
    "gdoi_plugin.protocol": (
        {"gdoi_plugin.protocol", "gdoi_plugin.crypto", "gdoi_plugin.wire"},
        set(),
    ),
    "gdoi_plugin.daemon": (
        {
            "gdoi_plugin",
            "gdoi_plugin.daemon",
            "gdoi_plugin.protocol",
            "gdoi_plugin.crypto",
            "gdoi_plugin.wire",
            "gdoi_xfrm",
        },
        {
            "alembic",
            "cryptography",
            "h11",
            "netifaces",
            "prometheus_client",
            "psycopg",
            "pydantic",
            "sqlalchemy",
        },
    ),
    "gdoi_plugin.cli": (
        {
            "gdoi_plugin",
            "gdoi_plugin.cli",
            "gdoi_plugin.daemon.check.finding",
            "gdoi_plugin.daemon.check.run",
            "gdoi_plugin.daemon.vici_message",
        },
        {"rich", "shtab", "vici"},
    ),
    "gdoi_plugin.manual": (
        {
            "gdoi_plugin",
            "gdoi_plugin.cli",
            "gdoi_plugin.daemon",
            "gdoi_plugin.manual",
            "gdoi_plugin.protocol",
            "gdoi_xfrm",
        },
        {"pydantic"},
    ),
    "gdoi_xfrm": ({"gdoi_xfrm"}, {"pyroute2"}),
}
# Nothing outside daemon, cli and kernel knows tasks, sockets, clocks, logging, files, netlink or a
# random source: ``now`` and randomness are arguments.
WORLDLY = {
    "asyncio",
    "logging",
    "os",
    "pathlib",
    "pyroute2",
    "random",
    "secrets",
    "select",
    "selectors",
    "signal",
    "socket",
    "sqlalchemy",
    "sqlite3",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "uuid",
}
PURE = ("gdoi_plugin", "gdoi_plugin.wire", "gdoi_plugin.crypto", "gdoi_plugin.protocol")


def sources() -> Iterator[tuple[str, Path]]:
    """Module name and file of everything that is shipped."""
    for top in (ROOT / "gdoi_plugin", ROOT / "kernel" / "gdoi_xfrm"):
        for path in sorted(top.rglob("*.py")):
            parts = path.relative_to(top.parent).with_suffix("").parts
            yield ".".join(p for p in parts if p != "__init__"), path


def package_of(module: str) -> str:
    """The row of ALLOWED that a module belongs to."""
    return max((p for p in ALLOWED if (module + ".").startswith(p + ".")), key=len)


def imported(module: str, path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of each import, also those inside functions and for typing alone."""
    base = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            parts = base.split(".")
            prefix = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            name = ".".join(part for part in (prefix, node.module) if part)
            for alias in node.names:
                inner = f"{name}.{alias.name}"
                yield node.lineno, inner if is_module(inner) else name


def is_module(name: str) -> bool:
    return any(name == module for module, _ in MODULES)


MODULES = list(sources())


def complaints(module: str, path: Path) -> list[str]:
    package = package_of(module)
    ours, libraries = ALLOWED[package]
    found = []
    for line, name in imported(module, path):
        top = name.partition(".")[0]
        where = f"{path.relative_to(ROOT)}:{line}: {package} imports {name}"
        if top in OURS:
            if name not in ours and package_of(name) not in ours - {"gdoi_plugin"}:
                found.append(where)
        elif top not in sys.stdlib_module_names:
            if top not in libraries:
                found.append(where)
        elif package in PURE and top in WORLDLY:
            found.append(where)
    return found


@pytest.mark.parametrize(("module", "path"), MODULES, ids=[module for module, _ in MODULES])
def test_imports_point_one_way(module: str, path: Path) -> None:
    assert complaints(module, path) == []


@pytest.mark.parametrize(
    ("module", "line", "allowed"),
    [
        ("gdoi_plugin.wire.sa", "from ..crypto import prf", False),
        ("gdoi_plugin.wire.sa", "import os.path", False),
        ("gdoi_plugin.wire.sa", "from .buffer import Buffer", True),
        ("gdoi_plugin.crypto.prf", "from ..wire.registry import Hash", True),
        ("gdoi_plugin.crypto.prf", "from ..protocol import errors", False),
        ("gdoi_plugin.protocol.push", "import time", False),
        ("gdoi_plugin.protocol.push", "from random import Random", False),
        ("gdoi_plugin.protocol.push", "import gdoi_xfrm", False),
        ("gdoi_plugin.protocol.push", "from cryptography import x509", False),
        ("gdoi_plugin.cli.show", "from ..daemon.vici_message import decode", True),
        ("gdoi_plugin.cli.show", "from ..daemon.control import ControlServer", False),
        ("gdoi_plugin.cli.show", "from ..protocol.group import Group", False),
        ("gdoi_plugin.daemon.gm", "from ..cli import client", False),
        ("gdoi_plugin.daemon.gm", "import asyncio, gdoi_xfrm", True),
        ("gdoi_plugin.daemon.gm", "import pyroute2", False),
        ("gdoi_xfrm._socket", "import socket, pyroute2", True),
        ("gdoi_xfrm._socket", "from gdoi_plugin.protocol import policy", False),
        ("gdoi_plugin", "import asyncio", False),
    ],
)
def test_the_test_itself(tmp_path: Path, module: str, line: str, allowed: bool) -> None:
    path = ROOT / "gdoi_plugin" / "no-such-file.py"
    source = tmp_path / "x.py"
    source.write_text(line)

    class Named(type(path)):  # type: ignore[misc]
        def read_text(self, *_: object, **__: object) -> str:
            return source.read_text()

    assert (complaints(module, Named(path)) == []) is allowed
