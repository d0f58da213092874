"""Whom the daemons run as: root, or the user that a package has made for their units."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path
from shlex import quote
from typing import Literal

# As deploy/systemd/gdoi.sysusers has it.
USER = "gdoi"


def as_root() -> str:
    """What is to be done where rights are missing."""
    return "sudo gdoictl check" if os.geteuid() else "# a container? run it on the host"


def making(command: str, path: Path, user: str | None) -> str:
    """What writes a command's output to a file that the daemon alone may read."""
    name = quote(str(path))
    if user is None:
        return f"(umask 077; {command} > {name})"
    return f"{command} | install -o {user} -m 600 /dev/stdin {name}"


def daemon_user() -> str | None:
    """None: root."""
    try:
        return pwd.getpwnam(USER).pw_name
    except KeyError:
        return None


def may(user: str | None, what: Literal["-r", "-w"], path: Path) -> bool:
    """Whether that user may read or write it; True where that cannot be tried."""
    if user is None or os.geteuid() != 0:
        return True
    group = pwd.getpwnam(user).pw_gid
    command = ["test", what, str(path)]
    others = os.getgrouplist(user, group)
    done = subprocess.run(command, user=user, group=group, extra_groups=others, check=False)
    return done.returncode == 0
