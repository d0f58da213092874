"""One NETLINK_XFRM socket: requests out, answers in, matched by sequence number.

pyroute2's own NetlinkSocket is not used for I/O. Since 0.9 it is a wrapper around asyncio that
runs an event loop of its own per call, and so fails with "This event loop is already running" in a
program that has one, as our daemon does. xfrm_user answers a request before sendmsg returns, so a
plain socket is enough, blocks for no longer than the kernel works, and is faster.

Not thread-safe. The socket belongs to the network namespace in which it was made, for good.
"""

from __future__ import annotations

import errno
import math
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

from pyroute2.netlink import (
    NETLINK_ADD_MEMBERSHIP,
    NETLINK_EXT_ACK,
    NETLINK_XFRM,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    SOL_NETLINK,
)

from gdoi_xfrm._errors import KernelError, general_suspect
from gdoi_xfrm._layout import NLMSGHDR, Layout, Request
from gdoi_xfrm._messages import ErrorReply

NETLINK_CAP_ACK: Final = 10  # <linux/netlink.h>; pyroute2 has no name for it

# Longer than any netlink message: dumps come in datagrams of up to 32 KiB, and a batch's
# notifications singly.
DATAGRAM_SIZE: Final = 1 << 17
# Room for the answers of a batch, and for the notifications while the daemon is busy.
RECEIVE_BUFFER: Final = 1 << 20
SO_RCVBUFFORCE: Final = 33
_TIMEVAL: Final = struct.Struct("@ll")
DEFAULT_TIMEOUT: Final = 10.0  # seconds; the first use of a cipher loads modules and takes 2-3
DUMP_ATTEMPTS: Final = 10


class Answer(NamedTuple):
    """What the kernel said to one request: an errno (0: done), or a message (it may hold keys)."""

    errno: int
    message: bytes = b""
    text: str | None = None

    def __repr__(self) -> str:
        return f"Answer(errno={self.errno}, message=<{len(self.message)} octets>)"


@dataclass(frozen=True, slots=True)
class Exchange:
    """The answers in the order of the requests, None where none came; failure then says why.

    sent False: the requests never reached the kernel, nothing has happened.
    """

    answers: list[Answer | None]
    failure: KernelError | None = None
    sent: bool = True


def open_socket(groups: Sequence[int] = (), receive_buffer: int = RECEIVE_BUFFER) -> socket.socket:
    """A bound NETLINK_XFRM socket, a member of these multicast groups."""
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_XFRM)
    except OSError as error:
        raise _socket_error("opening a NETLINK_XFRM socket", error) from error
    try:
        # Without CAP_ACK the kernel sends each refused request back, keys and all.
        sock.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        sock.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer)
        except PermissionError:  # root of a container: the system's limit has to do
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.bind((0, 0))
        for group in groups:
            sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
    except OSError as error:
        sock.close()
        raise _socket_error("setting up a NETLINK_XFRM socket", error) from error
    return sock


def _socket_error(operation: str, error: OSError) -> KernelError:
    suspect = general_suspect(error.errno or 0)
    if error.errno == errno.EPROTONOSUPPORT:
        suspect = "this kernel has no XFRM netlink (module xfrm_user)"
    return KernelError(error.errno or errno.EIO, operation, suspect)


def split_messages(datagram: memoryview) -> Iterator[tuple[int, int, int, int, bytes]]:
    """Type, flags, sequence number, pid and octets of each message in a datagram."""
    offset = 0
    while offset + NLMSGHDR.size <= len(datagram):
        length, kind, flags, sequence, pid = NLMSGHDR.unpack_from(datagram, offset)
        if length < NLMSGHDR.size or offset + length > len(datagram):
            raise KernelError(errno.EBADMSG, "reading from the NETLINK_XFRM socket")
        yield kind, flags, sequence, pid, bytes(datagram[offset : offset + length])
        offset += (length + 3) & ~3


def receive(sock: socket.socket, buffer: bytearray) -> memoryview:
    """One datagram from the kernel. Raises OSError as the socket does, KernelError if cut."""
    while True:
        length, _, flags, sender = sock.recvmsg_into([buffer])
        if flags & socket.MSG_TRUNC:
            raise KernelError(errno.EMSGSIZE, "reading from the NETLINK_XFRM socket")
        if sender[0] == 0:  # other processes may write to a netlink socket, too
            return memoryview(buffer)[:length]


class RequestSocket:
    """A socket for requests and their answers."""

    def __init__(self, timeout: float) -> None:
        self._socket = open_socket()
        # In the kernel: Python's own timeout would ask before every datagram.
        seconds = math.floor(timeout)
        limit = _TIMEVAL.pack(seconds, int((timeout - seconds) * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._buffer = bytearray(DATAGRAM_SIZE)
        self._sequence = 0
        self.pid: int = self._socket.getsockname()[0]

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def exchange(self, requests: Sequence[Request], *, acknowledge: bool = True) -> Exchange:
        """Sends the requests in one datagram and waits until the answer to each is known.

        The kernel works through all of them in their order, also after one that it refuses. Errors
        it always reports, in that order too, and says so when it had to drop a report (ENOBUFS);
        success only where it is asked to acknowledge. So the last request alone is to be
        acknowledged: by then the others have succeeded, unless an error came.

        acknowledge=False is for GET requests, which are answered by a message or an error each.
        """
        first = (self._sequence + 1) & 0xFFFFFFFF
        answers: list[Answer | None] = [None] * len(requests)
        if not requests:
            return Exchange(answers)
        data = b"".join([self._encode(request, NLM_F_REQUEST) for request in requests[:-1]])
        data += self._encode(requests[-1], NLM_F_REQUEST | (NLM_F_ACK if acknowledge else 0))
        try:
            self._socket.sendmsg([data])
        except OSError as error:
            failure = io_error("sending to the NETLINK_XFRM socket", error)
            return Exchange(answers, failure, sent=False)
        try:
            while answers[-1] is None or (not acknowledge and None in answers):
                for kind, _, sequence, _, octets in split_messages(self._receive()):
                    # Anything else is a late answer to a request that was given up.
                    place = (sequence - first) & 0xFFFFFFFF
                    if place < len(answers) and answers[place] is None:
                        answers[place] = _answer(kind, octets)
        except OSError as error:
            self._drain()
            return Exchange(answers, io_error("waiting for the kernel's answer", error))
        except KernelError as error:
            return Exchange(answers, error)
        return Exchange([answer or _DONE for answer in answers])

    def dump(self, request: Request, operation: str) -> list[bytes]:
        """All messages of a dump; again where a change made it inconsistent (NLM_F_DUMP_INTR)."""
        for _ in range(DUMP_ATTEMPTS):
            with suppress(_DumpInterruptedError):
                return self._dump_once(request, operation)
        raise KernelError(errno.EINTR, operation, "the tables kept changing during the dump")

    def _dump_once(self, request: Request, operation: str) -> list[bytes]:
        found: list[bytes] = []
        interrupted = False
        data = self._encode(request, NLM_F_REQUEST | NLM_F_DUMP)
        try:
            self._socket.sendmsg([data])
            while True:
                for kind, flags, sequence, _, octets in split_messages(self._receive()):
                    if sequence != self._sequence:
                        continue  # the rest of a dump given up earlier
                    interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
                    if kind == NLMSG_ERROR:
                        answer = _answer(kind, octets)
                        suspect = general_suspect(answer.errno)
                        raise KernelError(answer.errno, operation, suspect, None, answer.text)
                    if kind == NLMSG_DONE:
                        if interrupted:
                            raise _DumpInterruptedError
                        return found
                    found.append(octets)
        except OSError as error:
            self._drain()
            raise io_error(operation, error) from error

    def _drain(self) -> None:
        """Empties the queue: after ENOBUFS the kernel drops every answer, unsaid, until it is."""
        self._socket.setblocking(False)
        number: int | None = errno.ENOBUFS
        while number in (None, errno.ENOBUFS):
            number = None
            try:
                self._socket.recvmsg_into([self._buffer])
            except OSError as error:
                number = error.errno or errno.EIO
        self._socket.setblocking(True)

    def _encode(self, request: Request, flags: int) -> bytes:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        kind, body = request
        length = NLMSGHDR.size + len(body)
        header = NLMSGHDR.pack(length, kind, flags, self._sequence, self.pid)
        return header + body + bytes(-length % 4)

    def _receive(self) -> memoryview:
        return receive(self._socket, self._buffer)


class _DumpInterruptedError(Exception):
    pass


def io_error(operation: str, error: OSError) -> KernelError:
    number = errno.ETIMEDOUT if isinstance(error, BlockingIOError) else error.errno or errno.EIO
    return KernelError(number, operation, general_suspect(number))


_ERROR_REPLY: Final = Layout(ErrorReply)
_DONE: Final = Answer(0)


def _answer(kind: int, octets: bytes) -> Answer:
    if kind != NLMSG_ERROR:
        return Answer(0, octets)
    number = -int.from_bytes(octets[16:20], sys.byteorder, signed=True)
    if number == 0:
        return Answer(0)
    text: bytes = _ERROR_REPLY.unpack(octets).get("NLMSGERR_ATTR_MSG", b"")
    return Answer(number, b"", text.rstrip(b"\0").decode("ascii", "replace") or None)
