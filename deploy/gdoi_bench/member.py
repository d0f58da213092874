"""A member between a PUSH and its acknowledgement, and a thousand SAs at once.

The daemon's own objects, all of them, with a key server's engine on the same host::

    127.0.0.2 KeyServer (engine) ---- lo ---- 127.0.0.1 MemberDaemon ---- XFRM of this namespace
                                                         what it says --- XFRM of another one

Each round is one rekey: the PUSH goes into the daemon, and when its ACK has left, the signature is
checked once more and the netlink messages are said once more, each by itself. That is the bound.
The time to the ACK and the times of its stages are taken in turns: to look at the clock costs as
much as any other system call in the lab's kernel.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from unittest.mock import patch

from gdoi_xfrm import CbcHmac, DeleteSa, InstallSa, Sa, Xfrm

from gdoi_bench.figure import Figure, lower_quartile
from gdoi_bench.mirror import Mirror, new_namespace
from gdoi_bench.serving import Serving
from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.crypto.signature import SCHEMES, VerifyKey
from gdoi_plugin.daemon.config_member import MemberDaemonConfig
from gdoi_plugin.daemon.gm import MemberDaemon
from gdoi_plugin.daemon.kernel import GroupKernel
from gdoi_plugin.daemon.log import Log
from gdoi_plugin.daemon.shell import settle
from gdoi_plugin.daemon.state_file import StateDirectory
from gdoi_plugin.protocol.actions import ApplyKernel, Peer, Persist, Send
from gdoi_plugin.protocol.group import GroupConfig
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.member import GroupMember, MemberState
from gdoi_plugin.protocol.phase1 import PreSharedKey
from gdoi_plugin.protocol.policy import TEK_SUITES, Flow, Tek
from gdoi_plugin.protocol.tek_policy import TekConfig
from gdoi_plugin.wire.header import MAX_SENT

KEY_SERVER, MEMBER, PORT = IPv4Address("127.0.0.2"), IPv4Address("127.0.0.1"), 848
FIRST_FLOW = IPv4Address("239.1.0.0")
SUITE = TEK_SUITES["aes256-sha256"]
SCHEMES_MEASURED = ("rsa2048-sha256", "ecdsa256")
ROUNDS = {1: 40, 10: 25, 100: 10}  # by the number of SAs in a PUSH; with and without stages
INSTALLED, INSTALLATIONS = 1000, 5
# PERFORMANCE: a PUSH may cost this many times one signature check and the bare netlink messages.
GOAL = 3.0
PYTHON = "Python makes, reads back and compares every SA and policy before it acknowledges"
PATIENCE = 30.0
WHOLE = "PUSH to ACK"
STAGES = ("decode", "signature", "kernel", "persist", "ACK")
CONFIG = f"""
[member]
address = "{MEMBER}"
interface = "lo"
state = "@/state"
control = "@/control"
nat_traversal = false
[[group]]
name = "bench"
id = 1
recovery_delay = "1h"
[[group.key_server]]
address = "{KEY_SERVER}"
psk = "bench"
"""


class BenchError(Exception):
    """What was to be measured did not happen."""


def measure() -> list[Figure]:
    """In a kernel with ESP, as root. This process stays in a network namespace of its own."""
    new_namespace()
    mirror = Mirror()
    new_namespace()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    settle()
    figures = []
    for scheme in SCHEMES_MEASURED:
        for sas, rounds in ROUNDS.items():
            _progress(f"{scheme}, {sas} SAs, {2 * rounds} rekeys")
            figures += asyncio.run(_Rekeys(scheme, sas, mirror).measure(rounds))
    mirror.close()
    _progress(f"{INSTALLED} SAs, {INSTALLATIONS} times")
    return [*figures, *_installations(), _on_disk()]


def _progress(what: str) -> None:
    print(f"bench: {what}", file=sys.stderr, flush=True)


# -- from PUSH to ACK ----------------------------------------------------------------------------


@dataclass(slots=True)
class _Stopwatch:
    """When each stage of one PUSH began and ended; the whole alone unless ``stages_too``."""

    spans: dict[str, tuple[float, float]] = field(default_factory=dict)
    stages_too: bool = False

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        if not self.stages_too and name != WHOLE:
            return work

        def timed(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*arguments)
            finally:
                self.spans[name] = (began, time.perf_counter())

        return timed

    def stages(self) -> dict[str, float]:
        """Seconds of each, one after the other without gaps. What becomes of a PUSH when its ACK
        has left (events of its SAs) is in none of them."""
        begin, end = self.spans[WHOLE][0], self.spans["left"][0]
        signature, checked = self.spans["signature"]
        kernel, installed = self.spans["kernel"]
        _, durable = self.spans["persist"]
        return {
            "decode": signature - begin + kernel - checked,
            "signature": checked - signature,
            "kernel": installed - kernel,
            "persist": durable - installed,
            "ACK": end - durable,
        }


@dataclass(slots=True)
class _TimedKey:
    """The group's verification key; knows what it last checked."""

    key: VerifyKey
    watch: _Stopwatch
    last: tuple[bytes, bytes] = (b"", b"")

    def verify(self, signature: bytes, data: bytes) -> bool:
        self.last = (signature, data)
        return bool(self.watch.timed("signature", self.key.verify)(signature, data))

    def again(self) -> float:
        began = time.perf_counter()
        if not self.key.verify(*self.last):
            raise BenchError("a signature that was good is not")
        return time.perf_counter() - began


class _Daemon(MemberDaemon):
    """With a stopwatch at its stages."""

    watch = _Stopwatch()

    def receive(self, datagram: bytes, source: Peer, arrived: Peer) -> None:
        self.watch.timed(WHOLE, super().receive)(datagram, source, arrived)

    def left(self, send: Send) -> None:
        super().left(send)
        self.watch.spans["left"] = (time.perf_counter(), 0.0)

    def persist(self, records: Sequence[Persist]) -> None:
        self.watch.timed("persist", super().persist)(records)

    @property
    def group(self) -> GroupMember:
        return self.member.groups["bench"]


class _Rekeys:
    """One member, one group with ``sas`` flows, and rekeys of it."""

    def __init__(self, scheme: str, sas: int, mirror: Mirror) -> None:
        self._what = f"{scheme}, {sas} SA{'s' if sas > 1 else ''}"
        self._scheme, self._sas, self._mirror = scheme, sas, mirror
        self._taken: dict[str, list[float]] = defaultdict(list)

    async def measure(self, rounds: int) -> list[Figure]:
        async with asyncio.timeout(PATIENCE * (1 + 2 * rounds)):
            with tempfile.TemporaryDirectory(prefix="gdoi-bench-") as folder:
                return await self._run(Path(folder), rounds)

    async def _run(self, folder: Path, rounds: int) -> list[Figure]:
        path = folder / "gm.toml"
        path.write_text(CONFIG.replace("@", str(folder)))
        config = MemberDaemonConfig(path)
        with self._mirror.listening():
            daemon = _Daemon(config, Log.open(folder / "log", "info"), None)
        serving = self._serving(config)
        serving.attend()
        kernel = patch.object(GroupKernel, "apply", _timed_apply(daemon.watch))
        running = asyncio.create_task(daemon.run())
        try:
            with kernel:
                await _until(running, lambda: daemon.group.state is MemberState.REGISTERED)
                for number in range(2 * rounds):
                    daemon.watch.stages_too = bool(number % 2)
                    self._round(daemon, serving)
                    await _until(running, lambda: len(daemon.group.rollover.held) == self._sas)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            await running
            serving.close()
        return self._figures()

    def _serving(self, config: MemberDaemonConfig) -> Serving:
        """A group whose new TEKs are used, and whose old ones go, at once."""
        flows = [Flow(None, FIRST_FLOW + n) for n in range(self._sas)]
        group = GroupConfig(
            name="bench",
            group_id=GroupId.of_number(1),
            members=frozenset([Identity.of_address(MEMBER)]),
            teks=tuple(TekConfig(flow, SUITE) for flow in flows),
            source=Peer(KEY_SERVER, PORT),
            scheme=SCHEMES[self._scheme],
            push_limit=MAX_SENT,
            activation_delay=0,
            deactivation_delay=0,
        )
        (server,) = config.groups[0].key_servers
        names = Identity.of_address(KEY_SERVER), Identity.of_address(MEMBER)
        ways = (PreSharedKey(*names, Secret(b"bench")),)
        return Serving(group, replace(server.phase1, auth=ways))

    def _round(self, daemon: _Daemon, serving: Serving) -> None:
        """Not interrupted by the loop: the old SAs go between two rounds."""
        held, watch = daemon.group.kek, daemon.watch
        if held is None:
            raise BenchError("no KEK")
        key = _TimedKey(held.verify_key, watch)
        held.verify_key = key
        (push,) = serving.rekey()
        self._mirror.catch_up()
        before = daemon.group.counters.acknowledged
        daemon.receive(push, Peer(KEY_SERVER, PORT), daemon.group.config.local)
        if daemon.group.counters.acknowledged != before + 1:
            raise BenchError(f"a PUSH was not acknowledged: {daemon.group.last_failure}")
        if watch.stages_too:
            for stage, seconds in watch.stages().items():
                self._taken[stage].append(seconds)
        else:
            self._taken[WHOLE].append(watch.spans["left"][0] - watch.spans[WHOLE][0])
        self._taken["bare signature"].append(key.again())
        self._taken["bare netlink"].append(self._mirror.catch_up())
        held.verify_key = key.key

    def _figures(self) -> list[Figure]:
        took = {name: 1e3 * lower_quartile(taken) for name, taken in self._taken.items()}
        bound = took["bare signature"] + took["bare netlink"]
        bare = {"signature": took["bare signature"], "kernel": took["bare netlink"]}
        name = f"{WHOLE}, {self._what}"
        return [
            Figure(name, took[WHOLE], "ms", GOAL * bound, bound, why=PYTHON),
            *(
                Figure(f"{name}: {stage}", took[stage], "ms", None, bare.get(stage))
                for stage in STAGES
            ),
        ]


def _timed_apply(watch: _Stopwatch) -> Callable[[GroupKernel, ApplyKernel], None]:
    original = GroupKernel.apply

    def apply(kernel: GroupKernel, action: ApplyKernel) -> None:
        watch.timed("kernel", original)(kernel, action)

    return apply


async def _until(running: asyncio.Task[None], condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if running.done():
            await running
            raise BenchError("the daemon ended")
        if time.monotonic() > deadline:
            raise BenchError(f"waited {PATIENCE:g} s in vain")
        await asyncio.sleep(0.002)


# -- many SAs ------------------------------------------------------------------------------------


def _installations() -> list[Figure]:
    """One transaction, and iproute2's batch mode: in turns, with the same SAs."""
    sas = _sas(INSTALLED)
    ours, theirs = [], []
    with Xfrm() as xfrm, _batch_file(sas) as path:
        for _ in range(INSTALLATIONS):
            began = time.perf_counter()
            xfrm.transaction([InstallSa(sa) for sa in sas])
            ours.append(time.perf_counter() - began)
            xfrm.transaction([DeleteSa(sa.key) for sa in sas])
            began = time.perf_counter()
            subprocess.run(["ip", "-batch", str(path)], check=True)
            theirs.append(time.perf_counter() - began)
            xfrm.transaction([DeleteSa(sa.key) for sa in sas])
    bound = statistics.median(theirs)
    name = f"{INSTALLED:,} SAs, read back; bound: ip -batch"
    return [Figure(name, statistics.median(ours), "s", bound, bound)]


def _sas(number: int) -> list[Sa]:
    """What a member makes of that many TEKs."""
    kernel = GroupKernel(Xfrm(), GroupId.of_number(1), MEMBER)
    return [
        kernel.sa(
            Tek(
                spi=(0x1000 + n).to_bytes(4, "big"),
                flow=Flow(None, FIRST_FLOW + n),
                suite=SUITE,
                encryption_key=Secret(os.urandom(32)),
                integrity_key=Secret(os.urandom(32)),
                lifetime=3600,
            )
        )
        for n in range(number)
    ]


@contextmanager
def _batch_file(sas: Sequence[Sa]) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile("w", prefix="gdoi-bench-") as file:
        for sa in sas:
            if not isinstance(sa.algorithm, CbcHmac):
                raise BenchError("ip's words are for CBC and HMAC")
            file.write(
                f"xfrm state add src {sa.source} dst {sa.destination} proto esp spi {sa.spi:#x}"
                f" reqid {sa.reqid} mode transport replay-window 0"
                f" auth-trunc hmac(sha256) 0x{sa.algorithm.integrity_key.hex()} 128"
                f" enc cbc(aes) 0x{sa.algorithm.encryption_key.hex()}"
                f" limit time-hard {sa.lifetime.hard_seconds}\n"
            )
        file.flush()
        yield Path(file.name)


def _on_disk() -> Figure:
    """A record as large as ten SAs make it, durable on the disk of the results' folder."""
    place = os.environ.get("GDOI_LAB_RESULTS", tempfile.gettempdir())
    record = {"teks": [{"key": "0" * 700, "expires": time.time()}] * 20}
    taken = []
    with tempfile.TemporaryDirectory(dir=place) as folder:
        directory = StateDirectory(Path(folder))
        for _ in range(20):
            began = time.perf_counter()
            directory.save("bench", record)
            taken.append(time.perf_counter() - began)
    return Figure("a record of ten SAs flushed to disk", 1e3 * statistics.median(taken), "ms")
