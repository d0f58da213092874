"""Which data SAs a Linux router can serve that forwards multicast in and out of them.

A forwarded packet is looked up in the SPD with this router's own address as its source, and as of
no protocol that has ports. So what a SAT says of either is true of the router's own packets alone.
"""

from __future__ import annotations

from typing import Protocol

from ..wire.registry import AddressPreservation, EncapsulationMode
from .data_sa import Flow


class _DataSa(Protocol):
    """A TEK, or what an operator wants of one."""

    @property
    def flow(self) -> Flow: ...
    @property
    def mode(self) -> EncapsulationMode: ...
    @property
    def preservation(self) -> AddressPreservation: ...


def why_not_forwarded(sa: _DataSa, *, sends: bool) -> str | None:
    """What is in the way, None where nothing is. ``sends``: the router may send with it."""
    if sa.flow.destination.version != 4:
        return "only IPv4 multicast is forwarded"
    if sa.flow.protocol:
        return (
            f"it is for IP protocol {sa.flow.protocol} alone, and Linux does not look at the"
            " protocol and the ports of what it forwards"
        )
    kept = sa.preservation is AddressPreservation.SOURCE_AND_DESTINATION
    if sends and kept and sa.mode is EncapsulationMode.TUNNEL:
        return (
            "a tunnel that preserves the source (RFC 6407 section 5.5.1.1.1) would have this"
            " router's own address outside; it must be destination-only"
        )
    return None
