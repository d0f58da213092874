"""What the key server's commands answer about groups of any size."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gdoi_plugin.daemon import gcks_commands
from gdoi_plugin.daemon.gcks_commands import KeyServerCommands
from tests.support.simnet import Network
from tests.support.worlds import World, build, group_config

MEMBERS = 5


@pytest.fixture
def world() -> World:
    made = build(Network(1), MEMBERS, group=group_config(MEMBERS))
    made.start()
    made.network.run(5)
    made.rekey()
    made.network.run(1)  # some have acknowledged by now
    return made


def commands(world: World) -> KeyServerCommands:
    shell: Any = SimpleNamespace(
        time_of_day=lambda moment: moment,
        clock=SimpleNamespace(now=lambda: world.now),
        store_failure=None,
    )
    nothing: Any = None
    return KeyServerCommands(shell, world.server.engine, lambda _actions: None, nothing, dict)


def page(world: World) -> dict[str, Any]:
    return dict(list(commands(world).list_rekeys({}))[-1])


def test_a_small_rekey_names_everybody(world: World) -> None:
    world.network.run(60)
    shown = page(world)
    assert shown["acknowledged"] == str(MEMBERS)
    assert len(shown["acknowledged-by"]) == MEMBERS
    assert (shown.get("missing", []), shown["missing-members"]) == ([], "0")


def test_a_rekey_of_more_than_a_message_holds_is_counted_and_partly_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcks_commands, "MAX_NAMED", 2)
    for host in world.members:
        host.crash()
    world.rekey()
    world.network.run(120)
    shown = page(world)
    assert "acknowledged-by" not in shown
    assert shown["missing-members"] == str(MEMBERS)
    assert len(shown["missing"]) == 2


def test_revoke_tells_how_many_were_registered(world: World) -> None:
    name = world.group.config.name
    known = str(next(iter(world.group.members)))
    for identity, registered in ((known, "1"), ("mistyped.example.org", "0")):
        told = commands(world).revoke({"group": name, "identities": [identity]})
        assert (told["revoked"], told["registered"]) == ("1", registered)
        assert identity in told["denied"]
        assert told["epoch"] == str(world.group.epoch)
