"""What systemd's own tools say of the units, without starting them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "deploy/systemd"
# Tenths of systemd's exposure level, whose scale ends at 10.
THRESHOLD = 20
SERVICES = ["gdoi-gm.service", "gdoi-gcks.service"]
# Ordered as cloud-init's first two stages and Debian's ifupdown.
CLOUD = {
    "cloud-init-local": """
Wants=network-pre.target
Before=network-pre.target sysinit.target shutdown.target
After=local-fs.target
""",
    "cloud-init": """
Wants=cloud-init-local.service
After=cloud-init-local.service networking.service
Before=network-online.target sysinit.target shutdown.target
""",
    "networking": """
Wants=network.target
After=local-fs.target network-pre.target systemd-sysctl.service
Before=network.target network-online.target shutdown.target
""",
}
# Rules are loaded so by Debian's packages of that name.
FIREWALL = """
Wants=network-pre.target
After=local-fs.target systemd-modules-load.service
Before=network-pre.target shutdown.target
"""
FIREWALLS = {"nftables": FIREWALL, "netfilter-persistent": FIREWALL}


def analyze(*words: object, path: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, words)],
        capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | ({} if path is None else {"SYSTEMD_UNIT_PATH": path}),
    )  # fmt: skip


def without_programs(service: str) -> str:
    """Programs are where the package has them, which is not here."""
    return (UNITS / service).read_text().replace("/usr/bin/gdoi-", "/bin/true gdoi-")


@pytest.mark.parametrize("service", SERVICES)
def test_exposure(service: str) -> None:
    done = analyze("security", "--offline=true", f"--threshold={THRESHOLD}", UNITS / service)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout
    assert float(found[1]) <= THRESHOLD / 10


def test_the_threshold_is_one(tmp_path: Path) -> None:
    """A unit without a sandbox does not pass."""
    unit = tmp_path / "gdoi-open.service"
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    assert analyze("security", "--offline=true", f"--threshold={THRESHOLD}", unit).returncode != 0


@pytest.mark.parametrize("service", SERVICES)
def test_every_line_is_understood(service: str, tmp_path: Path) -> None:
    """With each drop-in that is shipped."""
    text = without_programs(service)
    for example in [None, *sorted((UNITS / "examples").glob("*.conf.example"))]:
        unit = tmp_path / service
        unit.write_text(text + ("" if example is None else example.read_text()))
        done = analyze("verify", "--man=no", unit)
        assert (done.returncode, done.stderr) == (0, ""), example


def booting(folder: Path, services: dict[str, str]) -> str:
    """What is wrong with a host that boots these, both daemons enabled."""
    wanted = folder / "multi-user.target.wants"
    wanted.mkdir(parents=True)
    for name, text in services.items():
        (folder / name).write_text(text)
        (wanted / name).symlink_to(folder / name)
    path = f"{folder}:/usr/lib/systemd/system"
    return analyze("verify", "--man=no", "multi-user.target", path=path).stderr


@pytest.mark.parametrize("others", [{}, CLOUD, FIREWALLS, CLOUD | FIREWALLS])
def test_the_order_at_boot_has_no_cycle(others: dict[str, str], tmp_path: Path) -> None:
    """The agent comes before the network; so does much else, and not all of it after sysinit."""
    services = {service: without_programs(service) for service in SERVICES}
    for name, order in others.items():
        services[f"{name}.service"] = (
            f"[Unit]\nDefaultDependencies=no\nConflicts=shutdown.target\n{order}"
            "[Service]\nType=oneshot\nExecStart=/bin/true\n"
        )
    assert "gdoi" not in booting(tmp_path / "as-it-is", services)
    if others.keys() >= CLOUD.keys():
        agent = services["gdoi-gm.service"]
        after_sysinit = agent.replace("DefaultDependencies=no\n", "")
        found = booting(tmp_path / "after-sysinit", services | {"gdoi-gm.service": after_sysinit})
        assert "ordering cycle" in found
        assert "gdoi-gm.service" in found


def test_drop_ins_say_no_more_than_they_mean() -> None:
    """A line that is taken over as it is belongs to [Service]."""
    for example in (UNITS / "examples").glob("*.conf.example"):
        lines = [line for line in example.read_text().splitlines() if line[:1] not in ("#", "")]
        assert lines[0] == "[Service]"
        assert all(re.match(r"[A-Z][A-Za-z]+=", line) for line in lines[1:])
