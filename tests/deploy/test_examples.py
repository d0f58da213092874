"""What the example configurations are; that they pass is tested where they are installed."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from gdoi_lab.routed import SYSCTLS, routes

from tests.deploy.examples import EXAMPLES, examples, interfaces, program
from tests.interop.charon import charon, on_loopback
from tests.support.pki import issue

ROUTERS = EXAMPLES / "lan-routers"
BESIDE = EXAMPLES / "beside-swanctl"
SWANCTL = "/usr/sbin/swanctl"


def test_there_is_one_for_each_kind_of_network() -> None:
    folders = {path.parts[0] for path in examples() if len(path.parts) > 1}
    assert {
        "lan-routers",
        "unicast-wan",
        "beside-swanctl",
        "iec61850-substation",
        "three-key-servers",
    } <= folders
    for folder in folders:
        programs = {program(path) for path in examples() if path.parts[0] == folder}
        assert programs == {"gdoi-gm", "gdoi-gcks"}, folder


def _lines(text: str) -> list[str]:
    """What counts, and the remarks behind it."""
    lines = map(str.strip, text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def test_the_page_has_a_routers_files_whole() -> None:
    page = (EXAMPLES.parent / "docs/data-plane.md").read_text()
    shown = [_lines(block) for block in re.findall(r"(?:^       .*\n|^\n)+", page, re.MULTILINE)]
    for file in ROUTERS.iterdir():
        assert _lines(file.read_text()) in shown, file.name


def test_a_routers_files_are_the_labs() -> None:
    """tests/lab/routers routes by them, with other addresses."""
    hosts = [f"10.{number}.0.2" for number in (1, 2, 3)]
    lines = _lines((ROUTERS / "smcroute.conf").read_text())
    assert lines == routes(["239.192.1.1"], hosts[:1], hosts[1:])
    script = " && ".join([*interfaces(), f"smcrouted -F {ROUTERS / 'smcroute.conf'}"])
    subprocess.run(["unshare", "--net", "sh", "-c", script], check=True)
    sysctls = dict(line.split(" = ") for line in _lines((ROUTERS / "sysctl.conf").read_text()))
    assert sysctls == {name.replace("/", "."): str(value) for name, value in SYSCTLS.items()}


def test_no_example_has_a_secret_in_it() -> None:
    """They are copied as they are; a key that is written here would be everybody's."""
    for example in examples():
        lines = (EXAMPLES / example).read_text().splitlines()
        assert not [line for line in lines if line.startswith("psk =")], example


def test_servers_of_one_group_differ_in_address_and_name_only() -> None:
    files = [(EXAMPLES / f"three-key-servers/gcks-{n}.toml").read_text() for n in "abc"]
    common = [
        [
            line
            for line in text.splitlines()
            if not line.startswith(("#", 'address = "192.0.2.', 'name = "gcks'))
        ]
        for text in files
    ]
    assert common[0] == common[1] == common[2]
    assert len(set(files)) == 3


def test_what_is_proposed_works_under_the_units() -> None:
    """Logs where the sandbox lets them be written, and a port for each purpose."""
    logs, ports = set[str](), dict[str, str]()
    for name in ("gcks.toml", "gm.toml"):
        text = (EXAMPLES / name).read_text()
        logs |= set(re.findall(r'^(?:# )?log = "(.*?)"', text, re.MULTILINE))
        assert "-m 640 " in text.split("[")[0]
        for option, port in re.findall(r'^(?:# )?(\w+) = "127\.0\.0\.1:(\d+)"', text, re.MULTILINE):
            assert ports.setdefault(port, option) == option
    assert logs == {"/var/log/gdoi/gcks.jsonl", "/var/log/gdoi/gm.jsonl"}
    assert sorted(ports.values()) == ["metrics", "status_page"]


@pytest.mark.parametrize(
    ("name", "host", "connection"),
    [("gm", "gm1", "gcks"), ("gcks", "gcks", "members")],
    ids=["member", "key server"],
)
def test_swanctl_takes_charons_part(name: str, host: str, connection: str, tmp_path: Path) -> None:
    """All of it, certificates and keys too: else charon has no connection, or swanctl fails."""
    authority = issue("authority", ca=True)
    own = issue(host, authority, names=(f"{host}.example.org",))
    files = {
        "swanctl.conf": (BESIDE / f"swanctl-{name}.conf").read_bytes(),
        "x509ca/ca.pem": authority.pem,
        f"x509/{host}.pem": own.pem,
        f"private/{host}.pem": own.key_pem,
    }
    for file, content in files.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(content)
    with on_loopback("192.0.2.1"), charon(tmp_path / "charon") as ike:
        done = subprocess.run(
            [SWANCTL, "--load-all", "--uri", f"unix://{tmp_path}/charon/vici"],
            env=os.environ | {"SWANCTL_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        loaded = ike.connection(connection)
    child = loaded["children"]["gdoi"]
    assert (loaded["version"], child["mode"]) == ("IKEv2", "TRANSPORT")
    assert child["local-ts"] == child["remote-ts"] == ["dynamic[udp/848]"]
    assert loaded["local-1"]["id"] == f"{host}.example.org"
    assert len(loaded["local-1"]["certs"]) == 1


def test_the_members_channel_is_the_connection_that_swanctl_loads() -> None:
    member = tomllib.loads((BESIDE / "gm.toml").read_text())
    (server,) = member["group"][0]["key_server"]
    text = (BESIDE / "swanctl-gm.conf").read_text()
    assert member["group"][0]["channel"] == "ike"
    assert f"\n    {server['ike']['connection']} {{\n" in text
    assert f"\n            {server['ike']['child']} {{\n" in text
    assert f"remote_addrs = {server['address']}\n" in text
