"""Two key servers with one database, in one process: what they say of one another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from gdoi_plugin.daemon import gcks_shared
from gdoi_plugin.daemon.config_gcks import KeyServerDaemonConfig
from gdoi_plugin.daemon.control import CommandFailed, Handler
from gdoi_plugin.daemon.errors import ConfigError, StoreError
from gdoi_plugin.daemon.gcks_shared import SharedKeyServerDaemon
from gdoi_plugin.daemon.log import Log
from gdoi_plugin.daemon.reload import Proposal
from tests.daemon.configs import GCKS, PSK, swap, write
from tests.daemon.test_udp import free_port
from tests.support.postgres import Postgres

PATIENCE = 90.0
Scenario = Callable[[SharedKeyServerDaemon, SharedKeyServerDaemon], Awaitable[None]]


def config(folder: Path, url: str, name: str, tek: str = "") -> KeyServerDaemonConfig:
    """A lease that no stall outlasts: only who stops, and so gives it back, leads no longer."""
    number = {"a": 1, "b": 2}[name]
    settings = f"""
port = {free_port()}
nat_traversal = false
database = "{url}"
name = "{name}"
lease = "30s"
state = "{folder}/{name}.sqlite"
control = "{folder}/{name}.vici"
"""
    text = GCKS.replace('address = "127.0.0.1"\n', f'address = "127.0.0.{number}"\n{settings}', 1)
    text = text.replace("[[group.tek]]", '[group.rekey]\nsignature = "ecdsa256"\n[[group.tek]]')
    return KeyServerDaemonConfig(write(folder, text + tek, f"{name}.toml"))


def made(folder: Path, settings: KeyServerDaemonConfig, name: str) -> SharedKeyServerDaemon:
    return SharedKeyServerDaemon(settings, Log.open(folder / f"{name}.log", "info"), None)


def events(folder: Path, name: str, event: str) -> list[dict[str, Any]]:
    lines = (folder / f"{name}.log").read_text().splitlines()
    return [found for line in lines if (found := json.loads(line))["event"] == event]


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.02)


def run(folder: Path, url: str, scenario: Scenario, tek: str = "") -> None:
    """``a`` leads before ``b`` is there; ``tek``: what b's group has more."""

    async def both() -> None:
        first = made(folder, config(folder, url, "a"), "a")
        running = [asyncio.create_task(first.run())]
        try:
            await until(lambda: role(first) == "leader", "a to lead")
            second = made(folder, config(folder, url, "b", tek), "b")
            running.append(asyncio.create_task(second.run()))
            await until(lambda: second._begun and second._servers.leader == "a", "b to follow")
            await asyncio.wait_for(scenario(first, second), PATIENCE)
        finally:
            for daemon, task in zip((first, second), running, strict=False):
                daemon._stop.set()
                await task

    asyncio.run(both())


def role(daemon: SharedKeyServerDaemon) -> str:
    return str(servers(daemon)["role"])


def servers(daemon: SharedKeyServerDaemon) -> dict[str, Any]:
    found = daemon._stats({})["servers"]
    assert isinstance(found, dict)
    return found


def ask(daemon: SharedKeyServerDaemon, command: str, **fields: str) -> dict[str, Any]:
    handler: Handler = daemon._handlers()[command]
    answer = handler({"group": "video", **fields})
    assert isinstance(answer, dict)
    return answer


def test_who_follows_says_whom_to_ask(tmp_path: Path, database: str) -> None:
    async def scenario(a: SharedKeyServerDaemon, b: SharedKeyServerDaemon) -> None:
        await until(lambda: servers(b)["others"], "b to know a")
        said = f"b follows: ask the leader, a at {a._config.local}"
        for command in ("rekey", "delete-group", "evict", "revoke", "admit"):
            with pytest.raises(CommandFailed, match=said):
                ask(b, command, identities="10.0.0.1")
        before = b.engine.groups[1].epoch
        assert ask(a, "rekey")["epoch"] == str(before + 1)
        await until(lambda: b.engine.groups[1].epoch == before + 1, "b to see the rekey")
        facts = servers(b)
        assert (facts["name"], facts["role"], facts["leader"]) == ("b", "follower", "a")
        assert (facts["database"], facts["others"]["a"]["address"]) == ("ok", str(a._config.local))
        assert servers(a)["fence"] == "1"

    run(tmp_path, database, scenario)


def test_who_stops_hands_over(tmp_path: Path, database: str) -> None:
    async def scenario(a: SharedKeyServerDaemon, b: SharedKeyServerDaemon) -> None:
        kek = a.engine.groups[1].current_kek().kek.spi
        a._stop.set()
        await until(lambda: role(b) == "leader", "b to lead")
        assert b.engine.groups[1].current_kek().kek.spi == kek
        assert servers(b)["fence"] == "2"

    run(tmp_path, database, scenario)
    assert events(tmp_path, "b", "leading")


def test_two_policies_are_an_error(tmp_path: Path, database: str) -> None:
    """And the group goes on as its leader was told."""

    async def scenario(a: SharedKeyServerDaemon, b: SharedKeyServerDaemon) -> None:
        await until(lambda: events(tmp_path, "a", "policy-differs"), "an error of a")
        await until(lambda: events(tmp_path, "b", "policy-differs"), "an error of b")
        assert b.engine.groups[1].epoch == a.engine.groups[1].epoch
        assert len(b.engine.groups[1].teks) == 1

    run(tmp_path, database, scenario, '[[group.tek]]\ndestination = "239.192.1.2"\n')
    (told,) = events(tmp_path, "b", "policy-differs")
    assert (told["level"], told["group"], told["server"]) == ("error", "video", "a")


MORE = '[[group.tek]]\ndestination = "239.192.1.2"\n'
ONE_MORE = '[[group.tek]]\ndestination = "239.192.1.3"\n'


def rewrite(daemon: SharedKeyServerDaemon, more: str, *other: tuple[str, str]) -> None:
    """Its file, as whoever distributes files does it: another one takes its place."""
    path = daemon._config.path
    text = path.read_text() + more
    for before, after in other:
        text = swap(text, before, after)
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


async def reloaded(daemon: SharedKeyServerDaemon) -> None:
    """Where the machine stands still for as long as a lease, the database lets go of its step."""

    def done() -> bool:
        with suppress(CommandFailed):
            ask(daemon, "reload")
            return True
        return False

    await until(done, "a reload")


def flows(daemon: SharedKeyServerDaemon) -> int:
    return sum(tek.retire_at is None for tek in daemon.engine.groups[1].teks)


def test_followers_read_their_files_again_when_the_leader_has(
    tmp_path: Path, database: str
) -> None:
    """Nobody starts them again; and who leads next changes nothing."""

    async def scenario(a: SharedKeyServerDaemon, b: SharedKeyServerDaemon) -> None:
        for daemon in (a, b):
            rewrite(daemon, MORE)
        await until(lambda: servers(a)["others"] and servers(b)["others"], "each other")
        assert a.engine.suspended == b.engine.suspended == set()
        await reloaded(a)
        await until(lambda: events(tmp_path, "b", "config-reloaded"), "b to read its file")
        await until(lambda: flows(b) == 2 and not b.engine.suspended, "b to serve the new policy")
        assert len(b.engine.groups[1].config.teks) == 2
        epoch = a.engine.groups[1].epoch
        a._stop.set()
        await until(lambda: role(b) == "leader", "b to lead")
        assert b.engine.groups[1].epoch == epoch
        assert len(list(b.engine.groups[1].ledger)) == 1

    run(tmp_path, database, scenario)


def test_what_follows_a_policy_in_the_next_step_follows_that_policy(
    tmp_path: Path, database: str
) -> None:
    """New keys come with it, and are for none but those that it admits: no beat is waited for."""

    async def scenario(a: SharedKeyServerDaemon, b: SharedKeyServerDaemon) -> None:
        rewrite(a, MORE)
        ask(a, "reload")
        with b._servers.step():
            assert flows(b) == 2
            assert b.engine.suspended == {1}
        rewrite(a, ONE_MORE)
        rewrite(b, MORE + ONE_MORE)
        ask(a, "reload")
        ask(b, "reload")
        assert flows(b) == 3
        assert not b.engine.suspended
        rewrite(b, '[[group.tek]]\ndestination = "239.192.1.4"\n')
        ask(b, "reload")
        assert b.engine.suspended == {1}

    run(tmp_path, database, scenario)


def test_a_follower_says_why_it_cannot_take_a_policy_up(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, and tries again: its file is the same when what it names is there."""
    monkeypatch.setattr(gcks_shared, "READ_EVERY", 0.5)

    async def scenario(a: SharedKeyServerDaemon, b: SharedKeyServerDaemon) -> None:
        rewrite(a, MORE)
        rewrite(b, MORE, (f'psk = "{PSK}"', 'psk_file = "late.psk"'))
        ask(a, "reload")
        await until(lambda: events(tmp_path, "b", "config-refused"), "b to say so")
        tried = b._try_at
        await until(lambda: b._try_at > tried, "b to try again")
        assert b.engine.suspended == {1}
        secret = tmp_path / "late.psk"
        secret.touch(0o600)
        secret.write_text(PSK)
        await until(lambda: not b.engine.suspended, "b to serve the new policy")

    run(tmp_path, database, scenario)
    (refused,) = events(tmp_path, "b", "config-refused")
    assert "late.psk" in refused["error"]


def test_a_reload_whose_commit_fails(
    tmp_path: Path, database: str, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody says that nothing has changed, for it is taken up as soon as that can be."""

    async def scenario(a: SharedKeyServerDaemon, b: SharedKeyServerDaemon) -> None:
        change = a._change

        def cut(proposal: Proposal, *, replace_old: bool) -> None:
            connection = a._servers.store._connection
            assert connection is not None
            (number,) = connection.exec_driver_sql("SELECT pg_backend_pid()").one()
            with psycopg.connect(postgres.conninfo("postgres"), autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s, 60000)", (number,))
            change(proposal, replace_old=replace_old)

        def in_force() -> bool:
            known = b._servers.policies.in_force["video"]
            return known.fingerprint == a._config.policies["video"]

        # One that is a rekey, and one that is none.
        for more, other in ((MORE, ()), ("", (('["127.0.0.2"]', '["127.0.0.3"]'),))):
            rewrite(a, more, *other)
            monkeypatch.setattr(a, "_change", cut)
            with pytest.raises(CommandFailed, match=r"^nobody knows whether it was saved \(postg"):
                ask(a, "reload")
            monkeypatch.setattr(a, "_change", change)
            await until(in_force, "the new policy to be in force")
            assert flows(a) == flows(b) == 2
            assert b.engine.suspended == {1}
            assert role(a) == "leader"

    run(tmp_path, database, scenario)


def test_who_has_an_older_policy_hands_out_nothing_and_does_not_lead(
    tmp_path: Path, database: str
) -> None:
    """Its file comes to be the group's again only where somebody says so."""

    async def scenario(a: SharedKeyServerDaemon, b: SharedKeyServerDaemon) -> None:
        rewrite(a, MORE)
        await reloaded(a)
        await until(lambda: events(tmp_path, "b", "policy-differs"), "b to find out")
        assert b.engine.suspended == {1}
        a._stop.set()
        await until(lambda: servers(b)["leader"] == "none", "a to be gone")
        # It has looked at a free lease since, at least once.
        looked = b._servers._noted_at
        await until(lambda: b._servers._noted_at > looked, "b to look again")
        assert role(b) == "follower"
        assert flows(b) == 2
        await reloaded(b)
        await until(lambda: role(b) == "leader", "b to lead as it was told to")
        assert not b.engine.suspended
        assert flows(b) == 1

    run(tmp_path, database, scenario)
    (told,) = events(tmp_path, "b", "policy-differs")
    assert "does not lead" in told["hint"]


def test_a_follower_that_is_told_first_waits_for_the_leader(tmp_path: Path, database: str) -> None:
    async def scenario(a: SharedKeyServerDaemon, b: SharedKeyServerDaemon) -> None:
        rewrite(b, MORE)
        shown = ask(b, "reload", **{"dry-run": "yes"})
        assert "not served here: ask the leader, a" in str(shown["steps"])
        assert len(b.engine.groups[1].config.teks) == 1
        await reloaded(b)
        await until(lambda: b.engine.suspended == {1}, "b to hand out nothing of it")
        await until(lambda: events(tmp_path, "a", "policy-differs"), "a to say so")
        assert flows(a) == flows(b) == 1
        rewrite(a, MORE)
        await reloaded(a)
        await until(lambda: not b.engine.suspended and flows(b) == 2, "b to serve it again")
        # It may lead with what it was told, and now that is the group's.
        a._stop.set()
        await until(lambda: role(b) == "leader", "b to lead")

    run(tmp_path, database, scenario)
    (told,) = events(tmp_path, "b", "policy-differs")
    assert told["hint"].endswith("until the leader is told the same")


def test_one_policy_is_none(tmp_path: Path, database: str) -> None:
    async def scenario(a: SharedKeyServerDaemon, b: SharedKeyServerDaemon) -> None:
        await until(lambda: servers(a)["others"] and servers(b)["others"], "each other")

    run(tmp_path, database, scenario)
    assert events(tmp_path, "a", "policy-differs") == events(tmp_path, "b", "policy-differs") == []


def test_no_database_at_the_start(tmp_path: Path, postgres: Postgres, database: str) -> None:
    settings, log = config(tmp_path, database, "a"), Log.open(tmp_path / "a.log", "info")
    postgres.stop()
    try:
        with pytest.raises(StoreError, match=r"^postgresql database gdoi[0-9]+ at "):
            SharedKeyServerDaemon(settings, log, None)
    finally:
        log.close()
        postgres.start()


@pytest.mark.parametrize(("key", "value"), [("lease", '"1s"'), ("lease", '"10m"'), ("name", '""')])
def test_what_is_refused(tmp_path: Path, database: str, key: str, value: str) -> None:
    path = config(tmp_path, database, "a").path
    before = {"lease": 'lease = "30s"', "name": 'name = "a"'}[key]
    write(tmp_path, swap(path.read_text(), before, f"{key} = {value}"), path.name)
    with pytest.raises(ConfigError) as caught:
        KeyServerDaemonConfig(path)
    assert caught.value.key == f"key_server.{key}"
