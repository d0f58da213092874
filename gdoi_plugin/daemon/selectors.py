"""What a flow's packets look like to the kernel."""

from __future__ import annotations

from ipaddress import ip_network

from gdoi_xfrm import Network, Selector

from ..protocol.policy import Flow

_EVERYTHING = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}


def everything(version: int) -> Network:
    return _EVERYTHING[version]


def selector(flow: Flow) -> Selector:
    return Selector(
        flow.source or everything(flow.destination.version),
        ip_network(flow.destination),
        flow.protocol,
        flow.source_port,
        flow.destination_port,
    )
