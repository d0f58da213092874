"""Where a member is: an interface, its address and its link, which may come late, go, and be
others when they come back."""

from __future__ import annotations

from ..protocol.actions import Event
from .config_member import MemberDaemonConfig
from .errors import AbsentError, ConfigError, NoAddressError, StartError
from .links import is_up
from .udp import UdpSockets


class Whereabouts:
    """``config`` is for the place whose endpoint was bound last, if ``bound``. ``problem`` is what
    keeps the member from speaking from there now."""

    def __init__(self, config: MemberDaemonConfig, sockets: UdpSockets) -> None:
        self.config = config
        self.problem: str | None = None
        self._sockets = sockets

    @property
    def bound(self) -> bool:
        return self.config.local in self._sockets.open

    def look(self, *, strict: bool = False) -> list[Event]:
        """Finds the member's place and binds its endpoint there; what has changed is told once.

        ``strict``: raises StartError for a port that is not to be had, ConfigError for a place that
        the configuration does not fit. What is not there yet is waited for in any case, and later
        everything is: whoever moves an address must not end the agent.
        """
        place, problem = self.config, None
        try:
            place = self._bind()
        except (ConfigError, StartError) as error:
            if strict and not isinstance(error, AbsentError | NoAddressError):
                raise
            problem = str(error)
        if problem is None and not is_up(place.interface):
            problem = f"{place.interface} has no link"
        moved = self.bound and place is not self.config
        told = []
        if problem is not None and problem != self.problem:
            told = [Event("network-lost", {"error": problem}, "warning")]
        elif problem is None and (moved or self.problem is not None):
            fields = {"address": str(place.local.host), "interface": place.interface}
            told = [Event("network-found", fields)]
        self.config, self.problem = place, problem
        return told

    def _bind(self) -> MemberDaemonConfig:
        place = self.config.here()
        if place.local not in self._sockets.open:
            self._sockets.bind(place.local, place.interface)
        return place
