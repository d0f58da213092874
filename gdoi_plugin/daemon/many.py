"""Many datagrams for one system call: recvmmsg(2).

Each costs a fraction of what ``recvfrom`` does: no call of its own, no address as text, no object
for an empty queue.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
from collections.abc import Sequence
from ctypes import byref, c_uint, sizeof
from functools import lru_cache
from struct import Struct

from .mmsg import Iovec, Message

# asm-generic/socket.h; not in Python's socket module.
SO_RCVBUFFORCE, SO_MEMINFO = 33, 55
# linux/sock_diag.h: which of the numbers that SO_MEMINFO gives counts what was dropped.
_SK_MEMINFO_DROPS, _MEMINFO = 8, Struct("9I")
# struct sockaddr_in6 is the longer one; in both the family comes first, and then port and address.
_NAME_LENGTH = 28
_ENDPOINT = {socket.AF_INET: "2x6s20x", socket.AF_INET6: "2x22s4x"}


# PyDLL keeps the interpreter: the call never waits, and whoever got it meanwhile would keep it for
# some milliseconds.
_recvmmsg = ctypes.PyDLL(None, use_errno=True).recvmmsg


class ManyReader:
    """Reads a non-blocking socket, up to ``many`` datagrams of up to ``octets`` at a time.

    Of a longer one its first ``octets`` come: whoever reads its Length sees that they are not all.
    """

    def __init__(self, sock: socket.socket, many: int, octets: int) -> None:
        self._fd = sock.fileno()
        self._endpoint = _ENDPOINT[sock.family]
        self._many, self._octets = many, octets
        # Slices of mapped memory are bytes at once.
        self._data = mmap.mmap(-1, many * octets)
        self._names = mmap.mmap(-1, many * _NAME_LENGTH)
        data, names = _address(self._data), _address(self._names)
        self._iovecs = (Iovec * many)()
        self._headers = (Message * many)()
        for n in range(many):
            self._iovecs[n] = Iovec(data + n * octets, octets)
            header = self._headers[n].header
            header.name, header.name_length = names + n * _NAME_LENGTH, _NAME_LENGTH
            header.iovec, header.iovec_length = ctypes.pointer(self._iovecs[n]), 1
        words = memoryview(self._headers).cast("B").cast("I")
        step = sizeof(Message) // sizeof(c_uint)
        self._lengths = words[Message.length.offset // sizeof(c_uint) :: step]

    def take(self) -> tuple[Sequence[bytes], Sequence[bytes]]:
        """What waits, and where each comes from: port and address as in its struct sockaddr.

        Both empty where nothing waits. Raises OSError, among others for an ICMP error that came for
        something sent earlier.
        """
        many = _recvmmsg(self._fd, byref(self._headers), self._many, socket.MSG_DONTWAIT, None)
        if many < 0:
            number = ctypes.get_errno()
            if number in (errno.EAGAIN, errno.EINTR):
                return (), ()
            raise OSError(number, os.strerror(number))
        if not many:
            return (), ()
        lengths = self._lengths[:many].tolist()
        data, octets = self._data, self._octets
        if lengths.count(lengths[0]) == many:  # so are ACKs, and there are quicker ways then
            datagrams = _columns(f"{lengths[0]}s{octets - lengths[0]}x", data, many)
        else:
            datagrams = [data[n * octets : n * octets + length] for n, length in enumerate(lengths)]
        return datagrams, _columns(self._endpoint, self._names, many)


@lru_cache
def _table(row: str, rows: int) -> Struct:
    return Struct(row * rows)


def _columns(row: str, memory: mmap.mmap, rows: int) -> Sequence[bytes]:
    """The one field of each row."""
    return _table(row, rows).unpack_from(memory)


def _address(memory: mmap.mmap) -> int:
    """Where it lies; it stays there for as long as it lives."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def make_room(sock: socket.socket, octets: int) -> int:
    """A receive buffer, beyond net.core.rmem_max where we may (CAP_NET_ADMIN). What the kernel has
    made of it; half of that it keeps for its own accounts, and gives twice what it is asked for."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, octets)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, octets)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


def dropped(sock: socket.socket) -> int:
    """Datagrams that the kernel has dropped since the socket was made, most for want of room."""
    octets = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO.size)
    return int(_MEMINFO.unpack(octets)[_SK_MEMINFO_DROPS])
