"""The agent with its key server in one process, over real sockets, on a real kernel."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from gdoi_xfrm import Direction

from gdoi_plugin.daemon.claims import Claims
from gdoi_plugin.daemon.firewall import TABLE
from gdoi_plugin.daemon.forwarding import chain_of
from gdoi_plugin.daemon.gcks import KeyServerDaemon
from gdoi_plugin.daemon.gm import MemberDaemon
from gdoi_plugin.daemon.memory import Memory
from gdoi_plugin.daemon.numbers import BLOCK
from gdoi_plugin.daemon.reqid import FIRST_REQID as REQID
from gdoi_plugin.daemon.state_file import StateDirectory
from gdoi_plugin.protocol.member import MemberState
from tests.daemon.test_daemons import Pair, option, together, until
from tests.kernel.conftest import namespace

__all__ = ["namespace"]
pytestmark = [pytest.mark.uml, pytest.mark.usefixtures("namespace")]

# Beside "video", which has a TEK for it as well.
AUDIO = """
[[group]]
name = "audio"
id = 2
members = ["127.0.0.1"]

[[group.tek]]
destination = "239.192.1.1"
"""
MEMBER = """
[[group]]
name = "audio"
id = 2
recovery_delay = "0s"
{options}
[[group.key_server]]
address = "127.0.0.9"
port = {port}
psk_file = "psk"
"""


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def with_audio(pair: Pair, options: str = "") -> None:
    pair.gcks.write_text(pair.gcks.read_text() + AUDIO)
    pair.gm.write_text(pair.gm.read_text() + MEMBER.format(options=options, port=pair.ports[0]))


def test_two_groups_want_one_flow(pair: Pair) -> None:
    """Whoever comes second is refused in words, and the first goes on."""
    with_audio(pair)

    async def scenario(_: KeyServerDaemon, member: MemberDaemon) -> None:
        await until(lambda: pair.logged("registration-failed"), "refused")
        groups, kernel = member.member.groups, member._kernels
        first = pair.logged("registered")[0]["group"]
        (second,) = groups.keys() - {first}
        assert groups[first].state is MemberState.REGISTERED
        assert groups[second].state is MemberState.REGISTERING
        assert groups[second].rollover.held == {}
        held = [one.tek for one in groups[first].rollover.held.values()]
        shared = next(tek for tek in held if str(tek.flow.destination) == "239.192.1.1")
        for way in (Direction.IN, Direction.OUT):
            policy = kernel[first].policy(shared, way)
            assert member._xfrm.find_policy(policy.key) == policy
        assert {state.sa.reqid for state in member._xfrm.dump_sas()} == {kernel[first].reqid}
        for told in pair.logged("install-failed"):
            assert told["group"] == second
            assert f"groups {second} and {first} both have a TEK for" in told["error"]
            assert "0.0.0.0/0 -> 239.192.1.1/32" in told["error"]
        assert pair.logged("registration-failed")[0]["group"] == second

    together(pair, scenario)


def test_an_if_id_of_its_own_is_enough(pair: Pair) -> None:
    with_audio(pair, "if_id = 5\n")

    async def scenario(_: KeyServerDaemon, member: MemberDaemon) -> None:
        groups = member.member.groups.values()
        await until(lambda: all(g.state is MemberState.REGISTERED for g in groups), "both")

    together(pair, scenario)
    assert pair.logged("install-failed") == []


def chains() -> list[str]:
    command = ["iptables-legacy", "-w", "-t", TABLE, "-S"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if not line.startswith("-P")]


def router(pair: Pair) -> None:
    option(pair, 'firewall = "iptables-legacy"')
    pair.gm.write_text(pair.gm.read_text().replace("id = 1\n", 'id = 1\nlan = ["lan1"]\n'))


def test_another_program_for_the_same_tables(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes of the former one is nothing that the new one has made."""
    programs = pair.folder / "alternatives"
    programs.mkdir()
    for suffix in ("", "-restore"):
        legacy = shutil.which(f"iptables-legacy{suffix}")
        assert legacy
        (programs / f"iptables{suffix}").symlink_to(legacy)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    router(pair)
    found = []

    async def scenario(_: KeyServerDaemon, member: MemberDaemon) -> None:
        forwarding = member._kernels["video"].forwarding
        assert forwarding.program
        chain = chain_of(forwarding.program, member._kernels["video"].reqid)
        asked = [f"-A FORWARD -d 239.192.1.{n}/32 -j {chain}" for n in (1, 2)]
        rules = [f"-A {chain} {rule}" for rule in forwarding.rules()]
        assert set(chains()) == {f"-N {chain}", *asked, *rules}
        found.append(forwarding.program)

    together(pair, scenario)
    pair.gm.write_text(pair.gm.read_text().replace('"iptables-legacy"', '"iptables"'))
    together(pair, scenario)
    assert found == ["iptables-legacy", "iptables"]


def test_a_router_that_is_none_any_more_has_no_chains(pair: Pair) -> None:
    """What a former configuration left goes at the next start; another program's stays."""
    subprocess.run(["iptables-legacy", "-t", TABLE, "-N", "GDOI-fffffff0"], check=True)
    others, plain = chains(), pair.gm.read_text()
    router(pair)
    found = []

    async def scenario(_: KeyServerDaemon, member: MemberDaemon) -> None:
        found.append(chains())
        reqid = member._kernels["video"].reqid
        assert member._memory.chains == frozenset(
            {("iptables-legacy", reqid)} if len(found) == 1 else ()
        )

    together(pair, scenario)
    assert sum(line.startswith("-A FORWARD -d 239.192.1.") for line in found[0]) == 2
    assert set(chains()) == set(found[0]), "it stays while the agent is away"
    pair.gm.write_text(plain)
    together(pair, scenario)
    assert found[1] == others == chains()


def test_a_chain_that_is_another_agents_by_now(pair: Pair) -> None:
    """The group has gone there with its SAs: its chain is that agent's."""
    elsewhere = REQID + 9
    chain = chain_of("iptables-legacy", elsewhere)
    subprocess.run(["iptables-legacy", "-t", TABLE, "-N", chain], check=True)
    there = chains()
    Memory(StateDirectory(pair.folder / "gm"), ()).keep_chains(
        frozenset({("iptables-legacy", elsewhere)})
    )

    async def scenario(_: KeyServerDaemon, member: MemberDaemon) -> None:
        assert member._memory.chains == frozenset()

    with closing(Claims()) as other:
        other.take(elsewhere, "audio")
        together(pair, scenario)
    assert chains() == there


# -- the end --------------------------------------------------------------------------------------

_CAP_NET_ADMIN = 12
_VERSION_3 = 0x20080522


@contextmanager
def no_administrator() -> Iterator[None]:
    """What the kernel refuses to a process without the capability it refuses to this thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    # Effective, permitted and inheritable capabilities, twice 32 of each.
    having, less = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, having) == 0
    ctypes.memmove(less, having, ctypes.sizeof(having))
    less[0] &= ~(1 << _CAP_NET_ADMIN)
    assert less[0] != having[0]
    assert libc.capset(header, less) == 0
    try:
        yield
    finally:
        assert libc.capset(header, having) == 0


def test_numbers_are_saved_whatever_the_kernel_refuses_at_the_end(pair: Pair) -> None:
    option(pair, 'on_stop = "block"')
    Path("/proc/sys/net/ipv4/conf/lo/disable_xfrm").write_text("0")
    counted = {}

    async def scenario(_: KeyServerDaemon, member: MemberDaemon) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(
                socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1")
            )
            for _again in range(5):
                sock.sendto(b"protected", ("239.192.1.1", 5000))
        member._xfrm.look_at_sas()
        for key, own in member._xfrm.sas.items():
            counted[str(key)] = own.sa.output_sequence
        assert max(counted.values()) == 5
        lacking.enter_context(no_administrator())

    with ExitStack() as lacking:
        together(pair, scenario)
    refused = [told["error"] for told in pair.logged("stop-failed")]
    assert len(refused) == 2
    assert all("EPERM" in error for error in refused)
    saved = json.loads((pair.folder / "gm" / "_numbers.json").read_text())["sas"]
    assert {sa: entry["sent"] - BLOCK for sa, entry in saved.items()} == counted
