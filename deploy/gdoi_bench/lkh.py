"""Key trees: evictions, updates' sizes, memory, a forest of a million, a restart.

Keys are AES-128 where nothing else is said: 48 octets for each in an update array.
"""

from __future__ import annotations

import gc
import os
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from gdoi_bench.figure import Figure, median_time
from gdoi_plugin.crypto.lkh import Tree, Update, apply_updates, capacity_of
from gdoi_plugin.crypto.signature import SCHEMES
from gdoi_plugin.daemon.store import Store
from gdoi_plugin.protocol.actions import Peer, Persist
from gdoi_plugin.protocol.forest import DEFAULT_ARITY, LkhPolicy
from gdoi_plugin.protocol.group import Group, GroupConfig
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.group_record import member_record, tree_persists
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.key_server import KeyServer
from gdoi_plugin.protocol.nat import Path as Route
from gdoi_plugin.protocol.policy import TEK_SUITES, Flow
from gdoi_plugin.protocol.tek_policy import TekConfig
from gdoi_plugin.wire.buffer import Buffer
from gdoi_plugin.wire.lkh import LkhUpdateArray

MEMBERS = 32_768
MILLION = 1_000_000
RESTARTED = 30_000
TIMES = 500
AES128, AES256 = 32, 48  # octets of IV | key
ATTRIBUTE_HEADER = 4


def measure() -> list[Figure]:
    return [*_eviction(AES128), *_eviction(AES256), _memory(), _million(), _restart()]


def _grown(members: int, octets: int, arity: int = DEFAULT_ARITY) -> tuple[Tree, list[int]]:
    tree = Tree.plant(arity, members, octets, os.urandom)
    return tree, [tree.join(os.urandom) for _ in range(members)]


def _octets(update: Update) -> int:
    return sum(ATTRIBUTE_HEADER + len(array) for array in update.arrays.values())


def _bare_wraps(number: int, octets: int) -> Callable[[], None]:
    """The cipher's work of an update and nothing else."""
    keys = [os.urandom(octets) for _ in range(number)]
    plain = os.urandom(octets)

    def work() -> None:
        for key in keys:
            Cipher(algorithms.AES(key[16:]), modes.CBC(key[:16])).encryptor().update(plain)

    return work


def _eviction(octets: int) -> list[Figure]:
    tree, leaves = _grown(MEMBERS, octets)
    sizes: list[int] = []
    chosen = random.Random(1)

    times = []
    for _ in range(TIMES):
        who = chosen.choice(leaves)
        began = time.perf_counter()
        update = tree.leave([who], os.urandom)
        times.append(time.perf_counter() - began)
        sizes.append(_octets(update))
        tree.join(os.urandom)
    taken = statistics.median(times)
    leaf = leaves[-1]
    path = tree.path(leaf)
    update = tree.leave([leaves[0]], os.urandom)
    arrays = [LkhUpdateArray.pull(Buffer(octets)) for octets in update.arrays.values()]
    wraps = len(update.arrays) + len(path) - 2
    bare = median_time(_bare_wraps(wraps, octets), TIMES)
    applied = median_time(lambda: apply_updates(path, arrays), TIMES)
    tree.join(os.urandom)
    began = time.perf_counter()
    batch = tree.leave(chosen.sample(leaves, MEMBERS // 100), os.urandom)
    batched = time.perf_counter() - began
    bits = 8 * (octets - 16)
    ours = octets == AES128
    return [
        Figure(f"evict one of {MEMBERS:,}, AES-{bits}", 1e3 * taken, "ms", 0.3, 1e3 * bare),
        Figure(f"update arrays, AES-{bits}", max(sizes), "octets", 6000 if ours else None),
        Figure(f"a member takes them, AES-{bits}", 1e3 * applied, "ms"),
        Figure(f"evict 1 % at random, AES-{bits}", 1e3 * batched, "ms"),
        Figure(f"update arrays of that, AES-{bits}", _octets(batch), "octets"),
    ]


def _memory() -> Figure:
    """With AES-256, and a table of who sits where."""
    gc.collect()
    tracemalloc.start()
    tree, leaves = _grown(MEMBERS, AES256)
    index = dict(enumerate(leaves))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return Figure(
        "memory of tree and index", used / len(index) if tree else 0, "octets/member", 250
    )


def _million() -> Figure:
    """One after the other, as they would register."""
    capacity = capacity_of(DEFAULT_ARITY)
    began = time.perf_counter()
    joined = 0
    forest = []
    while joined < MILLION:
        tree = Tree.plant(DEFAULT_ARITY, capacity, AES256, os.urandom)
        number = min(capacity, MILLION - joined)
        for _ in range(number):
            tree.join(os.urandom)
        forest.append(tree)
        joined += number
    taken = time.perf_counter() - began
    return Figure(f"a forest of {MILLION:,}, {len(forest)} trees", taken, "s", 5)


def _restart() -> Figure:
    """A key server takes up a group from its store: all registered, nothing under way."""
    address = IPv4Address("10.0.0.1")
    identities = [Identity.of_address(address + 1 + n) for n in range(RESTARTED)]
    flow = Flow(None, IPv4Address("239.192.1.1"))
    config = GroupConfig(
        name="bench",
        group_id=GroupId.of_number(1),
        members=frozenset(identities),
        teks=(TekConfig(flow, TEK_SUITES["aes256-sha256"]),),
        source=Peer(address, 848),
        rekey_address=IPv4Address("239.192.0.1"),
        scheme=SCHEMES["ecdsa256"],
        lkh=LkhPolicy(members=MEMBERS),
    )
    now = time.time()
    with TemporaryDirectory() as folder:
        store = Store(Path(folder) / "gcks.sqlite")
        server = KeyServer([config], lambda _: None, os.urandom)
        first = [action for action in server.start(now, {}) if isinstance(action, Persist)]
        (group,) = server.groups.values()
        store.save([*first, *_registered(group, identities, now)])
        store.close()
        began = time.perf_counter()
        store = Store(Path(folder) / "gcks.sqlite")
        again = KeyServer([config], lambda _: None, os.urandom)
        again.start(now, store.load())
        taken = time.perf_counter() - began
        store.close()
    return Figure(f"restart with {RESTARTED:,} members", taken, "s", 2)


def _registered(group: Group, identities: list[Identity], now: float) -> list[Persist]:
    records = []
    for identity in identities:
        host = identity.address
        if host is None:
            raise AssertionError("made of an address")
        route = Route(group.config.source, Peer(host, 848))
        member = group.registrant(identity, route, now)
        group.admit(member, group.offer(identity, route, now), os.urandom)
        group.roster.add(member)
        records.append(Persist("member", member_record(group, member)))
    return [*records, *tree_persists(group)]
