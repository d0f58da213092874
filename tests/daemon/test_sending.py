"""Many datagrams in one system call: each arrives, and a refused one costs no other."""

from __future__ import annotations

import ctypes
import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from gdoi_plugin.daemon import sending
from gdoi_plugin.daemon.sending import BATCH, Outgoing
from gdoi_plugin.daemon.shell import FEW, Shell
from gdoi_plugin.daemon.udp import UdpSockets
from gdoi_plugin.protocol.actions import Peer, Send
from tests.daemon.test_shell import EVENT, KERNEL, Trial, record
from tests.daemon.test_udp import peer, run

SO_RCVBUFFORCE = 33
PATIENCE = 60.0
# Whoever may send to it has asked for that (SO_BROADCAST): EACCES.
FORBIDDEN = Peer(ip_address("255.255.255.255"), 848)


@contextmanager
def receivers(*hosts: str) -> Iterator[list[tuple[socket.socket, Peer]]]:
    """One for each address, with room for thousands."""
    opened = []
    try:
        for host in hosts:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_DGRAM)
            sock.settimeout(PATIENCE)
            try:
                sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
            except PermissionError:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
            sock.bind((host, 0))
            opened.append((sock, Peer(ip_address(host), sock.getsockname()[1])))
        yield opened
    finally:
        for sock, _ in opened:
            sock.close()


def waiting(sock: socket.socket) -> list[bytes]:
    """What has arrived on loopback, where nothing is under way once it has been sent."""
    found = []
    sock.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            found.append(sock.recv(2048))
    return found


def sender(host: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    return sock


@pytest.mark.parametrize(
    ("here", "there"),
    [("127.0.0.1", ("127.0.0.2", "127.0.0.3", "127.3.2.1")), ("::1", ("::1", "::1", "::1"))],
)
def test_each_datagram_goes_to_its_own_endpoint(here: str, there: tuple[str, ...]) -> None:
    """Lengths, ports and addresses that change from one to the next, three batches of them."""
    with receivers(*there) as places, sender(here) as sock:
        table = Outgoing(sock.family)
        sent: dict[Peer, list[bytes]] = {place: [] for _, place in places}
        for turn in range(3):
            datagrams, to = [], []
            for n in range(BATCH - 24 * turn):
                _, place = places[(n * n + turn) % 3]
                datagrams.append(b"%d %d" % (turn, n) + bytes(n % 7))
                to.append(place)
                sent[place].append(datagrams[-1])
            assert table.send(sock, datagrams, to) == []
        assert all(sent.values())
        assert {place: waiting(receiver) for receiver, place in places} == sent


def test_a_refused_datagram_costs_no_other() -> None:
    with receivers("127.0.0.2") as [(receiver, place)], sender("127.0.0.1") as sock:
        to = [FORBIDDEN if n in (0, 5, 6, 19) else place for n in range(20)]
        failed = Outgoing(sock.family).send(sock, [b"%d" % n for n in range(20)], to)
        assert [number for number, _ in failed] == [0, 5, 6, 19]
        assert {error.errno for _, error in failed} == {errno.EACCES}
        left = [n for n in range(20) if n not in (0, 5, 6, 19)]
        assert waiting(receiver) == [b"%d" % n for n in left]


def test_a_full_send_buffer_is_waited_for_once_until_something_moves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel takes one, has no room for the next two, and takes what is left."""
    answers = iter([1, errno.EAGAIN, errno.EAGAIN, errno.EAGAIN, 2])

    def full(*_: object) -> int:
        answer = next(answers)
        if answer == errno.EAGAIN:
            ctypes.set_errno(answer)
            return -1
        return answer

    monkeypatch.setattr(sending, "_sendmmsg", full)
    with sender("127.0.0.1") as sock:
        failed = Outgoing(sock.family).send(sock, [b"x"] * 5, [peer("127.0.0.2", 9)] * 5)
    assert [(place, error.errno) for place, error in failed] == [
        (1, errno.EAGAIN),
        (2, errno.EAGAIN),
    ]
    assert list(answers) == [], "asked twice about the second alone"


def test_sockets_of_several_endpoints_send_in_order() -> None:
    """One of them of NAT traversal, whose datagrams have a marker; one that nobody has bound."""
    plain, marked, none = peer("127.0.0.1"), peer("127.0.0.5"), peer("127.0.0.6")

    async def scenario(one: UdpSockets, *_: object) -> None:
        one.bind(plain, None)
        one.bind_encapsulated(marked)
        with receivers("127.0.0.2") as [(receiver, place)]:
            push = b"push"
            sends = [Send(push, place, plain)] * 3 + [Send(push, place, marked)] * 2
            sends += [Send(push, place, none), Send(b"last", place, plain)]
            assert [send for send, _ in one.send_many(sends)] == [sends[5]]
            framed = bytes(4) + push
            assert waiting(receiver) == [push, push, push, framed, framed, b"last"]

    run(scenario)


class _Telling(Trial):
    """With the shell's own sending."""

    _send = Shell._send

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.gone: list[Send] = []

    def left(self, send: Send) -> None:
        self.gone.append(send)


@pytest.mark.parametrize("number", [FEW - 1, FEW, 3 * BATCH])
def test_a_shell_tells_of_those_that_left(tmp_path: Path, number: int) -> None:
    """After what comes before, in order; a refused datagram has nothing to tell, and is logged."""
    local = peer("127.0.0.1")

    async def scenario(*_: object) -> None:
        trial = _Telling(tmp_path)
        trial.sockets.bind(local, None)
        with receivers("127.0.0.2") as [(receiver, place)]:
            to = [FORBIDDEN if n == 2 else place for n in range(number)]
            told = [EVENT if n % 2 else None for n in range(number)]
            sends = [Send(b"%d" % n, to[n], local, told[n]) for n in range(number)]
            more = Send(b"more", place, local, EVENT)
            assert trial.perform([EVENT, *sends, KERNEL, more]) == [KERNEL]
            assert waiting(receiver) == [b"%d" % n for n in range(number) if n != 2] + [b"more"]
        assert trial.gone == [*sends[1::2], more]
        assert trial.done == ["told"] * (len(trial.gone) + 1)
        (line,) = trial.logged("send-failed")
        assert line["to"] == str(FORBIDDEN)
        trial.sockets.close()

    run(scenario)


def test_nothing_of_a_run_is_sent_or_told_where_the_store_fails(tmp_path: Path) -> None:
    trial = _Telling(tmp_path)
    trial._begun, trial.broken = True, "/s: disk full"
    sends = [Send(b"x", FORBIDDEN, FORBIDDEN, EVENT)] * (2 * FEW)
    assert trial.perform([record(1), *sends]) == []
    assert (trial.done, trial.logged("send-failed")) == ([], [])
