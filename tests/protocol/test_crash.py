"""kill -9 at every point where the world could tell: what was sent or promised is never lost.

An effect is a durable write, a datagram, or a kernel transaction. For every number of effects the
host dies after just so many, and is started again from its store. The hosts themselves check that
no SEQ is used for two messages and that no ACK promises what is not saved.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from gdoi_plugin.protocol.actions import Persist, Send
from gdoi_plugin.protocol.group_record import group_record
from gdoi_plugin.protocol.key_server import KeyServer, SavedGroup
from gdoi_plugin.wire.header import pull_header
from gdoi_plugin.wire.registry import ExchangeType
from tests.support.simnet import Host, Network, Wire, ack_seq
from tests.support.worlds import (
    ECDSA,
    FLOW,
    GROUP_ID,
    REKEY,
    RSA,
    SERVER,
    World,
    build,
    group_config,
    registered,
    server_phase1,
    signers,
)

Options = dict[str, bool]
KINDS: dict[str, Options] = {
    "new TEKs": {},
    "new KEK": {"kek": True},
    "old keys replaced": {"kek": True, "replace_old": True},
}


def running(unicast: bool, members: int = 3) -> World:
    config = group_config(members, rekey_address=None if unicast else REKEY.host)
    world = build(Network(7), members, group=config)
    world.start()
    world.network.run(5)
    assert world.converged()
    return world


def effects_of(host: Host, what: Callable[[], None], world: World) -> int:
    """How many effects ``what`` and the next 12 s have on ``host`` when nobody dies."""
    before = host.effects
    what()
    world.network.run(12)
    return host.effects - before


def finish(world: World) -> None:
    """After any crash: everybody has the same keys, and the next rekey is acknowledged by all."""
    network = world.network
    network.run_until(world.converged, 200)
    network.run(70)
    assert world.converged()
    world.rekey()
    network.run(40)
    rekey = world.group.ledger[world.group.epoch]
    assert len(rekey.acknowledged) == len(world.members)
    assert rekey.missing == frozenset()
    world.check_ledger()
    for member in world.members:
        assert member.kernel.sending(FLOW) is not None


@pytest.mark.parametrize("unicast", [False, True], ids=["multicast", "unicast"])
@pytest.mark.parametrize("kind", KINDS)
def test_key_server_killed_at_every_point_of_a_rekey(kind: str, unicast: bool) -> None:
    trial = running(unicast)
    count = effects_of(trial.server, lambda: trial.rekey(**KINDS[kind]), trial)
    assert count >= 2 + 3
    for fuse in range(count + 1):
        world = running(unicast)
        epoch = world.group.epoch
        world.server.fuse = fuse
        world.rekey(**KINDS[kind])
        world.network.run(12)
        assert world.server.alive == (fuse >= count)
        acked = {
            (send.datagram[:16], ack_seq(send.datagram), send.source)
            for send in world.datagrams(ExchangeType.GROUPKEY_PUSH_ACK)
        }
        counted = world.server.store.acknowledged(GROUP_ID, epoch + 1)
        pushes = len(world.datagrams(ExchangeType.GROUPKEY_PUSH))
        world.server.restart()
        if fuse == 0:
            assert world.group.epoch == epoch, "nothing was saved, so nothing was said"
            assert pushes == 0
        else:
            assert world.group.epoch == epoch + 1
            rekey = world.group.ledger[world.group.epoch]
            known = {bytes((i.id_type,)) + i.data for i in rekey.acknowledged}
            assert known == counted, "an ACK that was counted is not forgotten"
            if not rekey.silent:
                # all have acknowledged: nobody is asked again
                assert len(world.datagrams(ExchangeType.GROUPKEY_PUSH)) == pushes
        assert len(acked) <= 3
        finish(world)


def test_after_a_restart_only_the_silent_are_asked_again() -> None:
    world = running(unicast=True)
    world.members[2].crash()
    world.rekey()
    world.network.run(3)
    assert len(world.group.ledger[world.group.epoch].acknowledged) == 2
    world.server.restart()
    (again,) = world.datagrams(ExchangeType.GROUPKEY_PUSH)[3:]
    assert again.destination == world.members[2].address
    world.members[2].restart()
    finish(world)


@pytest.mark.parametrize("unicast", [False, True], ids=["multicast", "unicast"])
@pytest.mark.parametrize("kind", KINDS)
def test_member_killed_at_every_point_of_a_rekey(kind: str, unicast: bool) -> None:
    trial = running(unicast)
    count = effects_of(trial.member, lambda: trial.rekey(**KINDS[kind]), trial)
    assert count >= 3, "kernel, store, ACK"
    for fuse in range(count + 1):
        world = running(unicast)
        victim = world.member
        victim.fuse = fuse
        world.rekey(**KINDS[kind])
        world.network.run(12)
        promised = [
            ack_seq(s.datagram)
            for s in world.datagrams(ExchangeType.GROUPKEY_PUSH_ACK)
            if s.source.host == victim.address.host
        ]
        before = set(victim.kernel.sas)
        victim.restart()
        assert before <= set(victim.kernel.sas), "what the kernel held it holds still"
        if promised:
            (new,) = (t.tek for t in world.group.teks if t.retire_at is None)
            assert new.spi in victim.group.rollover.held, "nothing that an ACK promised is lost"
        finish(world)


@pytest.mark.parametrize("who", ["key server", "member"])
def test_killed_at_every_point_of_a_registration(who: str) -> None:
    for fuse in range(14):
        world = build(Network(3), 2, group=group_config(2))
        host: Host = world.server if who == "key server" else world.member
        host.fuse = fuse
        world.start()
        world.network.run(2)
        if not host.alive:
            host.restart()
        host.fuse = None
        finish(world)


def test_everybody_killed_at_once_between_rekeys() -> None:
    """Member and key server come back with what they had, and traffic never stops."""
    world = running(unicast=False)
    for round_ in range(6):
        world.rekey(kek=round_ % 2 == 0)
        world.network.run(world.network.rng.uniform(0, 15))
        for host in world.hosts:
            host.restart()
            assert all(m.kernel.sending(FLOW) is not None for m in world.members)
        world.network.run(20)
    finish(world)


@pytest.mark.parametrize("seed", range(12))
def test_random_kills_over_random_rekeys(seed: int) -> None:
    config = group_config(3, scheme=RSA if seed % 2 else ECDSA, retransmissions=1)
    network = Network(seed)
    world = build(network, 3, group=config)
    world.start()
    network.run(5)
    for _ in range(8):
        host = network.rng.choice([world.server, *world.members])
        host.fuse = network.rng.randrange(8)
        if world.server.alive:
            world.rekey(kek=network.rng.random() < 0.4)
        network.run(network.rng.uniform(0, 25))
        for each in world.hosts:
            each.fuse = None
            if not each.alive:
                each.restart()
    finish(world)


# -- what is saved -------------------------------------------------------------------------------


def test_group_survives_a_round_trip_through_json() -> None:
    wire, world = registered(2, member_changes={"ack_jitter": 0.0})
    world.rekey(kek=True)
    wire.settle()
    before = group_record(world.group)
    world.server.restart()
    assert group_record(world.group) == before
    assert json.loads(json.dumps(before)) == before


def test_member_resumes_with_what_it_had_before_it_has_registered() -> None:
    wire, world = registered()
    world.rekey(kek=True)
    wire.settle()
    wire.run(6)
    wire.settle()
    held, kek = dict(world.member.group.rollover.held), world.member.group.kek
    world.member.restart()
    group = world.member.group
    assert dict(group.rollover.held) == held
    assert group.kek is not None
    assert kek is not None
    assert (group.kek.kek, group.kek.seq) == (kek.kek, kek.seq)
    assert set(group.previous)


@pytest.mark.parametrize("record", [{}, {"keks": 5, "teks": []}, {"keks": [{}], "teks": []}, []])
def test_unreadable_member_state_is_reported_and_left(record: Any) -> None:
    world = build(Wire())
    world.member.saved = json.dumps(record)
    world.start()
    (event,) = world.member.events("state-unreadable")
    assert event.level == "error"
    world.network.settle()  # type: ignore[attr-defined]
    assert world.converged()


@pytest.mark.parametrize("record", [{}, {"epoch": 1, "keks": [{}], "teks": []}])
def test_unreadable_key_server_state_is_fatal(record: dict[str, Any]) -> None:
    """It must not start over with a SEQ that has been used."""
    server = KeyServer([group_config()], server_phase1, bytes, signers())
    with pytest.raises((KeyError, ValueError, TypeError)):
        server.start(0.0, {GROUP_ID: SavedGroup(record)})


def test_signing_key_of_another_scheme_is_fatal() -> None:
    _, world = registered()
    saved = world.server.store.load()
    record = json.loads(json.dumps(saved[GROUP_ID].group))
    record["keks"][0]["signer"] = "00"
    server = KeyServer([group_config()], server_phase1, bytes, signers())
    with pytest.raises(ValueError, match="signing key cannot be read"):
        server.start(0.0, {GROUP_ID: SavedGroup(record)})


def test_changed_configuration_is_pushed_at_the_next_start() -> None:
    network = Network()
    world = build(network, 2, group=group_config(2))
    world.start()
    network.run(5)
    stronger = build(Network(99), 2, group=group_config(2, scheme=RSA, kek_bits=128))
    world.server._make = stronger.server._make
    world.server.restart()
    network.run(20)
    rekey = world.group.ledger[world.group.epoch]
    assert rekey.reason == "policy-change"
    assert len(rekey.acknowledged) == 2
    assert world.converged()
    assert world.group.current_kek().kek.scheme == RSA


def test_every_record_leaves_before_what_it_stands_for() -> None:
    """The contract with the shell: each step's Persist has what its Send gives away."""
    wire, world = registered()
    before = len(world.server.actions)
    world.rekey()
    step = world.server.actions[before:]
    assert any(isinstance(action, Persist) for action in step)
    (send,) = (action for action in step if isinstance(action, Send))
    assert pull_header(send.datagram).exchange_type == ExchangeType.GROUPKEY_PUSH
    assert send.source == SERVER
    assert wire.take() == send
