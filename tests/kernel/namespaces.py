"""Network namespaces, as a rule without names: held by a file descriptor, gone when it is closed.

Their interfaces, addresses, SAs and policies go with them, so that there is nothing to clean up.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _current() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class Namespace:
    """A fresh network namespace with its loopback up."""

    def __init__(self) -> None:
        outside = _current()
        try:
            _check(_libc.unshare(_CLONE_NEWNET))
            self._fd = _current()
            try:
                ip("link set lo up")
            finally:
                _check(_libc.setns(outside, _CLONE_NEWNET))
        finally:
            os.close(outside)

    @classmethod
    def named(cls, name: str) -> Self:
        """One that `ip netns` knows."""
        found = cls.__new__(cls)
        found._fd = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        return found

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is in the namespace; sockets made meanwhile stay there."""
        outside = _current()
        try:
            _check(_libc.setns(self._fd, _CLONE_NEWNET))
            yield
        finally:
            _check(_libc.setns(outside, _CLONE_NEWNET))
            os.close(outside)

    def take(self, interface: str) -> None:
        """Moves an interface of the current namespace into this one."""
        arguments = ["ip", "link", "set", interface, "netns", f"/proc/self/fd/{self._fd}"]
        subprocess.run(arguments, check=True, pass_fds=[self._fd])

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ip(arguments: str) -> str:
    """The output of an `ip` command in the current namespace."""
    command = ["ip", *shlex.split(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {arguments}: {done.stderr}"
    return done.stdout


def counter(name: str) -> int:
    """A line of /proc/net/xfrm_stat of the current namespace."""
    lines = Path("/proc/thread-self/net/xfrm_stat").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.split()[0] == name)


def eventually(condition: Callable[[], object], seconds: float = 60) -> None:
    """Looks again until the condition holds; fails at the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.01)
