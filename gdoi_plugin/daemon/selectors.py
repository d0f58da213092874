"""What a flow's packets look like to the kernel."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network

from gdoi_xfrm import Network, Selector

from ..protocol.policy import Flow

_EVERYTHING: dict[int, Network] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}


def everything(version: int) -> Network:
    return _EVERYTHING[version]


# Every rekey has the same flows, and each is asked for several times.
@lru_cache(1024)
def selector(flow: Flow) -> Selector:
    return Selector(
        flow.source or everything(flow.destination.version),
        ip_network(flow.destination),
        flow.protocol,
        flow.source_port,
        flow.destination_port,
    )


def lies_in(inner: Network, outer: Network) -> bool:
    if isinstance(inner, IPv4Network):
        return isinstance(outer, IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, IPv6Network) and inner.subnet_of(outer)


def contains(outer: Selector, inner: Selector) -> bool:
    """Whether every packet that matches ``inner`` matches ``outer``."""
    numbers = (
        (outer.protocol, inner.protocol),
        (outer.source_port, inner.source_port),
        (outer.destination_port, inner.destination_port),
    )
    return (
        lies_in(inner.source, outer.source)
        and lies_in(inner.destination, outer.destination)
        and all(wide in (0, narrow) for wide, narrow in numbers)
    )
