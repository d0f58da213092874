"""PUSHes: signed and built, and one rekey sent to 100,000 members by unicast.

A PUSH of 1.2 KB stands beside one signature and one encryption by OpenSSL (tests/bench/push.c). The
fan-out goes through the key server's own shell and sockets, to addresses of the loopback network
where one socket receives for all of them and its buffer is full; it stands beside a loop around
sendmmsg(2) in C, to the same addresses (tests/bench/fanout.c). Rates are of the processor's time,
so that what else runs on the machine does not count; medians of rounds of both in turns.

The goal, 0.9 of C, is not met: it leaves a third of a microsecond for a datagram, and to find the
address objects of 100,000 members in memory and make numbers of them takes twice that. A rekey is
sent at a pace that is a hundredth of what is reached.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from ipaddress import IPv4Address

from gdoi_bench.bound import Bound, compiled
from gdoi_bench.figure import Figure, processor_time
from gdoi_bench.messages import keys_content, make_kek
from gdoi_plugin.crypto.signature import SCHEMES, generate
from gdoi_plugin.daemon.control import ControlServer
from gdoi_plugin.daemon.log import Log
from gdoi_plugin.daemon.shell import Shell
from gdoi_plugin.protocol.actions import Peer, Persist, Send
from gdoi_plugin.protocol.push import build_push

# The signatures that are measured, as push.c calls them.
SIGNATURES = {"rsa2048-sha256": "rsa", "ecdsa256": "ecdsa"}
TEKS = 6  # make a PUSH of some 1.2 KB
TIMES, ROUNDS = 540, 9
FAN_OUT_ROUNDS = 7
LOCAL, FIRST = IPv4Address("127.0.0.1"), IPv4Address("127.1.0.1")
# PERFORMANCE: of what C's sendmmsg does.
GOAL = 0.9


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--members", type=int, default=100_000, help="of the fan-out")


def measure(arguments: argparse.Namespace) -> list[Figure]:
    with compiled("push", "crypto") as push, compiled("fanout") as fanout:
        built = [_built(scheme, push) for scheme in SIGNATURES]
        return [*built, asyncio.run(_fan_out(arguments.members, fanout))]


def _built(scheme: str, c: Bound) -> Figure:
    signer = generate(SCHEMES[scheme])
    kek = make_kek(signer, os.urandom)
    content = keys_content(TEKS, os.urandom)
    steps = max(1, TIMES // ROUNDS)
    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(processor_time(lambda: build_push(kek, 1, signer, content), steps))
        octets = len(build_push(kek, 1, signer, content))
        theirs += c.run(SIGNATURES[scheme], octets, steps)
    name = f"PUSHes of {octets} octets, {scheme}; bound: signature and AES in C"
    return Figure(name, 1 / statistics.median(ours), "/s", bound=1 / statistics.median(theirs))


# -- the fan-out ---------------------------------------------------------------------------------


class _Sending(Shell):
    """A daemon's shell with sockets and nothing else."""

    @property
    def control(self) -> ControlServer:
        raise AssertionError("nobody connects")

    def begin(self) -> None: ...

    def end(self) -> None: ...

    def close(self) -> None:
        self.sockets.close()

    def deadline(self) -> float | None:
        return None

    def tick(self, now: float) -> None: ...

    def receive(self, datagram: bytes, source: Peer, arrived: Peer) -> None: ...

    def persist(self, records: Sequence[Persist]) -> None: ...


async def _fan_out(members: int, c: Bound) -> Figure:
    scheme = "ecdsa256"
    signer = generate(SCHEMES[scheme])
    content = keys_content(TEKS, os.urandom)
    datagram = build_push(make_kek(signer, os.urandom), 1, signer, content)
    taken: dict[str, list[float]] = defaultdict(list)
    shell = _Sending(Log.open(None, "error"), None)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        receiver.bind(("0.0.0.0", 0))  # noqa: S104 -- every address of the loopback network
        port = receiver.getsockname()[1]
        local = Peer(LOCAL, _free_port())
        shell.sockets.bind(local, None)
        sends = [Send(datagram, Peer(FIRST + n, port), local) for n in range(members)]
        for _ in range(FAN_OUT_ROUNDS):
            began = time.process_time()
            shell.perform(sends)
            taken["ours"].append(time.process_time() - began)
            taken["c"] += c.run(FIRST, port, members, len(datagram), 1)
    shell.close()
    ours, bound = (members / statistics.median(taken[who]) for who in ("ours", "c"))
    name = f"fan-out of one rekey to {members:,} members; bound: sendmmsg in C"
    why = "the addresses of members are objects until they are written into the kernel's table"
    return Figure(name, ours, "/s", GOAL * bound, bound, at_least=True, why=why)


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((str(LOCAL), 0))
        return int(sock.getsockname()[1])
