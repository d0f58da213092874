"""The network namespace that a daemon works in, where that is not the one it was started in.

Sockets belong to the namespace in which they are made; files, and with them the control socket,
stay those of the host.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from .errors import ConfigError

# Where ``ip netns`` keeps namespaces, by name.
NAMED = Path("/run/netns")
# linux/sched.h
_CLONE_NEWNET = 0x40000000


def enter(config: Path, key: str, netns: str) -> None:
    """``netns``: a name, or the path of a file. For this thread and those that it makes from now
    on, so before there is any. Raises ConfigError naming ``key``."""
    path = NAMED / netns
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(config, key, _missing(netns, path, error), path) from error
    try:
        # Python has os.setns() from 3.12 on.
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, _CLONE_NEWNET):
            raise ConfigError(config, key, _refused(path, ctypes.get_errno()))
    finally:
        os.close(descriptor)


def _missing(netns: str, path: Path, error: OSError) -> str:
    if "/" in netns or error.errno != errno.ENOENT:
        return f"{path}: {error.strerror}"
    known = sorted(entry.name for entry in NAMED.iterdir()) if NAMED.is_dir() else []
    return f"no network namespace {netns}; this host has {', '.join(known) or 'none with a name'}"


def _refused(path: Path, number: int) -> str:
    if number == errno.EPERM:
        return f"{path}: entering a network namespace needs CAP_SYS_ADMIN"
    if number == errno.EINVAL:
        return f"{path} is no network namespace"
    return f"{path}: {os.strerror(number)}"
