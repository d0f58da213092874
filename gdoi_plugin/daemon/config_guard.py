"""``protect``, ``bypass``, ``default_policy`` and ``on_stop``: what a member lets pass in clear."""

from __future__ import annotations

from itertools import permutations
from typing import Annotated, Literal, Self

from gdoi_xfrm import Direction, Selector
from pydantic import AfterValidator, Field, model_validator

from ..protocol.endpoints import LINK_CONTROL
from .config_values import Network, Prefix, Section, number_range
from .config_values import Selector as PortNumber
from .guard import DIRECTIONS, Fence, OnStop
from .selectors import contains, everything, lies_in

# The kernel goes through them for every packet.
MAX_ENTRIES = 256
# Those with ports, without one of which a whole group's traffic would pass.
_WITH_PORTS = {6: "TCP", 17: "UDP", 33: "DCCP", 132: "SCTP", 136: "UDP-Lite"}
_DIRECTIONS = {"in": (Direction.IN,), "out": (Direction.OUT,), "both": DIRECTIONS}


def _groups(value: Network) -> Network:
    """A prefix of groups that TEKs may have."""
    if not value.is_multicast:
        raise ValueError(f"{value} is not multicast; must lie in 224.0.0.0/4 or ff00::/8")
    for network in LINK_CONTROL:
        if lies_in(value, network):
            raise ValueError(f"{value} is for the link's control, which is never blocked")
        if lies_in(network, value):
            raise ValueError(
                f"{value} holds {network}, the link's control (IGMP, neighbours), without which a"
                " host is cut off; give narrower prefixes, e.g. 239.0.0.0/8 or ff18::/16"
            )
    return value


Groups = Annotated[Prefix, AfterValidator(_groups)]


class BypassEntry(Section):
    """Packets that pass in clear; keys as in a key server's ``[[group.tek]]``."""

    destination: Groups
    source: Prefix | None = None
    protocol: Annotated[int, number_range(0, 255)] = 0
    source_port: PortNumber = 0
    destination_port: PortNumber = 0
    direction: Literal["in", "out", "both"] = "both"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.source is not None and self.source.version != self.destination.version:
            raise ValueError(
                f"source {self.source} and destination {self.destination} must be both IPv4 or IPv6"
            )
        if self.source is not None and self.source.is_multicast:
            raise ValueError(f"source {self.source} is multicast, which nobody sends from")
        if (self.source_port or self.destination_port) and not self.protocol:
            raise ValueError("ports need a protocol, e.g. protocol = 17 for UDP")
        return self

    @property
    def selector(self) -> Selector:
        return Selector(
            self.source or everything(self.destination.version),
            self.destination,
            self.protocol,
            self.source_port,
            self.destination_port,
        )

    @property
    def directions(self) -> tuple[Direction, ...]:
        return _DIRECTIONS[self.direction]

    @property
    def narrow(self) -> bool:
        """Whether it names one kind of traffic."""
        if self.protocol in _WITH_PORTS:
            return bool(self.source_port or self.destination_port)
        return bool(self.protocol)


class GuardOptions(Section):
    """Part of ``[member]``."""

    protect: Annotated[list[Groups], Field(max_length=MAX_ENTRIES)] = []
    bypass: Annotated[list[BypassEntry], Field(max_length=MAX_ENTRIES)] = []
    default_policy: Literal["keep", "block"] = "keep"
    on_stop: Literal["keep", "remove", "block"] = "keep"

    @model_validator(mode="after")
    def _prefixes_apart(self) -> Self:
        for inner, outer in permutations(self.protect, 2):
            if lies_in(inner, outer):
                raise ValueError(f"protect: {inner} lies in {outer} already")
        return self

    @model_validator(mode="after")
    def _exceptions_apart(self) -> Self:
        for inner, outer in permutations(self.bypass, 2):
            common = set(inner.directions) & set(outer.directions)
            if common and contains(outer.selector, inner.selector):
                raise ValueError(f"bypass: {inner.selector} is part of {outer.selector} already")
        return self

    @model_validator(mode="after")
    def _exceptions_narrow(self) -> Self:
        """A whole group in clear is what protection is against: it must be said twice."""
        for entry in self.bypass:
            inside = (p for p in self.protect if lies_in(entry.destination, p))
            part = any(prefix != entry.destination for prefix in inside)
            if not (entry.narrow or part):
                kind = _WITH_PORTS.get(entry.protocol, "every protocol")
                raise ValueError(
                    f"bypass: {kind} to {entry.destination} is too much; give protocol, with a port"
                    " where it has ports, or a part of a prefix in protect"
                )
        return self

    def fence(self) -> Fence:
        return Fence(
            protect=tuple(self.protect),
            bypass=tuple((e.selector, way) for e in self.bypass for way in e.directions),
            block_by_default=self.default_policy == "block",
            on_stop=OnStop(self.on_stop),
        )
