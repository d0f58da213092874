"""Every group of one agent: which of them a datagram is for."""

from __future__ import annotations

from dataclasses import dataclass

from ..wire.buffer import DecodeError
from ..wire.header import pull_header
from ..wire.registry import ExchangeType, PayloadType
from .actions import Action, Drop, Dropped, Peer
from .arrival import FRAGMENT
from .member import GroupMember


@dataclass(slots=True)
class Agent:
    """Finds the engine a datagram is for."""

    groups: dict[str, GroupMember]

    def __post_init__(self) -> None:
        # INITIAL-CONTACT of one group must not end what another has just begun.
        contacted: set[Peer] = set()
        for group in self.groups.values():
            group.registrar.contacted = contacted

    def receive(
        self, datagram: bytes, source: Peer, arrived: Peer, now: float
    ) -> tuple[GroupMember | None, list[Action]]:
        """The group it was for, and the actions. No exception for any datagram."""
        try:
            header = pull_header(datagram)
        except DecodeError as error:
            return None, [Dropped(Drop.MALFORMED, source, str(error))]
        if header.next_payload == PayloadType.FRAGMENT:
            return None, [Dropped(Drop.FRAGMENT, source, FRAGMENT)]
        if header.exchange_type == ExchangeType.UNREGISTERED_34:
            return None, [Dropped(Drop.IGNORED_EXCHANGE, source, "exchange 34")]
        for group in self.groups.values():
            if group.owns(header):
                if group.config.outside(source, arrived):
                    return None, [Dropped(Drop.OUTSIDE_CHANNEL, source, group.config.name)]
                return group, group.receive(header, datagram, source, arrived, now)
        return None, [Dropped(Drop.UNKNOWN_COOKIES, source, header.spi.hex())]
