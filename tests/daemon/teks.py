"""TEKs that the tests of the kernel mapping share. Their keys protect nothing."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.protocol.actions import ApplyKernel
from gdoi_plugin.protocol.policy import TEK_SUITES, Flow, Tek
from gdoi_plugin.protocol.rollover import Plan

LOCAL = ip_address("192.0.2.1")
CBC_KEY, HMAC_KEY = bytes(range(32)), bytes(range(32, 64))


def flow(source: str | None = None, destination: str = "239.1.1.1", **more: int) -> Flow:
    network = None if source is None else ip_network(source)
    return Flow(network, ip_address(destination), **more)


def tek(spi: int, serves: Flow | None = None, suite: str = "aes256-sha256", **more: Any) -> Tek:
    chosen = TEK_SUITES[suite]
    integrity = bytes(range(32, 32 + chosen.integrity_octets))
    values: dict[str, Any] = {
        "encryption_key": Secret(bytes(range(chosen.encryption_octets))),
        "integrity_key": Secret(integrity) if integrity else None,
        "lifetime": 3600,
    }
    return Tek(spi.to_bytes(4, "big"), serves or flow(), chosen, **{**values, **more})


def carried_out(plan: Plan) -> ApplyKernel:
    """What a member asks of its kernel for it."""
    return ApplyKernel(
        1, plan.add, plan.outbound, plan.remove, plan.inbound, plan.released, plan.silenced
    )
