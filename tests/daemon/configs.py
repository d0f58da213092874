"""Configuration files for the daemons' tests, as text, and what is wrong with bad ones."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest

from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.daemon.config_common import DEFAULT_PROPOSALS
from gdoi_plugin.daemon.errors import ConfigError
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.isakmp import SUITES, Suite
from gdoi_plugin.protocol.phase1 import Phase1Config, PreSharedKey

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


LOOPBACK = ip_address("127.0.0.1")
DEFAULT_SUITES = tuple(SUITES[keyword] for keyword in DEFAULT_PROPOSALS)


def with_psk(
    local: Identity,
    remote: Identity | None,
    psk: Secret,
    suites: tuple[Suite, ...],
    lifetime: int = 86400,
) -> Phase1Config:
    return Phase1Config((PreSharedKey(local, remote, psk),), suites, lifetime)


def ident(text: str) -> Identity:
    return Identity.parse(text)


def swap(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


def gcks(old: str, new: str) -> str:
    return swap(GCKS, old, new)


def gm(old: str, new: str) -> str:
    return swap(GM, old, new)


def rekey(line: str) -> str:
    return gcks("[[group.tek]]", f"[group.rekey]\n{line}\n\n[[group.tek]]")


TEK = 'destination = "239.192.1.1"'
PSK_LINE = f'psk = "{PSK}"'
HOST = "is no address of a host"
NO_ID = "is no address, FQDN, user@FQDN, DN or keyid:HEX"
ONE_PSK = "give psk or psk_file, one of the two, or auth = 'pubkey'"


Config = Callable[[Path], object]


def refused(make: Config, path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        make(path)
    assert caught.value.exit_code == 2
    assert caught.value.file == path
    assert "\n" not in str(caught.value)
    assert PSK not in str(caught.value) + repr(caught.value)
    return caught.value
