"""Two key servers with one database, and peers that are to come inside ESP: each has a kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
from gdoi_xfrm import Direction, PolicyAction, Xfrm

from gdoi_plugin.daemon import gcks_shared
from gdoi_plugin.daemon.control import CommandFailed
from gdoi_plugin.daemon.gcks_shared import SharedKeyServerDaemon
from tests.daemon.configs import GCKS, swap
from tests.daemon.shared import test_daemon
from tests.daemon.shared.test_daemon import ask, events, reloaded, role, run, servers, until
from tests.kernel.conftest import namespace, xfrm

__all__ = ["namespace", "xfrm"]

CLEAR = 'address = "127.0.0.0/8"\n'
INSIDE = CLEAR + 'channel = "ike"\n'


def blocked(xfrm: Xfrm, daemon: SharedKeyServerDaemon) -> list[str]:
    """Whose datagrams to this one's port are."""
    return [
        str(p.selector.source)
        for p in xfrm.dump_policies()
        if p.selector.destination_port == daemon._config.local.port
        and (p.direction, p.action) == (Direction.IN, PolicyAction.BLOCK)
    ]


def edit(daemon: SharedKeyServerDaemon, old: str, new: str) -> None:
    path = daemon._config.path
    path.write_text(swap(path.read_text(), old, new))


def test_whoever_leads_each_blocks_what_its_file_says(
    xfrm: Xfrm, tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its start, and after it has been told to read its file again."""
    monkeypatch.setattr(test_daemon, "GCKS", swap(GCKS, CLEAR, INSIDE))

    async def scenario(a: SharedKeyServerDaemon, b: SharedKeyServerDaemon) -> None:
        assert (role(a), role(b)) == ("leader", "follower")
        assert blocked(xfrm, a) == blocked(xfrm, b) == ["127.0.0.0/8"]
        for daemon, other in ((b, a), (a, b)):
            edit(daemon, INSIDE, CLEAR)
            before = blocked(xfrm, other)
            await reloaded(daemon)
            assert blocked(xfrm, daemon) == []
            assert blocked(xfrm, other) == before
        for daemon in (b, a):
            edit(daemon, CLEAR, INSIDE)
            await reloaded(daemon)
            assert blocked(xfrm, daemon) == ["127.0.0.0/8"]
        await until(lambda: servers(b)["leader"] == "a", "a to lead still")
        assert role(b) == "follower"

    run(tmp_path, database, scenario)
    assert [len(events(tmp_path, name, "config-reloaded")) for name in "ab"] == [2, 2]


def test_what_cannot_be_taken_up_opens_nothing(
    xfrm: Xfrm, tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_daemon, "GCKS", swap(GCKS, CLEAR, INSIDE))
    seen: list[list[str]] = []

    async def scenario(_: SharedKeyServerDaemon, b: SharedKeyServerDaemon) -> None:
        def adopt(*_: object) -> None:
            seen.append(blocked(xfrm, b))
            raise ValueError("a row of another version")

        monkeypatch.setattr(gcks_shared, "adopt", adopt)
        edit(b, INSIDE, CLEAR)
        with pytest.raises(CommandFailed, match="cannot be read"):
            ask(b, "reload")
        assert blocked(xfrm, b) == ["127.0.0.0/8"]

    run(tmp_path, database, scenario)
    assert seen == [["127.0.0.0/8"]]
