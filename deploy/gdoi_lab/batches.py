"""Many datagrams in one system call: sendmmsg(2), recvmmsg(2).

In the lab kernel a system call costs a program more than the kernel needs for an ESP packet.
"""

import ctypes
import os
import socket
import struct
from collections.abc import Iterator, Sequence

from gdoi_plugin.daemon.mmsg import Iovec, Message

BATCH = 64
_LARGEST = 2048  # octets of a datagram that are looked at; the lab's are shorter
_SOCKADDR = 28  # sizeof(struct sockaddr_in6)


_LIBC = ctypes.CDLL(None, use_errno=True)


class _Batch:
    """BATCH messages, each with a place for its octets and one for an address."""

    def __init__(self, sock: socket.socket, size: int) -> None:
        self.sock, self.size = sock, size
        self.octets = bytearray(BATCH * size)
        self.names = bytearray(BATCH * _SOCKADDR)
        octets = ctypes.addressof(ctypes.c_char.from_buffer(self.octets))
        names = ctypes.addressof(ctypes.c_char.from_buffer(self.names))
        self._iovecs = (Iovec * BATCH)()
        self.messages = (Message * BATCH)()
        for number, (iovec, message) in enumerate(zip(self._iovecs, self.messages, strict=True)):
            iovec.base, iovec.length = octets + number * size, size
            header = message.header
            header.name, header.name_length = names + number * _SOCKADDR, _SOCKADDR
            header.iovec, header.iovec_length = ctypes.pointer(iovec), 1


class Outgoing(_Batch):
    """Datagrams of `size` octets to one address."""

    def __init__(self, sock: socket.socket, target: tuple[str, int], size: int) -> None:
        super().__init__(sock, size)
        name = _sockaddr(sock.family, target)
        for number, message in enumerate(self.messages):
            begin = number * _SOCKADDR
            self.names[begin : begin + len(name)] = name
            message.header.name_length = len(name)

    def send(self, heads: Sequence[bytes]) -> int:
        """Each datagram begins with its head, zeros follow; returns how many the kernel took.

        Raises OSError where it did not take the first.
        """
        for number, head in enumerate(heads):
            begin = number * self.size
            self.octets[begin : begin + len(head)] = head
        sent = int(_LIBC.sendmmsg(self.sock.fileno(), self.messages, len(heads), 0))
        if sent < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return sent


class Incoming(_Batch):
    """What a socket that does not block has received."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, _LARGEST)

    def receive(self) -> Iterator[tuple[memoryview, str]]:
        """At most BATCH datagrams, valid until the next call, and who sent them."""
        for message in self.messages:
            message.header.name_length = _SOCKADDR
        # A negative number: nothing there, or an ICMP error for a datagram sent earlier.
        received = int(_LIBC.recvmmsg(self.sock.fileno(), self.messages, BATCH, 0, None))
        view = memoryview(self.octets)
        for number in range(received):
            begin = number * self.size
            yield view[begin : begin + self.messages[number].length], self._origin(number)

    def _origin(self, number: int) -> str:
        begin = number * _SOCKADDR
        if self.sock.family == socket.AF_INET6:
            return socket.inet_ntop(socket.AF_INET6, self.names[begin + 8 : begin + 24])
        return socket.inet_ntoa(self.names[begin + 4 : begin + 8])


def _sockaddr(family: int, target: tuple[str, int]) -> bytes:
    """struct sockaddr_in or sockaddr_in6."""
    address, port = target
    begin = struct.pack("=H", family) + struct.pack("!H", port)
    if family == socket.AF_INET6:
        return begin + bytes(4) + socket.inet_pton(family, address) + bytes(4)
    return begin + socket.inet_aton(address) + bytes(8)
