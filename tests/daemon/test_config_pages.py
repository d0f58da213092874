"""Where metrics and status page may be served: to this host, and nobody else."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from gdoi_plugin.daemon.config_gcks import KeyServerDaemonConfig
from gdoi_plugin.daemon.config_member import MemberDaemonConfig
from gdoi_plugin.protocol.actions import Peer
from tests.daemon.configs import gcks, gm, refused, write


def _server(folder: Path, line: str) -> KeyServerDaemonConfig:
    path = write(folder, gcks("[key_server]\n", f"[key_server]\n{line}\n"))
    return KeyServerDaemonConfig(path)


def test_off_by_default(tmp_path: Path) -> None:
    settings = _server(tmp_path, "").settings
    assert (settings.metrics, settings.status_page) == (None, None)
    assert (
        MemberDaemonConfig(write(tmp_path, gm("[member]\n", "[member]\n"))).settings.metrics is None
    )


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("127.0.0.1:9848", Peer(ip_address("127.0.0.1"), 9848)),
        ("127.8.0.9:1", Peer(ip_address("127.8.0.9"), 1)),
        ("[::1]:9848", Peer(ip_address("::1"), 9848)),
        ("/run/gdoi/gcks-metrics.sock", Path("/run/gdoi/gcks-metrics.sock")),
        ("./metrics.sock", Path("metrics.sock")),
    ],
)
def test_places_for_metrics(tmp_path: Path, value: str, place: Path | Peer) -> None:
    assert _server(tmp_path, f'metrics = "{value}"').settings.metrics == place
    member = write(tmp_path, gm("[member]\n", f'[member]\nmetrics = "{value}"\n'), "gm.toml")
    assert MemberDaemonConfig(member).settings.metrics == place


def test_who_may_scrape(tmp_path: Path) -> None:
    """Those who may command, until others are named."""
    for line, group in [("", "gdoi"), ('metrics_group = "www-data"', "www-data")]:
        lines = f'control_group = "gdoi"\n{line}'
        member = write(tmp_path, gm("[member]\n", f"[member]\n{lines}\n"), "gm.toml")
        for settings in (_server(tmp_path, lines).settings, MemberDaemonConfig(member).settings):
            assert (settings.scrapers, settings.control_group) == (group, "gdoi")


NO_PLACE = "is no address and port, write it as 127.0.0.1:9848"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ('"0.0.0.0:9848"', "0.0.0.0:9848 is not loopback; must be of 127.0.0.0/8 or [::1]"),
        ('"192.0.2.1:9848"', "192.0.2.1:9848 is not loopback; must be of 127.0.0.0/8 or [::1]"),
        ('"[::]:9848"', "[::]:9848 is not loopback; must be of 127.0.0.0/8 or [::1]"),
        ('"[2001:db8::1]:1"', "[2001:db8::1]:1 is not loopback; must be of 127.0.0.0/8 or [::1]"),
        ('"127.0.0.1"', f"'127.0.0.1' {NO_PLACE}"),
        ('"127.0.0.1:0"', f"'127.0.0.1:0' {NO_PLACE}"),
        ('"127.0.0.1:65536"', f"'127.0.0.1:65536' {NO_PLACE}"),
        ('"127.0.0.1:9_8"', f"'127.0.0.1:9_8' {NO_PLACE}"),
        ('"127.0.0.1: 98"', f"'127.0.0.1: 98' {NO_PLACE}"),
        ('"::1:9848"', f"'::1:9848' {NO_PLACE}"),
        ('"[127.0.0.1]:9848"', f"'[127.0.0.1]:9848' {NO_PLACE}"),
        ('"localhost:9848"', f"'localhost:9848' {NO_PLACE}"),
        ('":9848"', f"':9848' {NO_PLACE}"),
        ('""', f"'' {NO_PLACE}"),
        ("9848", f"9848 {NO_PLACE}"),
        ("true", f"True {NO_PLACE}"),
    ],
)
@pytest.mark.parametrize("key", ["metrics", "status_page"])
def test_others_are_refused(tmp_path: Path, key: str, value: str, why: str) -> None:
    path = write(tmp_path, gcks("[key_server]\n", f"[key_server]\n{key} = {value}\n"))
    error = refused(KeyServerDaemonConfig, path)
    assert str(error) == f"{path}: key_server.{key}: {why}"


def test_a_status_page_is_for_browsers_and_has_no_file(tmp_path: Path) -> None:
    path = write(tmp_path, gcks("[key_server]\n", '[key_server]\nstatus_page = "/run/page"\n'))
    assert NO_PLACE in str(refused(KeyServerDaemonConfig, path))
