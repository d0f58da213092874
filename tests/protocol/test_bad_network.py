"""The same over networks that drop up to 30 %, duplicate, delay and reorder, each from a seed."""

from __future__ import annotations

import pytest

from gdoi_plugin.protocol.policy import TEK_SUITES
from gdoi_plugin.protocol.tek_policy import TekConfig
from tests.support.simnet import Link
from tests.support.worlds import (
    ECDSA,
    FLOW,
    REKEY,
    RSA,
    World,
    bad_network,
    build,
    group_config,
)

SEEDS = range(120)
REKEYS = 5


def bad_world(seed: int) -> World:
    """Every other one by RSA, every third by unicast; 0 to 3 retransmissions; short lives."""
    config = group_config(
        3,
        scheme=RSA if seed % 2 else ECDSA,
        rekey_address=REKEY.host if seed % 3 else None,
        retransmissions=seed % 4,
        teks=(TekConfig(FLOW, TEK_SUITES["aes128-sha256"], lifetime=900),),
        kek_lifetime=2400,
    )
    return build(bad_network(seed), 3, group=config)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_member_registers_and_ends_with_the_key_servers_keys(seed: int) -> None:
    """Hosts check on the way that no SEQ is used twice and no ACK promises what is not held."""
    world = bad_world(seed)
    network = world.network
    world.start()
    network.run_until(world.converged, 600)
    for number in range(REKEYS):
        world.rekey(kek=number % 2 == 1, replace_old=number == 4)
        network.run(network.rng.choice((0.5, 4.0, 15.0, 45.0)))
    network.run_until(world.converged, 1500)
    world.check_ledger()

    network.link = Link()
    network.run(200)
    assert world.converged()
    world.check_ledger()
    world.rekey()
    network.run(30)
    assert len(world.group.ledger[world.group.epoch].acknowledged) == 3
    for member in world.members:
        sending = member.kernel.sending(FLOW)
        assert sending is not None
        assert sending.spi == world.group.teks[-1].tek.spi
        assert set(member.kernel.sas) == set(member.group.rollover.held)


def test_silence_for_a_while_is_made_up_for_by_retransmission() -> None:
    """All that is lost is the first PUSH: the next has another SEQ and the same keys."""
    world = build(bad_network(0), 2, group=group_config(2))
    network = world.network
    network.link = Link()
    world.start()
    network.run(5)
    network.link = Link(drop=1.0)
    world.rekey()
    network.run(5)
    network.link = Link()
    network.run(10)
    rekey = world.group.ledger[world.group.epoch]
    assert rekey.seqs == [1, 2]
    assert len(rekey.acknowledged) == 2
    assert all(member.group.counters.registrations == 1 for member in world.members)
    assert world.converged()
