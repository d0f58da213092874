"""UDP ports: free, or who has them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from ...protocol.actions import IPAddress, Peer
from ..errors import StartError
from ..udp import UdpSockets
from .finding import Area, Finding

PORTS = Area("ports")
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Holder:
    """A socket that has a port. ``process`` is empty where we may not know."""

    address: IPAddress
    process: str = ""
    pid: int = 0

    def __str__(self) -> str:
        who = f"{self.process}, process {self.pid}" if self.pid else "another program"
        return f"{who}, at {self.address}"

    @property
    def hint(self) -> str:
        return "" if self.pid else "sudo gdoictl check   # to see whose it is"


def holders(port: int) -> list[Holder]:
    """In this thread's network namespace."""
    found = [
        (address, inode)
        for name in ("udp", "udp6")
        for address, number, inode in _sockets(name)
        if number == port
    ]
    owners = _owners({inode for _, inode in found})
    return [Holder(address, *owners.get(inode, ("", 0))) for address, inode in found]


def _sockets(name: str) -> Iterator[tuple[IPAddress, int, str]]:
    """Address, port and inode of each line of /proc/net/udp; empty without IPv6."""
    table = _PROC / "thread-self/net" / name
    lines = table.read_text().splitlines()[1:] if table.exists() else []
    for line in lines:
        fields = line.split()
        address, _, port = fields[1].partition(":")
        octets = bytes.fromhex(address)
        # Words of 32 bits in the machine's order.
        words = b"".join(octets[n : n + 4][::-1] for n in range(0, len(octets), 4))
        host = IPv4Address(words) if len(words) == 4 else IPv6Address(words)
        yield host, int(port, 16), fields[9]


def _owners(inodes: set[str]) -> dict[str, tuple[str, int]]:
    """Name and number of the process that has each socket, where we may look."""
    found: dict[str, tuple[str, int]] = {}
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    for process in _PROC.iterdir() if wanted else ():
        if not process.name.isdecimal():
            continue
        try:
            links = [str(entry.readlink()) for entry in (process / "fd").iterdir()]
            name = _name(process)
        except OSError:  # ended, or somebody else's
            continue
        for link in links:
            if link in wanted:
                found[wanted[link]] = name, int(process.name)
    return found


def _name(process: Path) -> str:
    """Of our daemons also where an interpreter runs them."""
    words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    for word in words[:3]:
        for program in ("gdoi-gm", "gdoi-gcks"):
            module = f"gdoi_plugin.daemon.{program.removeprefix('gdoi-')}"
            if word == module or Path(word).name == program:
                return program
    return (process / "comm").read_text(errors="replace").strip()


def check_port(own: str, local: Peer, interface: str | None, option: str = "") -> Finding:
    """``own``: the daemon that is to have it. ``option``: its section's, where it can do without
    (NAT traversal)."""
    test = f"UDP {local}"
    there = [one for one in holders(local.port) if _conflicts(one.address, local.host)]
    for holder in there:
        if holder.process == own:
            return PORTS.ok(test, f"{own} has it, process {holder.pid}")
    try:
        asyncio.run(_bind(local, interface))
    except StartError as error:
        if not there:
            return _refused(test, error)
        return _taken(test, there, local, option)
    return PORTS.ok(test, "free")


def _taken(test: str, there: list[Holder], local: Peer, option: str) -> Finding:
    holder = there[0]
    found = f"taken by {holder}"
    if option:
        mend = f"# nat_port = {local.port + 1} in [{option}], or nat_traversal = false"
        return PORTS.warn(test, f"{found}: no NAT traversal here", holder.hint or mend)
    mend = holder.hint or f"kill {holder.pid}   # or another address for this daemon"
    return PORTS.fail(test, found, mend)


def _refused(test: str, error: StartError) -> Finding:
    if "CAP_NET_BIND_SERVICE" in str(error):  # of whoever runs this test, the daemon may have it
        return PORTS.warn(test, str(error), "sudo gdoictl check")
    mend = "ip address show   # and address in the configuration is to be one of these"
    return PORTS.fail(test, str(error), mend)


def _conflicts(theirs: IPAddress, ours: IPAddress) -> bool:
    """A socket for all addresses of IPv6 has those of IPv4 as well, unless it says otherwise."""
    if theirs.is_unspecified:
        return theirs.version == ours.version or theirs.version == 6
    return theirs == ours


async def _bind(local: Peer, interface: str | None) -> None:
    """As the daemon does. Raises StartError."""
    sockets = UdpSockets(lambda _datagram, _source, _arrived: None)
    with closing(sockets):
        sockets.bind(local, interface)


def same_endpoint(one: Peer, other: Peer) -> Finding:
    """Member and key server on one host."""
    test = "two daemons on one host"
    if one == other:
        found = f"gdoi-gm and gdoi-gcks both want UDP {one}"
        mend = "ip address add ANOTHER/24 dev INTERFACE   # and address = ANOTHER for one of them"
        return PORTS.fail(test, found, mend)
    return PORTS.ok(test, f"{one} and {other}")
