"""Member and key server against each other over a network that loses nothing."""

from __future__ import annotations

from collections import Counter

import pytest

from gdoi_plugin.crypto.signature import SCHEMES, Scheme
from gdoi_plugin.protocol.actions import Drop, KeyLog, Peer
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.isakmp import SUITES, Suite
from gdoi_plugin.protocol.main_mode import State
from gdoi_plugin.protocol.member import MemberState
from gdoi_plugin.protocol.policy import TEK_SUITES, Flow
from gdoi_plugin.protocol.tek_policy import TekConfig
from gdoi_plugin.wire.header import pull_header
from gdoi_plugin.wire.registry import ExchangeType
from tests.support.simnet import Network, Wire
from tests.support.worlds import (
    ECDSA,
    FLOW,
    REKEY,
    RSA,
    SERVER,
    World,
    build,
    exchange_of,
    group_config,
    member_peer,
    registered,
    wired,
)

MAIN, PULL, PUSH, ACK = (
    ExchangeType.MAIN_MODE,
    ExchangeType.GROUPKEY_PULL,
    ExchangeType.GROUPKEY_PUSH,
    ExchangeType.GROUPKEY_PUSH_ACK,
)


def ladder(world: World) -> list[tuple[str, int, bool]]:
    """Who said what, in order: host, exchange, encrypted."""
    return [
        ("GCKS" if s.source == SERVER else "GM", exchange_of(s), pull_header(s.datagram).encrypted)
        for _, s in world.network.sent
    ]


def test_registration_reads_as_the_rfcs_draw_it() -> None:
    _, world = registered()
    assert ladder(world) == [
        ("GM", MAIN, False),  # HDR, SA
        ("GCKS", MAIN, False),  # HDR, SA
        ("GM", MAIN, False),  # HDR, KE, Ni
        ("GCKS", MAIN, False),  # HDR, KE, Nr
        ("GM", MAIN, True),  # HDR*, IDii, HASH_I
        ("GCKS", MAIN, True),  # HDR*, IDir, HASH_R
        ("GM", PULL, True),  # HDR*, HASH(1), Ni, ID
        ("GCKS", PULL, True),  # HDR*, HASH(2), Nr, SA
        ("GM", PULL, True),  # HDR*, HASH(3)
        ("GCKS", PULL, True),  # HDR*, HASH(4), SEQ, KD
    ]
    assert world.member.group.state is MemberState.REGISTERED
    assert world.member.dropped() == world.server.dropped() == []


@pytest.mark.parametrize("suite", SUITES.values(), ids=list(SUITES))
def test_phase_1_with_every_suite(suite: Suite) -> None:
    _, world = registered(suites=[suite])
    mine = world.member.group.registrar.association
    assert mine is not None
    assert mine.sa is not None
    (session,) = world.server.engine.isakmp.sessions.values()
    assert session.responder.state is State.ESTABLISHED
    assert mine.sa.suite == session.sa.suite == suite
    assert mine.sa.keys == session.sa.keys
    assert mine.sa.last_block == session.sa.last_block
    assert len(mine.sa.keys.encryption_key) == suite.key_length // 8
    logs = [a for h in world.hosts for a in h.actions if isinstance(a, KeyLog)]
    assert logs[0] == logs[1] == KeyLog(mine.sa.cky_i, mine.sa.keys.encryption_key.reveal())


def test_key_server_chooses_its_own_first_preference_of_what_is_offered() -> None:
    names = ("aes128-sha256-ecp256", "aes256-sha384-ecp384", "aes256-sha512-modp2048")
    server_order = [SUITES[names[2]], SUITES[names[1]]]
    wire, world = wired(suites=server_order)
    world.members.clear()
    offers = build(wire, 1, suites=[SUITES[name] for name in names])
    wire.hosts[SERVER.host] = world.server
    world.start()
    offers.member.start()
    wire.settle()
    (session,) = world.server.engine.isakmp.sessions.values()
    assert session.sa.suite.keyword == names[2]


def test_member_listens_to_its_own_group_alone() -> None:
    _, world = registered(3)
    kek = world.group.current_kek().kek
    for index, member in enumerate(world.members):
        assert member.group.kek is not None
        assert member.group.kek.kek.destination == REKEY.host
        assert member.group.kek.kek.spi == kek.spi
        registered_as = world.group.roster.whose(member_peer(index).host, member_peer(index))
        assert registered_as is world.group.members[Identity.of_address(member_peer(index).host)]


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("kek_bits", [128, 192, 256])
def test_every_kek_with_every_signature(name: str, kek_bits: int) -> None:
    _, world = registered(group=group_config(scheme=SCHEMES[name], kek_bits=kek_bits))
    wire = world.network
    assert isinstance(wire, Wire)
    for kek in (True, False):
        world.rekey(kek=kek)
        wire.settle()
        assert world.converged()
        assert world.member.group.kek is not None
        assert len(world.member.group.kek.kek.key) == kek_bits // 8
    # The KEK with an RSA-4096 key fills a PUSH, its TEK comes in the next one.
    assert world.member.group.counters.rekeys_installed == (3 if "rsa4096" in name else 2)
    assert wire.reasons == set()


@pytest.mark.parametrize("scheme", [ECDSA, RSA], ids=["ecdsa256", "rsa2048"])
@pytest.mark.parametrize("kek_bits", [128, 256])
@pytest.mark.parametrize("transport", ["multicast", "unicast"])
def test_rekeys_reach_and_are_acknowledged(scheme: Scheme, kek_bits: int, transport: str) -> None:
    address = REKEY.host if transport == "multicast" else None
    config = group_config(3, scheme=scheme, kek_bits=kek_bits, rekey_address=address)
    network = Network()
    world = build(network, 3, group=config)
    world.start()
    network.run(5)
    assert world.converged()
    for number in range(4):
        # TEKs; a new KEK; TEKs under it; both at once with the old SAs deleted
        world.rekey(kek=number in (1, 3), replace_old=number == 3)
        network.run(60)
        assert world.converged()
        rekey = world.group.ledger[world.group.epoch]
        assert rekey.closed
        assert len(rekey.acknowledged) == 3
        assert rekey.missing == frozenset()
        assert rekey.attempts == 1
    world.check_ledger()
    assert all(member.group.counters.acknowledged == 4 for member in world.members)
    assert all(member.group.counters.registrations == 1 for member in world.members)
    assert network.reasons == set()
    where = {s.destination for s in world.datagrams(PUSH)}
    assert where == ({REKEY} if address else {member_peer(i) for i in range(3)})
    assert len(world.datagrams(PUSH)) == (4 if address else 12)


def test_sequence_starts_at_1_with_every_kek() -> None:
    _, world = registered()
    wire = world.network
    said = []
    for kek in (False, True, False, False):
        world.rekey(kek=kek)
        wire.settle()  # type: ignore[attr-defined]
        wire.run(6)
        wire.settle()  # type: ignore[attr-defined]
        said.append([*world.group.ledger.values()][-1].seqs)
    assert said == [[1], [2], [1], [2]]


def test_several_teks_each_for_its_flow() -> None:
    flows = [FLOW, Flow(None, REKEY.host, 17, 0, 5000)]
    suites = [TEK_SUITES["aes256-sha256"], TEK_SUITES["aes128-sha256"]]
    teks = tuple(TekConfig(f, s) for f, s in zip(flows, suites, strict=True))
    _, world = registered(group=group_config(teks=teks))
    kernel = world.member.kernel
    for flow, suite in zip(flows, suites, strict=True):
        tek = kernel.sending(flow)
        assert tek is not None
        assert (tek.flow, tek.suite) == (flow, suite)


def test_scheduled_rekeys_come_before_any_key_ends() -> None:
    teks = (TekConfig(FLOW, TEK_SUITES["aes256-sha256"], lifetime=600),)
    network = Network()
    world = build(network, 2, group=group_config(2, teks=teks, kek_lifetime=1800))
    world.start()
    for _ in range(200):
        network.run(30)
        for member in world.members:
            sending = member.kernel.sending(FLOW)
            assert sending is not None
            held = member.group.rollover.held[sending.spi]
            assert held.expires - network.now > 30
    reasons = {rekey.reason for rekey in world.group.ledger.values()}
    assert reasons == {"tek-lifetime", "kek-lifetime"}
    assert all(member.group.counters.registrations == 1 for member in world.members)


def test_members_without_a_key_server_register_again_before_their_keys_end() -> None:
    network = Network()
    world = build(network, 1)
    world.start()
    network.run(5)
    world.server.crash()
    network.run(3300)
    assert world.member.events("registration-failed") == []
    network.run(200)
    assert world.member.events("registration-failed")
    assert world.member.kernel.sending(FLOW) is not None, "the last SA is used to its end"
    network.run(300)
    assert world.member.kernel.sending(FLOW) is None, "and not beyond"


def test_members_are_spread_over_their_key_servers() -> None:
    (entry,) = build(Network(), 1).member.group.config.key_servers
    entries = tuple(type(entry)(member_peer(200 + i), entry.phase1) for i in range(3))
    world = build(Network(), 30, member_changes={"key_servers": entries})
    world.start()
    begun = Counter(
        member.events("registering")[0].fields["key-server"] for member in world.members
    )
    assert begun.keys() == {str(entry.remote) for entry in entries}
    assert min(begun.values()) >= 4
    world.network.run(400)
    for member in world.members:
        asked = [event.fields["key-server"] for event in member.events("registering")]
        assert asked[:3] == asked[3:6], "in order, from the random start on"
        assert len(set(asked[:3])) == 3


def test_member_tries_its_key_servers_in_turn() -> None:
    wire, world = wired()
    (entry,) = world.member.group.config.key_servers
    silent = Peer(member_peer(200).host, 848)
    other = type(entry)(silent, entry.phase1)
    for seed in range(16):
        network = Network(seed)
        world = build(network, 1, member_changes={"key_servers": (other, entry)})
        world.start()
        network.run(30)
        if not world.group.members:
            break  # it has begun with the other one
    assert world.group.members == {}
    network.run(3)
    assert world.converged()
    assert world.member.group.key_server == SERVER
    (failed,) = world.member.events("registration-failed")
    assert failed.fields["error"] == f"{silent}: phase 1: no answer"
    assert Drop.UNKNOWN_COOKIES not in network.reasons
    assert wire.sent == []
