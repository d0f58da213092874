"""UDP endpoints: unicast sockets bound to an address, one socket for each rekey group.

Where strangers knock, an endpoint has several sockets on its port (:mod:`.lanes`): each is heard in
turn, and answers leave from the first.

On an endpoint of NAT traversal a marker stands before each message (RFC 3948 section 2.2): it is
put there and taken off here, and keepalives are taken off with it.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address
from itertools import compress, groupby
from operator import attrgetter

from ..protocol.ack import MAX_LENGTH
from ..protocol.actions import IPAddress, Peer, Send
from ..protocol.roster import peer_of
from ..wire.buffer import DecodeError
from ..wire.encapsulation import NON_ESP_MARKER, decapsulate, encapsulate
from ..wire.header import MAX_MESSAGE
from .errors import NoAddressError, StartError
from .lanes import Lane, attach, program
from .many import ManyReader, dropped, make_room
from .sending import BATCH, Outgoing

Receiver = Callable[[bytes, Peer, Peer], None]
# What came to an endpoint of NAT traversal without being ISAKMP, and from where.
Refuser = Callable[[Peer, str], None]
# The answer to a datagram, for its sender, or None where it was dealt with otherwise.
Answerer = Callable[[bytes, Peer, Peer], bytes | None]
# Many acknowledgements: the datagrams, their endpoints as octets, and the one they came to.
ManyReceiver = Callable[[Sequence[bytes], Sequence[bytes], Peer], None]
# Datagrams taken per wake-up: enough to keep up with a burst, few enough that timers stay on time.
BURST = 256
# Seconds after which a turn ends: some datagrams ask for milliseconds of work, and the others wait.
TURN = 0.02
# Senders whose addresses are kept as objects; with more of them, most are forged.
REMEMBERED_PEERS = 8192
# A rekey has to reach routers some hops away (RFC 1112: the default of 1 is one network).
MULTICAST_HOPS = 32
RECEIVE_BUFFER = 4 << 20
# Nothing longer is an ACK, behind the marker of NAT traversal.
LONGEST_ACK = len(NON_ESP_MARKER) + MAX_LENGTH
# Below it only root and CAP_NET_BIND_SERVICE may bind, unless a sysctl says otherwise.
FIRST_FREE_PORT = 1024

_source, _datagram = attrgetter("source"), attrgetter("datagram")
_destination = attrgetter("destination")


class UdpSockets:
    """Every socket of a daemon. ``receive(datagram, source, arrived)`` is called for each datagram,
    ``arrived`` being the destination it had."""

    def __init__(
        self,
        receive: Receiver,
        refuse: Refuser = lambda _source, _why: None,
        turn_over: Callable[[], None] = lambda: None,
    ) -> None:
        self._receive = receive
        self._refuse = refuse
        self._turn_over = turn_over
        # While the datagrams that wait at a socket are received one after the other.
        self.in_turn = False
        self._sockets: dict[Peer, socket.socket] = {}
        # Beside it, the other sockets of the same port.
        self._lanes: dict[Peer, list[socket.socket]] = {}
        self._encapsulated: set[Peer] = set()
        self._peers: dict[tuple[str, int], Peer] = {}
        self._outgoing: dict[int, Outgoing] = {}

    def bind_encapsulated(self, local: Peer) -> None:
        """An endpoint of NAT traversal. Raises StartError."""
        self._listen(local, self._socket(local))
        self._encapsulated.add(local)

    def bind(self, local: Peer, interface: str | None) -> None:
        """``interface`` has the address; multicast leaves there. Raises StartError."""
        sock = self._socket(local)
        try:
            _aim(sock, local, interface)
        except OSError as error:
            sock.close()
            raise StartError(f"multicast from UDP {local}: {error.strerror}") from error
        self._listen(local, sock)

    def aim(self, local: Peer, interface: str | None) -> None:
        """Multicast from ``local``, which is bound, leaves on ``interface``, which has been made
        again since: a socket knows it by its index. Raises OSError."""
        _aim(self._sockets[local], local, interface)

    def separate(
        self,
        local: Peer,
        answer: Answerer | None = None,
        many: ManyReceiver | None = None,
        spread: int = 0,
    ) -> str | None:
        """A socket for each kind of message that comes to ``local``, which is bound.

        ``answer`` is asked about first messages, instead of ``receive``; ``many`` gets ACKs,
        unless there are to be so many sockets for them that somebody else reads (``spread``).

        Only sockets of the same user may share a port, and only while they say so: the one that
        is bound already was alone there. Where the kernel does not do it, all goes on over that
        one, and the text says why.
        """
        first = self._sockets[local]
        more: list[socket.socket] = []
        try:
            first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            more += [self._socket(local, shared=True) for _ in range(len(Lane) - 1 + spread)]
            attach(first, program(encapsulated=local in self._encapsulated, spread=spread))
        except (OSError, StartError) as error:
            for sock in more:
                sock.close()
            return f"UDP {local} has one receive buffer for all messages: {error}"
        self._lanes[local] = more
        loop = asyncio.get_running_loop()
        for sock in more[: len(Lane) - 1]:
            loop.add_reader(sock, self._readable, sock, local)
        if answer is not None and local not in self._encapsulated:
            sock = more[Lane.FIRST - 1]
            loop.add_reader(sock, self._answerable, sock, local, answer)
        if many is not None:
            sock = more[Lane.ACK - 1]
            reader = ManyReader(sock, BURST, LONGEST_ACK)
            loop.add_reader(sock, self._many_readable, sock, reader, local, many)
        return None

    def make_ack_room(self, octets: int) -> int | None:
        """For each endpoint's ACKs. The least that the kernel has granted, None without lanes."""
        return min((make_room(sock, octets // 2) for sock in self._for_acks()), default=None)

    def acks_dropped(self) -> int:
        """By the kernel, since the endpoints were bound."""
        return sum(map(dropped, self._for_acks()))

    def spread_over(self, local: Peer) -> list[socket.socket]:
        """Those that somebody else is to read."""
        return self._lanes.get(local, [])[len(Lane) - 1 :]

    def _for_acks(self) -> Iterator[socket.socket]:
        for local, more in self._lanes.items():
            yield from self.spread_over(local) or (more[Lane.ACK - 1],)

    def listen(self, group: Peer, index: int) -> None:
        """To a multicast group that is joined elsewhere (:mod:`.memberships`), on any interface; to
        a group of a link, on the one of that index alone. Raises StartError."""
        self._listen(group, self._socket(group, index))

    def leave(self, peer: Peer) -> None:
        """Closes what ``bind`` or ``listen`` opened."""
        self._encapsulated.discard(peer)
        for sock in (self._sockets.pop(peer), *self._lanes.pop(peer, ())):
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()

    @property
    def open(self) -> frozenset[Peer]:
        """What is bound."""
        return frozenset(self._sockets)

    def send(self, datagram: bytes, destination: Peer, source: Peer) -> None:
        """From the socket bound to ``source``. Raises OSError, also where there is none."""
        sock = self._sockets.get(source)
        if sock is None:
            raise OSError(errno.EADDRNOTAVAIL, f"no socket bound to {source}")
        if source in self._encapsulated:
            datagram = encapsulate(datagram)
        sock.sendto(datagram, (str(destination.host), destination.port))

    def send_many(self, sends: Sequence[Send]) -> list[tuple[Send, OSError]]:
        """All of them, in order; those that could not be sent, and why."""
        failed: list[tuple[Send, OSError]] = []
        # A batch at a time, from first to last: what is looked at again is near then.
        for begin in range(0, len(sends), BATCH):
            batch = sends[begin : begin + BATCH]
            sources = list(map(_source, batch))
            if sources.count(sources[0]) == len(sources):
                failed += self._send_from(sources[0], batch)
            else:
                for source, run in groupby(batch, _source):
                    failed += self._send_from(source, list(run))
        return failed

    def _send_from(self, source: Peer, sends: Sequence[Send]) -> list[tuple[Send, OSError]]:
        sock = self._sockets.get(source)
        if sock is None:
            error = OSError(errno.EADDRNOTAVAIL, f"no socket bound to {source}")
            return [(send, error) for send in sends]
        datagrams = list(map(_datagram, sends))
        if source in self._encapsulated:
            datagrams = _encapsulated(datagrams)
        table = self._outgoing.get(sock.family)
        if table is None:
            table = self._outgoing[sock.family] = Outgoing(sock.family)
        refused = table.send(sock, datagrams, list(map(_destination, sends)))
        return [(sends[place], error) for place, error in refused]

    def close(self) -> None:
        for peer in list(self._sockets):
            self.leave(peer)

    def _socket(self, local: Peer, index: int = 0, *, shared: bool = False) -> socket.socket:
        """``index``: the interface, for a multicast group. ``shared``: the port is ours already."""
        family = socket.AF_INET if local.host.version == 4 else socket.AF_INET6
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError as error:  # no IPv6, no file descriptors
            raise StartError(_why_not_bound(local, error)) from error
        try:
            if local.host.is_multicast:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                # Rekeys come in clear, and their group may lie among those that are protected. Only
                # members join; what a key server need not read makes it start sooner.
                from gdoi_xfrm import bypass

                bypass(sock)
            if shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            make_room(sock, RECEIVE_BUFFER)
            # The scope counts where the address is one of a link (ff02::, ff12::), and only there.
            scope = () if local.host.version == 4 else (0, index)
            sock.bind((str(local.host), local.port, *scope))
        except OSError as error:
            sock.close()
            kind = NoAddressError if error.errno == errno.EADDRNOTAVAIL else StartError
            raise kind(_why_not_bound(local, error)) from error
        return sock

    def _listen(self, local: Peer, sock: socket.socket) -> None:
        self._sockets[local] = sock
        asyncio.get_running_loop().add_reader(sock, self._readable, sock, local)

    def _readable(self, sock: socket.socket, local: Peer) -> None:
        """One turn."""
        self.in_turn = True
        try:
            self._take(sock, local)
        finally:
            self.in_turn = False
            self._turn_over()

    def _take(self, sock: socket.socket, local: Peer) -> None:
        """What waits there, as much of it as there is time for."""
        end = time.monotonic() + TURN
        for _ in range(BURST):
            try:
                datagram, address = sock.recvfrom(MAX_MESSAGE + 1)
            except BlockingIOError:
                return
            except OSError:
                # An ICMP error for something sent earlier; the next read is clean again.
                continue
            self._arrived(datagram, self._peer(address[:2]), local)
            if sock.fileno() < 0 or time.monotonic() >= end:
                return

    def _many_readable(
        self, sock: socket.socket, reader: ManyReader, local: Peer, many: ManyReceiver
    ) -> None:
        end, full = time.monotonic() + TURN, True
        while full and sock.fileno() >= 0 and time.monotonic() < end:
            try:
                datagrams, endpoints = reader.take()
            except OSError:
                continue  # as above
            full = len(datagrams) == BURST
            if local in self._encapsulated:
                datagrams, endpoints = self._unwrapped(datagrams, endpoints, local)
            if datagrams:
                many(datagrams, endpoints, local)

    def _unwrapped(
        self, datagrams: Sequence[bytes], endpoints: Sequence[bytes], local: Peer
    ) -> tuple[Sequence[bytes], Sequence[bytes]]:
        """Without the marker; what has none goes the way of all others."""
        start = len(NON_ESP_MARKER)
        marked = [datagram.startswith(NON_ESP_MARKER) for datagram in datagrams]
        for datagram, endpoint, right in zip(datagrams, endpoints, marked, strict=True):
            if not right:
                self._arrived(datagram, peer_of(endpoint), local)
        messages = [datagram[start:] for datagram in compress(datagrams, marked)]
        return messages, list(compress(endpoints, marked))

    def _answerable(self, sock: socket.socket, local: Peer, answer: Answerer) -> None:
        """The same for first messages: what a flood consists of is answered from here."""
        end = time.monotonic() + TURN
        for _ in range(BURST):
            try:
                datagram, address = sock.recvfrom(MAX_MESSAGE + 1)
                reply = answer(datagram, self._peer(address[:2]), local)
                if reply is not None:
                    sock.sendto(reply, address)
            except BlockingIOError:
                return
            except OSError:
                continue  # whoever asked will ask again
            if time.monotonic() >= end:
                return

    def _peer(self, address: tuple[str, int]) -> Peer:
        """Making an address object costs more than most datagrams are worth."""
        peer = self._peers.get(address)
        if peer is None:
            if len(self._peers) >= REMEMBERED_PEERS:
                self._peers.clear()
            host: IPAddress = ip_address(address[0].partition("%")[0])
            peer = self._peers[address] = Peer(host, address[1])
        return peer

    def _arrived(self, datagram: bytes, source: Peer, local: Peer) -> None:
        if local in self._encapsulated:
            try:
                message = decapsulate(datagram)
            except DecodeError as error:
                self._refuse(source, str(error))
                return
            if message is None:
                # A keepalive is for the NAT; nobody has signed it and nothing follows from it.
                return
            datagram = message
        self._receive(datagram, source, local)


def _aim(sock: socket.socket, local: Peer, interface: str | None) -> None:
    hops = struct.pack("i", MULTICAST_HOPS)
    if local.host.version == 4:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, hops)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, local.host.packed)
        return
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, hops)
    if interface is not None:
        index = struct.pack("i", socket.if_nametoindex(interface))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)


def _encapsulated(datagrams: Sequence[bytes]) -> list[bytes]:
    """What is the same object before is the same after."""
    made = {id(datagram): encapsulate(datagram) for datagram in datagrams}
    return [made[id(datagram)] for datagram in datagrams]


def _why_not_bound(local: Peer, error: OSError) -> str:
    hints = {
        errno.EADDRINUSE: "another program has the port (daemons need an address each)",
        errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE",
        errno.EPERM: "ports below 1024 need root or CAP_NET_BIND_SERVICE",
        errno.EADDRNOTAVAIL: "no interface of this host has that address",
    }
    hint = error.strerror or str(error)
    if error.errno not in (errno.EACCES, errno.EPERM) or local.port < FIRST_FREE_PORT:
        hint = hints.get(error.errno or 0, hint)
    return f"cannot bind UDP {local}: {hint}"
