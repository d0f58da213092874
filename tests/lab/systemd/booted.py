"""systemd as the first process of a PID namespace, on a writable copy of this root file system."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gdoi_lab.checkout import CHECKOUT, SYSTEM_PATH

from gdoi_plugin.cli.client import Client, Fields

LIMIT = 150.0
UNITS = CHECKOUT / "deploy/systemd"
SCRIPTS = CHECKOUT / "deploy/debian"
# Whoever made the checkout may have a home that other users cannot enter: it is mounted elsewhere.
CODE = "/opt/gdoi"
PROGRAMS = {
    "gdoi-gm": "gdoi_plugin.daemon.gm",
    "gdoi-gcks": "gdoi_plugin.daemon.gcks",
    "gdoictl": "gdoi_plugin.cli.gdoictl",
}
# What a bare machine has; nothing else of the host's is started.
_LEFT_OUT = (
    *("modprobe@.service", "systemd-journal-flush.service", "systemd-machine-id-commit.service"),
    *("systemd-sysctl.service", "systemd-tmpfiles-setup-dev.service"),
    *("systemd-update-utmp.service", "kmod-static-nodes.service", "dev-hugepages.mount"),
)
_TARGET = """\
[Unit]
Wants=systemd-journald.service
"""
_PROGRAM = f"""\
#!/bin/sh
export PYTHONPATH={CODE}:{CODE}/kernel:{CODE}/site-packages PYTHONDONTWRITEBYTECODE=1
exec /usr/bin/python3 -c '
import sys
from {{module}} import main
sys.argv[0] = "{{program}}"
sys.exit(main())' "$@"
"""
_BOOT = """\
set -e
mount -t proc proc {root}/proc
mount -t sysfs sysfs {root}/sys
mount -t cgroup2 cgroup2 {root}/sys/fs/cgroup
mount --rbind /dev {root}/dev
mount --make-rshared {root}
mount -t tmpfs run {root}/run
mount -t tmpfs tmp {root}/tmp
mkdir {root}/run/netns
mount --rbind /run/netns {root}/run/netns
for part in {parts}; do
    mkdir -p {root}{code}/${{part##*/}}
    mount --bind $part {root}{code}/${{part##*/}}
done
cd {root}
set -- /lib/systemd/systemd --unit=lab.target --show-status=no
exec env -i PATH={path} container=lab chroot . "$@"
"""


class Machine:
    """The booted system: files by path, commands in it, units by name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._first: subprocess.Popen[bytes] | None = None

    def write(self, path: str, text: str, mode: int = 0o644) -> Path:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(mode)
        return place

    def install(self) -> None:
        """Units, user and folders as the package has them; programs from the checkout."""
        for service in UNITS.glob("*.service"):
            self.write(f"/usr/lib/systemd/system/{service.name}", service.read_text())
        for kind in ("sysusers", "tmpfiles"):
            self.write(f"/usr/lib/{kind}.d/gdoi-plugin.conf", (UNITS / f"gdoi.{kind}").read_text())
        for script in SCRIPTS.glob("p*"):
            self.write(f"/opt/package/{script.name}", script.read_text())
        # Where the host is an image of a container, services are not started there.
        (self.root / "usr/sbin/policy-rc.d").unlink(missing_ok=True)
        self.write("/etc/systemd/system/lab.target", _TARGET)
        for unit in _LEFT_OUT:
            (self.root / "etc/systemd/system" / unit).symlink_to("/dev/null")
        # Nothing of it needs a generator, and each runs at every daemon-reload.
        masked = self.root / "etc/systemd/system-generators"
        masked.mkdir(parents=True, exist_ok=True)
        for generator in (self.root / "usr/lib/systemd/system-generators").iterdir():
            (masked / generator.name).symlink_to("/dev/null")
        for program, module in PROGRAMS.items():
            self.write(
                f"/usr/bin/{program}", _PROGRAM.format(program=program, module=module), 0o755
            )

    @contextmanager
    def booted(self) -> Iterator[None]:
        site = next(Path(path) for path in sys.path if path.endswith("site-packages"))
        parts = " ".join(
            str(part) for part in (CHECKOUT / "gdoi_plugin", CHECKOUT / "kernel", site)
        )
        script = _BOOT.format(root=self.root, parts=parts, code=CODE, path=SYSTEM_PATH)
        isolated = ["unshare", "--mount", "--pid", "--cgroup", "--fork", "--kill-child"]
        self._first = subprocess.Popen([*isolated, "sh", "-c", script])
        try:
            self.until(self._up, "systemd answers")
            self.script("postinst", "configure", "")
            yield
        finally:
            self._first.kill()
            self._first.wait()

    def _up(self) -> bool:
        assert self._first is not None
        assert self._first.poll() is None, "systemd has ended"
        if self._pid() is None:
            return False
        return self.run("systemctl", "is-active", "lab.target", check=False).stdout == "active\n"

    def _pid(self) -> str | None:
        assert self._first is not None
        children = Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children").read_text()
        return children.split()[0] if children.split() else None

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        pid = self._pid()
        inside = ["nsenter", "-t", str(pid), "--mount", "--pid", "--cgroup"]
        done = subprocess.run(
            [*inside, "chroot", str(self.root), *command],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert not check or done.returncode == 0, (
            f"{command}: {done.stdout}{done.stderr}{self.journal()}"
        )
        return done

    def script(self, name: str, *words: str) -> None:
        """As dpkg runs it."""
        self.run("sh", f"/opt/package/{name}", *words)

    def systemctl(self, *words: str) -> str:
        return self.run("systemctl", "--no-pager", *words).stdout.strip()

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        lines = self.systemctl("show", unit, f"--property={','.join(properties)}").splitlines()
        return dict(line.split("=", 1) for line in lines)

    def journal(self, *words: str) -> str:
        pid = self._pid()
        inside = ["nsenter", "-t", str(pid), "--mount", "--pid", "chroot", str(self.root)]
        command = [*inside, "journalctl", "--no-pager", "-o", "cat", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    @property
    def files(self) -> Path:
        """As its processes see them, with what is mounted since it was booted."""
        return Path(f"/proc/{self._pid()}/root")

    def asked(self, daemon: str, command: str, event: str) -> list[Fields]:
        """A list of the daemon's; without gdoictl, which takes seconds to start here."""
        with Client(self.files / f"run/gdoi/{daemon}.vici", LIMIT) as client:
            return list(client.stream(command, event))

    def process(self, unit: str) -> dict[str, str]:
        """/proc/PID/status of its main process."""
        pid = self.show(unit, "MainPID")["MainPID"]
        lines = self.run("cat", f"/proc/{pid}/status").stdout.splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < deadline, f"not in time: {what}\n{self.journal()}"
            time.sleep(0.5)  # each look begins programs, on the one processor that there is


@contextmanager
def machine(folder: Path) -> Iterator[Machine]:
    """Not booted yet. The kernel is the lab's own, so the copy lies in its memory."""
    modules = _modules()
    subprocess.run(["modprobe", *modules, "overlay"], check=True)
    place = folder / "machine"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    upper, work, root = (place / name for name in ("upper", "work", "root"))
    for each in (upper, work, root):
        each.mkdir()
    layers = f"lowerdir=/,upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, root], check=True)
    try:
        made = Machine(root)
        for unit in (root / "etc/systemd/system").iterdir():
            subprocess.run(["rm", "-rf", unit], check=True)
        made.write("/etc/machine-id", "")
        yield made
    finally:
        subprocess.run(["umount", "-l", root, place], check=True)


def _modules() -> Sequence[str]:
    """Where the lab's kernel has its modules, which is not where modprobe looks."""
    helper = Path(Path("/proc/sys/kernel/modprobe").read_text().strip())
    words = shlex.split(helper.read_text().splitlines()[-1]) if os.access(helper, os.R_OK) else []
    return words[words.index("-d") : words.index("-d") + 2] if "-d" in words else []
