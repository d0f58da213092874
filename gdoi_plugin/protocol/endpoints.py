"""SRC and DST of SAK and SAT as addresses and networks, RFC 6407 sections 5.3 and 5.5.1."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from ..wire.group_sa import Endpoint
from ..wire.registry import IdType, name_of
from .actions import IPAddress
from .errors import PolicyError

IPNetwork = IPv4Network | IPv6Network

_LENGTHS: dict[int, int] = {IdType.ID_IPV4_ADDR: 4, IdType.ID_IPV6_ADDR: 16}

# RFC 5771 section 4, RFC 4291 section 2.7.1: IGMP, neighbour discovery and routing protocols speak
# to these, in clear. Who protected them would be cut off from its link.
LINK_CONTROL = (
    IPv4Network("224.0.0.0/24"),
    IPv6Network("ff01::/16"),
    IPv6Network("ff02::/16"),
)


def is_link_control(address: IPAddress) -> bool:
    """Whether no data-security SA may protect what goes to this group."""
    return any(address in network for network in LINK_CONTROL)


# RFC 4607 section 1: a host hears such a group from sources that it has named, or not at all.
SOURCE_SPECIFIC: tuple[IPNetwork, ...] = (
    IPv4Network("232.0.0.0/8"),
    *(IPv6Network(f"ff3{scope:x}::/32") for scope in range(16)),
)


def is_source_specific(address: IPAddress) -> bool:
    return any(address in network for network in SOURCE_SPECIFIC)


def address_endpoint(address: IPAddress, port: int) -> Endpoint:
    kind = IdType.ID_IPV4_ADDR if address.version == 4 else IdType.ID_IPV6_ADDR
    return Endpoint(kind, port, address.packed)


def any_source(version: int, port: int) -> Endpoint:
    # RFC 6407 section 5.5.1: "3 octets or zero for multiple-source multicast groups that use a
    # common TEK for all senders"; its predecessor spelled out three octets of zero.
    return Endpoint(IdType.ID_IPV4_ADDR if version == 4 else IdType.ID_IPV6_ADDR, port, bytes(3))


def read_address(endpoint: Endpoint, what: str) -> IPAddress:
    """One address: an address ID, or a subnet of one host."""
    length = _LENGTHS.get(endpoint.id_type)
    if length == len(endpoint.data) and any(endpoint.data):
        return ip_address(endpoint.data)
    network = read_network(endpoint, what)
    if network is None or network.prefixlen != network.max_prefixlen:
        raise PolicyError(f"{what}: Linux needs one exact address, got {network or 'any'}")
    return network.network_address


def read_network(endpoint: Endpoint, what: str) -> IPNetwork | None:
    """None for "any": no data, zeros, or a subnet of everything."""
    data = endpoint.data
    if not any(data):
        return None
    try:
        if endpoint.id_type == IdType.ID_IPV4_ADDR and len(data) == 4:
            return IPv4Network(IPv4Address(data))
        if endpoint.id_type == IdType.ID_IPV6_ADDR and len(data) == 16:
            return IPv6Network(IPv6Address(data))
        if endpoint.id_type == IdType.ID_IPV4_ADDR_SUBNET and len(data) == 8:
            mask = int.from_bytes(data[4:], "big")
            prefix = mask.bit_count()
            if mask == (1 << 32) - (1 << (32 - prefix)):
                return IPv4Network((IPv4Address(data[:4]), prefix))
        if endpoint.id_type == IdType.ID_IPV6_ADDR_SUBNET and len(data) == 32:
            mask = int.from_bytes(data[16:], "big")
            prefix = mask.bit_count()
            if mask == (1 << 128) - (1 << (128 - prefix)):
                return IPv6Network((IPv6Address(data[:16]), prefix))
    except ValueError:
        pass
    kind = name_of(IdType, endpoint.id_type)
    raise PolicyError(f"{what}: {kind} of {len(data)} octets is no address or subnet")
