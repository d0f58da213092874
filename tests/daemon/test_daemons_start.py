"""Why a daemon does not start, or starts without something; the kernel is a stand-in."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import socket
import sqlite3
from contextlib import closing
from typing import Any

import pytest
from gdoi_xfrm import KernelError

from gdoi_plugin.daemon import gm
from gdoi_plugin.daemon.config_member import MemberDaemonConfig
from gdoi_plugin.daemon.errors import StartError, StoreError
from gdoi_plugin.daemon.gcks import KeyServerDaemon
from gdoi_plugin.daemon.gm import LOOK_AGAIN, MemberDaemon
from gdoi_plugin.daemon.log import Log
from tests.daemon.test_daemons import FakeXfrm, Pair, together, until
from tests.daemon.test_daemons import pair as pair


def start(pair: Pair) -> str:
    """Why the key server does not start."""

    async def main() -> str:
        daemon = pair.server()
        with pytest.raises((StoreError, StartError)) as caught:
            await daemon.run()
        return str(caught.value)

    return asyncio.run(main())


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": None},
        {"epoch": "x"},
        {"keks": None},
        {"keks": []},
        {"keks": [1]},
        {"keks": [{}]},
        {"keks": {"kek": 1}},
        {"teks": [{"tek": {}}]},
        {"teks": "x"},
        {"group": 1, "all": True},
        [],
        "text",
        None,
    ],
)
def test_a_saved_group_that_is_none(pair: Pair, change: Any) -> None:
    """A key server must not start over with a SEQ that has been used: one sentence, and no more."""

    async def once() -> None:
        daemon = pair.server()
        running = asyncio.ensure_future(daemon.run())
        await until(lambda: pair.server_log.read_text().count("started"), "started")
        daemon._stop.set()
        await running

    asyncio.run(once())
    with closing(sqlite3.connect(pair.state)) as other:
        (text,) = other.execute("SELECT record FROM groups").fetchone()
        record = json.loads(text)
        changed = {**record, **change} if isinstance(change, dict) else change
        if isinstance(change, dict) and "all" in change:
            changed = {"group": 1}
        other.execute("UPDATE groups SET record = ?", (json.dumps(changed).encode(),))
        other.commit()
    said = start(pair)
    assert said.startswith(
        f"{pair.state}: "
        + ("a saved group cannot be read: " if isinstance(change, dict) else "table groups, group ")
    )
    for kek in record["keks"]:
        assert kek["kek"]["key"] not in said


def test_a_kernel_that_cannot(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gm, "probe", lambda **_: KernelError(errno.EPROTONOSUPPORT, "add SA"))

    async def main() -> None:
        with pytest.raises(StartError, match="this kernel cannot hold the group's ESP SAs: add SA"):
            await pair.member().run()

    asyncio.run(main())
    assert FakeXfrm.closed == 1


def test_no_netlink_at_all(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_: object) -> None:
        raise KernelError(errno.EPROTONOSUPPORT, "NETLINK_XFRM socket")

    monkeypatch.setattr(gm, "OwnTables", no_socket)
    log = Log(io.StringIO())
    with pytest.raises(StartError, match="NETLINK_XFRM socket: Protocol not supported"):
        MemberDaemon(MemberDaemonConfig(pair.gm), log, None)


def test_a_group_that_cannot_be_joined_is_told_once(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_interface(_: str) -> int:
        raise OSError(errno.ENODEV, "no interface with this name")

    async def scenario(_: KeyServerDaemon, member: MemberDaemon) -> None:
        with monkeypatch.context() as failing:
            failing.setattr(socket, "if_nametoindex", no_interface)
            for peer in member.sockets.open:
                if peer.host.is_multicast:
                    member.sockets.leave(peer)
            for _attempt in range(20):
                member._listen()
            told = [line["address"] for line in pair.logged("join-failed")]
            assert told == ["239.192.77.9 on lo", f"239.192.77.9:{pair.ports[2]}"]
            deadline = member.deadline()
            assert deadline is not None
            assert deadline <= member.clock.now() + LOOK_AGAIN
        member.tick(deadline)
        assert any(peer.host.is_multicast for peer in member.sockets.open)
        assert len(pair.logged("joined")) == 2

    together(pair, scenario)
