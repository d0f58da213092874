"""charon and an agent on one host, started, stopped and killed in any order.

::

    10.1.0.1 [gm1] ----+---- [gm2] 10.2.0.1
                       |
                      gcks

At gm1 each of the two runs, has been stopped, or has been killed. A walk through these nine pairs
takes every step from every pair once. charon has a tunnel between the LANs, but for one port that
passes in clear by a shunt; a trap for a port between the hosts; and the connection for UDP 848 to
the key server. The agent protects all of 239.0.0.0/8, blocks by default, and takes everything with
it when it is stopped: killed, it leaves everything.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import pytest
from gdoi_lab.clear import count_capture
from gdoi_lab.net import Host
from gdoi_lab.waiting import wait_until

from tests.interop.charon import Charon, Record, charon
from tests.kernel.namespaces import Namespace

from .lab import (
    DISCARD,
    LIMIT,
    PEERS,
    PROTECTED,
    PSK,
    TCP,
    UDP,
    Lab,
    asked,
    assert_received,
    exchange,
    in_clear,
    load,
    send,
    settled,
    tables,
)

pytestmark = pytest.mark.uml

LANS = {"gm1": "10.1.0", "gm2": "10.2.0"}
TRAPPED, PASSING = 7000, 7
TIMES = 3
# An SA without an SPI: what the kernel asked charon for, until its time is up.
LARVAL = re.compile(r"^\tproto \w+ reqid", re.MULTILINE)
MILLISECONDS = int(LIMIT * 1000)


# -- the walk -------------------------------------------------------------------------------------


class Condition(StrEnum):
    RUNS = "runs"
    STOPPED = "stopped"
    KILLED = "killed"


class Pair(NamedTuple):
    charon: Condition
    agent: Condition


class Step(NamedTuple):
    """From one pair to another, which differ in what ``who`` does."""

    before: Pair
    who: str
    after: Pair


NEXT = {
    Condition.RUNS: (Condition.STOPPED, Condition.KILLED),
    Condition.STOPPED: (Condition.RUNS,),
    Condition.KILLED: (Condition.RUNS,),
}
STOPPED = Pair(Condition.STOPPED, Condition.STOPPED)


def steps(pair: Pair) -> Iterator[Step]:
    """Those that can be taken."""
    for condition in NEXT[pair.charon]:
        yield Step(pair, "charon", pair._replace(charon=condition))
    for condition in NEXT[pair.agent]:
        yield Step(pair, "agent", pair._replace(agent=condition))


def walk() -> list[Step]:
    """Every step once: as many lead to a pair as from it, so there is such a circuit
    (Hierholzer's)."""
    left = {pair: list(steps(pair)) for pair in (Pair(c, a) for c in Condition for a in Condition)}
    circuit: list[Step] = []
    under_way: list[Step | None] = [None]
    while under_way:
        last = under_way[-1]
        here = STOPPED if last is None else last.after
        if left[here]:
            under_way.append(left[here].pop())
        else:
            under_way.pop()
            circuit += [] if last is None else [last]
    return circuit[::-1]


# -- both -----------------------------------------------------------------------------------------


class Both:
    """gm1's charon and agent."""

    def __init__(self, lab: Lab, folder: Path, stack: ExitStack) -> None:
        self.lab, self.host, self.agent = lab, lab.host("gm1"), lab.group.members["gm1"]
        self._folder, self._stack, self._known = folder, stack, self._held()

    @property
    def charon(self) -> Charon:
        return self.lab.ike["gm1"]

    def take(self, step: Step) -> None:
        """One of the two does; what is the other's in the kernel is as it was after the last step,
        whatever has passed since."""
        before, repairs = self._known, self._repairs()
        condition: Condition = getattr(step.after, step.who)
        if step.who == "charon":
            self._charon(condition, killed=step.before.charon is Condition.KILLED)
        else:
            self._agent(condition)
        self._known = after = self._held()
        other = "agent" if step.who == "charon" else "charon"
        assert after[other] == before[other]
        assert self._repairs() == repairs
        if condition is Condition.KILLED:
            assert after == before
        elif condition is Condition.STOPPED:
            assert after[step.who] == []
        else:
            assert after[step.who] != []

    def _held(self) -> dict[str, list[str]]:
        """In the kernel, by whom: the default policy, where it blocks, is the agent's."""
        found = tables(self.host)
        theirs = [entry for entry in found.charons if not LARVAL.search(entry)]
        return {"charon": theirs, "agent": [*found.ours, *found.blocks]}

    def _repairs(self) -> int:
        return len(list(self.agent.events("kernel-restored", "kernel-not-restored")))

    def _charon(self, condition: Condition, *, killed: bool) -> None:
        process = self.charon.process
        if condition is not Condition.RUNS:
            process.kill() if condition is Condition.KILLED else process.terminate()
            assert (process.wait(LIMIT) == 0) is (condition is Condition.STOPPED)
            return
        if killed:
            self._clear_up()
        before = tuple(self.host.command([]))
        running = self._stack.enter_context(charon(self._folder, before=before))
        self.lab.ike["gm1"] = running
        load(running, self.host, self.lab.host("gcks"))
        load_lans(running, self.lab, "gm1")
        running.initiate("gcks", "channel", timeout=MILLISECONDS)
        running.initiate("gm2", "lans", timeout=MILLISECONDS)
        gm2 = self.lab.ike["gm2"]

        def alone() -> bool:
            ends = running.children("gm2"), gm2.children("gm1")
            ours, theirs = (named(found, "lans") for found in ends)
            return [one["spi-in"] for one in ours] == [one["spi-out"] for one in theirs]

        wait_until(alone, LIMIT, "gm2's charon to give the former tunnel up")

    def _clear_up(self) -> None:
        """What a killed charon has left the next one does not know, and it counts reqids from 1
        again: the SAs are taken out by hand."""
        left = {reqid for entry in tables(self.host).charons for reqid in reqids(entry)}
        asked(self.host, *(f"ip xfrm state deleteall reqid {reqid}" for reqid in left))

    def _agent(self, condition: Condition) -> None:
        if condition is Condition.KILLED:
            self.agent.kill()
        elif condition is Condition.STOPPED:
            assert self.agent.stop() == 0
        else:
            registered = len(list(self.agent.events("registered")))
            self.agent.start()
            self.agent.wait_event("registered", LIMIT, registered + 1)
            settled(self.lab, "gm1")

    def assert_passing(self, pair: Pair) -> None:
        """What the kernel holds does what it is for, also where it was left by who was killed."""
        exchange(self.lab, TIMES)
        if pair.charon is not Condition.STOPPED:
            before = self._lans()
            exchange(self.lab, TIMES, address=f"{LANS['gm2']}.1")
            assert self._lans() >= before + TIMES
            exchange(self.lab, TIMES, address=f"{LANS['gm2']}.1", port=PASSING)
        if pair.charon is Condition.RUNS:
            self._spring()
        if pair.agent is not Condition.STOPPED:
            assert_received(self.lab)
            with pytest.raises(PermissionError):
                send(self.lab, PROTECTED)

    def _lans(self) -> int:
        """Packets that gm2 has had through the tunnel."""
        (found,) = named(self.lab.ike["gm2"].children("gm1"), "lans")
        return int(found["packets-in"])

    def _spring(self) -> None:
        """The trap: its first packet brings a CHILD_SA up, which the next goes through. Afterwards
        the trap is as before."""
        ike, there = self.charon, self.lab.host("gm2").address4
        with bound(self.lab.host("gm2")) as receiver, bound(self.host) as sender:
            sender.sendto(b"first", (there, TRAPPED))
            wait_until(lambda: named(ike.children("gm2"), "trap"), LIMIT, "the trap to spring")
            sender.sendto(b"second", (there, TRAPPED))
            while receiver.recv(100) != b"second":
                pass
        (sprung,) = named(self.lab.ike["gm2"].children("gm1"), "trap")
        assert int(sprung["packets-in"]) >= 1
        ike.terminate("gm2", "trap", timeout=MILLISECONDS)
        wait_until(lambda: self._held() == self._known, LIMIT, "the trap to be as before")


def reqids(entry: str) -> list[str]:
    return re.findall(r"reqid (\d+)", entry)


def named(children: list[Record], name: str) -> list[Record]:
    return [child for child in children if child["name"] == name]


def bound(host: Host) -> socket.socket:
    """For what the trap is for."""
    with Namespace.named(host.namespace) as there, there.entered():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host.address4, TRAPPED))
    sock.settimeout(LIMIT)
    return sock


def load_lans(ike: Charon, lab: Lab, name: str) -> None:
    """The connection between the members, of this one's side."""
    here, there = lab.host(name), lab.host(PEERS[name])
    own, others = (f"{LANS[which]}.0/24" for which in (name, PEERS[name]))
    # gm1 is the client.
    ports = ["tcp", f"tcp/{PASSING}"] if name == "gm1" else [f"tcp/{PASSING}", "tcp"]
    hosts = [f"dynamic[udp/{TRAPPED}]"]
    trap = {"start_action": "trap" if name == "gm1" else "none"}
    esp = {"esp_proposals": ["aes128gcm16"]}
    ike.load_psk(PSK, here.address4, there.address4)
    ike.load(
        there.name,
        version="2",
        unique="replace",  # one that was killed is forgotten when the next one comes
        local_addrs=[here.address4],
        remote_addrs=[there.address4],
        proposals=["aes128-sha256-ecp256"],
        local={"auth": "psk"},
        remote={"auth": "psk"},
        children={
            "lans": esp | {"local_ts": [own], "remote_ts": [others]},
            "trap": esp | trap | {"mode": "transport", "local_ts": hosts, "remote_ts": hosts},
            "pass": {
                "mode": "pass",
                "start_action": "trap",
                "local_ts": [f"{own}[{ports[0]}]"],
                "remote_ts": [f"{others}[{ports[1]}]"],
            },
        },
    )


# -- the test -------------------------------------------------------------------------------------


@pytest.fixture
def both(lab: Lab, tmp_path: Path) -> Iterator[Both]:
    """Stopped, with nothing in gm1's kernel; gm2 and the key server run."""
    group, ours = lab.group, lab.group.members["gm1"]
    for daemon in (group.gcks, group.members["gm2"]):
        if daemon.process is None:
            daemon.start()
    ours.stop()
    configuration = ours.work / "config.toml"
    text = re.sub(r"(?m)^on_stop = .*$", 'on_stop = "remove"', configuration.read_text())
    configuration.write_text(
        text.replace('protect = ["239.192.0.0/16"]', 'protect = ["239.0.0.0/8"]')
    )
    lab.ike["gm1"].process.terminate()
    lab.ike["gm1"].process.wait(LIMIT)
    for name, other in PEERS.items():
        host = lab.host(name)
        host.ip("address", "add", f"{LANS[name]}.1/32", "dev", "lo")
        way = ("via", lab.host(other).address4, "src", f"{LANS[name]}.1")
        host.ip("route", "add", f"{LANS[other]}.0/24", *way)
    load_lans(lab.ike["gm2"], lab, "gm2")
    host = lab.host("gm1")
    for what in ("state", "policy"):
        host.ip("xfrm", what, "flush")
    host.ip("xfrm", "policy", "setdefault", "in", "accept", "out", "accept", "fwd", "accept")
    # Nor is there a default of before that an agent's end would bring back.
    (ours.work / "state" / "_guard.json").unlink(missing_ok=True)
    settled(lab, "gm2")
    with ExitStack() as stack:
        yield Both(lab, tmp_path / "charon", stack)


def test_every_step_from_every_pair(both: Both, tmp_path: Path) -> None:
    taken = walk()
    assert len(set(taken)) == len(taken) == 24
    capture = both.lab.group.network.capture(tmp_path / "bridge.pcap")
    for number, step in enumerate(taken):
        try:
            both.take(step)
            both.assert_passing(step.after)
        except Exception as error:
            error.add_note(f"step {number}: {step}")
            raise
    capture.stop()
    counts = count_capture(capture.path, {both.lab.group.data_group, PROTECTED})
    assert not counts.clear
    assert {flow.destination for flow in counts.esp} == {both.lab.group.data_group}
    clear = in_clear(capture.path)
    ours, theirs = (f"{LANS[name]}.1" for name in ("gm1", "gm2"))
    assert clear[TCP, ours, theirs, DISCARD] == 0
    assert clear[TCP, ours, theirs, PASSING] > 0
    assert [key for key in clear if key[0] == UDP and key[3] == TRAPPED] == []
