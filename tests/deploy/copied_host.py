"""A writable copy of this host's root file system, in namespaces of its own.

What is installed there is gone with them.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIMIT = 300.0
_BEGIN = """\
set -e
mount -t tmpfs tmpfs {place}
mkdir {place}/upper {place}/work {place}/root
mount -t overlay overlay -o lowerdir=/,upperdir={place}/upper,workdir={place}/work {place}/root
mount -t proc proc {place}/root/proc
mount --rbind /dev {place}/root/dev
mount -t tmpfs tmpfs {place}/root/run
mount -t tmpfs tmpfs {place}/root/tmp
mount --bind {place}/upper {place}/root/mnt
ip link set lo up
mkdir {place}/root/tmp/given
mount --bind {given} {place}/root/tmp/given
echo ready
exec sleep infinity
"""


class CopiedHost:
    """``/tmp/given`` is the caller's folder, ``/mnt`` all that differs from this host."""

    def __init__(self, first: int, root: Path) -> None:
        self._prefix = [
            "nsenter",
            "-t",
            str(first),
            "--mount",
            "--net",
            "--pid",
            "chroot",
            str(root),
        ]

    def run(self, command: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self._prefix, "sh", "-c", command],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def said(self, *words: object) -> str:
        return self.run(shlex.join(map(str, words))).stdout


@contextmanager
def copied_host(folder: Path, given: Path) -> Iterator[CopiedHost]:
    place = folder / "host"
    place.mkdir()
    isolated = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]
    script = _BEGIN.format(place=place, given=given)
    with subprocess.Popen(
        [*isolated, "sh", "-c", script], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            yield CopiedHost(int(children.split()[0]), place / "root")
        finally:
            process.kill()
