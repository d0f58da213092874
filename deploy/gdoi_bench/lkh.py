"""Key trees: evictions, updates' sizes, memory, a forest of a million, a restart.

Keys are AES-128 where nothing else is said: 48 octets for each in an update array. Times are the
processor's, so that what else runs on the machine does not count. But for the restart they stand
beside tests/bench/keytree.c, which makes and wraps as many keys with OpenSSL and does nothing else:
rounds of both in turns, and the median of them. Octets stand beside the bare keys.
"""

from __future__ import annotations

import gc
import os
import random
import statistics
import time
import tracemalloc
from collections import defaultdict
from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory

from gdoi_bench.bound import Bound, compiled
from gdoi_bench.figure import Figure, processor_time
from gdoi_plugin.crypto.cipher import BLOCK
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
TIMES, ROUNDS = 540, 9
FORESTS = 3
AES128, AES256 = 32, 48  # octets of IV | key
ATTRIBUTE_HEADER = 4


def measure() -> list[Figure]:
    with compiled("keytree", "crypto") as c:
        return [*_eviction(AES128, c), *_eviction(AES256, c), _memory(), _million(c), _restart()]


def _grown(members: int, octets: int, arity: int = DEFAULT_ARITY) -> tuple[Tree, list[int]]:
    tree = Tree.plant(arity, members, octets, os.urandom)
    return tree, [tree.join(os.urandom) for _ in range(members)]


def _octets(update: Update) -> int:
    return sum(ATTRIBUTE_HEADER + len(array) for array in update.arrays.values())


class _Evicted:
    """A full tree whose members leave, one at a time; each place is taken again at once."""

    def __init__(self, octets: int) -> None:
        self.octets = octets
        self.tree, self.leaves = _grown(MEMBERS, octets)
        self.chosen = random.Random(1)
        self.update = self.tree.leave([self.leaves[0]], os.urandom)
        self.tree.join(os.urandom)
        self.largest = 0

    def evict(self, times: int) -> float:
        """The median of the processor's seconds."""
        taken = []
        for _ in range(times):
            who = self.chosen.choice(self.leaves)
            began = time.process_time()
            self.update = self.tree.leave([who], os.urandom)
            taken.append(time.process_time() - began)
            self.largest = max(self.largest, _octets(self.update))
            self.tree.join(os.urandom)
        return statistics.median(taken)

    @property
    def wraps(self) -> int:
        """Keys that an eviction encrypts: for each array one, and one for each step of the path."""
        return len(self.update.arrays) + self.tree.depth - 1

    def take(self, times: int) -> float:
        """What a member does with an update, the same way."""
        path = self.tree.path(self.leaves[-1])
        update = self.tree.leave([self.leaves[0]], os.urandom)
        self.tree.join(os.urandom)
        arrays = [LkhUpdateArray.pull(Buffer(octets)) for octets in update.arrays.values()]
        return processor_time(lambda: apply_updates(path, arrays), times)

    def evict_many(self) -> tuple[float, Update]:
        gone = self.chosen.sample(self.leaves, MEMBERS // 100)
        began = time.process_time()
        update = self.tree.leave(gone, os.urandom)
        taken = time.process_time() - began
        for _ in gone:
            self.tree.join(os.urandom)
        return taken, update


def _eviction(octets: int, c: Bound) -> list[Figure]:
    tree = _Evicted(octets)
    steps, bits = max(1, TIMES // ROUNDS), 8 * (octets - BLOCK)
    ours: dict[str, list[float]] = defaultdict(list)
    for _ in range(ROUNDS):
        ours["one"].append(tree.evict(steps))
        ours["one in C"] += c.run("wrap", tree.wraps, octets, steps)
        ours["take"].append(tree.take(steps))
        ours["take in C"] += c.run("wrap", tree.tree.depth, octets, steps)
        taken, batch = tree.evict_many()
        keys = _keys_in(batch)
        ours["many"].append(taken)
        ours["many in C"] += c.run("wrap", keys, octets, 1)
    ms = {what: 1e3 * statistics.median(taken) for what, taken in ours.items()}
    aes128 = octets == AES128
    bare = tree.wraps * octets
    return [
        Figure(
            f"evict one of {MEMBERS:,}, AES-{bits}",
            ms["one"],
            "ms",
            0.3,
            ms["one in C"],
            why=f"{tree.wraps} keys are wrapped by as many calls of a cipher from Python",
        ),
        Figure(
            f"update arrays, AES-{bits}", tree.largest, "octets", 6000 if aes128 else None, bare
        ),
        Figure(f"a member takes them, AES-{bits}", ms["take"], "ms", None, ms["take in C"]),
        Figure(f"evict 1 % at random, AES-{bits}", ms["many"], "ms", None, ms["many in C"]),
        Figure(f"update arrays of that, AES-{bits}", _octets(batch), "octets", None, keys * octets),
    ]


def _keys_in(update: Update) -> int:
    """Different keys under different keys: an inner one is in the arrays of all below it."""
    wrapped = set()
    for array in update.arrays.values():
        pulled = LkhUpdateArray.pull(Buffer(array))
        wrapped |= {key.key_data for key in pulled.keys}
    return len(wrapped)


def _memory() -> Figure:
    """With AES-256, and a table of who sits where."""
    gc.collect()
    tracemalloc.start()
    tree, leaves = _grown(MEMBERS, AES256)
    index = dict(enumerate(leaves))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    keys = (len(index) + len(index) // (DEFAULT_ARITY - 1)) * AES256
    return Figure(
        "memory of tree and index; bound: bare keys",
        used / tree.members,
        "octets/member",
        250,
        keys / len(index),
    )


def _million(c: Bound) -> Figure:
    """One after the other, as they would register."""
    ours, bare = [], []
    for _ in range(FORESTS):
        began = time.process_time()
        forest = _forest()
        ours.append(time.process_time() - began)
        bare += c.run("plant", MILLION, AES256, 1)
    name = f"a forest of {MILLION:,}, {len(forest)} trees"
    return Figure(name, statistics.median(ours), "s", 5, statistics.median(bare))


def _forest() -> list[Tree]:
    capacity = capacity_of(DEFAULT_ARITY)
    joined = 0
    forest = []
    while joined < MILLION:
        tree = Tree.plant(DEFAULT_ARITY, capacity, AES256, os.urandom)
        number = min(capacity, MILLION - joined)
        for _ in range(number):
            tree.join(os.urandom)
        forest.append(tree)
        joined += number
    return forest


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
        began = time.process_time()
        store = Store(Path(folder) / "gcks.sqlite")
        again = KeyServer([config], lambda _: None, os.urandom)
        again.start(now, store.load())
        taken = time.process_time() - began
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
