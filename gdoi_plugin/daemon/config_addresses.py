"""The addresses of this host's interfaces: a configuration names one, the other, or both."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import netifaces

from ..protocol.actions import IPAddress
from .errors import AbsentError


def find_address(
    path: Path,
    interface: str | None,
    address: IPAddress | None,
    former: IPAddress | None = None,
) -> tuple[str, IPAddress]:
    """Each is found from the other where it is not given. Raises AbsentError.

    ``former``: the address of before, which an interface's first one takes the place of only once
    it is gone.
    """
    if interface is not None and interface not in netifaces.interfaces():
        known = ", ".join(netifaces.interfaces())
        what = f"no interface {interface}; this host has {known}"
        raise AbsentError(path, "member.interface", what)
    names = [interface] if interface else netifaces.interfaces()
    for name in names:
        there = _addresses_of(name)
        # On its own an interface means IPv4: which of many IPv6 addresses is not to be guessed.
        chosen = [
            found for found in there if found == address or (address is None and found.version == 4)
        ]
        if chosen:
            return name, former if former in chosen else chosen[0]
    if address is None:
        what = f"{interface} has no IPv4 address; give member.address"
        raise AbsentError(path, "member.interface", what)
    where = interface or "any interface of this host"
    raise AbsentError(path, "member.address", f"{address} is no address of {where}")


def interfaces_with(address: IPAddress) -> Iterator[str]:
    return (name for name in netifaces.interfaces() if address in _addresses_of(name))


def _addresses_of(interface: str) -> list[IPAddress]:
    """IPv4 before IPv6; link-local IPv6 addresses cannot be bound without a scope and stay out."""
    try:
        families = netifaces.ifaddresses(interface)
    except ValueError:  # deleted a moment ago
        return []
    found: list[IPAddress] = [
        IPv4Address(entry["addr"]) for entry in families.get(netifaces.AF_INET, [])
    ]
    for entry in families.get(netifaces.AF_INET6, []):
        address = IPv6Address(str(entry["addr"]).partition("%")[0])
        if not address.is_link_local:
            found.append(address)
    return found
