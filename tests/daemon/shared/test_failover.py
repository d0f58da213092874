"""Three key servers, and what happens to them, under registrations and rekeys."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Thread

import pytest

from gdoi_plugin.cli.client import ClientError
from tests.daemon.shared.cluster import Cluster, Member, Server, cluster
from tests.support.postgres import Postgres


def others(world: Cluster, server: Server) -> list[Server]:
    return [other for other in world.servers if other is not server]


def another_leads(world: Cluster, before: Server) -> Server:
    world.until(
        lambda: any(other.role() == "leader" for other in others(world, before)), "another leader"
    )
    return next(other for other in others(world, before) if other.role() == "leader")


def killed_in_mid_rekey(world: Cluster) -> None:
    """No member has read its PUSH yet, so no ACK has come: the next leader says it again."""
    leader = world.rekeyed(kek=True)
    leader.send_signal(signal.SIGKILL)
    world.note("test", f"{leader.name} is killed")
    another_leads(world, leader)
    world.join(21, others(world, leader))
    world.until(world.in_step, "the rekey of the killed leader to be finished")
    leader.start()
    world.until(lambda: leader.role() == "follower", "the killed one to be back")


def database_restarted(world: Cluster, postgres: Postgres) -> None:
    """As after a loss of power; nobody is given a key meanwhile, and nobody loses one."""
    held = [member.keys() for member in world.members]
    world.note("test", "the database is gone")
    postgres.stop(signal.SIGQUIT)
    newcomer = world.join(22)
    world.until(
        lambda: all(server.ask("stats")["servers"]["database"] != "ok" for server in world.servers),
        "everybody to know that the database is gone",
    )
    with pytest.raises(ClientError):
        world.servers[0].ask("rekey", group="video", kek="yes")
    assert newcomer.keys() is None
    assert [member.keys() for member in world.members if member is not newcomer] == held
    postgres.start()
    world.note("test", "the database is back")
    world.rekeyed()
    world.until(world.in_step, "all to go on after the database's restart")
    for server in world.servers:
        assert [line for line in server.lines() if line["event"] == "store-failed"]
        assert [line for line in server.lines() if line["event"] == "store-recovered"]


def partitioned_from_the_database(world: Cluster) -> None:
    leader = world.leader()
    leader.relay.send_signal(signal.SIGSTOP)
    world.note("test", f"{leader.name} has no way to the database")
    another_leads(world, leader)
    world.rekeyed(kek=True)
    world.join(23, others(world, leader))
    world.until(lambda: len({m.keys() for m in world.members}) == 1, "all to have the new KEK")
    assert leader.role() == "follower"
    leader.relay.send_signal(signal.SIGCONT)
    world.note("test", f"{leader.name} has its way back")
    world.until(world.in_step, "the partitioned one to follow")


def stopped_past_its_lease(world: Cluster) -> None:
    """It was about to rekey when it was stopped, and does not do so when it goes on."""
    leader = world.leader()
    leader.send_signal(signal.SIGSTOP)
    world.note("test", f"{leader.name} is stopped")
    others_role = [other for other in world.servers if other is not leader]
    world.until(lambda: any(other.role() == "leader" for other in others_role), "another leader")
    for server in others_role:
        if server.role() == "leader":
            server.ask("rekey", group="video", kek="yes")
    world.join(24, others_role)
    world.until(lambda: len({m.keys() for m in world.members}) == 1, "all to have the new KEK")
    sent = len([line for line in leader.lines() if line["event"] == "rekey-sent"])
    leader.send_signal(signal.SIGCONT)
    world.note("test", f"{leader.name} goes on")
    world.until(lambda: leader.role() == "follower", "the stopped one to follow")
    world.until(world.in_step, "all to be in step")
    assert len([line for line in leader.lines() if line["event"] == "rekey-sent"]) == sent


def stopped_after_its_commit(world: Cluster, place: str) -> None:
    """The rekey is in the database, and nobody has heard of it: another server says it. What the
    stopped one does about it when it goes on is nothing, where it has yet to look at its lease, or
    to send the very messages that it had committed, which all take for old ones."""
    former = {member.keys() for member in world.members}
    epoch = max(server.group()["epoch"] for server in world.servers)
    leader, asking = stopped_at(world, place)
    rest = others(world, leader)
    world.note("test", f"{leader.name} is stopped: {place}")
    world.until(lambda: all(s.group()["epoch"] > epoch for s in rest), "all to see the commit")
    (committed,) = {str(server.group()["kek-spi"]) for server in rest}
    assert {member.keys() for member in world.members} == former
    another_leads(world, leader)
    world.until(lambda: has_kek(world.members, committed), "the committed KEK to be everybody's")
    heard = {member: said_by(leader, member) for member in world.members}
    its = str(leader.peer.host)
    accepted = {member: member.accepted[its] for member in world.members}
    leader.send_signal(signal.SIGCONT)
    world.note("test", f"{leader.name} goes on")
    asking.join()
    world.until(lambda: leader.role() == "follower", "the stopped one to follow")
    if place == "committed":
        assert [line for line in leader.lines() if line["event"] == "rekey-held-back"]
    else:
        world.until(lambda: all(said_by(leader, m) > heard[m] for m in heard), "late messages")
    assert {member: member.accepted[its] for member in world.members} == accepted
    assert has_kek(world.members, committed)
    next_one = world.rekeyed()
    world.until(world.in_step, "all to be in step")
    if place == "committed" and next_one is not leader:
        assert {member: said_by(leader, member) for member in heard} == heard


def stopped_at(world: Cluster, place: str) -> tuple[Server, Thread]:
    """The leader, whoever that is by then, and the command that waits for it."""
    while True:
        leader = world.leader()
        leader.stop_at(place)
        asking = Thread(target=ask_for_a_rekey, args=(leader,))
        asking.start()
        world.until(lambda: leader.stopped() or not asking.is_alive(), f"{leader.name} to stop")  # noqa: B023
        if leader.stopped():
            return leader, asking
        leader.go_on()  # it leads no longer


def ask_for_a_rekey(leader: Server) -> None:
    """It is stopped before it can answer."""
    with suppress(ClientError):
        leader.ask("rekey", group="video", kek="yes")


def has_kek(members: list[Member], kek: str) -> bool:
    return {keys[0] if (keys := member.keys()) else None for member in members} == {kek}


def said_by(server: Server, member: Member) -> int:
    return sum(host == str(server.peer.host) for host, _ in member.heard)


def endure(world: Cluster, trouble: Callable[[Cluster], None]) -> int:
    """How many members had to register again; no member has to do more than that."""
    before = {member: member.registrations for member in world.members}
    trouble(world)
    world.until(world.in_step, "all to go on by themselves")
    again = [member.registrations - count for member, count in before.items()]
    assert max(again) <= 1, again
    world.note("test", f"{sum(again)} of {len(again)} members had to register again")
    return sum(again)


def test_failover(tmp_path: Path, postgres: Postgres) -> None:
    with cluster(tmp_path, postgres, "127.77.1", 'kek_management = "lkh"') as world:
        for number in range(11, 17):
            world.join(number)
        world.until(world.in_step, "six members")
        world.rekeyed(kek=True)
        world.until(world.in_step, "a rekey")
        again = [
            endure(world, killed_in_mid_rekey),
            endure(world, partial(database_restarted, postgres=postgres)),
            endure(world, partitioned_from_the_database),
            endure(world, stopped_past_its_lease),
            endure(world, partial(stopped_after_its_commit, place="leaving")),
        ]
        world.rekeyed(kek=True)
        world.until(world.in_step, "a last rekey")
        world.check()
        print(world.story())  # noqa: T201
        print("registered again, by trouble:", again)  # noqa: T201


def test_failover_by_multicast(tmp_path: Path, postgres: Postgres) -> None:
    """And one KEK for all."""
    with cluster(tmp_path, postgres, "127.77.2", address="239.192.77.2") as world:
        for number in range(11, 15):
            world.join(number)
        world.until(world.in_step, "four members")
        again = [
            endure(world, partial(stopped_after_its_commit, place=place))
            for place in ("committed", "leaving")
        ]
        world.check()
        print(world.story())  # noqa: T201
        print("registered again, by trouble:", again)  # noqa: T201


def test_one_key_server_whose_database_hangs(tmp_path: Path, postgres: Postgres) -> None:
    """It answers, but to nobody who wants a key, and goes on by itself."""
    with cluster(tmp_path, postgres, "127.77.3", servers=1) as world:
        (server,) = world.servers
        member = world.join(11)
        world.until(world.in_step, "a member")
        keys, epoch = member.keys(), server.group()["epoch"]
        postgres.signal_all(signal.SIGSTOP)
        world.note("test", "the database hangs")
        try:
            newcomer = world.join(12)
            world.until(lambda: server.role() == "follower", "it to stop leading")
            world.until(
                lambda: server.ask("stats")["servers"]["database"] != "ok", "it to find that out"
            )
            with pytest.raises(ClientError, match="nothing was done: postgresql database"):
                server.ask("rekey", group="video")
            sent = len(world.lines("rekey-sent"))
            assert newcomer.keys() is None
            assert (member.keys(), server.group()["epoch"]) == (keys, epoch)
            assert len(world.lines("rekey-sent")) == sent
        finally:
            postgres.signal_all(signal.SIGCONT)
        world.note("test", "the database goes on")
        world.rekeyed(kek=True)
        world.until(world.in_step, "both to have the new KEK")
        assert member.registrations == newcomer.registrations == 1, "nobody had to come back"
        # A machine that stands still for a second is trouble as well: each is told once.
        failed, back = world.lines("store-failed"), world.lines("store-recovered")
        assert failed
        assert all(one["time"] < end["time"] for one, end in zip(failed, back, strict=True))
        assert "postgresql database" in failed[0]["error"]
        world.check()
        print(world.story())  # noqa: T201
