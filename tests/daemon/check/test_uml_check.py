"""`gdoictl check` at a member of the lab, on a kernel that has everything: nothing is wrong; then
much is; then what it says is done, and nothing is wrong again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gdoi_lab.net import Host, Network

from tests.daemon.children import eventually

pytestmark = pytest.mark.uml
GDOICTL = str(Path(sys.prefix) / "bin" / "gdoictl")
LOADER = Path("/proc/sys/kernel/modprobe")
MEMBER = """\
[member]
interface = "eth0"
state = "{folder}/state"
control = "{folder}/gm.vici"
control_group = "root"

[[group]]
name = "video"
id = 1

[[group.key_server]]
address = "{server}"
psk_file = "psk"
"""
Found = dict[str, dict[str, Any]]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Network(["gcks", "gm1"], tmp_path / "net") as network:
        path = tmp_path / "gm.toml"
        path.write_text(MEMBER.format(folder=tmp_path, server=network["gcks"].address4))
        (tmp_path / "psk").write_text("k")
        (tmp_path / "psk").chmod(0o600)
        yield network["gm1"]


def check(host: Host, folder: Path) -> tuple[int, Found]:
    """Exit status, and what was found by what was tested; not what is the lab kernel's own."""
    command = [GDOICTL, "check", "--gm", str(folder / "gm.toml"), "--json"]
    done = host.run(command, check=False, timeout=150)
    assert not done.stderr
    found = {one["test"]: one for one in json.loads(done.stdout)}
    del found["synchronisation"]
    return done.returncode, found


def wrong(found: Found) -> dict[str, str]:
    return {test: one["verdict"] for test, one in found.items() if one["verdict"] != "ok"}


@contextmanager
def without_esp() -> Iterator[None]:
    """As on a host whose kernel has no such module."""
    loader = LOADER.read_text()
    LOADER.write_text("/bin/false")
    subprocess.run(["rmmod", "esp4"], check=True)
    try:
        yield
    finally:
        LOADER.write_text(loader)
        subprocess.run([loader.strip(), "esp4"], check=True)


def mend(host: Host, commands: str) -> None:
    tools = str(Path(LOADER.read_text().strip()).parent)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}"}
    host.run(["sh", "-c", commands], check=False, env=environment)


@pytest.mark.own_kernel
def test_right_wrong_and_mended(host: Host, tmp_path: Path) -> None:
    status, found = check(host, tmp_path)
    assert (status, wrong(found)) == (0, {})
    assert "aes256gcm16" in found["ESP over IPv4"]["found"]
    assert found["AH over IPv4"]["verdict"] == "ok"
    assert host.ip("xfrm", "state") == host.ip("xfrm", "policy") == ""

    (tmp_path / "psk").chmod(0o644)
    host.sysctl({"net/ipv4/igmp_max_memberships": 0})
    binds = "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 848))"
    other = host.popen([sys.executable, "-c", f"{binds}; time.sleep(600)"], tmp_path / "other")
    eventually(lambda: host.run(["ss", "-Hlun", "sport = 848"]).stdout, "its port")
    with without_esp():
        status, found = check(host, tmp_path)
    assert status == 5
    port = f"UDP {host.address4}:848"
    secret = f"psk_file {tmp_path}/psk"
    assert set(wrong(found)) == {"ESP over IPv4", "IGMP join on eth0", port, secret}
    assert "has no ESP for IPv4" in found["ESP over IPv4"]["found"]
    assert f"process {other.pid}" in found[port]["found"]

    del found["ESP over IPv4"]  # another kernel is not to be had; this one has it again
    mend(host, "\n".join(one["mend"] for one in found.values()))
    other.wait(90)
    status, found = check(host, tmp_path)
    assert (status, wrong(found)) == (0, {})


def test_every_suite_and_a_router(host: Host, tmp_path: Path) -> None:
    """With the key server's configuration beside it the suites are those of its policies."""
    host.run(["ip", "link", "add", "lan0", "type", "veth", "peer", "name", "lan0peer"])
    host.run(["ip", "link", "set", "lan0", "up"])
    host.run(["ip", "link", "set", "lan0peer", "up"])
    host.sysctl({"net/ipv4/ip_forward": 1})
    path = tmp_path / "gm.toml"
    text = path.read_text().replace("id = 1\n", 'id = 1\nlan = ["lan0"]\n')
    path.write_text(text.replace("[member]\n", '[member]\nfirewall = "iptables-legacy"\n'))
    _, found = check(host, tmp_path)
    assert found["a router's rules by iptables-legacy"]["verdict"] == "ok"
    assert set(wrong(found)) == {"multicast routing on eth0"}
    # Nothing of the rules is left behind where the host has its own.
    assert "GDOI" not in host.run(["iptables-legacy", "-t", "mangle", "-S"]).stdout
