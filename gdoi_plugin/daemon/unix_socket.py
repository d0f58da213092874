"""Unix sockets that a daemon serves: who may use them, and whose they are."""

from __future__ import annotations

import errno
import grp
import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path

from .errors import StartError

MAX_PATH = 107
"""Octets of a socket's path, see unix(7)."""


def listen(
    what: str, path: Path, mode: int, group: str | None, backlog: int
) -> tuple[socket.socket, str | None]:
    """A listening socket at `path` that nobody could connect to before its mode was set, and a
    sentence for the log where the group could not be given access. Raises StartError; `what`
    names the socket in both.

    It is bound inside a new folder that only we can enter, gets its group and mode there, and is
    then renamed to `path`; the rename also replaces the file of a daemon that died.
    """
    if len(os.fsencode(path)) > MAX_PATH:
        raise StartError(f"{what} {path}: at most {MAX_PATH} octets are allowed")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder: str | None = None
    try:
        _make_parent(path.parent)
        _refuse_living(what, path)
        folder = tempfile.mkdtemp(prefix=".", dir=path.parent)
        place = Path(folder) / "s"
        sock.bind(str(place))
        warning = _give_access(what, place, path, mode, group)
        sock.listen(backlog)
        sock.setblocking(False)
        place.rename(path)
    except OSError as exc:
        sock.close()
        reason = exc.strerror or str(exc)  # Python's own "AF_UNIX path too long" has no errno
        raise StartError(f"{what} {path}: {reason}") from exc
    except BaseException:
        sock.close()
        raise
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    return sock, warning


def _make_parent(parent: Path) -> None:
    """systemd's RuntimeDirectory= makes it; by hand we do, open for the group to walk through."""
    if not parent.exists():
        parent.mkdir(parents=True)
        parent.chmod(0o755)


def _refuse_living(what: str, path: Path) -> None:
    """StartError if `path` is something else than a socket, or somebody answers there."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise StartError(f"{what} {path}: there is a file that is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        # EAGAIN: its queue is full, so somebody listens.  ECONNREFUSED: nobody does.
        result = probe.connect_ex(str(path))
    if result in (0, errno.EAGAIN):
        raise StartError(f"{what} {path}: another daemon is serving it")
    if result not in (errno.ECONNREFUSED, errno.ENOENT):
        raise StartError(f"{what} {path}: {os.strerror(result)}")


def _give_access(what: str, place: Path, path: Path, mode: int, group: str | None) -> str | None:
    """Set owner, group and mode; without the group nobody but the owner gets in."""
    if group is None:
        place.chmod(mode)
        return None
    try:
        os.chown(place, -1, grp.getgrnam(group).gr_gid)
    except KeyError:
        reason = f"there is no group {group}"
    except OSError as exc:
        reason = f"cannot give it to group {group} ({exc.strerror})"
    else:
        place.chmod(mode)
        return None
    place.chmod(mode & 0o700)
    return f"{what} {path}: {reason}; only its owner can use it"


def inode(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino
