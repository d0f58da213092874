"""Acknowledgements on their way through a daemon: socket, judgement, thread, database, events."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from gdoi_bench.acking import acks_of, daemon_in, enrol, running, until

from gdoi_plugin.daemon import acks
from gdoi_plugin.daemon.gcks import KeyServerDaemon
from gdoi_plugin.daemon.lanes import Lane
from gdoi_plugin.daemon.many import ManyReader, dropped, make_room
from gdoi_plugin.daemon.udp import LONGEST_ACK, UdpSockets
from gdoi_plugin.protocol.actions import Peer
from gdoi_plugin.protocol.group import Group
from gdoi_plugin.protocol.page import Rekey
from gdoi_plugin.protocol.roster import peer_of
from tests.daemon.test_udp import peer

MEMBERS = 60
Sent = Sequence[tuple[IPv4Address, bytes]]
Scenario = Callable[[KeyServerDaemon, Group], Awaitable[None]]


def during(folder: Path, scenario: Scenario, members: int = MEMBERS, **lines: str) -> None:
    """A daemon with members, until the scenario is over."""

    async def main() -> None:
        daemon = daemon_in(folder, **lines)
        async with running(daemon) as group:
            if not group.members:
                enrol(daemon, members, port=7848)
            await scenario(daemon, group)

    asyncio.run(main())


def logged(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / "gcks.log").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == name]


def rekeyed(daemon: KeyServerDaemon, group: Group) -> tuple[Rekey, Sent]:
    daemon.commands.rekey({"group": "many"})
    rekey = group.ledger[group.epoch]
    return rekey, list(acks_of(group, rekey))


def send(daemon: KeyServerDaemon, sent: Sent) -> None:
    (local,) = daemon.sockets.open
    for host, datagram in sent:
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            sock.bind((str(host), 7848))
            sock.sendto(datagram, (str(local.host), local.port))


def test_counted_when_saved_and_known_after_a_restart(tmp_path: Path) -> None:
    async def scenario(daemon: KeyServerDaemon, group: Group) -> None:
        rekey, sent = rekeyed(daemon, group)
        send(daemon, sent[:-1])
        await until(lambda: len(rekey.acknowledged) == MEMBERS - 1)
        assert not rekey.closed
        send(daemon, sent)
        await until(lambda: rekey.closed)
        assert daemon.log.drops["ack-duplicate"] == MEMBERS - 1
        assert all(member.acknowledged == 1 for member in group.members.values())

    async def afterwards(_: KeyServerDaemon, group: Group) -> None:
        (rekey,) = group.ledger.values()
        assert len(rekey.acknowledged) == MEMBERS
        assert all(member.acknowledged == 1 for member in group.members.values())

    during(tmp_path, scenario)
    during(tmp_path, afterwards)
    counted = sum(entry["count"] for entry in logged(tmp_path, "rekey-acks"))
    assert counted + len(logged(tmp_path, "rekey-acked")) == MEMBERS
    (closed,) = logged(tmp_path, "rekey-closed")
    assert closed["acknowledged"] == MEMBERS


def test_nobody_is_told_of_what_cannot_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is gone; when it is back, what was heard meanwhile is saved, and told of then."""
    monkeypatch.setattr(acks, "RETRY", 0.05)
    state, aside = tmp_path / "gcks.sqlite", tmp_path / "aside"

    async def scenario(daemon: KeyServerDaemon, group: Group) -> None:
        rekey, sent = rekeyed(daemon, group)
        state.rename(aside)
        send(daemon, sent)
        await until(lambda: daemon.acks.failure is not None)
        assert len(rekey.acknowledged) == 0
        assert not rekey.closed
        assert logged(tmp_path, "rekey-acked") + logged(tmp_path, "rekey-acks") == []
        aside.rename(state)
        await until(lambda: rekey.closed)
        assert len(rekey.acknowledged) == MEMBERS

    during(tmp_path, scenario)
    failed = [e for e in logged(tmp_path, "store-failed") if e.get("what") == "acknowledgements"]
    assert len(failed) == 1, "once, however often it is tried again"
    assert str(state) in failed[0]["error"]
    assert len(logged(tmp_path, "store-recovered")) >= 1


def test_what_was_heard_before_a_tick_or_a_stop_is_saved_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acks, "GATHER", 3600.0)

    async def scenario(daemon: KeyServerDaemon, group: Group) -> None:
        first, sent = rekeyed(daemon, group)
        send(daemon, sent)
        await until(lambda: daemon.engine.ledger.has_unsaved)
        await until(lambda: sum(daemon.engine.ledger.gate.page(group, first).heard) == MEMBERS)
        assert len(first.acknowledged) == 0
        daemon.tick(first.deadline + 1)
        assert len(first.acknowledged) == MEMBERS
        assert first.missing == set()
        second, sent = rekeyed(daemon, group)
        send(daemon, sent)
        await until(lambda: sum(daemon.engine.ledger.gate.page(group, second).heard) == MEMBERS)

    async def afterwards(_: KeyServerDaemon, group: Group) -> None:
        assert [len(rekey.acknowledged) for rekey in group.ledger.values()] == [MEMBERS] * 2

    during(tmp_path, scenario)
    during(tmp_path, afterwards)


def test_refused_ones_are_counted_by_reason(tmp_path: Path) -> None:
    async def scenario(daemon: KeyServerDaemon, group: Group) -> None:
        rekey, sent = rekeyed(daemon, group)
        bad = [(host, datagram[:40] + b"\0" * 8 + datagram[48:]) for host, datagram in sent]
        unknown = [(host, b"\1" * 16 + datagram[16:]) for host, datagram in sent]
        send(daemon, [*bad, *unknown, *sent])
        await until(lambda: rekey.closed)
        assert daemon.log.drops["ack-bad-hash"] == MEMBERS
        assert daemon.log.drops["ack-unknown-spi"] == MEMBERS
        stats = daemon.commands.stats({})
        assert stats["acks"]["dropped"] == "0"  # type: ignore[call-overload, index]

    during(tmp_path, scenario)
    lines = [entry["reason"] for entry in logged(tmp_path, "dropped")]
    assert 0 < lines.count("ack-bad-hash") <= 2 * 11, "some of them, with an address each"


def test_a_bug_in_the_judgement_costs_one_datagram(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(daemon: KeyServerDaemon, group: Group) -> None:
        rekey, sent = rekeyed(daemon, group)

        def broken(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(type(daemon.engine.ledger.gate), "judge", broken)
        send(daemon, sent)
        await until(lambda: rekey.closed)
        assert len(rekey.acknowledged) == MEMBERS
        assert daemon.log.drops["bug"] > 0

    during(tmp_path, scenario)


# -- room ----------------------------------------------------------------------------------------


def ack_socket(daemon: KeyServerDaemon) -> socket.socket:
    (lanes,) = daemon.sockets._lanes.values()
    return lanes[Lane.ACK - 1]


def test_the_buffer_grows_with_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acks, "ROOM", 1 << 18)

    async def scenario(daemon: KeyServerDaemon, group: Group) -> None:
        rekeyed(daemon, group)
        held = ack_socket(daemon).getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        small = logged(tmp_path, "ack-buffer-small")
        assert held >= MEMBERS << 18 or small[0]["granted"] == held

    during(tmp_path, scenario)


def test_a_kernel_that_gives_less_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acks, "ROOM", 1 << 31)  # no kernel gives a socket as much

    async def scenario(daemon: KeyServerDaemon, group: Group) -> None:
        rekeyed(daemon, group)
        rekeyed(daemon, group)

    during(tmp_path, scenario, members=1)
    (told,) = logged(tmp_path, "ack-buffer-small")
    assert told["level"] == "warning"
    assert told["wanted"] > told["granted"]


def test_what_the_kernel_drops_is_counted(tmp_path: Path) -> None:
    async def scenario(daemon: KeyServerDaemon, group: Group) -> None:
        rekey, sent = rekeyed(daemon, group)
        make_room(ack_socket(daemon), 2048)
        send(daemon, sent)  # and nobody reads meanwhile: this turn of the loop is ours
        lost = dropped(ack_socket(daemon))
        assert 0 < lost < MEMBERS
        await until(lambda: len(rekey.acknowledged) == MEMBERS - lost)
        assert daemon.acks.facts()["dropped"] == lost
        send(daemon, sent[: MEMBERS // 10])
        make_room(ack_socket(daemon), 1 << 20)
        send(daemon, sent)
        await until(lambda: rekey.closed)

    during(tmp_path, scenario)
    assert sum(entry["count"] for entry in logged(tmp_path, "acks-dropped")) > 0


# -- many for one call ---------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_many_datagrams_and_their_endpoints(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        closing(socket.socket(family, socket.SOCK_DGRAM)) as reading,
        closing(socket.socket(family, socket.SOCK_DGRAM)) as one,
        closing(socket.socket(family, socket.SOCK_DGRAM)) as other,
    ):
        for sock in (reading, one, other):
            sock.bind((host, 0))
        reader = ManyReader(reading, 4, 100)
        assert reader.take() == ((), ())
        said = [b"a" * 84, b"b" * 96, b"", b"c" * 300, b"d", b"e", b"f"]
        for n, datagram in enumerate(said):
            (one, other)[n % 2].sendto(datagram, reading.getsockname())
        heard, endpoints = list[bytes](), list[bytes]()
        while (taken := reader.take())[0]:
            assert len(taken[0]) == len(taken[1]) <= 4
            heard += taken[0]
            endpoints += taken[1]
        assert heard == [datagram[:100] for datagram in said]
        ports = [sock.getsockname()[1] for sock in (one, other)]
        assert [str(peer_of(each).host) for each in endpoints] == [host] * len(said)
        assert [peer_of(each).port for each in endpoints] == [
            ports[n % 2] for n in range(len(said))
        ]


def test_behind_the_marker_of_nat_traversal() -> None:
    local = peer("127.0.0.1")
    header = b"\1" * 16 + b"\x08\x10\x23\0"
    taken: list[bytes] = []
    refused: list[tuple[Peer, str]] = []

    def take(datagrams: Sequence[bytes], endpoints: Sequence[bytes], at: Peer) -> None:
        assert at == local
        assert len(endpoints) == len(datagrams)
        taken.extend(datagrams)

    async def main() -> None:
        sockets = UdpSockets(lambda *_: None, lambda *what: refused.append(what))
        sockets.bind_encapsulated(local)
        assert sockets.separate(local, None, take) is None
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
            for marker in (bytes(4), b"\0\0\0\1", bytes(4)):
                sender.sendto(marker + header + bytes(LONGEST_ACK), (str(local.host), local.port))
            await until(lambda: len(taken) == 2 and len(refused) == 1)
        sockets.close()

    asyncio.run(main())
    assert taken == [(header + bytes(LONGEST_ACK))[: LONGEST_ACK - 4]] * 2
