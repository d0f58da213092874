"""Engines of several key servers that step with one real database, without daemons."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_address
from random import Random

import pytest
from sqlalchemy import update

from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.crypto.signature import SCHEMES
from gdoi_plugin.daemon.errors import StoreError
from gdoi_plugin.daemon.shared.database import connect
from gdoi_plugin.daemon.shared.schema import head
from gdoi_plugin.daemon.shared.store import SharedStore
from gdoi_plugin.daemon.store import Store
from gdoi_plugin.daemon.store.postgres import PostgresServer
from gdoi_plugin.daemon.store.sealing import MasterKey
from gdoi_plugin.protocol.actions import Action, Peer, Persist, Send
from gdoi_plugin.protocol.forest import LkhPolicy
from gdoi_plugin.protocol.group import GroupConfig
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.key_server import KeyServer
from gdoi_plugin.protocol.nat import Path
from tests.support.postgres import Postgres
from tests.support.worlds import GROUP_ID, group_config

KEY = MasterKey(Secret(bytes(range(32))))
MEMBERS = 64


class Server:
    """What the daemon does with a step."""

    def __init__(self, url: str, name: str, config: GroupConfig) -> None:
        server = PostgresServer(url)
        Store(server, KEY).close()
        self.engine = KeyServer([config], lambda _: None, os.urandom)
        self.store = SharedStore(connect(server, name, 20.0), server.name, KEY, 10.0)
        self.store.create()
        self.engine.lead(False, 0.0)
        self.now = 1000.0

    @property
    def group(self):  # type: ignore[no-untyped-def]
        return self.engine.groups[GROUP_ID]

    def begin(self) -> bool:
        """Whether everything was read."""
        begun = self.store.begin()
        if begun.whole:
            actions = self.engine.join(begun.groups, self.now)
            if actions:
                self.save(actions)
                return True
        else:
            self.engine.follow(begun.groups)
        return begun.whole

    def save(self, actions: list[Action]) -> list[Send]:
        records = [action for action in actions if isinstance(action, Persist)]
        if records:
            self.store.save(records)
        self.engine.sent(self.now)
        return [action for action in actions if isinstance(action, Send)]

    def step(self, number: int | None = None) -> list[Send]:
        """A member registers, or a rekey is asked for."""
        self.begin()
        actions = self.register(number) if number else self.rekey()
        sends = self.save(actions)
        self.store.end()
        return sends

    def rekey(self, *, kek: bool = False) -> list[Action]:
        return self.engine.rekey(GROUP_ID, self.now, "operator", kek=kek)

    def register(self, number: int) -> list[Action]:
        """As GROUPKEY-PULL does, from the point where the member has proved itself."""
        group = self.group
        address = ip_address(f"10.0.0.{number}")
        path = Path(group.config.source, Peer(address, 848))
        member = group.registrant(Identity.of_address(address), path, self.now)
        told = group.offer(member.identity, path, self.now)
        group.admit(member, told, os.urandom)
        group.roster.add(member)
        from gdoi_plugin.protocol.group_record import group_record, member_record, tree_persists

        return [
            Persist("group", group_record(group)),
            *tree_persists(group),
            Persist("member", member_record(group, member)),
        ]


def same(*servers: Server) -> None:
    """In every memory, once each has begun a step."""
    for server in servers:
        server.begin()
        server.store.end()
    first, *others = (server.group for server in servers)
    for group in others:
        assert group.epoch == first.epoch
        assert [s.kek.kek for s in group.sas] == [s.kek.kek for s in first.sas]
        assert [s.kek.seq for s in group.sas] == [s.kek.seq for s in first.sas]
        assert [tek.tek for tek in group.teks] == [tek.tek for tek in first.teks]
        assert group.members.keys() == first.members.keys()
        assert group.roster.next_number == first.roster.next_number
        for identity, member in first.members.items():
            assert group.members[identity].number == member.number
            assert group.leaf_key(identity) == first.leaf_key(identity)
        assert {e: (r.closed, r.seqs, dict(r.acknowledged)) for e, r in group.ledger.items()} == {
            e: (r.closed, r.seqs, dict(r.acknowledged)) for e, r in first.ledger.items()
        }


@pytest.fixture(params=[None, LkhPolicy(4, MEMBERS)], ids=["one-key", "lkh"])
def servers(database: str, request: pytest.FixtureRequest) -> Iterator[list[Server]]:
    config = group_config(MEMBERS, lkh=request.param, scheme=SCHEMES["ecdsa256"])
    made = [Server(database, f"s{number}", config) for number in range(3)]
    for server in made:
        server.begin()
        server.store.end()
    yield made
    for server in made:
        server.store.close()


def test_whoever_comes_first_makes_the_group(servers: list[Server]) -> None:
    same(*servers)
    assert servers[0].group.epoch == 1


def test_steps_of_three_in_any_order(servers: list[Server]) -> None:
    """Each finds what the others have done, piece by piece; numbers and leaves are given once."""
    rng = Random(848)
    servers[0].engine.lead(True, servers[0].now)
    seqs: list[tuple[bytes, int]] = []
    for number in range(1, 41):
        rng.choice(servers).step(number)
        if number % 8 == 0:
            assert servers[0].step()
            kek = servers[0].group.sas[0].kek
            seqs.append((kek.kek.spi, kek.seq))
    same(*servers)
    numbers = [member.number for member in servers[1].group.members.values()]
    assert sorted(numbers) == list(range(1, 41))
    leaves = [member.leaf for member in servers[1].group.members.values() if member.leaf]
    assert len(leaves) == len(set(leaves))
    assert len(seqs) == len(set(seqs))


def test_only_what_has_changed_is_read(servers: list[Server]) -> None:
    servers[0].step(1)
    assert servers[1].begin() is False
    servers[1].store.end()
    assert len(servers[1].group.members) == 1


def test_what_was_not_saved_is_forgotten(servers: list[Server]) -> None:
    """As where the connection ends within a step: the next one reads everything."""
    first, second, _ = servers
    first.begin()
    first.register(1)
    first.store.forget()
    first.store.end()
    assert first.group.members
    second.step(2)
    assert first.begin() is True
    first.store.end()
    assert [str(identity) for identity in first.group.members] == ["10.0.0.2"]
    same(*servers)


def test_a_step_whose_connection_is_gone_saves_nothing(
    servers: list[Server], postgres: Postgres
) -> None:
    first, second, _ = servers
    first.begin()
    actions = first.register(1)
    postgres.restart()
    with pytest.raises(StoreError, match="postgresql database gdoi"):
        first.save(actions)
    first.store.reconnect()
    second.store.reconnect()
    assert first.begin() is True
    first.store.end()
    assert not first.group.members
    same(first, second)


def test_a_rekey_of_a_follower_is_said_by_the_leader(servers: list[Server]) -> None:
    leader, follower, _ = servers
    leader.engine.lead(True, leader.now)
    leader.step(1)
    assert follower.step() == []
    epoch = follower.group.epoch
    leader.begin()
    rekey = leader.group.ledger[epoch]
    assert (rekey.attempts, rekey.closed) == (0, False)
    sends = leader.save(leader.engine.tick_groups(leader.now))
    leader.store.end()
    assert [send.destination.host for send in sends] == [leader.group.config.rekey_address]
    same(*servers)
    assert follower.group.ledger[epoch].seqs == [1]


def test_acks_are_counted_wherever_they_arrive(servers: list[Server]) -> None:
    """At any server, at two of them, and the leader closes the page."""
    leader, *followers = servers
    leader.engine.lead(True, leader.now)
    for number in (1, 2):
        leader.step(number)
    leader.step()
    epoch, seq = leader.group.epoch, leader.group.sas[0].kek.seq
    numbers = [member.number for member in leader.group.members.values()]
    for server, heard in zip(servers, ((), (numbers[0],), tuple(numbers)), strict=True):
        server.begin()
        entries = tuple((number, seq, 1000.5) for number in heard)
        records = [Persist("acks", {"group": GROUP_ID, "epoch": epoch, "entries": entries})]
        saved = server.engine.ledger.saved(records, server.now)
        server.save([*records, *saved])
        server.store.end()
        assert not server.group.ledger[epoch].closed
    leader.begin()
    leader.save(leader.engine.tick_groups(leader.now))
    leader.store.end()
    assert leader.group.ledger[epoch].closed
    assert not leader.group.ledger[epoch].missing
    same(*servers)
    for follower in followers:
        page = follower.group.ledger[epoch]
        assert sorted(str(i) for i in page.acknowledged) == ["10.0.0.1", "10.0.0.2"]


def test_an_older_database_is_refused_by_whoever_has_seen_a_newer_one(
    servers: list[Server], database: str
) -> None:
    servers[0].step(1)
    reached = servers[0].store.revision
    assert reached is not None
    engine = connect(PostgresServer(database), "test", 20.0)
    with engine.begin() as connection:
        connection.execute(update(head).values(revision=reached - 1))
    for _ in range(2):  # nor when everything is read anew
        with pytest.raises(StoreError, match=f"older than it was, at step {reached - 1} after"):
            servers[0].begin()
    with engine.begin() as connection:
        connection.execute(update(head).values(revision=reached))
    engine.dispose()
    servers[0].step(2)
    same(*servers)


def test_another_master_key(servers: list[Server], database: str) -> None:
    """What one server seals anew no other one can go on with."""
    servers[1].step(1)
    other = MasterKey(Secret(bytes(32)))
    store = Store(PostgresServer(database), KEY)
    assert store.rotate(other)
    store.close()
    servers[1].begin()
    with pytest.raises(StoreError, match="another key server has changed group"):
        servers[1].save(servers[1].register(2))
    with pytest.raises(StoreError, match="sealed with master key"):
        servers[1].begin()
