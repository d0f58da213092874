"""Three key servers, and what happens to them, under registrations and rekeys."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from gdoi_plugin.cli.client import ClientError
from tests.daemon.shared.cluster import Cluster, Server, cluster
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


@pytest.mark.parametrize("rekey", ['kek_management = "lkh"'])
def test_failover(tmp_path: Path, postgres: Postgres, rekey: str) -> None:
    with cluster(tmp_path, postgres, "127.77.1" if rekey else "127.77.2", rekey) as world:
        for number in range(11, 17):
            world.join(number)
        world.until(world.in_step, "six members")
        world.rekeyed(kek=True)
        world.until(world.in_step, "a rekey")
        killed_in_mid_rekey(world)
        database_restarted(world, postgres)
        partitioned_from_the_database(world)
        stopped_past_its_lease(world)
        world.rekeyed(kek=True)
        world.until(world.in_step, "a last rekey")
        world.check()
        print(world.story())  # noqa: T201
