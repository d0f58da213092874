"""What Informational exchanges and a member that moves do to a registration and its phase-1 SA."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gdoi_plugin.protocol.actions import Drop
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.isakmp import seal_delete, seal_notify
from gdoi_plugin.protocol.phase1 import Phase1Config
from gdoi_plugin.wire.delete import Delete
from gdoi_plugin.wire.registry import Doi, ExchangeType, NotifyType, Protocol
from tests.protocol.test_pull import GM, PULL, pull_message, server_sa
from tests.support.forge import only_drop, seal_phase2
from tests.support.simnet import Wire
from tests.support.worlds import (
    SERVER,
    STRANGER,
    bad_network,
    build,
    group_config,
    member_peer,
    member_phase1,
    registered,
    server_phase1,
)

# -- Informational -------------------------------------------------------------------------------


def test_delete_ends_the_phase_1_sa_on_both_sides() -> None:
    wire, world = registered()
    world.member.do(world.member.group.stop())
    wire.settle()
    assert world.server.engine.isakmp.sessions == {}
    assert Identity.of_address(GM.host) in world.group.members, "but not the membership"


def test_delete_of_another_sa_is_ignored() -> None:
    _, world = registered(2)
    one, two = world.server.engine.isakmp.sessions.values()
    foreign = Delete(Doi.GDOI, Protocol.PROTO_ISAKMP, (two.sa.cookies,))
    datagram = seal_phase2(one.sa, ExchangeType.INFORMATIONAL, 9, b"", [foreign])
    assert world.server.hear(datagram, GM) == []
    payload = replace(one.sa, cky_i=b"\1" * 8)
    assert only_drop(world.server.hear(seal_delete(payload, 9), GM)) is Drop.UNKNOWN_COOKIES


def test_delete_by_the_key_server_during_a_registration() -> None:
    wire, world, _ = pull_message(1)
    datagram = seal_delete(server_sa(world), 9)
    world.member.hear(datagram, SERVER)
    (failed,) = world.member.events("registration-failed")
    assert str(failed.fields["error"]).endswith("key server deleted the phase-1 SA")
    assert wire.waiting == [], "no Delete in answer to a Delete"


def test_status_notify_changes_nothing() -> None:
    wire, world, _ = pull_message(1)
    world.member.hear(seal_notify(server_sa(world), 9, NotifyType.INITIAL_CONTACT), SERVER)
    assert world.member.events("registration-failed") == []
    assert wire.waiting == []


def test_informational_with_another_sas_cookies_or_without_message_id() -> None:
    _, world, _ = pull_message(1)
    sa = server_sa(world)
    zero = seal_notify(sa, 0, NotifyType.INVALID_ID_INFORMATION)
    assert only_drop(world.member.hear(zero, SERVER)) is Drop.UNEXPECTED
    other = seal_notify(replace(sa, cky_r=b"\1" * 8), 9, NotifyType.INVALID_ID_INFORMATION)
    assert only_drop(world.member.hear(other, SERVER)) is Drop.UNEXPECTED


def test_stranger_repeating_a_members_phase_2_is_no_member() -> None:
    _, world = registered()
    three = world.datagrams(PULL)[2].datagram
    assert only_drop(world.server.hear(three, STRANGER)) is Drop.UNKNOWN_PEER
    (member,) = world.group.members.values()
    assert (member.identity, member.address) == (Identity.of_address(GM.host), GM)


# -- moving --------------------------------------------------------------------------------------


def test_member_known_by_name_that_registers_from_another_address() -> None:
    """RFC 8263 section 3.4: the ACK's ID is the source of the most recent PULL."""
    name = Identity.parse("gm1.example.org")
    config = replace(group_config(), members=frozenset({name}))
    wire = Wire()

    def policy(peer: Any) -> Phase1Config:
        return server_phase1(peer, remote_identity=name)

    own = member_phase1(GM, local_identity=name)
    world = build(wire, 2, group=config, phase1_for=policy, phase1=own)
    world.server.start()
    for index in (0, 1):
        world.members[index].start()
        wire.settle()
        assert world.group.members[name].address == member_peer(index)
        assert world.group.members[name].claims == {member_peer(index).host}
    assert list(world.group.members) == [name]


@pytest.mark.parametrize("seed", range(1000, 1010))
def test_restarted_members_register_again_over_bad_networks(seed: int) -> None:
    world = build(bad_network(seed), 2)
    world.start()
    world.network.run_until(world.converged, 600)
    for member in world.members:
        member.restart()
    world.rekey(kek=True)
    world.network.run_until(world.converged, 600)
    world.check_ledger()
