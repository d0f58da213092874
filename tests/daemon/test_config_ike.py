"""Keys of ``gdoi-gcks``'s configuration that are about charon."""

from __future__ import annotations

from pathlib import Path

import pytest

from gdoi_plugin.daemon.config_gcks import KeyServerDaemonConfig
from gdoi_plugin.protocol.ike_sas import IkePolicy, OnIkeDown
from tests.daemon.configs import gcks, refused, swap, write

NEEDS = 'on_ike_down and ike_grace need authorise = "ike"'


def group(lines: str, connections: str = '["members"]') -> str:
    text = gcks("id = 1\n", f"id = 1\n{lines}\n")
    return swap(text, "[key_server]\n", f"[key_server]\nike_connections = {connections}\n")


@pytest.mark.parametrize(
    ("lines", "policy"),
    [
        ("", None),
        ('authorise = "phase1"', None),
        ('authorise = "ike"', IkePolicy(OnIkeDown.MARK, 300.0)),
        (
            'authorise = "ike"\non_ike_down = "evict"\nike_grace = "90s"',
            IkePolicy(OnIkeDown.EVICT, 90.0),
        ),
    ],
)
def test_who_says_who_a_member_is(folder: Path, lines: str, policy: IkePolicy | None) -> None:
    config = KeyServerDaemonConfig(write(folder, group(lines)))
    assert [one.ike for one in config.groups] == [policy]
    assert config.settings.charon == Path("/run/charon.vici")


BAD = {
    "nobody": (group('authorise = "radius"'), "group.0.authorise: "),
    "no policy": (group('on_ike_down = "evict"'), NEEDS),
    "no grace": (group('ike_grace = "5m"'), NEEDS),
    "anybody's": (
        group('authorise = "ike"', "[]"),
        "key_server.ike_connections: group video has authorise",
    ),
    "no name": (group("", '["members", ""]'), "key_server.ike_connections.1: a name in swanctl"),
    "too short": (group('authorise = "ike"\nike_grace = "0s"'), "group.0.ike_grace: "),
    "several key servers": (
        group('authorise = "ike"\non_ike_down = "evict"').replace(
            "[key_server]\n", '[key_server]\ndatabase = "postgresql://gdoi@db/gdoi"\n'
        ),
        "group.0.on_ike_down: evict is for one key server alone",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(folder: Path, case: str) -> None:
    text, said = BAD[case]
    assert said in str(refused(KeyServerDaemonConfig, write(folder, text)))
