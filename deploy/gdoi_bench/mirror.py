"""What a program says to XFRM over netlink, said again in another network namespace.

The other namespace has heard everything from the beginning, so its tables are the same and the
kernel has the same work; what is left out is all that the program does around it.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import gdoi_xfrm._socket as netlink

CLONE_NEWNET = 0x40000000
_HEADER = struct.Struct("IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port


def new_namespace() -> None:
    """The calling process goes into a network namespace of its own. Sockets stay where they are."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")


def messages(datagram: bytes) -> int:
    """How many netlink messages a datagram has; each is answered by one, unless it asks for a
    dump."""
    count = offset = 0
    while offset + _HEADER.size <= len(datagram):
        length = _HEADER.unpack_from(datagram, offset)[0]
        offset += (length + 3) & ~3
        count += 1
    return count


class Recorder(socket.socket):
    """A socket that keeps a copy of what it sends."""

    heard: Callable[[bytes], None]

    def sendmsg(self, buffers: Iterable[bytes], *rest: Any) -> int:  # type: ignore[override]
        octets = b"".join(buffers)
        self.heard(octets)
        return super().sendmsg([octets], *rest)


class Mirror:
    """A bare netlink socket, in the namespace where this is made."""

    def __init__(self) -> None:
        self._socket = netlink.open_socket()
        self._buffer = bytearray(netlink.DATAGRAM_SIZE)
        self._heard: list[bytes] = []

    def close(self) -> None:
        self._socket.close()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Sockets for requests that are opened meanwhile are heard, as long as they live."""
        original = netlink.open_socket

        def recording(groups: Sequence[int] = (), *rest: Any) -> socket.socket:
            opened = original(groups, *rest)
            if groups:
                return opened
            recorder = Recorder(fileno=opened.detach())
            recorder.heard = self._heard.append
            return recorder

        with patch.object(netlink, "open_socket", recording):
            yield

    def catch_up(self) -> float:
        """Says what has been heard since, and reads every answer. The seconds it took."""
        heard = [(datagram, messages(datagram)) for datagram in self._heard]
        self._heard.clear()
        began = time.perf_counter()
        for datagram, number in heard:
            self._socket.sendmsg([datagram])
            while number > 0:
                length = self._socket.recv_into(self._buffer)
                number -= messages(bytes(memoryview(self._buffer)[:length]))
        return time.perf_counter() - began
