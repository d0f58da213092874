"""A member that is a router: it decrypts into its LANs, and encrypts what comes out of them.

::

    LAN ---- clear ---- eth1 [router] eth0 ==== ESP ==== other members

Linux asks the SPD about forwarded multicast when it sends it, and not when it receives it. So the
``out`` policy of a TEK encrypts on every interface but those of the LANs, which have a policy of
their own before it; and whether a packet came in ESP is for netfilter to say, which sees each one
between the two. There is a chain for each group, asked about all that is forwarded to its
addresses. An interface that comes again under another index is no LAN until :meth:`follow_links`:
its packets would be encrypted, and the chain drops them.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Collection, Iterable, Sequence
from ipaddress import ip_network

from gdoi_xfrm import (
    DeletePolicy,
    Direction,
    Operation,
    Policy,
    PolicyAction,
    PolicyKey,
    Selector,
    UpdatePolicy,
    Xfrm,
)

from ..protocol.actions import IPAddress
from .errors import FirewallError
from .firewall import HURRIED, PATIENT, Firewall, Patience
from .guard import BYPASS_PRIORITY
from .selectors import everything

# Before every policy that encrypts or blocks; and whose policy it is, for whoever lists them.
LAN_PRIORITY = BYPASS_PRIORITY - 1


class Forwarding:
    """One group's part of it. ``lan``: the interfaces where its packets are in clear.

    Without any this is no router; what a former configuration has left is taken away all the same.
    """

    def __init__(
        self, xfrm: Xfrm, reqid: int, lan: Sequence[str] = (), firewall: Firewall | None = None
    ) -> None:
        self._xfrm = xfrm
        self._reqid = reqid
        self._lan = tuple(lan)
        self._firewall = firewall if lan else None
        self._closed: set[IPAddress] = set()
        # Held while a check is under way; there is none after the end.
        self._checking, self._ended = threading.Lock(), False
        self._destinations: set[IPAddress] = set()
        # The LANs' indexes: in operations that may fail, and in the kernel for all of these.
        self._asked: frozenset[int] = frozenset()
        self._indexes: frozenset[int] = frozenset()
        self._tidy = False

    @property
    def program(self) -> str | None:
        """Which makes the chain; None where there is none to be."""
        return None if self._firewall is None else self._firewall.program

    def rules(self) -> list[str]:
        """Of the chain: the first that a packet matches decides."""
        return [
            # Out of a LAN: to another in clear, elsewhere through the SPD.
            *(f"-i {name} -j RETURN" for name in self._lan),
            # From elsewhere into no LAN: encrypted again it would go round for ever.
            "-m policy --dir out --pol ipsec -j DROP",
            # Into a LAN: what this group's SAs have decrypted.
            f"-m policy --dir in --pol ipsec --reqid {self._reqid} -j RETURN",
            # Clear packets, and those in ESP, which a router forwards besides decrypting them.
            "-j DROP",
        ]

    def begin(self, destinations: Iterable[IPAddress]) -> None:
        """``destinations``: of former runs; what was a LAN then may be none now, or another one.

        Raises FirewallError and KernelError: better now than with keys.
        """
        known = set(destinations)
        if self._firewall is not None:
            self._close(self._firewall, known)
            self._closed |= known
        if operations := self.operations(known):
            self._xfrm.transaction(operations)
        self.know(known)

    def close_to_clear(self, destinations: Iterable[IPAddress]) -> None:
        """From now on nothing but decrypted packets. Raises FirewallError.

        An ACK waits: only what is new is asked for, and for a few seconds at most.
        """
        new = set(destinations) - self._closed
        if self._firewall is None or not new:
            return
        self._close(self._firewall, new, HURRIED)
        self._closed |= new

    async def check(self) -> None:
        """Somebody may have been at the rules. Nothing waits for it. Raises FirewallError."""
        if self._firewall is not None and self._closed:
            await asyncio.to_thread(self._check, self._firewall, frozenset(self._closed))

    def _check(self, firewall: Firewall, closed: Collection[IPAddress]) -> None:
        with self._checking:
            if not self._ended:
                self._close(firewall, closed)

    def _close(
        self, firewall: Firewall, to: Collection[IPAddress], patience: Patience = PATIENT
    ) -> None:
        firewall.close(chain_of(firewall.program, self._reqid), self.rules(), to, patience)

    def operations(self, destinations: Iterable[IPAddress]) -> list[Operation]:
        """Policies for the LANs as they are now, and the end of those for what is none.

        When the kernel has them the caller says :meth:`know`.
        """
        wanted = set(destinations)
        if not wanted or (self._tidy and not self._lan):
            return []
        self._asked = self._look()
        policies = [
            Policy(chosen, Direction.OUT, LAN_PRIORITY)
            for destination in wanted
            for chosen in self._selectors(destination)
        ]
        keys = {policy.key for policy in policies}
        stale = [key for key in self._found(wanted) if key not in keys]
        return [*map(UpdatePolicy, policies), *map(DeletePolicy, stale)]

    def know(self, destinations: Iterable[IPAddress]) -> None:
        """Where that was for some alone, the others wait for :meth:`follow_links`."""
        wanted = set(destinations)
        if not wanted:
            return
        if wanted >= self._destinations:
            self._indexes = self._asked
        self._destinations |= wanted
        self._tidy = True

    def follow_links(self) -> None:
        """After interfaces have come and gone. Raises KernelError, FirewallError."""
        if self._destinations and self._look() != self._indexes:
            self._xfrm.transaction(self.operations(self._destinations))
            self.know(self._destinations)

    def end(self) -> None:
        """Nothing is left of it. Raises KernelError, FirewallError."""
        if self._lan:
            self._xfrm.transaction([*map(DeletePolicy, self._found(self._destinations))])
        with self._checking:
            self._ended = True
        if self._firewall is not None:
            self._firewall.remove(chain_of(self._firewall.program, self._reqid))

    def _look(self) -> frozenset[int]:
        """The LANs that are there; nothing can leave by those that are not."""
        try:
            links = socket.if_nameindex()
        except OSError as error:  # no memory, no file descriptor
            raise FirewallError(f"a router's LANs: {error.strerror}") from error
        return frozenset(index for index, name in links if name in self._lan)

    def _selectors(self, destination: IPAddress) -> list[Selector]:
        group = ip_network(destination)
        return [Selector(everything(4), group, interface=index) for index in self._asked]

    def _found(self, destinations: Collection[IPAddress]) -> list[PolicyKey]:
        policies = self._xfrm.dump_policies()
        return [policy.key for policy in policies if _is_of_lan(policy, destinations)]


def chain_of(program: str, reqid: int) -> str:
    """Each program's has its own name. Two may be one in truth, by /etc/alternatives: under the
    same name, what is to go of a former one would be what the new one has just made.
    """
    return f"GDOI-{reqid:08x}{program.removeprefix('iptables')}"


def _is_of_lan(policy: Policy, destinations: Collection[IPAddress]) -> bool:
    chosen = policy.selector.destination
    return (
        (policy.priority, policy.action, policy.templates) == (LAN_PRIORITY, PolicyAction.ALLOW, ())
        and chosen.prefixlen == chosen.max_prefixlen
        and chosen.network_address in destinations
    )
