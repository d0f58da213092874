"""A NAT on the simulated network: address and port rewritten, mappings that end and change.

::

    10.1.0.2:4500  ---+
                      +--- Nat 192.0.2.1:30000, :30001, ... ---- the network
    10.1.0.3:4500  ---+

As RFC 4787 has them: one mapping for each endpoint inside, whatever it talks to; a datagram from
outside passes only where one went to its sender before; only what goes out keeps a mapping alive.
Multicast that a host inside has joined is let in as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from gdoi_plugin.protocol.actions import IPAddress, Peer, Send
from tests.support.simnet import Host, Network

FIRST_PORT = 30000
# RFC 4787 section 4.3: not before two minutes; most are quicker than that.
TIMEOUT = 60.0


@dataclass(slots=True)
class Mapping:
    inside: Peer
    outside: Peer
    used: float
    sent_to: set[Peer] = field(default_factory=set)


class Nat:
    def __init__(self, network: Network, public: IPAddress, timeout: float = TIMEOUT) -> None:
        self.network, self.public, self.timeout = network, public, timeout
        self.hosts: dict[IPAddress, Host] = {}
        self.refused: list[Send] = []
        self._mappings: dict[Peer, Mapping] = {}
        self._next_port = FIRST_PORT
        network.hosts[public] = self

    def forget(self) -> None:
        """As after a power cut: whatever goes out next gets another port."""
        self._mappings.clear()

    def mapped(self, inside: Peer) -> Peer | None:
        """Where an endpoint inside is seen now."""
        mapping = self._mappings.get(inside)
        if mapping is None or mapping.used + self.timeout <= self.network.now:
            return None
        return mapping.outside

    def send(self, send: Send) -> None:
        """From inside."""
        mapping = self._mapping(send.source)
        mapping.used = self.network.now
        mapping.sent_to.add(send.destination)
        self.network.send(replace(send, source=mapping.outside))

    def deliver(self, send: Send) -> None:
        """From outside."""
        if send.destination.host.is_multicast:
            for host in self.hosts.values():
                host.deliver(send)
            return
        for mapping in self._mappings.values():
            if mapping.outside == send.destination and send.source in mapping.sent_to:
                if self.mapped(mapping.inside) is None:
                    break
                self.hosts[mapping.inside.host].deliver(replace(send, destination=mapping.inside))
                return
        self.refused.append(send)

    def _mapping(self, inside: Peer) -> Mapping:
        if self.mapped(inside) is None:
            outside = Peer(self.public, self._next_port)
            self._next_port += 1
            self._mappings[inside] = Mapping(inside, outside, self.network.now)
        return self._mappings[inside]
