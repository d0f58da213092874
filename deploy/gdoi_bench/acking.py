"""A key server's daemon with many members that are on its roster and nowhere else, and their ACKs.

They have addresses of 127.16.0.0/12, from which any program of this host can send.
"""

from __future__ import annotations

import asyncio
import io
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path

from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.daemon.config_gcks import KeyServerDaemonConfig
from gdoi_plugin.daemon.gcks import KeyServerDaemon
from gdoi_plugin.daemon.log import Log
from gdoi_plugin.daemon.shell import undisturbed
from gdoi_plugin.protocol.ack import base_key, build_ack
from gdoi_plugin.protocol.actions import Peer, Persist
from gdoi_plugin.protocol.group import Group
from gdoi_plugin.protocol.group_record import group_record, member_record, tree_persists
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.page import Rekey
from gdoi_plugin.protocol.roster import Registrant

FIRST = IPv4Address("127.16.0.1")
KEY_SERVER = "127.0.0.9"
PATIENCE = 120.0  # seconds
CONFIG = """\
[key_server]
address = "{address}"
port = {port}
nat_traversal = false
state = "{folder}/gcks.sqlite"
control = "{folder}/gcks.vici"
log = "{folder}/gcks.log"
{more}

[[peer]]
address = "127.0.0.0/8"
psk = "a secret that no member of the benchmark uses"

[[group]]
name = "many"
id = 1
members = ["127.16.0.0/12"]
{group}

[group.rekey]
address = "239.192.77.9"
port = {rekey_port}
signature = "ecdsa256"
{rekey}

[[group.tek]]
destination = "239.192.1.1"
"""


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((KEY_SERVER, 0))
        return int(sock.getsockname()[1])


def daemon_in(folder: Path, more: str = "", group: str = "", rekey: str = "") -> KeyServerDaemon:
    """Its files lie in ``folder``, also those of one before it; the rest are further lines of its
    configuration."""
    path = folder / "gcks.toml"
    if not path.exists():
        text = CONFIG.format(
            address=KEY_SERVER,
            port=free_port(),
            rekey_port=free_port(),
            folder=folder,
            more=more,
            group=group,
            rekey=rekey,
        )
        path.write_text(text, encoding="utf-8")
    log = Log((folder / "gcks.log").open("a", buffering=1, encoding="utf-8"), "info")
    return KeyServerDaemon(KeyServerDaemonConfig(path), log, None)


@asynccontextmanager
async def running(daemon: KeyServerDaemon) -> AsyncIterator[Group]:
    """Until its end, which comes like a SIGTERM's."""
    task = asyncio.ensure_future(daemon.run())
    try:
        await until(lambda: bool(daemon.sockets.open) or task.done())
        yield daemon.engine.groups[1]
    finally:
        daemon._stop.set()
        await task


async def until(
    condition: Callable[[], bool], patience: float = PATIENCE, every: float = 0.001
) -> None:
    """Raises TimeoutError."""
    async with asyncio.timeout(patience):
        while not condition():  # noqa: ASYNC110 (of no one event)
            await asyncio.sleep(every)


def enrol(daemon: KeyServerDaemon, count: int, port: int) -> None:
    """Members that have registered from ``port`` of their addresses, as the store has them too, and
    a start of the daemon finds them."""
    with undisturbed():
        records = _enrolled(daemon, count, port)
    daemon.perform(records)


def _enrolled(daemon: KeyServerDaemon, count: int, port: int) -> list[Persist]:
    group, now = daemon.engine.groups[1], daemon.clock.now()
    records: list[Persist] = []
    for number in range(count):
        address = FIRST + number
        member = Registrant(Identity.of_address(address), Peer(address, port), now)
        tree = group.sas[0].tree
        if tree is not None:
            member.leaf = tree.join(os.urandom)
        group.roster.add(member)
        records.append(Persist("member", member_record(group, member)))
    return [Persist("group", group_record(group)), *tree_persists(group), *records]


def acks_of(group: Group, rekey: Rekey) -> Iterator[tuple[IPv4Address, bytes]]:
    """Everybody's, and where from."""
    under = group.kek_of(rekey.kek_spi)
    if under is None:
        raise AssertionError("a rekey under a KEK that is gone")
    kind = rekey.ack_types[0]
    for member in group.members.values():
        base: Secret | None = base_key(kind, under.kek, group.leaf_key(member.identity))
        host = member.address.host
        if base is not None and isinstance(host, IPv4Address):
            yield host, build_ack(kind, base, under.kek, rekey.seqs[-1], member.identity.payload())


def packed(acks: Sequence[tuple[IPv4Address, bytes]]) -> bytes:
    """For tests/bench/ack.c: the number of octets of each, then address and octets."""
    out = io.BytesIO()
    out.write(len(acks[0][1]).to_bytes(4, "big"))
    for host, datagram in acks:
        out.write(host.packed + datagram)
    return out.getvalue()
