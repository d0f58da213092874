"""All that a member does to the kernel's tables, again and again while an application sends."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gdoi_plugin.daemon.guard import Guard, of_everybody
from gdoi_plugin.daemon.kernel import GroupKernel
from gdoi_plugin.daemon.leftovers import Leftovers
from gdoi_plugin.daemon.memory import Memory
from gdoi_plugin.daemon.own_tables import OwnTables
from gdoi_plugin.daemon.state_file import StateDirectory
from gdoi_plugin.protocol.actions import ApplyKernel
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.policy import GroupPolicy, Tek
from gdoi_plugin.protocol.rollover import Plan, Rollover
from tests.daemon.teks import LOCAL, carried_out, tek
from tests.kernel.conftest import namespace
from tests.kernel.namespaces import Namespace, eventually, ip

__all__ = ["namespace"]
pytestmark = pytest.mark.uml

GROUP = GroupId.of_number(7)
RUNS = 20
ATD, DTD = 1, 2
SEND = """
import errno, socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(sys.argv[1]))
sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
while True:
    try:
        sock.sendto(bytes(200), (sys.argv[2], 5000))
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
"""


@contextmanager
def sending(folder: Path) -> Iterator[Path]:
    """As fast as it goes; the file gets a line for each packet that the kernel refuses."""
    refused = folder / "refused"
    argv = [sys.executable, "-c", SEND, str(LOCAL), str(tek(1).flow.destination)]
    with refused.open("w") as output, subprocess.Popen(argv, stdout=output) as sender:
        try:
            yield refused
        finally:
            sender.terminate()


@dataclass(slots=True)
class Run:
    """What one process of the member's knows; ``rollover`` goes by a clock of the test's."""

    state: StateDirectory
    tables: OwnTables = field(default_factory=lambda: OwnTables(time.monotonic))
    rollover: Rollover = field(default_factory=lambda: Rollover(LOCAL))
    memory: Memory = field(init=False)
    guard: Guard = field(init=False)
    group: GroupKernel = field(init=False)

    def __post_init__(self) -> None:
        self.memory = Memory(self.state, ["g"])
        self.guard = Guard(self.tables)
        self.guard.begin(self.memory)
        self.group = GroupKernel(self.tables, GROUP, LOCAL, self.guard)
        self.tables.own(self.guard.policies())

    def do(self, plan: Plan) -> None:
        """And packets are sent then, with the TEK that is the right one."""
        self.memory.add("g", of_everybody(one.flow for one in plan.add))
        self.group.apply(carried_out(plan))
        self.rollover.commit(plan)
        assert not self.tables.compare(), "the watch would have something to mend"
        self.goes_on()

    def goes_on(self) -> None:
        (spi,) = self.rollover.pinned.values()
        before = self.packets(self.rollover.held[spi].tek)
        eventually(lambda: self.packets(self.rollover.held[spi].tek) > before)

    def packets(self, sent_with: Tek) -> int:
        state = self.group.state(sent_with)
        assert state is not None
        return state.packets

    def registered(self, now: float) -> None:
        current = max(self.rollover.held.values(), key=lambda held: held.generation)
        policy = GroupPolicy(None, (current.tek,), ATD, DTD)
        self.do(self.rollover.receive(policy, (), now, at_once=True))

    def rekeyed(self, spi: int, now: float) -> None:
        policy = GroupPolicy(None, (tek(spi),), ATD, DTD)
        self.do(self.rollover.receive(policy, (), now))


def test_no_packet_is_refused(namespace: Namespace, tmp_path: Path) -> None:  # noqa: ARG001
    """Restarts in the middle of a rollover and at rest, registrations at once and not at all."""
    ip("link add v0 type veth peer name v1")
    for command in ("link set v0 up", "link set v1 up", f"addr add {LOCAL}/24 dev v0"):
        ip(command)
    ip("route add 239.0.0.0/8 dev v0")
    state, now = StateDirectory(tmp_path), 0.0
    run = Run(state)
    first = GroupPolicy(None, (tek(0x100),), ATD, DTD)
    plan = run.rollover.receive(first, (), now, at_once=True)
    run.memory.add("g", of_everybody([tek(0x100).flow]))
    run.group.apply(ApplyKernel(1, plan.add, plan.outbound, inbound=plan.inbound))
    run.rollover.commit(plan)
    with sending(tmp_path) as refused:
        for number in range(1, RUNS):
            saved, former = run.rollover.held, run.tables
            former.close()
            run = Run(state)
            run.do(run.rollover.resume(saved, now))
            for _ in range(number % 3):
                run.registered(now)
            run.rekeyed(0x100 + number, now)
            for _ in range(number % 4):  # of the three seconds that a rollover takes
                now += 1
                run.do(run.rollover.advance(now))
            Leftovers(run.tables, run.guard).sweep(
                [run.group.reqid], run.group.serving(run.rollover)
            )
            run.goes_on()
        assert refused.read_text() == ""
    lines = Path("/proc/thread-self/net/xfrm_stat").read_text().splitlines()
    dropped = [line for line in lines if line.startswith("XfrmOut") and line.split()[1] != "0"]
    assert dropped == []
    run.tables.close()
