"""Links and addresses that come and go: rtnetlink says that something has changed, and whoever
asked looks at what is there now.

What a message says is not believed, but for one thing: an interface that was deleted has taken its
multicast memberships along, even where another one has its name and index by now.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import socket
import struct
from collections.abc import Callable
from typing import Final

from .errors import StartError

# linux/rtnetlink.h: the multicast groups of links and addresses, as bits
_RTMGRP_LINK: Final = 0x1
_RTMGRP_IPV4_IFADDR: Final = 0x10
_RTMGRP_IPV6_IFADDR: Final = 0x100
_RTM_DELLINK: Final = 17
# struct nlmsghdr: length, type, flags, sequence, port
_NLMSGHDR = struct.Struct("=IHHII")
# struct ifinfomsg up to the index: family, pad, type, index
_IFINFOMSG = struct.Struct("=BxHi")
# Longer than any of these notifications; what is cut off would be attributes.
_DATAGRAM: Final = 1 << 15
# Datagrams read in one turn of the loop, so that a storm of changes does not keep it busy.
_BURST: Final = 256
# Seconds from the first change to the look: a link that is set up makes several.
SETTLE: Final = 0.02
# linux/sockios.h, and struct ifreq as far as it matters: name, flags
_SIOCGIFFLAGS: Final = 0x8913
_IFREQ = struct.Struct("16sH22x")
# IFF_UP and IFF_RUNNING
_UP: Final = 0x41

# Told of the interfaces that were deleted meanwhile, by index.
Changed = Callable[[frozenset[int]], None]


class LinkWatch:
    """For the network namespace in which it is made. ``changed`` comes soon after every change,
    also after one that the kernel could not tell of (ENOBUFS)."""

    def __init__(self, changed: Changed) -> None:
        """In the running event loop. Raises OSError."""
        self._changed = changed
        self._gone: set[int] = set()
        self._due: asyncio.TimerHandle | None = None
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            socket.NETLINK_ROUTE,
        )
        try:
            self._socket.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
        except OSError:
            self._socket.close()
            raise

        asyncio.get_running_loop().add_reader(self._socket, self._readable)

    def close(self) -> None:
        if self._due is not None:
            self._due.cancel()
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def _readable(self) -> None:
        for _ in range(_BURST):
            try:
                datagram, (sender, _groups) = self._socket.recvfrom(_DATAGRAM)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
            else:
                if sender == 0:  # the kernel: other processes may write to a netlink socket, too
                    self._gone |= deleted(datagram)
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(SETTLE, self._look)

    def _look(self) -> None:
        self._due = None
        gone, self._gone = frozenset(self._gone), set()
        self._changed(gone)


def watch_links(changed: Changed) -> LinkWatch:
    """For a daemon that starts. Raises StartError."""
    try:
        return LinkWatch(changed)
    except OSError as error:
        raise StartError(f"no news of interfaces from the kernel: {error.strerror}") from error


def deleted(datagram: bytes) -> set[int]:
    """The interfaces that RTM_DELLINK messages of a datagram are about."""
    found = set()
    offset = 0
    while offset + _NLMSGHDR.size + _IFINFOMSG.size <= len(datagram):
        length, kind, *_ = _NLMSGHDR.unpack_from(datagram, offset)
        family, _type, index = _IFINFOMSG.unpack_from(datagram, offset + _NLMSGHDR.size)
        # Of AF_BRIDGE it says that a port has left its bridge.
        if kind == _RTM_DELLINK and family == socket.AF_UNSPEC:
            found.add(index)
        offset += max((length + 3) & ~3, _NLMSGHDR.size)
    return found


def is_up(interface: str) -> bool:
    """Switched on, and with a carrier. False where there is no such interface."""
    request = _IFREQ.pack(interface.encode(), 0)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, request)
    except OSError:
        return False
    flags: int = _IFREQ.unpack(answer)[1]
    return flags & _UP == _UP
