"""One agent for a group in a network namespace: two would take each other's SAs out of its kernel.

A claim is the name of an abstract Unix socket. Such names belong to a network namespace, whatever
files a container sees, and end with the process that has them.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from .errors import StartError

# struct ucred: pid, uid, gid
_UCRED = struct.Struct("3i")


class Claims:
    """Those of one agent, until it is closed."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def take(self, reqid: int, group: str) -> None:
        """``reqid`` is the kernel's number for the group. Raises StartError where it is taken.

        A process of another user may have the name, but no SAs: it keeps nobody from anything.
        """
        name = _name(reqid)
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._held.append(claim)
        try:
            claim.bind(name)
            claim.listen(1)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise StartError(f"group {group}: {error.strerror}") from error
            holder = _holder(name)
            if holder is not None:
                raise StartError(
                    f"group {group}: process {holder} is this group's agent in this network"
                    " namespace; it takes one for each"
                ) from error

    def free(self, reqid: int) -> bool:
        """Whether no agent has that group."""
        return _holder(_name(reqid)) is None

    def close(self) -> None:
        for claim in self._held:
            claim.close()
        self._held.clear()


def _name(reqid: int) -> str:
    return f"\0gdoi-gm {reqid:#x}"


def _holder(name: str) -> int | None:
    """The process that listens under a name, if it may be an agent."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect(name)
        except OSError:
            return None
        ucred = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _ = _UCRED.unpack(ucred)
    return pid if uid in (0, os.geteuid()) else None
