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

import socket
import subprocess
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
from .guard import BYPASS_PRIORITY
from .selectors import everything

# Before every policy that encrypts or blocks; and whose policy it is, for whoever lists them.
LAN_PRIORITY = BYPASS_PRIORITY - 1
# Not `filter`, which other programs flush and fill.
TABLE = "mangle"
# Seconds for another program to let go of the tables, and for all of it.
_LOCK, _LIMIT = "5", 15


class Firewall:
    """iptables, or a program with its options."""

    def __init__(self, program: str) -> None:
        self._program = program

    def replace(self, chain: str, rules: Sequence[str]) -> None:
        """In one step, whatever was there. Raises FirewallError."""
        lines = [f"*{TABLE}", f":{chain} - [0:0]", *(f"-A {chain} {rule}" for rule in rules)]
        text = "\n".join([*lines, "COMMIT", ""])
        done = self._run("-restore", ["-w", _LOCK, "--noflush"], text)
        if done.returncode:
            raise FirewallError(f"{self._program}: chain {chain}: {_said(done)}")

    def forwarded(self, destination: IPAddress, chain: str) -> None:
        """What is forwarded there is the chain's from now on. Raises FirewallError."""
        rule = _forward(destination, chain)
        if self._run("", ["-w", _LOCK, "-t", TABLE, "-C", *rule]).returncode == 0:
            return
        done = self._run("", ["-w", _LOCK, "-t", TABLE, "-I", *rule])
        if done.returncode:
            raise FirewallError(f"{self._program}: {' '.join(rule)}: {_said(done)}")

    def remove(self, chain: str, destinations: Iterable[IPAddress]) -> None:
        """What of it is there. Raises FirewallError where the program is not."""
        for destination in destinations:
            self._run("", ["-w", _LOCK, "-t", TABLE, "-D", *_forward(destination, chain)])
        self._run("", ["-w", _LOCK, "-t", TABLE, "-F", chain])
        self._run("", ["-w", _LOCK, "-t", TABLE, "-X", chain])

    def _run(
        self, suffix: str, arguments: Sequence[str], text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        command = [self._program + suffix, *arguments]
        try:
            return subprocess.run(
                command, input=text, capture_output=True, text=True, timeout=_LIMIT, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise FirewallError(f"{command[0]}: {error}") from error


def _forward(destination: IPAddress, chain: str) -> list[str]:
    return ["FORWARD", "-d", str(destination), "-j", chain]


def _said(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip() or f"exit status {done.returncode}").replace("\n", "; ")


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
        self._destinations: set[IPAddress] = set()
        # The LANs' indexes: in operations that may fail, and in the kernel.
        self._asked: frozenset[int] = frozenset()
        self._indexes: frozenset[int] = frozenset()
        self._tidy = False

    @property
    def chain(self) -> str:
        return f"GDOI-{self._reqid:08x}"

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
            self._firewall.replace(self.chain, self.rules())
            self.close_to_clear(known)
        if operations := self.operations(known):
            self._xfrm.transaction(operations)
        self.know(known)

    def close_to_clear(self, destinations: Iterable[IPAddress]) -> None:
        """From now on nothing but decrypted packets. Raises FirewallError.

        Programs are slow to start, and an ACK waits: only what is new is asked for.
        """
        if self._firewall is None:
            return
        for destination in set(destinations) - self._closed:
            self._firewall.forwarded(destination, self.chain)
            self._closed.add(destination)

    def check(self) -> None:
        """Somebody may have been at the rules. Raises FirewallError."""
        if self._firewall is None or not self._closed:
            return
        self._firewall.replace(self.chain, self.rules())
        for destination in self._closed:
            self._firewall.forwarded(destination, self.chain)

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
        wanted = set(destinations)
        if wanted:
            self._destinations |= wanted
            self._indexes, self._tidy = self._asked, True

    def follow_links(self) -> None:
        """After interfaces have come and gone. Raises KernelError, FirewallError."""
        if self._destinations and self._look() != self._indexes:
            self._xfrm.transaction(self.operations(self._destinations))
            self.know(self._destinations)

    def end(self) -> None:
        """Nothing is left of it. Raises KernelError, FirewallError."""
        if self._lan:
            self._xfrm.transaction([*map(DeletePolicy, self._found(self._destinations))])
        if self._firewall is not None:
            self._firewall.remove(self.chain, self._closed)

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


def _is_of_lan(policy: Policy, destinations: Collection[IPAddress]) -> bool:
    chosen = policy.selector.destination
    return (
        (policy.priority, policy.action, policy.templates) == (LAN_PRIORITY, PolicyAction.ALLOW, ())
        and chosen.prefixlen == chosen.max_prefixlen
        and chosen.network_address in destinations
    )
