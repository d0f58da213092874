"""Acknowledgements read and verified, beside the same in C; refused ones beside good ones.

The receive buffer is full when the clock starts, and the clock is the processor's of this process:
it counts neither who sends nor what else the machine does. Needs CAP_NET_ADMIN for the buffer.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory

from gdoi_bench import ack_beside
from gdoi_bench.acking import acks_of, daemon_in, enrol, packed, running
from gdoi_bench.bound import Bound, compiled
from gdoi_bench.figure import Figure
from gdoi_bench.in_c import RECEIVER, drained
from gdoi_plugin.daemon.acks import PREPARED, ROOM
from gdoi_plugin.daemon.many import ManyReader, dropped, make_room
from gdoi_plugin.daemon.udp import BURST, LONGEST_ACK
from gdoi_plugin.protocol.ack_gate import AckGate
from gdoi_plugin.protocol.actions import Drop, Peer
from gdoi_plugin.protocol.group import Group
from gdoi_plugin.protocol.roster import endpoint_octets

MEMBERS, ROUNDS, PORT = 100_000, 5, 7848
HMAC_GOAL, EXPECTED_GOAL = 0.45, 0.75


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--members", type=int, default=MEMBERS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """Raises BoundError."""
    with TemporaryDirectory(prefix="gdoi-bench-") as folder, compiled("ack", "crypto") as bound:
        here = asyncio.run(_measure(Path(folder), bound, arguments.members, arguments.rounds))
        beside = Path(folder) / "beside"
        beside.mkdir()
        return here + asyncio.run(
            ack_beside.measure(beside, bound, arguments.members, PORT, arguments.rounds)
        )


async def _measure(folder: Path, bound: Bound, members: int, rounds: int) -> list[Figure]:
    daemon = daemon_in(folder)
    async with running(daemon) as group:
        enrol(daemon, members, PORT)
        daemon.commands.rekey({"group": "many"})
        path = folder / "acks"
        acks = list(acks_of(group, group.ledger[group.epoch]))
        path.write_bytes(packed(acks))
        in_c, hmac, expected, prepared = [], [], [], []
        for _ in range(rounds):
            in_c.append(drained(bound, path, group, group.ledger[group.epoch]))
            hmac.append(_read(AckGate(daemon.engine.groups), bound, path, members))
            gate = AckGate(daemon.engine.groups)
            began = time.process_time()
            while gate.prepare(PREPARED):
                pass
            prepared.append(1e6 * (time.process_time() - began) / members)
            expected.append(_read(gate, bound, path, members))
        refused = _refused(daemon.engine.groups, acks, rounds)
    best, judged = statistics.median(in_c), refused[0].value / 1000
    return [
        Figure(
            f"{members:,} ACKs read and verified by HMAC; bound: C, recvmmsg and HMAC",
            statistics.median(hmac),
            "ACK/s",
            HMAC_GOAL * best,
            best,
            at_least=True,
            why=f"Python takes {judged:.1f} us to judge one, C {1e6 / best:.1f} to do it all",
        ),
        Figure(
            f"{members:,} ACKs read and looked up among those expected; bound: the same",
            statistics.median(expected),
            "ACK/s",
            EXPECTED_GOAL * best,
            best,
            at_least=True,
            why="Python: objects of so many members and ACKs lie apart, and the processor waits",
        ),
        Figure("an expected ACK computed before it comes", statistics.median(prepared), "us"),
        *refused,
    ]


def _read(gate: AckGate, bound: Bound, path: Path, members: int) -> float:
    """ACKs per second of this processor, every one of them counted."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.bind((RECEIVER, 0))
        make_room(sock, ROOM * members // 2)
        bound.run("send", RECEIVER, sock.getsockname()[1], PORT, path, 0)
        reader = ManyReader(sock, BURST, LONGEST_ACK)
        began = time.process_time()
        while True:
            datagrams, endpoints = reader.take()
            if not datagrams:
                break
            gate.judge(datagrams, endpoints, 0.0)
        taken = time.process_time() - began
        counted = sum(len(page.fresh) for page in gate.pages.values())
        if counted != members:
            raise AssertionError(f"{counted} of {members} counted, {dropped(sock)} dropped")
    return members / taken


def _refused(
    groups: Mapping[int, Group], acks: Sequence[tuple[IPv4Address, bytes]], rounds: int
) -> list[Figure]:
    """Nanoseconds of a judgement that says no, beside one that says yes."""
    some = [datagram for _, datagram in acks[: 100 * BURST]]
    peers = [endpoint_octets(Peer(host, PORT)) for host, _ in acks[: 100 * BURST]]
    kinds = {
        Drop.MALFORMED: [d[:24] + b"\0\0\0\x20" + d[28:] for d in some],
        Drop.ACK_UNKNOWN_SPI: [b"\1" * 16 + d[16:] for d in some],
        Drop.ACK_MALFORMED: [d[:77] + b"\x11" + d[78:] for d in some],
        Drop.ACK_UNKNOWN_MEMBER: [d[:80] + b"\xc0" + d[81:] for d in some],
        Drop.ACK_UNKNOWN_SEQ: [d[:68] + b"\1" + d[69:] for d in some],
        Drop.ACK_BAD_HASH: [d[:32] + bytes(32) + d[64:] for d in some],
        Drop.ACK_DUPLICATE: some,
    }
    good: list[float] = []
    bad: dict[Drop, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, datagrams in kinds.items():
            gate = AckGate(groups)
            if kind is Drop.ACK_DUPLICATE:
                good.append(_judged(gate, datagrams, peers, None))
            bad[kind].append(_judged(gate, datagrams, peers, kind))
    bound = statistics.median(good)
    figures = [
        Figure(
            f"refused: {kind}; bound: a good one",
            statistics.median(taken),
            "ns",
            bound,
            bound,
            why="it takes the same HMAC, and is put down to be known again",
        )
        for kind, taken in bad.items()
    ]
    return [Figure("judgement of a good ACK by HMAC", bound, "ns"), *figures]


def _judged(
    gate: AckGate, datagrams: Sequence[bytes], peers: Sequence[bytes], kind: Drop | None
) -> float:
    refused = 0
    began = time.process_time()
    for start in range(0, len(datagrams), BURST):
        end = start + BURST
        verdicts = gate.judge(datagrams[start:end], peers[start:end], 0.0)
        refused += sum(len(places) for places in verdicts.refused.values())
        if verdicts.undecided or (kind is not None and kind not in verdicts.refused):
            raise AssertionError(f"{verdicts.refused.keys()} and not {kind}")
    taken = time.process_time() - began
    if refused != (0 if kind is None else len(datagrams)):
        raise AssertionError(f"{refused} of {len(datagrams)} were refused as {kind}")
    return 1e9 * taken / len(datagrams)
