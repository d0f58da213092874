"""Monitor: what happens to the kernel's SAs and policies, whoever does it.

An event's pid is the netlink port id of who asked for the change: compare it with `Xfrm.pid` to
tell own changes from others'; 0 is the kernel itself, and also the `ip` command.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Self

from gdoi_xfrm import _codec as codec
from gdoi_xfrm._codec import MessageType
from gdoi_xfrm._errors import KernelError
from gdoi_xfrm._socket import (
    DATAGRAM_SIZE,
    RECEIVE_BUFFER,
    io_error,
    open_socket,
    receive,
    split_messages,
)
from gdoi_xfrm._types import DefaultPolicy, Policy, PolicyKey, SaKey, SaState, Usage

XFRMNLGRP_EXPIRE: Final = 2
XFRMNLGRP_SA: Final = 3
XFRMNLGRP_POLICY: Final = 4
# Not XFRMNLGRP_ACQUIRE: a listener there makes the kernel create larval SAs.
_GROUPS: Final = (XFRMNLGRP_EXPIRE, XFRMNLGRP_SA, XFRMNLGRP_POLICY)

_SO_ATTACH_FILTER: Final = 26
# struct sock_filter, and <linux/bpf_common.h>
_BPF_INSTRUCTION: Final = struct.Struct("HBBI")
_BPF_LD_W_ABS, _BPF_JEQ, _BPF_RET = 0x20, 0x15, 0x06
_PID_OFFSET: Final = 12  # of nlmsg_pid

# A bound on one read(), so that a storm of changes cannot keep an event loop busy.
MAX_DATAGRAMS_PER_READ: Final = 256


@dataclass(frozen=True, slots=True)
class SaAdded:
    """XFRM_MSG_NEWSA."""

    state: SaState
    pid: int


@dataclass(frozen=True, slots=True)
class SaUpdated:
    """XFRM_MSG_UPDSA."""

    state: SaState
    pid: int


@dataclass(frozen=True, slots=True)
class SaDeleted:
    """XFRM_MSG_DELSA, with the SA as it was when it went. Not sent for an SA that expires."""

    key: SaKey
    pid: int
    state: SaState | None = None


@dataclass(frozen=True, slots=True)
class SaFlushed:
    """XFRM_MSG_FLUSHSA: every SA of that protocol is gone; 0 or 255 is every protocol."""

    protocol: int
    pid: int


@dataclass(frozen=True, slots=True)
class SaExpired:
    """XFRM_MSG_EXPIRE: a soft limit reached, or a hard one, and the SA is gone."""

    key: SaKey
    hard: bool
    pid: int
    usage: Usage


@dataclass(frozen=True, slots=True)
class PolicyAdded:
    """XFRM_MSG_NEWPOLICY."""

    policy: Policy
    pid: int


@dataclass(frozen=True, slots=True)
class PolicyUpdated:
    """XFRM_MSG_UPDPOLICY."""

    policy: Policy
    pid: int


@dataclass(frozen=True, slots=True)
class PolicyDeleted:
    """XFRM_MSG_DELPOLICY."""

    key: PolicyKey
    pid: int


@dataclass(frozen=True, slots=True)
class PolicyFlushed:
    """XFRM_MSG_FLUSHPOLICY: every policy is gone."""

    pid: int


@dataclass(frozen=True, slots=True)
class PolicyExpired:
    """XFRM_MSG_POLEXPIRE."""

    key: PolicyKey
    hard: bool
    pid: int


@dataclass(frozen=True, slots=True)
class DefaultChanged:
    """XFRM_MSG_SETDEFAULT. The kernel does not say who."""

    default: DefaultPolicy


@dataclass(frozen=True, slots=True)
class Overrun:
    """Events were lost (ENOBUFS), or not understood: read the tables again.

    Whatever happens after that reading is an event again.
    """


SaEvent = SaAdded | SaUpdated | SaDeleted | SaFlushed | SaExpired
PolicyEvent = PolicyAdded | PolicyUpdated | PolicyDeleted | PolicyFlushed | PolicyExpired
Event = SaEvent | PolicyEvent | DefaultChanged | Overrun


def _sa_deleted(octets: bytes, pid: int) -> Event:
    key, state = codec.read_deleted_sa(octets)
    return SaDeleted(key, pid, state)


def _sa_expired(octets: bytes, pid: int) -> Event:
    key, hard, usage = codec.read_expired_sa(octets)
    return SaExpired(key, hard, pid, usage)


def _policy_added(octets: bytes, pid: int) -> Event | None:
    policy = codec.read_policy(octets)
    return None if policy is None else PolicyAdded(policy, pid)


def _policy_updated(octets: bytes, pid: int) -> Event | None:
    policy = codec.read_policy(octets)
    return None if policy is None else PolicyUpdated(policy, pid)


def _policy_deleted(octets: bytes, pid: int) -> Event | None:
    key = codec.read_deleted_policy(octets)
    return None if key is None else PolicyDeleted(key, pid)


def _policy_expired(octets: bytes, pid: int) -> Event | None:
    key, hard = codec.read_expired_policy(octets)
    return None if key is None else PolicyExpired(key, hard, pid)


_READERS: Final[dict[int, Callable[[bytes, int], Event | None]]] = {
    MessageType.NEWSA: lambda octets, pid: SaAdded(codec.read_sa(octets), pid),
    MessageType.UPDSA: lambda octets, pid: SaUpdated(codec.read_sa(octets), pid),
    MessageType.DELSA: _sa_deleted,
    MessageType.FLUSHSA: lambda octets, pid: SaFlushed(codec.read_flushed_protocol(octets), pid),
    MessageType.EXPIRE: _sa_expired,
    MessageType.NEWPOLICY: _policy_added,
    MessageType.UPDPOLICY: _policy_updated,
    MessageType.DELPOLICY: _policy_deleted,
    MessageType.FLUSHPOLICY: lambda _, pid: PolicyFlushed(pid),
    MessageType.POLEXPIRE: _policy_expired,
    MessageType.GETDEFAULT: lambda octets, _: DefaultChanged(codec.read_default(octets)),
}


def _ignore(sock: socket.socket, pid: int) -> None:
    """Attaches a filter (classic BPF) that drops messages whose header has that pid."""
    # The filter reads big-endian what the kernel wrote in the host's order.
    number = int.from_bytes(pid.to_bytes(4, sys.byteorder), "big")
    program = b"".join(
        _BPF_INSTRUCTION.pack(*instruction)
        for instruction in (
            (_BPF_LD_W_ABS, 0, 0, _PID_OFFSET),
            (_BPF_JEQ, 0, 1, number),
            (_BPF_RET, 0, 0, 0),
            (_BPF_RET, 0, 0, 0xFFFFFFFF),
        )
    )
    held = ctypes.create_string_buffer(program)
    length = len(program) // _BPF_INSTRUCTION.size
    try:
        filter_ = struct.pack("HL", length, ctypes.addressof(held))  # struct sock_fprog
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_)
    except OSError as error:
        sock.close()
        raise io_error("filtering XFRM's notifications", error) from error


class Monitor:
    """A non-blocking subscription for the network namespace in which it is made.

    ``ignore``: a pid whose changes the kernel does not even queue, one's own for instance.
    ``receive_buffer``: octets of events that may wait; an event of an SA takes 2 to 4 KiB of it.
    Without CAP_NET_ADMIN in the initial user namespace net.core.rmem_max is the most there is.
    """

    def __init__(self, ignore: int | None = None, receive_buffer: int = RECEIVE_BUFFER) -> None:
        self._socket = open_socket(_GROUPS, receive_buffer)
        if ignore is not None:
            _ignore(self._socket, ignore)
        self._socket.setblocking(False)
        self._buffer = bytearray(DATAGRAM_SIZE)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """For select, poll and loop.add_reader."""
        return self._socket.fileno()

    def read(self) -> list[Event]:
        """The events that are there, oldest first; none where there are none."""
        events: list[Event] = []
        for _ in range(MAX_DATAGRAMS_PER_READ):
            try:
                datagram = receive(self._socket, self._buffer)
                events += _events(datagram)
            except BlockingIOError:
                break
            except KernelError:
                events.append(Overrun())
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise io_error("reading XFRM's notifications", error) from error
                self._drain()
                events.append(Overrun())
                break
        return events

    def _drain(self) -> None:
        """Until the queue is empty the kernel drops every event, and says so no more.

        So this ends: nothing comes in meanwhile. What is left unread says less than the tables.
        """
        while True:
            try:
                self._socket.recvmsg_into([self._buffer])
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise io_error("reading XFRM's notifications", error) from error


def _events(datagram: memoryview) -> Iterator[Event]:
    for kind, _flags, _sequence, pid, octets in split_messages(datagram):
        reader = _READERS.get(kind)
        event = reader(octets, pid) if reader else None
        if event is not None:
            yield event
