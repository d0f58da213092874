"""Both units under a real systemd, with their sandbox and all: a key server and a member.

::

    gdoi-gcks.service 192.0.2.1 ---- veth ---- 192.0.2.11 gdoi-gm.service, in the namespace blue
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from gdoi_plugin.cli.client import Fields
from tests.lab.systemd.booted import UNITS, Machine, machine

pytestmark = pytest.mark.uml

PSK = "a pre-shared key of the lab"
MASTER_KEY = "8d" * 32
BIND, ADMIN = 1 << 10, 1 << 12
GCKS = """\
[key_server]
address = "192.0.2.1"
metrics = "/run/gdoi-metrics/gcks.sock"
metrics_group = "www-data"
proposals = ["aes128-sha256-ecp256"]

[[peer]]
address = "192.0.2.0/24"
psk_file = "$CREDENTIALS_DIRECTORY/lan.psk"

[[group]]
name = "video"
id = 1234
members = ["192.0.2.11"]

[group.rekey]
kek = "aes128"
signature = "ecdsa256"

[[group.tek]]
destination = "239.192.1.1"
proposal = "aes128-sha256"
"""
GM = """\
[member]
interface = "veth-gm"

[[group]]
name = "video"
id = 1234

[[group.key_server]]
address = "192.0.2.1"
psk_file = "$CREDENTIALS_DIRECTORY/lan.psk"
"""
# A test does not wait for a minute.
SOON = """
[Service]
WatchdogSec=8s
"""


def example(name: str) -> str:
    return (UNITS / "examples" / f"{name}.conf.example").read_text()


def network() -> None:
    for command in (
        "ip netns add blue",
        "ip link add veth-gcks type veth peer name veth-gm netns blue",
        "ip address add 192.0.2.1/24 dev veth-gcks",
        "ip link set veth-gcks up",
        "ip -n blue link set veth-gm up",
        "ip -n blue link set lo up",
    ):
        subprocess.run(command.split(), check=True)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    network()
    with machine(tmp_path_factory.mktemp("systemd")) as made:
        made.install()
        made.write("/etc/gdoi/gcks.toml", GCKS)
        made.write("/etc/gdoi/gm.toml", GM)
        made.write("/etc/tmpfiles.d/gdoi-metrics.conf", "d /run/gdoi-metrics 0750 gdoi www-data -")
        made.write("/etc/gdoi/credentials/lan.psk", PSK, 0o600)
        made.write("/etc/credstore/gdoi-master-key", MASTER_KEY, 0o600)
        for unit, parts in {
            "gdoi-gcks": [example("credentials"), example("metrics"), SOON],
            "gdoi-gm": [example("credentials"), example("netns")],
        }.items():
            # A drop-in each, as `systemctl edit` makes one.
            for number, text in enumerate(parts):
                made.write(f"/etc/systemd/system/{unit}.service.d/{number}.conf", text)
        with made.booted():
            made.run("systemd-tmpfiles", "--create", "gdoi-metrics.conf")
            made.systemctl("start", "gdoi-gcks", "gdoi-gm")
            yield made
    subprocess.run(["ip", "netns", "delete", "blue"], check=True)


def sas() -> str:
    command = ["ip", "-n", "blue", "xfrm", "state"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def group(host: Machine, daemon: str) -> Fields:
    (found,) = host.asked(daemon, "list-groups", "list-group")
    return found


def active(host: Machine, unit: str) -> bool:
    return host.show(unit, "ActiveState", "SubState") == {
        "ActiveState": "active",
        "SubState": "running",
    }


def test_the_agent_may_start_before_the_network(host: Machine) -> None:
    assert active(host, "gdoi-gm")
    waiting = "waiting for the network: "
    host.until(
        lambda: host.show("gdoi-gm", "StatusText")["StatusText"].startswith(waiting), waiting
    )
    assert sas() == ""
    command = "ip -n blue address add 192.0.2.11/24 dev veth-gm"
    subprocess.run(command.split(), check=True)


def test_started_means_serving(host: Machine) -> None:
    """`systemctl start` came back: sockets are bound, the state is loaded, control answers."""
    assert active(host, "gdoi-gcks")
    assert active(host, "gdoi-gm")
    assert group(host, "gcks")["group"] == "video"
    host.until(lambda: group(host, "gm")["state"] == "registered", "the member is registered")
    assert "proto esp" in sas()
    status = "1 of 1 groups registered, 1 SAs"
    host.until(lambda: host.show("gdoi-gm", "StatusText")["StatusText"] == status, status)
    status = "1 groups, 1 members"
    host.until(lambda: host.show("gdoi-gcks", "StatusText")["StatusText"] == status, status)


@pytest.mark.parametrize(("unit", "rights"), [("gdoi-gcks", BIND), ("gdoi-gm", ADMIN | BIND)])
def test_with_no_more_rights_than_it_needs(host: Machine, unit: str, rights: int) -> None:
    process = host.process(unit)
    uid = host.run("id", "-u", "gdoi").stdout.strip()
    assert uid != "0"
    assert set(process["Uid"].split()) == {uid}
    for kind in ("CapEff", "CapPrm", "CapBnd", "CapAmb", "CapInh"):
        assert int(process[kind], 16) == rights, kind
    assert (process["Seccomp"], process["NoNewPrivs"]) == ("2", "1")
    pid = process["Pid"]
    limits = host.run("cat", f"/proc/{pid}/limits").stdout
    assert next(
        line.split()[4:6] for line in limits.splitlines() if line.startswith("Max core")
    ) == ["0", "0"]


def test_secrets_come_as_credentials_alone(host: Machine) -> None:
    log = host.journal("-u", "gdoi-gcks")
    assert "started version=" in log
    assert "unsealed" not in log
    assert PSK not in log
    assert MASTER_KEY not in log
    refused = host.run(
        "setpriv", "--reuid=gdoi", "--regid=gdoi", "--clear-groups",
        "cat", "/etc/gdoi/credentials/lan.psk", check=False,
    )  # fmt: skip
    assert "Permission denied" in refused.stderr


def test_the_group_may_command_and_others_may_not(host: Machine) -> None:
    ask = ("gdoictl", "--socket", "/run/gdoi/gcks.vici", "--json", "status")
    nobody = ("setpriv", "--reuid=65534", "--regid=65534")
    assert '"video"' in host.run(*nobody, "--groups=gdoi", *ask).stdout
    refused = host.run(*nobody, "--clear-groups", *ask, check=False)
    assert refused.returncode != 0
    assert "permission denied" in refused.stderr


def test_who_may_read_metrics_may_not_command(host: Machine) -> None:
    """By the drop-in: a folder and a group of their own."""
    ask = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    reader = ("setpriv", "--reuid=www-data", "--regid=www-data", "--clear-groups")
    asked = (*reader, "python3", "-ISc", ask)
    host.run(*asked, "/run/gdoi-metrics/gcks.sock")
    refused = host.run(*asked, "/run/gdoi/gcks.vici", check=False)
    assert "PermissionError" in refused.stderr


def test_a_reload_and_one_that_is_refused(host: Machine) -> None:
    config = host.root / "etc/gdoi/gcks.toml"
    changed = GCKS.replace("239.192.1.1", "239.192.1.2")
    config.write_text(changed)
    host.systemctl("reload", "gdoi-gcks")
    host.until(lambda: "239.192.1.2" in sas(), "the member has the new policy's SA")
    config.write_text("rubbish")
    host.systemctl("reload", "gdoi-gcks")
    host.until(lambda: "config-refused" in host.journal("-u", "gdoi-gcks"), "it is refused")
    host.until(lambda: active(host, "gdoi-gcks"), "it serves on")
    config.write_text(changed)


def test_a_daemon_that_hangs_is_noticed_and_started_again(host: Machine) -> None:
    before, seq = host.process("gdoi-gcks")["Pid"], int(group(host, "gcks")["seq"])
    held = sas()
    host.run("kill", "-STOP", before)
    never = {"NRestarts": "0"}
    host.until(lambda: host.show("gdoi-gcks", "NRestarts") != never, "systemd starts it again")
    host.systemctl("start", "gdoi-gcks")  # waits for what systemd does anyway
    assert active(host, "gdoi-gcks")
    assert host.process("gdoi-gcks")["Pid"] != before
    told = host.journal()
    assert "Watchdog timeout" in told
    assert re.search(r'File ".*/gdoi_plugin/daemon/shell.py", line \d+ in ', told), "where it hung"
    assert PSK not in told
    found = group(host, "gcks")
    assert (found["members"], int(found["seq"]) >= seq) == ("1", True)
    assert sas() == held


def test_an_upgrade_restarts_what_runs_or_should(host: Machine) -> None:
    """By the package's own script: what is enabled is started although it is stopped, which is why
    a rollback masks it."""
    upgrade = ("postinst", "configure", "0.0.1")
    held, before = sas(), host.process("gdoi-gm")["Pid"]
    host.systemctl("stop", "gdoi-gcks")
    for change in ("enable", "mask --runtime"):
        host.systemctl("--no-reload", *change.split(), "gdoi-gcks")
    host.script(*upgrade)
    assert not active(host, "gdoi-gcks")
    assert active(host, "gdoi-gm")
    assert host.process("gdoi-gm")["Pid"] != before
    assert sas() == held
    host.systemctl("--no-reload", "unmask", "--runtime", "gdoi-gcks")
    host.systemctl("stop", "gdoi-gm")
    host.script(*upgrade)
    assert active(host, "gdoi-gcks")
    assert not active(host, "gdoi-gm")


def test_removed_is_stopped(host: Machine) -> None:
    host.script("prerm", "remove")
    for unit in ("gdoi-gm", "gdoi-gcks"):
        state = host.show(unit, "ActiveState", "Result", "ExecMainStatus")
        assert state == {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0"}
    assert list((host.files / "run/gdoi").glob("*.vici")) == []
