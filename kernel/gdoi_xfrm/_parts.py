"""Parts that several of the kernel's structs have: addresses, selectors, lifetimes."""

from __future__ import annotations

import socket
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any, Final

from gdoi_xfrm._types import NO_LIMIT, Address, Lifetime, Mode, Network, Selector

XFRM_INF: Final = 2**64 - 1  # "no limit" for octets and packets; 0 would be "expired at once"
_CACHED: Final = 1024


def family_of(address: Address | Network) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


@lru_cache(_CACHED)
def pack_address(address: Address) -> bytes:
    """xfrm_address_t: 16 octets, an IPv4 address in the first four."""
    return address.packed.ljust(16, b"\0")


@lru_cache(_CACHED)
def read_address(octets: bytes, family: int) -> Address:
    if family == socket.AF_INET6:
        return IPv6Address(octets)
    return IPv4Address(octets[:4])


def _port(port: int) -> tuple[bytes, bytes]:
    """A port and its mask; 0 is any."""
    return port.to_bytes(2, "big"), b"\xff\xff" if port else b"\0\0"


def any_packet(family: int) -> tuple[Any, ...]:
    """What the kernel itself makes of an SA's selector that is left empty."""
    return (bytes(16), bytes(16), *_port(0), *_port(0), family, 0, 0, 0, 0, 0)


def pack_selector(selector: Selector) -> tuple[Any, ...]:
    return (
        pack_address(selector.destination.network_address),
        pack_address(selector.source.network_address),
        *_port(selector.destination_port),
        *_port(selector.source_port),
        family_of(selector.destination),
        selector.destination.prefixlen,
        selector.source.prefixlen,
        selector.protocol,
        selector.interface,
        0,
    )


def read_selector(value: tuple[Any, ...], family: int) -> Selector:
    daddr, saddr, dport, dport_mask, sport, sport_mask, own_family = value[:7]
    prefix_d, prefix_s, proto, interface = value[7:11]
    family = own_family or family
    return Selector(
        _network(saddr, prefix_s, family),
        _network(daddr, prefix_d, family),
        proto,
        int.from_bytes(sport, "big") if any(sport_mask) else 0,
        int.from_bytes(dport, "big") if any(dport_mask) else 0,
        interface,
    )


@lru_cache(_CACHED)
def _network(octets: bytes, prefix: int, family: int) -> Network:
    # Other programs may leave host bits set: strict=False.
    return ip_network((read_address(octets, family), prefix), strict=False)


def read_sa_selector(value: tuple[Any, ...], family: int) -> Selector | None:
    """None where it matches everything, as most SAs' do."""
    _, _, _, dport_mask, _, sport_mask, _, prefix_d, prefix_s, proto, interface = value[:11]
    anything = not (prefix_d or prefix_s or proto or interface)
    if anything and not (any(dport_mask) or any(sport_mask)):
        return None
    selector = read_selector(value, family)
    return None if selector.matches_all else selector


def pack_lifetime(lifetime: Lifetime) -> tuple[int, ...]:
    amounts = (
        lifetime.soft_bytes,
        lifetime.hard_bytes,
        lifetime.soft_packets,
        lifetime.hard_packets,
    )
    return (
        *(XFRM_INF if amount is None else amount for amount in amounts),
        lifetime.soft_seconds or 0,
        lifetime.hard_seconds or 0,
        0,
        0,
    )


UNLIMITED: Final = pack_lifetime(NO_LIMIT)


@lru_cache(_CACHED)
def read_lifetime(value: tuple[int, ...]) -> Lifetime:
    # 0 as a limit of octets or packets cannot be asked for here, and stands for no SA worth
    # describing: read as none, like the others.
    amounts = [None if amount in (0, XFRM_INF) else amount for amount in value[:4]]
    soft_seconds, hard_seconds = (
        None if seconds in (0, XFRM_INF) else seconds for seconds in value[4:6]
    )
    return Lifetime(soft_seconds, hard_seconds, *amounts)


_MODES: Final = {mode.value: mode for mode in Mode}


def read_mode(value: int) -> Mode | int:
    return _MODES.get(value, value)
