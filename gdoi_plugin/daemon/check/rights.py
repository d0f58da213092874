"""Capabilities, modes of files, folders that are written to, the control socket's group."""

from __future__ import annotations

import grp
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from shlex import quote

from .account import may
from .finding import Area, Finding

RIGHTS = Area("permissions")
# linux/capability.h
_CAPABILITIES = {"CAP_NET_BIND_SERVICE": 10, "CAP_NET_ADMIN": 12}
# Octets: a full disk holds up every step of a key server.
LITTLE = 64 << 20


def check_capabilities(needed: Iterable[str]) -> Iterator[Finding]:
    status = dict(
        line.split(":\t", 1)
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("Cap")
    )
    effective, bounding = int(status["CapEff"], 16), int(status["CapBnd"], 16)
    for name in needed:
        bit = 1 << _CAPABILITIES[name]
        if not bounding & bit:
            found = "nobody here can have it: a container without it?"
            mend = f"# podman or docker: --cap-add {name.removeprefix('CAP_')}"
            yield RIGHTS.fail(name, found, mend)
        elif not effective & bit:
            found = "whoever runs this test has it not, so some tests say less"
            yield RIGHTS.warn(name, found, "sudo gdoictl check")
        else:
            yield RIGHTS.ok(name, "there")


def check_secret(path: Path, what: str, user: str | None = None) -> Finding:
    """A file for ``user``, whom the daemon runs as, alone, or a group with nobody else in it."""
    test, name = f"{what} {path}", quote(str(path))
    try:
        status = path.stat()
    except OSError as error:
        return RIGHTS.fail(test, error.strerror or str(error), f"ls -l {name}")
    mode = stat.S_IMODE(status.st_mode)
    mend = f"chmod 600 {name}" if user is None else f"chown {user} {name} && chmod 600 {name}"
    if mode & 0o007:
        return RIGHTS.fail(test, f"mode {mode:04o}: everybody on this host may read it", mend)
    if not may(user, "-r", path):
        return RIGHTS.fail(
            test, f"mode {mode:04o}: {user}, whose the daemon is, cannot read it", mend
        )
    group = _group(status.st_gid)
    if mode & 0o070 and status.st_gid != 0 and group != user:
        return RIGHTS.warn(test, f"mode {mode:04o}: group {group} may read it", mend)
    return RIGHTS.ok(test, f"mode {mode:04o}")


def check_config(path: Path, user: str | None = None, *, secret: bool) -> Finding:
    """``secret``: it has keys in it; otherwise others may read it, and none may write it."""
    if secret:
        return check_secret(path, "configuration, with keys in it,", user)
    test, name = f"configuration {path}", quote(str(path))
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o022:
        found = f"mode {mode:04o}: others may change it, and whom this host trusts with it"
        return RIGHTS.fail(test, found, f"chmod go-w {name}")
    if not may(user, "-r", path):
        found = f"mode {mode:04o}: {user}, whose the daemon is, cannot read it"
        return RIGHTS.fail(test, found, f"chgrp {user} {name} && chmod 640 {name}")
    return RIGHTS.ok(test, f"mode {mode:04o}")


def check_folder(
    path: Path, what: str, user: str | None = None, *, private: bool = False
) -> Finding:
    """One that a daemon makes if need be and writes to. It is written to, if it is there."""
    test = f"{what} {path}"
    try:
        there = next(folder for folder in (path, *path.parents) if folder.exists())
    except PermissionError:
        return RIGHTS.warn(test, "Permission denied", "sudo gdoictl check")
    if not there.is_dir():
        return RIGHTS.fail(test, f"{there} is no folder", f"rm {quote(str(there))}")
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        denied = isinstance(error, PermissionError)  # to whoever runs this test
        make = RIGHTS.warn if denied and os.geteuid() != 0 else RIGHTS.fail
        return make(test, f"cannot be written: {error.strerror}", _writable(there, error))
    # What is not there yet a unit's StateDirectory= makes.
    if there == path and not may(user, "-w", path):
        found = f"{user}, whose the daemon is, cannot write it"
        return RIGHTS.fail(test, found, f"chown -R {user}: {quote(str(path))}")
    room = os.statvfs(there)
    free = room.f_bavail * room.f_frsize
    if free < LITTLE:
        found = f"{free >> 20} MiB are left on its file system"
        return RIGHTS.warn(test, found, f"du -x --max-depth=2 {there} | sort -n | tail")
    mode = stat.S_IMODE(there.stat().st_mode)
    if private and there == path and mode & 0o077:
        found = f"mode {mode:04o}: others may look into it"
        return RIGHTS.warn(test, found, f"chmod 700 {quote(str(path))}")
    return RIGHTS.ok(test, "can be written" if there == path else f"can be made in {there}")


def _writable(folder: Path, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "sudo gdoictl check"
    mount = next(place for place in (folder, *folder.parents) if place.is_mount())
    return f"mount -o remount,rw {quote(str(mount))}   # if it is not full: df -h"


def check_control(path: Path, group: str | None, user: str | None = None) -> Finding:
    """The folder of the socket, and the group that may use it."""
    if group is not None:
        try:
            grp.getgrnam(group)
        except KeyError:
            found = f"there is no group {group}: root alone may use the socket"
            return RIGHTS.warn(f"control socket {path}", found, f"groupadd --system {quote(group)}")
    return check_folder(path.parent, "control socket's folder", user)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
