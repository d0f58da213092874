"""Interface, address, routes and multicast of a member or key server."""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

from ...protocol.actions import IPAddress, Peer
from ..acks import ROOM, SMALLEST_BUFFER
from ..config_addresses import interfaces_with
from ..config_gcks import KeyServerDaemonConfig
from ..config_member import MemberDaemonConfig
from ..many import make_room
from ..memberships import Membership, Memberships
from .finding import Area, Finding

NETWORK = Area("network")
# Of the local scope (RFC 2365, RFC 4291), and one of source-specific multicast (RFC 4607) with a
# source for documentation: joined for a moment.
SCRATCH = {4: ip_address("239.255.84.8"), 6: ip_address("ff15::9d01")}
SPECIFIC = {4: ip_address("232.255.84.8"), 6: ip_address("ff35::9d01")}
SOURCE = {4: ip_address("192.0.2.1"), 6: ip_address("2001:db8::1")}
# A socket option has 31 bits.
LARGEST_BUFFER = 2**31 - 2
# linux/sockios.h, linux/if.h
_SIOCGIFFLAGS, _IFREQ = 0x8913, struct.Struct("16sH22x")
_UP, _RUNNING, _MULTICAST = 1, 0x40, 0x1000
_SYSCTL = Path("/proc/sys")


def check_member(config: MemberDaemonConfig, tunnels: bool) -> Iterator[Finding]:
    """``tunnels``: whether some of its data SAs are known to be in tunnel mode."""
    if config.absent is not None:
        yield _absent(config)
        return
    name, local = config.interface, config.local.host
    yield NETWORK.ok("address", f"{local} on {name}")
    yield _link(name)
    joined = _joined(name, local.version)
    yield joined
    if not joined.mend:
        yield _source_specific(name, local.version)
    yield _multicast_route(name, local)
    servers = {entry.remote for group in config.groups for entry in group.key_servers}
    yield from (_route(server) for server in sorted(servers, key=str))
    if local.version == 4:
        yield _reverse_path(name, sorted(servers, key=str))
        if tunnels:
            yield _accept_local(name)
    for lan in sorted({lan for lans in config.lans.values() for lan in lans}):
        yield _lan(lan)
    if any(config.lans.values()):
        yield from _forwarding(name)


def check_key_server(
    config: KeyServerDaemonConfig, members: int, user: str | None = None
) -> Iterator[Finding]:
    """``members``: of its largest group. ``user``: of a unit, which has no CAP_NET_ADMIN."""
    name = config.interface
    if name is None:
        yield NETWORK.fail(
            "address", f"{config.local.host} is no address of this host", _add(config)
        )
    else:
        yield NETWORK.ok("address", f"{config.local.host} on {name}")
        by_multicast = any(group.rekey_address is not None for group in config.groups)
        yield _link(name, multicast=by_multicast)
    yield _room(members, forced=user is None)


def _add(config: KeyServerDaemonConfig) -> str:
    return f"ip address add {config.local.host}/24 dev INTERFACE   # or another key_server.address"


def _absent(config: MemberDaemonConfig) -> Finding:
    wanted = config.settings
    interface, address = wanted.interface or "INTERFACE", wanted.address or "ADDRESS/24"
    found = str(config.absent).removeprefix(f"{config.path}: ")
    if config.absent is not None and "no interface" in str(config.absent):
        mend = f"ip link show   # and interface in {config.path} is to be one of these"
    elif wanted.address is None:
        mend = f"ip address add {address} dev {interface}"
    else:
        mend = f"ip address add {address}/24 dev {interface}"
    # It waits for it, and does nothing before it is there.
    return NETWORK.fail("address", found, mend)


# -- links and routes ----------------------------------------------------------------------------


def _link(name: str, *, multicast: bool = True) -> Finding:
    test = f"interface {name}"
    flags = _flags(name)
    if not flags & _UP:
        return NETWORK.fail(test, "it is down", f"ip link set {name} up")
    if not flags & _RUNNING:
        return NETWORK.warn(test, "no carrier: nothing is plugged in", f"ip -s link show {name}")
    if multicast and not flags & _MULTICAST:
        return NETWORK.fail(test, "multicast is switched off", f"ip link set {name} multicast on")
    return NETWORK.ok(test, "up, with multicast" if multicast else "up")


def _flags(name: str) -> int:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        request = _IFREQ.pack(name.encode(), 0)
        return int(_IFREQ.unpack(fcntl.ioctl(sock, _SIOCGIFFLAGS, request))[1])


def _joined(name: str, version: int) -> Finding:
    test = f"{_protocol(version)} join on {name}"
    try:
        _join(name, SCRATCH[version], frozenset())
    except OSError as error:
        limit = "net.ipv4.igmp_max_memberships=20" if version == 4 else "net.core.optmem_max=131072"
        reason = error.strerror or str(error)
        mend = f"sysctl -w {limit}" if "raise" in reason else f"ip link set {name} up multicast on"
        return NETWORK.fail(test, f"a group cannot be joined: {reason}", mend)
    return NETWORK.ok(test, f"{SCRATCH[version]} joined and left")


def _source_specific(name: str, version: int) -> Finding:
    test = f"source-specific join on {name}"
    forced = (
        _number(f"net/ipv4/conf/{name}/force_igmp_version")
        if version == 4
        else (_number(f"net/ipv6/conf/{name}/force_mld_version"))
    )
    latest = 3 if version == 4 else 2
    if forced and forced < latest:
        key = (
            "ipv4.conf.{}.force_igmp_version" if version == 4 else "ipv6.conf.{}.force_mld_version"
        )
        found = f"{_protocol(version)}v{forced} is forced, which names no sources"
        return NETWORK.warn(test, found, f"sysctl -w net.{key.format(name)}=0")
    try:
        _join(name, SPECIFIC[version], frozenset({SOURCE[version]}))
    except OSError as error:
        found = f"sources cannot be named: {error.strerror}"
        return NETWORK.warn(test, found, f"ip link set {name} up multicast on")
    return NETWORK.ok(test, f"{SPECIFIC[version]} from {SOURCE[version]} joined and left")


def _join(name: str, group: IPAddress, sources: frozenset[IPAddress]) -> None:
    with closing(Memberships()) as memberships:
        memberships.hold(Membership(group, socket.if_nametoindex(name)), sources)


def _protocol(version: int) -> str:
    return "IGMP" if version == 4 else "MLD"


def _multicast_route(name: str, local: IPAddress) -> Finding:
    """What programs send that name no interface. The daemons name theirs."""
    group = SCRATCH[local.version]
    test, prefix = "route for multicast", "224.0.0.0/4" if local.version == 4 else "ff00::/8"
    mend = f"ip route replace {prefix} dev {name}"
    if local.version == 6:
        mend = f"ip -6 route replace multicast {prefix} dev {name} table local"
    source = _source_towards(group)
    if source is None:
        found = (
            "none: what programs here send to a group goes nowhere, unless they name an interface"
        )
        return NETWORK.warn(test, found, mend)
    way = next(interfaces_with(source), None)
    if local.version == 4 and way != name:
        found = f"leaves by {way}, and the group is on {name}"
        return NETWORK.warn(test, found, mend)
    return NETWORK.ok(test, f"from {source}")


def _route(server: Peer) -> Finding:
    test = f"route to key server {server.host}"
    source = _source_towards(server.host)
    if source is None:
        return NETWORK.fail(test, "none", f"ip route add {server.host} via GATEWAY")
    return NETWORK.ok(test, f"from {source}")


def _source_towards(host: IPAddress) -> IPAddress | None:
    """Connecting a UDP socket asks the routing table and sends nothing."""
    family = socket.AF_INET if host.version == 4 else socket.AF_INET6
    with closing(socket.socket(family, socket.SOCK_DGRAM)) as sock:
        try:
            sock.connect((str(host), 9))
        except OSError:
            return None
        return ip_address(str(sock.getsockname()[0]).partition("%")[0])


# -- sysctls -------------------------------------------------------------------------------------


def _number(path: str) -> int:
    try:
        return int((_SYSCTL / path).read_text())
    except (OSError, ValueError):  # no IPv6, say
        return 0


def _reverse_path(name: str, servers: list[Peer]) -> Finding:
    """Strict: a packet whose source is not reached by the interface that it came by is dropped."""
    test = f"reverse path filter of {name}"
    strict = max(_number(f"net/ipv4/conf/{part}/rp_filter") for part in ("all", name)) == 1
    if not strict:
        return NETWORK.ok(test, "off or loose")
    sources = [_source_towards(server.host) for server in servers]
    ways = {next(interfaces_with(source), None) for source in sources if source is not None}
    if ways <= {name}:
        return NETWORK.ok(test, f"strict, and the key servers are reached by {name}")
    found = "strict: what comes here from sources that are routed elsewhere is dropped"
    mend = f"sysctl -w net.ipv4.conf.{name}.rp_filter=2"
    return NETWORK.warn(test, found, mend)


def _accept_local(name: str) -> Finding:
    test = f"accept_local of {name}"
    if any(_number(f"net/ipv4/conf/{part}/accept_local") for part in ("all", name)):
        return NETWORK.ok(test, "on: programs here hear what this host sends in tunnel mode")
    found = "off: in tunnel mode programs here do not hear what this host itself sends"
    return NETWORK.warn(test, found, f"sysctl -w net.ipv4.conf.{name}.accept_local=1")


def _lan(name: str) -> Finding:
    if name not in {known for _, known in socket.if_nameindex()}:
        return NETWORK.warn(f"interface {name}", "not there yet", f"ip link show {name}")
    return _link(name)


def _forwarding(name: str) -> Iterator[Finding]:
    test = "forwarding of a router"
    if not _number("net/ipv4/ip_forward"):
        yield NETWORK.fail(test, "it is off", "sysctl -w net.ipv4.ip_forward=1")
    else:
        yield NETWORK.ok(test, "on")
    test = f"multicast routing on {name}"
    if _number(f"net/ipv4/conf/{name}/mc_forwarding"):
        yield NETWORK.ok(test, "a daemon does it")
    else:
        found = "no program routes multicast here"
        yield NETWORK.warn(test, found, "apt-get install smcroute   # and /etc/smcroute.conf")


def _room(members: int, *, forced: bool = True) -> Finding:
    """The buffer for acknowledgements, as the key server asks for it; forced by CAP_NET_ADMIN."""
    test = f"room for acknowledgements of {members:,} members"
    wanted = min(max(SMALLEST_BUFFER, ROOM * members), LARGEST_BUFFER)
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        if forced:
            granted = make_room(sock, wanted // 2)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wanted // 2)
            granted = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    if granted < wanted:
        limit = _number("net/core/rmem_max")
        found = f"the kernel gives {granted:,} octets of {wanted:,}: net.core.rmem_max is {limit:,}"
        mend = f"sysctl -w net.core.rmem_max={wanted // 2}   # or CAP_NET_ADMIN for gdoi-gcks"
        return NETWORK.warn(test, found, mend)
    return NETWORK.ok(test, f"{granted:,} octets")
