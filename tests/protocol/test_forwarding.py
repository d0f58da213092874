"""A router takes no policy that Linux could not keep for the packets it forwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gdoi_plugin.protocol.forwarding import why_not_forwarded
from gdoi_plugin.protocol.policy import TEK_SUITES
from gdoi_plugin.protocol.tek_policy import TekConfig
from gdoi_plugin.wire.registry import AddressPreservation, EncapsulationMode
from tests.daemon.teks import flow
from tests.support.simnet import Network
from tests.support.worlds import FLOW, World, build, group_config

TUNNEL = EncapsulationMode.TUNNEL
SUITE = TEK_SUITES["aes256-sha256"]
OF_UDP = TekConfig(replace(FLOW, protocol=17), SUITE)


@pytest.mark.parametrize(
    ("config", "sends", "why"),
    [
        (TekConfig(flow(), SUITE), True, None),
        (TekConfig(flow("192.0.2.1/32"), SUITE), True, None),
        (
            TekConfig(
                flow(), SUITE, mode=TUNNEL, preservation=AddressPreservation.DESTINATION_ONLY
            ),
            True,
            None,
        ),
        (TekConfig(flow(), SUITE, mode=TUNNEL), True, "it must be destination-only"),
        (TekConfig(flow(), SUITE, mode=TUNNEL), False, None),
        (TekConfig(flow(protocol=17), SUITE), True, "for IP protocol 17 alone"),
        (TekConfig(flow(protocol=17, destination_port=5000), SUITE), False, "and the ports"),
        (TekConfig(flow(destination="ff15::1"), SUITE), False, "only IPv4"),
    ],
)
def test_why_not(config: TekConfig, sends: bool, why: str | None) -> None:
    found = why_not_forwarded(config, sends=sends)
    assert found == why or (why is not None and found is not None and why in found)


def world(**changes: Any) -> World:
    made = build(Network(), 1, group=group_config(1, **changes), member_changes={"forwards": True})
    made.start()
    made.network.run(5)
    return made


def test_a_router_registers_for_what_it_can_forward() -> None:
    assert len(world().member.kernel.sas) == 1


def test_a_registration_with_ports_is_refused() -> None:
    refused = world(teks=(OF_UDP,))
    assert "a router has no use for SPI" in refused.member.group.last_failure
    assert "for IP protocol 17 alone" in refused.member.group.last_failure
    assert not refused.member.kernel.sas


def test_a_rekey_with_ports_is_refused_and_the_old_keys_stay() -> None:
    routed = world()
    before = set(routed.member.kernel.sas)
    routed.group.config = replace(routed.group.config, teks=(OF_UDP,))
    routed.rekey()
    routed.network.run(0.1)
    assert routed.member.group.counters.rekeys_refused == 1
    assert set(routed.member.kernel.sas) == before
