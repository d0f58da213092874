"""One UDP socket that is at every address of the host: a member's at each of them."""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import IPv4Address

from gdoi_plugin.protocol.actions import Peer

# linux/in.h; not in Python's socket module. struct in_pktinfo: interface, own address, destination.
IP_PKTINFO, SO_RCVBUFFORCE, SO_SNDBUFFORCE = 8, 33, 32
_PKTINFO = struct.Struct("@I4s4s")
MAX_DATAGRAM = 65_535
BUFFER = 256 << 20


class Endpoint:
    """Port ``port`` of any address in this network namespace; as root."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER)
        self.socket.bind(("0.0.0.0", port))  # noqa: S104 -- the namespace is ours
        self._space = socket.CMSG_SPACE(_PKTINFO.size)

    def close(self) -> None:
        self.socket.close()

    def join(self, group: IPv4Address, at: IPv4Address) -> None:
        """A multicast group, on the interface that has the address."""
        option = socket.IP_ADD_MEMBERSHIP
        self.socket.setsockopt(socket.IPPROTO_IP, option, group.packed + at.packed)

    def receive(self) -> tuple[bytes, Peer, bytes] | None:
        """A datagram, its source, and the octets of the address that it was sent to."""
        try:
            octets, ancillary, _, source = self.socket.recvmsg(MAX_DATAGRAM, self._space)
        except BlockingIOError:
            return None
        except ConnectionRefusedError:
            return None  # what was sent earlier found nobody
        (_, _, info) = ancillary[0]
        _, _, destination = _PKTINFO.unpack(info[: _PKTINFO.size])
        return octets, Peer(IPv4Address(source[0]), source[1]), destination

    def send(self, datagram: bytes, to: tuple[str, int], own: bytes) -> bool:
        """From one of the host's addresses. False where the kernel has no room for it now."""
        info = _PKTINFO.pack(0, own, bytes(4))
        try:
            self.socket.sendmsg([datagram], [(socket.IPPROTO_IP, IP_PKTINFO, info)], 0, to)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in (errno.ENOBUFS, errno.ECONNREFUSED):
                raise
            return False
        return True
