"""SAs and policies that the tests share. Keys are constants: nothing here protects anything."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

from gdoi_xfrm import (
    AesGcm,
    AesGmac,
    CbcHmac,
    ChaCha20Poly1305,
    Direction,
    Hmac,
    Mode,
    Policy,
    Sa,
    Selector,
    Template,
)

REQID = 0x40000001
GCM = AesGcm(bytes(range(20)))
CBC = CbcHmac(bytes(range(16)), bytes(range(32)))
GMAC = AesGmac(bytes(range(20)))
CHACHA = ChaCha20Poly1305(bytes(range(36)))
HMAC = Hmac(bytes(range(32)))
ANY = {4: ip_address("0.0.0.0"), 6: ip_address("::")}  # noqa: S104
EVERYWHERE = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
GROUP = {4: ip_address("239.1.1.1"), 6: ip_address("ff05::1:1")}


def sa(spi: int, algorithm: Any = GCM, version: int = 4, **changed: Any) -> Sa:
    """An SA for the group, from any sender, in transport mode."""
    values: dict[str, Any] = {
        "source": ANY[version],
        "destination": GROUP[version],
        "spi": spi,
        "mode": Mode.TRANSPORT,
        "reqid": REQID,
        "algorithm": algorithm,
    }
    return Sa(**{**values, **changed})


def template(spi: int = 0, version: int = 4, **changed: Any) -> Template:
    return Template(ANY[version], ANY[version], Mode.TRANSPORT, REQID, spi=spi, **changed)


def policy(
    spi: int = 0, direction: Direction = Direction.OUT, version: int = 4, **changed: Any
) -> Policy:
    """A policy for what goes to the group."""
    selector = Selector(EVERYWHERE[version], ip_network(GROUP[version]))
    values: dict[str, Any] = {"priority": 1000, "templates": (template(spi, version),)}
    return Policy(selector, direction, **{**values, **changed})
