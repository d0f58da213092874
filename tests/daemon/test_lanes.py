"""Several sockets on one port: the kernel sorts, and a flood of one kind fills one buffer."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path

import pytest

from gdoi_plugin.daemon.lanes import Lane
from gdoi_plugin.daemon.udp import UdpSockets
from gdoi_plugin.wire.header import NO_COOKIE, Header
from gdoi_plugin.wire.registry import ExchangeType
from tests.daemon.test_udp import TAKEN, Heard, peer, run, until, why_not

COOKIE = b"\1" * 8


def message(exchange: ExchangeType, cky_r: bytes = COOKIE) -> bytes:
    return Header(COOKIE, cky_r, 0, exchange).encode()


SORTED = {
    Lane.PHASE_2: [
        message(ExchangeType.GROUPKEY_PULL),
        message(ExchangeType.GROUPKEY_PULL, NO_COOKIE),
        message(ExchangeType.INFORMATIONAL),
        b"",
        b"too short",
    ],
    Lane.ACK: [message(ExchangeType.GROUPKEY_PUSH_ACK)],
    Lane.PHASE_1: [
        message(ExchangeType.MAIN_MODE),
        message(ExchangeType.MAIN_MODE, b"\0\0\0\0\0\0\0\1"),
        message(ExchangeType.MAIN_MODE, b"\1\0\0\0\0\0\0\0"),
    ],
    Lane.FIRST: [message(ExchangeType.MAIN_MODE, NO_COOKIE)],
}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("marker", [b"", bytes(4)], ids=["848", "4500"])
def test_the_kernel_sorts(host: str, marker: bytes) -> None:
    local = peer(host)

    async def scenario(_one: UdpSockets, two: UdpSockets, heard: Heard) -> None:
        if marker:
            two.bind_encapsulated(local)
        else:
            two.bind(local, "lo")
        assert two.separate(local) is None
        lanes = [two._sockets[local], *two._lanes[local]]
        assert len(lanes) == len(Lane)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            for lane, messages in SORTED.items():
                for datagram in messages:
                    sender.sendto(marker + datagram, (host, local.port))
                # Nobody has read yet: this turn of the loop is ours.
                assert [sock.recv(1000) for sock in [lanes[lane]] for _ in messages] == [
                    marker + datagram for datagram in messages
                ]
                for datagram in messages:
                    sender.sendto(marker + datagram, (host, local.port))
        expected = [datagram for messages in SORTED.values() for datagram in messages]
        await until(lambda: len(heard) == len(expected))
        assert sorted(datagram for datagram, _, _ in heard) == sorted(expected)
        assert {arrived for _, _, arrived in heard} == {local}

    run(scenario)


def drops(port: int) -> list[int]:
    lines = Path("/proc/net/udp").read_text().splitlines()[1:]
    return sorted(
        int(line.split()[-1]) for line in lines if f":{port:04X} " in line.split()[1] + " "
    )


def test_a_flood_of_first_messages_pushes_out_nothing_else() -> None:
    local = peer("127.0.0.1")
    kept = [messages[0] for lane, messages in SORTED.items() if lane is not Lane.FIRST]

    async def scenario(_one: UdpSockets, two: UdpSockets, heard: Heard) -> None:
        two.bind(local, "lo")
        two.separate(local)
        flood = SORTED[Lane.FIRST][0] + bytes(1400)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(10_000):
                sender.sendto(flood, ("127.0.0.1", local.port))
            for datagram in kept:
                sender.sendto(datagram, ("127.0.0.1", local.port))
        assert [bool(count) for count in drops(local.port)] == [False, False, False, True]
        await until(lambda: {datagram for datagram, _, _ in heard} >= set(kept))

    run(scenario)


def test_a_port_that_another_has_is_not_shared() -> None:
    """Not even with somebody who would share it: we bind alone, and only then divide."""
    local = peer("127.0.0.1")
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", local.port))
        assert why_not(local) == f"cannot bind UDP {local}: {TAKEN}"

    async def scenario(one: UdpSockets, _two: UdpSockets, _heard: Heard) -> None:
        one.bind(local, "lo")
        assert one.separate(local) is None
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as second,
            pytest.raises(OSError, match="Address already in use"),
        ):
            second.bind(("127.0.0.1", local.port))

    run(scenario)


def test_where_the_kernel_does_not_sort_one_socket_hears_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A filter that it refuses: a jump out of the program."""
    monkeypatch.setattr("gdoi_plugin.daemon.udp.program", lambda **_: b"\x15\0\x63\x63" + bytes(4))
    first, local = peer("127.0.0.1"), peer("127.0.0.2")

    async def scenario(one: UdpSockets, two: UdpSockets, heard: Heard) -> None:
        one.bind(first, "lo")
        two.bind(local, "lo")
        warning = two.separate(local)
        assert warning is not None
        assert f"UDP {local} has one receive buffer for all messages" in warning
        for messages in SORTED.values():
            one.send(messages[0], local, first)
        await until(lambda: len(heard) == len(SORTED))

    run(scenario)
