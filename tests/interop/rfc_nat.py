"""NAT traversal written from RFC 3947 and RFC 3948: a NAT between sockets, and a member behind it.

::

    127.x.y.20:5848 ----+                   +---- 127.x.y.40:30000 ----> 127.x.y.1:5848
    127.x.y.20:5500 ----+-- 127.x.y.30 -----+---- 127.x.y.40:30001 ----> 127.x.y.1:5500
         member             inside  NAT  outside                         key server

Loopback has no routers, so the member sends to the NAT's inner address as if it were the key
server's: seen from both ends there is a NAT before each.
"""

from __future__ import annotations

import hashlib
import selectors
import socket
import threading

from .rfc_octets import VENDOR, Payload, Suite, address, must
from .rfc_peer import NAT_D, Member

RFC_3947 = bytes.fromhex("4a131c81070358455c5728f20e95452f")
KEEPALIVE = b"\xff"
Endpoint = tuple[str, int]


def nat_hash(suite: Suite, cookies: bytes, endpoint: Endpoint) -> bytes:
    """RFC 3947 3.2: HASH(CKY-I | CKY-R | IP | Port)."""
    octets = cookies + address(endpoint[0]) + endpoint[1].to_bytes(2, "big")
    return hashlib.new(suite.hash, octets).digest()


class Nat:
    """Address and port translation; a mapping for each endpoint inside and destination."""

    def __init__(self, inside: str, outside: str, server: str, ports: tuple[int, ...]) -> None:
        self.outside, self.server = outside, server
        self.keepalives = 0
        self._selector = selectors.DefaultSelector()
        self._outer: dict[tuple[Endpoint, int], socket.socket] = {}
        self._inner = {port: self._open((inside, port)) for port in ports}
        for port, opened in self._inner.items():
            self._selector.register(opened, selectors.EVENT_READ, (None, port))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @staticmethod
    def _open(local: Endpoint) -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.bind(local)
        return opened

    def forget(self) -> None:
        """Whatever goes out next gets another port; what comes to the old ones finds nobody."""
        self._outer.clear()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            for key, _ in self._selector.select(0.05):
                inside, port = key.data
                datagram, source = key.fileobj.recvfrom(65535)  # type: ignore[union-attr]
                peer = (self.server, port)
                if inside is None:
                    self.keepalives += datagram == KEEPALIVE
                    self._mapping(source, port).sendto(datagram, peer)
                elif self._outer.get((inside, port)) is key.fileobj and source == peer:
                    self._inner[port].sendto(datagram, inside)

    def _mapping(self, inside: Endpoint, port: int) -> socket.socket:
        if (inside, port) not in self._outer:
            opened = self._outer[inside, port] = self._open((self.outside, 0))
            self._selector.register(opened, selectors.EVENT_READ, (inside, port))
        return self._outer[inside, port]


class NatMember(Member):
    """Behind a NAT, and knows what to do about it."""

    announced: Payload = (VENDOR, RFC_3947)

    def __init__(self, local: Endpoint, server: Endpoint, psk: bytes, nat_port: int = 4500) -> None:
        super().__init__(local, server, psk)
        self.nat_port = nat_port
        self.more_in_1 = [self.announced]
        self.moved = False
        self.found: tuple[bool, bool] | None = None  # a NAT before this end, before the other
        self._cookies = b""

    def discovery(self, suite: Suite, cookies: bytes, vendor_ids: list[bytes]) -> list[Payload]:
        must(RFC_3947 in vendor_ids, "RFC 3947 3.1: the vendor ID MUST be sent if supported")
        self._cookies = cookies
        return [
            (NAT_D, nat_hash(suite, cookies, self.server)),
            (NAT_D, nat_hash(suite, cookies, self.local)),
        ]

    def discovered(self, hashes: list[bytes]) -> None:
        must(len(hashes) >= 2, "RFC 3947 3.2: one for the remote end, others for the local end")
        here = hashes[0] != nat_hash(self.suite, self._cookies, self.local)
        there = nat_hash(self.suite, self._cookies, self.server) not in hashes[1:]
        self.found = (here, there)
        if here or there:
            self.socket.close()
            self.local = (self.local[0], self.nat_port)
            self.server = (self.server[0], self.nat_port)
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.socket.bind(self.local)
            self.moved = True

    def framed(self, message: bytes) -> bytes:
        return bytes(4) + message if self.moved else message

    def unframed(self, datagram: bytes) -> bytes:
        if not self.moved:
            return datagram
        must(datagram[:4] == bytes(4), "RFC 3948 2.2: the non-ESP marker")
        return datagram[4:]

    def keepalive(self) -> None:
        self.socket.sendto(KEEPALIVE, self.server)
