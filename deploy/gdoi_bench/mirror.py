"""What a program says to XFRM over netlink, said again in another network namespace.

The other namespace has heard everything from the beginning, so its tables are the same and the
kernel has the same work; what is left out is all that the program does around it.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import gdoi_xfrm._socket as netlink

CLONE_NEWNET = 0x40000000
# struct nlmsghdr: flags at 6; what ends a dump has four octets behind its header.
NLM_F_DUMP, NLMSG_DONE, DONE_LENGTH = 0x300, 3, 20
PATIENCE = 30  # seconds


def new_namespace() -> None:
    """The calling process goes into a network namespace of its own. Sockets stay where they are."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")


@dataclass(slots=True)
class Said:
    """What went to the kernel in one datagram, and in how many it answered."""

    octets: bytes
    answers: int = 0

    @property
    def dumps(self) -> bool:
        """The kernel chooses in how many datagrams it answers: not always in as many."""
        return int.from_bytes(self.octets[6:8], sys.byteorder) & NLM_F_DUMP == NLM_F_DUMP


class Recorder(socket.socket):
    """A socket that keeps account of what goes over it."""

    heard: list[Said]

    def sendmsg(self, buffers: Iterable[bytes], *rest: Any) -> int:  # type: ignore[override]
        self.heard.append(Said(b"".join(buffers)))
        return super().sendmsg([self.heard[-1].octets], *rest)

    def recvmsg_into(self, *arguments: Any) -> Any:
        received = super().recvmsg_into(*arguments)
        if self.heard:
            self.heard[-1].answers += 1
        return received


class Mirror:
    """A bare netlink socket, in the namespace where this is made."""

    def __init__(self) -> None:
        self._socket = netlink.open_socket()
        # In the kernel: Python's own timeout would ask before every read.
        limit = struct.pack("@ll", PATIENCE, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._buffer = bytearray(netlink.DATAGRAM_SIZE)
        self._heard: list[Said] = []

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
            recorder.heard = self._heard
            return recorder

        with patch.object(netlink, "open_socket", recording):
            yield

    def catch_up(self) -> float:
        """Says what has been heard since, and reads every answer. The seconds it took."""
        began = time.perf_counter()
        for said in self._heard:
            self._socket.sendmsg([said.octets])
            if said.dumps:
                self._read_dump()
            else:
                for _ in range(said.answers):
                    self._socket.recv_into(self._buffer)
        taken = time.perf_counter() - began
        self._heard.clear()
        return taken

    def _read_dump(self) -> None:
        while True:
            end = self._socket.recv_into(self._buffer)
            kind = self._buffer[end - DONE_LENGTH + 4 : end - DONE_LENGTH + 6]
            if int.from_bytes(kind, sys.byteorder) == NLMSG_DONE:
                return
