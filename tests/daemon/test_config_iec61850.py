"""``[[group.iec61850]]`` of a key server and ``export`` of a member."""

from __future__ import annotations

from pathlib import Path

import pytest

from gdoi_plugin.daemon.config_gcks import KeyServerDaemonConfig
from gdoi_plugin.daemon.config_member import MemberDaemonConfig
from gdoi_plugin.daemon.errors import ConfigError
from gdoi_plugin.protocol.iec_tek import AUTHENTICATIONS, CONFIDENTIALITIES, IecSuite, IecTekConfig
from gdoi_plugin.protocol.tek_policy import TekConfig
from gdoi_plugin.wire.oid import Oid
from tests.daemon.configs import GCKS, GM, write

TEK = '[[group.tek]]\ndestination = "239.192.1.1"\n'
GOOSE = "1.2.840.10070.61850.8.1.2"


def entry(*lines: str, oid: str = f'oid = "{GOOSE}"') -> str:
    return "\n".join(("\n[[group.iec61850]]", oid, *lines, ""))


def suite(auth: str, conf: str) -> IecSuite:
    return IecSuite(AUTHENTICATIONS[auth], CONFIDENTIALITIES[conf])


def test_alone_and_with_nothing_optional(tmp_path: Path) -> None:
    text = GCKS.replace(TEK, "") + entry()
    (group,) = KeyServerDaemonConfig(write(tmp_path, text)).groups
    assert group.teks == (IecTekConfig(Oid.parse(GOOSE), suite("hmac-sha256-128", "none"), 86400),)


def test_everything_besides_a_data_sa(tmp_path: Path) -> None:
    text = GCKS + entry(
        'payload = "8704E9FC0001"',
        'auth = "hmac-sha256"',
        'conf = "aes-cbc-256"',
        'lifetime = "2h"',
        'sa_atd = "10m"',
        "sa_kda = 90",
    )
    (group,) = KeyServerDaemonConfig(write(tmp_path, text + entry())).groups
    first, second, third = group.teks
    assert isinstance(first, TekConfig)
    assert second == IecTekConfig(
        Oid.parse(f"{GOOSE}:8704e9fc0001"), suite("hmac-sha256", "aes-cbc-256"), 7200, 600, 90
    )
    assert third.flow == Oid.parse(GOOSE)


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        (entry(oid='oid = "goose"'), "group.0.iec61850.0.oid", "is no OID; write it as 1.2.840"),
        (entry(oid='oid = "1.2:05"'), "group.0.iec61850.0.oid", "payload has a key of its own"),
        (entry('payload = "0"'), "group.0.iec61850.0.payload", "must be hexadecimal"),
        (entry('payload = ""'), "group.0.iec61850.0.payload", "must be hexadecimal"),
        (entry(f'payload = "{"00" * 513}"'), "group.0.iec61850.0", "must be 1 to 512"),
        (entry('auth = "md5"'), "group.0.iec61850.0.auth", "must be one of none, hmac-sha256-128"),
        (entry('conf = "des"'), "group.0.iec61850.0.conf", "must be one of none, aes-cbc-128"),
        (entry('auth = "none"', 'conf = "aes-cbc-128"'), "group.0.iec61850.0", "without authent"),
        (entry('conf = "aes-gcm-256"'), "group.0.iec61850.0", "auth must be none"),
        (entry('lifetime = "0s"'), "group.0.iec61850.0.lifetime", "must be 30s to 365d"),
        (entry("sa_kda = 101"), "group.0.iec61850.0.sa_kda", "must be 0 to 100"),
        (entry('sa_atd = "0s"'), "group.0.iec61850.0.sa_atd", "must be 1s to 30d"),
        (entry('lifetime = "1h"', 'sa_atd = "30m"'), "group.0", "1830 s, are more than half"),
        (entry() * 2, "group.0.iec61850", f"{GOOSE} twice"),
        (entry("priority = 4"), "group.0.iec61850.0.priority", "known here: auth, conf, lifetime"),
        (
            "".join(entry(oid=f'oid = "1.2.{n}"') for n in range(64)),
            "group.0",
            "65 of [[group.tek]]",
        ),
    ],
)
def test_a_sentence_that_helps(tmp_path: Path, text: str, key: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        KeyServerDaemonConfig(write(tmp_path, GCKS + text))
    assert caught.value.key == key
    assert says in str(caught.value)


def test_a_group_needs_something_to_protect(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"0 of \[\[group.tek\]\] and \[\[group.iec61850\]\]"):
        KeyServerDaemonConfig(write(tmp_path, GCKS.replace(TEK, "")))


@pytest.mark.parametrize("folder", [None, "/run/gdoi/keys"])
def test_where_a_member_puts_keys(tmp_path: Path, folder: str | None) -> None:
    line = "" if folder is None else f'export = "{folder}"\n'
    config = MemberDaemonConfig(write(tmp_path, GM.replace("[member]\n", f"[member]\n{line}")))
    assert config.settings.export == (None if folder is None else Path(folder))
    assert config.groups[0].exports == (folder is not None)
