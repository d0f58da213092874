"""The Logical Key Hierarchy, RFC 2627 section 5.4: the key server's tree and a member's path.

Every node of the tree has a key. A member holds the keys from its leaf to the root, and the root's
is the group KEK. Who leaves knows that path, so all of it gets new keys, and each new key is sent
encrypted under the keys of the node's children: a few keys for a group of thousands.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from struct import Struct

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from ..wire.lkh import LKH_VERSION, MAX_PATH, LkhKey, LkhUpdateArray
from ..wire.registry import KekAlgorithm
from .cipher import BLOCK, decrypt
from .secret import Secret

Random = Callable[[int], bytes]

MAX_NODES = 0xFFFF  # an LKH ID has two octets, and 0 names no node here
MAX_ARITY = 16
# Nodes whose state is saved together: a leaf's change writes 3 KB, an eviction's some pages.
PAGE = 64
# Nodes near the root whose cipher is kept: nearly every eviction encrypts under their keys, and
# setting a cipher up costs ten times what its blocks do. Half a KB each.
HOT = 512

_ARRAY_HEAD = Struct(">BHBHHI")  # RFC 6407 figure 13
_KEY_HEAD = Struct(">HBBIII")  # RFC 6407 figure 12


def capacity_of(arity: int) -> int:
    """The members that one tree can hold, for its LKH IDs have 16 bits."""
    # n nodes, all but the root the child of one of ceil((n - 1) / k) inner nodes
    return MAX_NODES - -(-(MAX_NODES - 1) // arity)


@dataclass(frozen=True, slots=True)
class Node:
    """One key of a path. ``handle`` tells it from the node's earlier and later keys."""

    lkh_id: int
    handle: int
    iv: bytes = field(repr=False)
    key: Secret

    @property
    def material(self) -> bytes:
        """RFC 6407 section 5.6.3.1, Key Data: IV | key."""
        return self.iv + self.key.reveal()

    @classmethod
    def of(cls, lkh_id: int, handle: int, material: bytes) -> Node:
        return cls(lkh_id, handle, material[:BLOCK], Secret(material[BLOCK:]))


# -- a member's side -----------------------------------------------------------------------------


class NotOurs(Exception):
    """No update array starts at a key of this path."""


def apply_updates(path: Sequence[Node], updates: Iterable[LkhUpdateArray]) -> tuple[Node, ...]:
    """The path after an update, leaf first, the new group KEK last.

    Raises NotOurs where no array starts at a key that the path holds, ValueError for keys of
    another length or type, or more than a path may have.
    """
    held = {(node.lkh_id, node.handle): place for place, node in enumerate(path)}
    for update in updates:
        place = held.get((update.lkh_id, update.key_handle))
        if place is not None:
            kept = tuple(path[: place + 1])
            if len(kept) + len(update.keys) > MAX_PATH:
                raise ValueError(f"path of {len(kept) + len(update.keys)} keys, at most {MAX_PATH}")
            return kept + _unwrap_chain(kept[-1], update.keys)
    raise NotOurs


def _unwrap_chain(under: Node, keys: Sequence[LkhKey]) -> tuple[Node, ...]:
    """Each key is encrypted with the one before it: its own IV, no padding."""
    found: list[Node] = []
    for wrapped in keys:
        if wrapped.key_type != KekAlgorithm.KEK_ALG_AES:
            raise ValueError(f"LKH key type {wrapped.key_type}, must be AES")
        if len(wrapped.key_data) != len(under.material):
            raise ValueError(
                f"LKH key data of {len(wrapped.key_data)} octets, must be {len(under.material)}"
            )
        material = decrypt(under.key.reveal(), under.iv, wrapped.key_data)
        under = Node.of(wrapped.lkh_id, wrapped.key_handle, material)
        found.append(under)
    return tuple(found)


# -- the key server's side -----------------------------------------------------------------------


class TreeFull(Exception):
    """Every leaf is taken."""


@dataclass(frozen=True, slots=True)
class Update:
    """What a change of keys says to the members: the value of one LKH_UPDATE_ARRAY for each
    subtree, by the LKH ID it starts at."""

    arrays: Mapping[int, bytes]
    arity: int

    def start_of(self, leaf: int) -> int | None:
        """The array that serves the member at ``leaf``, by its LKH ID."""
        node = leaf
        while node and node not in self.arrays:
            node = _parent(node, self.arity)
        return node or None


class Tree:
    """A k-ary tree in flat arrays: node i has the children k (i - 1) + 2 .. k i + 1, its number is
    its LKH ID, 1 is the root, and the leaves come last.

    ``octets`` is the length of IV | key. Two nodes a member at 8 octets of bookkeeping and their
    keys: some 110 octets a member with AES-256.
    """

    __slots__ = (
        "_dirty",
        "_first_leaf",
        "_handles",
        "_hint",
        "_hot",
        "_keys",
        "_used",
        "arity",
        "octets",
    )

    def __init__(self, arity: int, capacity: int, octets: int) -> None:
        if not 2 <= arity <= MAX_ARITY:
            raise ValueError(f"arity {arity}, must be 2 to {MAX_ARITY}")
        if not 1 <= capacity <= capacity_of(arity):
            raise ValueError(f"{capacity} members, must be 1 to {capacity_of(arity)}")
        if octets % BLOCK:
            # Keys are encrypted without padding, and no field would tell of any.
            raise ValueError(f"keys of {octets} octets with their IV are not whole blocks")
        inner = max(1, -(-(capacity - 1) // (arity - 1)))
        nodes = capacity + inner
        self.arity, self.octets = arity, octets
        self._first_leaf = inner + 1
        self._hint = self._first_leaf
        # All indexed by LKH ID; place 0 is empty.
        self._keys = bytearray((nodes + 1) * octets)
        self._handles = array("I", bytes(4 * (nodes + 1)))
        self._used = bytearray(nodes + 1)
        self._dirty: set[int] = set()
        self._hot: dict[int, CipherContext] = {}

    @classmethod
    def plant(cls, arity: int, capacity: int, octets: int, random: Random) -> Tree:
        """An empty tree whose inner nodes have their first keys."""
        tree = cls(arity, capacity, octets)
        inner = tree._first_leaf - 1
        tree._keys[octets : octets * (inner + 1)] = random(octets * inner)
        tree._handles[1 : inner + 1] = array("I", [1]) * inner
        tree._dirty.update(range(tree.pages))
        return tree

    def __repr__(self) -> str:
        return f"Tree({self.members} of {self.capacity} members, arity {self.arity})"

    @property
    def capacity(self) -> int:
        return len(self._used) - self._first_leaf

    @property
    def members(self) -> int:
        return self._used.count(1)

    @property
    def pages(self) -> int:
        return -(-len(self._used) // PAGE)

    @property
    def full(self) -> bool:
        return self._used.find(0, self._hint) < 0

    @property
    def depth(self) -> int:
        """Keys above a leaf that lies deepest."""
        return len(self.path(len(self._used) - 1)) - 1

    # -- keys ------------------------------------------------------------------------------------

    def path(self, leaf: int) -> tuple[Node, ...]:
        """RFC 6407 section 5.6.3.1: from the leaf to the group KEK."""
        found = []
        while leaf:
            found.append(self._node(leaf))
            leaf = _parent(leaf, self.arity)
        return tuple(found)

    def leaf_key(self, leaf: int) -> Secret:
        """Known to this member and the key server alone."""
        return self._node(leaf).key

    @property
    def root(self) -> Node:
        """The group KEK."""
        return self._node(1)

    def _node(self, i: int) -> Node:
        return Node.of(i, self._handles[i], self._material(i))

    def _material(self, i: int) -> bytes:
        return bytes(self._keys[i * self.octets : (i + 1) * self.octets])

    def _set(self, i: int, material: bytes) -> None:
        self._keys[i * self.octets : (i + 1) * self.octets] = material
        # RFC 6407 section 5.6.3.1: "a key handle identity distinct from previous or successive"
        self._handles[i] += 1
        self._hot.pop(i, None)
        self._dirty.add(i // PAGE)

    # -- changes ---------------------------------------------------------------------------------

    def holds(self, leaf: int) -> bool:
        return self._first_leaf <= leaf < len(self._used) and self._used[leaf] == 1

    def join(self, random: Random) -> int:
        """Takes the first free leaf, so that who comes together lies together. Raises TreeFull."""
        leaf = self._used.find(0, self._hint)
        if leaf < 0:
            raise TreeFull
        self._hint = leaf + 1
        self._used[leaf] = 1
        self._set(leaf, random(self.octets))
        return leaf

    def give_back(self, leaf: int) -> None:
        """A leaf whose keys have been told to nobody."""
        self._used[leaf] = 0
        self._hint = min(self._hint, leaf)

    def leave(self, leaves: Iterable[int], random: Random) -> Update:
        """Frees leaves and renews every key that was known there, the group KEK in any case."""
        return self.change(leaves, 0, random)[1]

    def _free(self, leaves: Iterable[int]) -> None:
        for leaf in leaves:
            if not self.holds(leaf):
                raise ValueError(f"LKH ID {leaf} is no member's leaf")
            self._used[leaf] = 0
            self._hint = min(self._hint, leaf)
            self._dirty.add(leaf // PAGE)

    def change(
        self, leaving: Iterable[int], joining: int, random: Random
    ) -> tuple[list[int], Update]:
        """Leaves that are freed, and leaves for so many who are not to read what was said before
        they came: all keys above either are new, by one update for everybody else.

        Raises TreeFull, and then nothing has changed.
        """
        gone = list(leaving)
        if self.room + len(gone) < joining:
            raise TreeFull
        self._free(gone)
        fresh = [self.join(random) for _ in range(joining)]
        arrays = self._renew([*gone, *fresh], random)
        for leaf in fresh:
            arrays.pop(leaf, None)
        return fresh, Update(arrays, self.arity)

    @property
    def room(self) -> int:
        """Leaves that are free."""
        return self._used.count(0, self._first_leaf)

    def _renew(self, leaves: Iterable[int], random: Random) -> dict[int, bytes]:
        """New keys for the root and every node above these leaves."""
        renewed = {1}
        for leaf in leaves:
            node = _parent(leaf, self.arity)
            while node not in renewed:
                renewed.add(node)
                node = _parent(node, self.arity)
        order = sorted(renewed)  # parents before children
        fresh = random(self.octets * len(order))
        for place, node in enumerate(order):
            self._set(node, fresh[place * self.octets : (place + 1) * self.octets])
        return self._arrays(order, renewed)

    def _arrays(self, order: Sequence[int], renewed: set[int]) -> dict[int, bytes]:
        """An update array for each child of a renewed node that kept its key and has members.

        What follows the first key is the same for all of them below one node: made once.
        """
        arrays: dict[int, bytes] = {}
        tails = {1: b""}
        depths = {1: 1}
        for node in order:
            head = _KEY_HEAD.pack(node, KekAlgorithm.KEK_ALG_AES, 0, 0, 0, self._handles[node])
            material, tail, depth = self._material(node), tails[node], depths[node]
            first = self.arity * (node - 1) + 2
            for child in range(first, min(first + self.arity, len(self._used))):
                ours = child in renewed
                if not ours and not self._populated(child):
                    continue
                keys = head + self._wrap(child, material) + tail
                if ours:
                    tails[child], depths[child] = keys, depth + 1
                else:
                    handle = self._handles[child]
                    arrays[child] = _ARRAY_HEAD.pack(LKH_VERSION, depth, 0, child, 0, handle) + keys
        return arrays

    def _wrap(self, under: int, material: bytes) -> bytes:
        """``material`` in CBC under a node's key, with that key's IV."""
        at = under * self.octets
        iv, key = self._keys[at : at + BLOCK], self._keys[at + BLOCK : at + self.octets]
        if under > HOT:
            return Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor().update(material)
        # CBC from single blocks: a context for the mode itself could be used only once.
        block = self._hot.get(under)
        if block is None:
            ecb = modes.ECB()  # noqa: S305
            block = self._hot[under] = Cipher(algorithms.AES(key), ecb).encryptor()
        before, wrapped = int.from_bytes(iv, "big"), b""
        for place in range(0, len(material), BLOCK):
            mixed = before ^ int.from_bytes(material[place : place + BLOCK], "big")
            sealed = block.update(mixed.to_bytes(BLOCK, "big"))
            before = int.from_bytes(sealed, "big")
            wrapped += sealed
        return wrapped

    def _populated(self, node: int) -> bool:
        """Whether a member is below ``node``: its descendants of each level lie side by side."""
        low = high = node
        while low < len(self._used):
            if high >= self._first_leaf and self._used.find(1, low, high + 1) >= 0:
                return True
            low, high = self.arity * (low - 1) + 2, self.arity * high + 1
        return False

    # -- the saved state -------------------------------------------------------------------------

    def take_dirty(self) -> list[int]:
        """The pages that have changed since this was asked last."""
        pages, self._dirty = sorted(self._dirty), set()
        return pages

    def page(self, number: int) -> bytes:
        """used | handles | keys of up to 64 nodes."""
        low, high = number * PAGE, min((number + 1) * PAGE, len(self._used))
        handles = array("I", self._handles[low:high])
        return (
            bytes(self._used[low:high])
            + Struct(f">{len(handles)}I").pack(*handles)
            + bytes(self._keys[low * self.octets : high * self.octets])
        )

    def load_page(self, number: int, octets: bytes) -> None:
        """What ``page`` gave. Raises ValueError for anything else."""
        low, high = number * PAGE, min((number + 1) * PAGE, len(self._used))
        nodes = high - low
        if nodes <= 0 or len(octets) != nodes * (5 + self.octets):
            raise ValueError(f"page {number} of {len(octets)} octets")
        if not set(octets[:nodes]) <= {0, 1}:
            raise ValueError(f"page {number}: a leaf is taken or free")
        self._used[low:high] = octets[:nodes]
        handles = Struct(f">{nodes}I").unpack(octets[nodes : 5 * nodes])
        self._handles[low:high] = array("I", handles)
        self._keys[low * self.octets : high * self.octets] = octets[5 * nodes :]
        self._hint = self._first_leaf
        self._hot.clear()


def _parent(node: int, arity: int) -> int:
    """0 above the root."""
    return (node - 2) // arity + 1
