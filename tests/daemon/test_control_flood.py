"""Hundreds of hostile control clients at both daemons, which register, rekey and acknowledge on."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

from gdoi_plugin.cli.client import Client
from gdoi_plugin.daemon import gcks, gm
from gdoi_plugin.daemon.control import Trigger
from gdoi_plugin.daemon.gcks import KeyServerDaemon
from gdoi_plugin.daemon.gm import MemberDaemon
from gdoi_plugin.protocol.actions import Peer
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.roster import Registrant
from tests.daemon.children import running
from tests.daemon.test_daemons import PATIENCE, Pair, pair, together, until

__all__ = ["pair"]

# A list of them is many times what is kept of one for a client.
MEMBERS = 2_000
MANY = 200
# Of both daemons, in one process here. Each: 32 MiB of events, as much of requests that are not
# complete, 64 KiB of a list for each client; and what the clients' sockets and tasks take.
MOST_MEMORY = 250 << 20


def resident() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) << 10


def fill(server: KeyServerDaemon) -> None:
    """Members that have registered some time ago, from where nobody answers."""
    group = server.engine.groups[1]
    for number in range(MEMBERS):
        address = ip_address((10 << 24) + number + 1)
        group.roster.add(Registrant(Identity.of_address(address), Peer(address, 848), 0.0))


@contextlib.contextmanager
def flood(path: Path, events: tuple[str, ...]) -> Iterator[None]:
    command = [sys.executable, "-m", "tests.daemon.control_flood", path, *events]
    with running(command) as child:
        assert child.stdout is not None
        assert int(child.stdout.readline()) >= 300
        yield


def test_hundreds_of_clients_do_no_harm(
    pair: Pair, record_property: Callable[[str, object], None]
) -> None:
    memory: list[int] = []

    async def look() -> None:
        while True:
            memory.append(resident())
            await asyncio.sleep(0.05)

    async def goes_on(server: KeyServerDaemon, member: MemberDaemon) -> None:
        """A rekey that is acknowledged, and a registration."""
        group, ledger = member.member.groups["video"], server.engine.groups[1].ledger
        registered = group.counters.registrations
        server.commands.rekey({"group": "video", "kek": "yes"})
        page = list(ledger.values())[-1]
        await until(lambda: len(page.acknowledged) == 1, "acknowledged and counted")
        member.commands.register({})
        await until(lambda: group.counters.registrations > registered, "registered")

    async def scenario(server: KeyServerDaemon, member: MemberDaemon) -> None:
        fill(server)
        both = (("gcks.vici", server.control, gcks.EVENTS), ("gm.vici", member.control, gm.EVENTS))
        before = resident()
        looking = asyncio.ensure_future(look())
        with contextlib.ExitStack() as stack:
            for name, _, events in both:
                await asyncio.to_thread(stack.enter_context, flood(pair.folder / name, events))
            await until(lambda: all(c.clients >= MANY for _, c, _ in both), "hundreds at each")
            await until(lambda: all(c.dropped[Trigger.BAD_PACKET] for _, c, _ in both), "rubbish")
            await goes_on(server, member)
            assert all(c.clients > MANY // 2 for _, c, _ in both), "they were there all the time"
        looking.cancel()
        assert max(memory) - before < MOST_MEMORY
        for name, control, _ in both:
            await until(lambda c=control: c.clients == 0, "all gone")  # type: ignore[misc]
            with await asyncio.to_thread(Client, pair.folder / name, PATIENCE) as client:
                assert (await asyncio.to_thread(client.request, "version"))["version"]
        record_property("octets", max(memory) - before)

    together(pair, scenario)
    assert pair.logged("bug") == []
    assert [line for line in pair.logged("control") if line["trigger"] == "handler-failed"] == []
