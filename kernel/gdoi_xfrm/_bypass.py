"""A policy of one socket: IP_XFRM_POLICY and IPV6_XFRM_POLICY."""

from __future__ import annotations

import socket
from ipaddress import ip_network
from typing import Final

from gdoi_xfrm import _codec as codec
from gdoi_xfrm._codec import MessageType
from gdoi_xfrm._types import Direction, Policy, Selector

# linux/in.h, linux/in6.h; not in Python's socket module
IP_XFRM_POLICY: Final = 17
IPV6_XFRM_POLICY: Final = 35
USERPOLICY_INFO: Final = 168


def bypass(sock: socket.socket) -> None:
    """The socket hears what arrives for it, in clear too, whatever the namespace's policies say.

    It sends as they say. Needs CAP_NET_ADMIN. Raises OSError.
    """
    if sock.family == socket.AF_INET6:
        level, option, everything = socket.IPPROTO_IPV6, IPV6_XFRM_POLICY, "::/0"
    else:
        level, option, everything = socket.IPPROTO_IP, IP_XFRM_POLICY, "0.0.0.0/0"
    anything = Selector(ip_network(everything), ip_network(everything))
    request = codec.encode_policy(Policy(anything, Direction.IN, 0), MessageType.NEWPOLICY)
    sock.setsockopt(level, option, request.body[:USERPOLICY_INFO])
