"""The example configurations, with the files that they name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.support.pki import issue

EXAMPLES = Path(__file__).parents[2] / "deploy/config"
MEMBER_ADDRESS = "192.0.2.11"
_NAMED = re.compile(r'^[^#\n]*"([a-z0-9-]+\.(?:psk|key|pem|password))"', re.MULTILINE)
_HOST = re.compile(r'^identity = "([a-z0-9.-]+\.example\.org)"', re.MULTILINE)


def examples(folder: Path = EXAMPLES) -> list[Path]:
    """Relative to their folder."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*.toml"))


def program(example: Path) -> str:
    return "gdoi-gm" if example.name.startswith("gm") else "gdoi-gcks"


def prepare(folder: Path) -> None:
    """Keys and certificates beside each configuration of a writable copy, as its operator has."""
    authority = issue("authority", ca=True)
    for example in examples(folder):
        place, text = (folder / example).parent, (folder / example).read_text()
        names = _NAMED.findall(text)
        own = issue("own", authority, names=_HOST.findall(text))
        for name in names:
            (place / name).write_bytes(_content(name, own.pem, own.key_pem, authority.pem))
            (place / name).chmod(0o600)


def _content(name: str, certificate: bytes, key: bytes, authority: bytes) -> bytes:
    if name == "ca.pem":
        return authority
    if name == "master.key":
        return b"8d" * 32
    return {".pem": certificate, ".key": key}.get(Path(name).suffix, b"a secret of this test\n")


def interfaces() -> Iterator[str]:
    """Commands that give a network namespace what the members' examples name."""
    yield "ip link set lo up"
    yield "ip link add eth0 type veth peer name eth1"
    yield f"ip address add {MEMBER_ADDRESS}/24 dev eth0"
    yield "ip link set eth0 up"
    yield "ip link set eth1 up"
