"""Many datagrams for one system call: sendmmsg(2).

A rekey by unicast is one datagram to a hundred thousand addresses. What a datagram costs here, the
kernel's own work apart, is its address in a table.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import sys
from array import array
from ipaddress import IPv4Address
from operator import itemgetter

from ..protocol.actions import Peer
from .mmsg import Iovec, Message

# Datagrams for one system call, as many as the kernel takes (UIO_MAXIOV).
BATCH = 1024
# Milliseconds that a full send buffer is waited for; what then finds no room is lost, as it may be
# anywhere on its way.
PATIENCE = 20


_sendmmsg = ctypes.CDLL(None, use_errno=True).sendmmsg
_host, _port = itemgetter(0), itemgetter(1)  # of a Peer
# What `int` finds, for a hundred thousand addresses in half the time.
_int = IPv4Address.__int__


class Outgoing:
    """A table for datagrams of one address family."""

    def __init__(self, family: int) -> None:
        self._pack = self._pack_ipv4 if family == socket.AF_INET else self._pack_ipv6
        step = 16 if family == socket.AF_INET else 28  # sizeof(struct sockaddr_in[6])
        self._names = bytearray(BATCH * step)
        self._words = memoryview(self._names).cast("I")
        self._iovecs = (Iovec * BATCH)()
        self._messages = (Message * BATCH)()
        # What the iovecs point at: most of the time what is sent next, too.
        self._held: list[bytes] = []
        self._ports: list[int] = []
        names = ctypes.addressof(ctypes.c_char.from_buffer(self._names))
        for number, message in enumerate(self._messages):
            header = message.header
            header.name, header.name_length = names + number * step, step
            header.iovec = ctypes.pointer(self._iovecs[number])
            header.iovec_length = 1

    def send(
        self, sock: socket.socket, datagrams: list[bytes], to: list[Peer]
    ) -> list[tuple[int, OSError]]:
        """Up to BATCH datagrams, each to the endpoint at its place. The places of those that the
        kernel refused, and why."""
        self._pack(to)
        self._point_at(datagrams)
        return self._say(sock, len(to))

    def _pack_ipv4(self, peers: list[Peer]) -> None:
        """struct sockaddr_in of each: four words, of which port and address are in network order.

        The ports are mostly those of the last time.
        """
        number = len(peers)
        hosts = array("I", map(_int, map(_host, peers)))
        if sys.byteorder == "little":
            hosts.byteswap()
        ports = list(map(_port, peers))
        if self._ports[:number] != ports:
            self._ports = ports
            heads = (int.from_bytes(_head(socket.AF_INET, port), sys.byteorder) for port in ports)
            self._words[0 : 4 * number : 4] = memoryview(array("I", heads))
        self._words[1 : 4 * number : 4] = memoryview(hosts)

    def _pack_ipv6(self, peers: list[Peer]) -> None:
        """struct sockaddr_in6 of each, without flow information and scope."""
        octets = b"".join(
            [
                _head(socket.AF_INET6, port) + bytes(4) + host.packed + bytes(4)
                for host, port in peers
            ]
        )
        self._names[: len(octets)] = octets

    def _point_at(self, datagrams: list[bytes]) -> None:
        if self._held[: len(datagrams)] == datagrams:
            return
        self._held = datagrams
        for place, datagram in enumerate(datagrams):
            self._iovecs[place] = Iovec(datagram, len(datagram))

    def _say(self, sock: socket.socket, number: int) -> list[tuple[int, OSError]]:
        failed: list[tuple[int, OSError]] = []
        place, waited = 0, False
        while place < number:
            rest = ctypes.byref(self._messages, place * ctypes.sizeof(Message))
            sent = _sendmmsg(sock.fileno(), rest, number - place, 0)
            if sent > 0:
                place, waited = place + sent, False
                continue
            error = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            if error.errno in (errno.EAGAIN, errno.EINTR) and not waited:
                waited = True
                ready = select.poll()
                ready.register(sock, select.POLLOUT)
                ready.poll(PATIENCE)
                continue
            failed.append((place, error))
            place += 1
        return failed


def _head(family: int, port: int) -> bytes:
    return family.to_bytes(2, sys.byteorder) + port.to_bytes(2, "big")
