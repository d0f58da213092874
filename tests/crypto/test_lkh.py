"""The key tree: who is in derives the group KEK, who is out does not, whatever came before."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from random import Random

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gdoi_plugin.crypto.lkh import (
    HOT,
    MAX_ARITY,
    PAGE,
    Node,
    NotOurs,
    Tree,
    TreeFull,
    Update,
    apply_updates,
    capacity_of,
)
from gdoi_plugin.wire.buffer import Buffer
from gdoi_plugin.wire.lkh import MAX_PATH, LkhKey, LkhUpdateArray

AES128, AES256 = 32, 48  # octets of IV | key


def arrays(update: Update) -> list[LkhUpdateArray]:
    return [LkhUpdateArray.pull(Buffer(octets)) for octets in update.arrays.values()]


def planted(arity: int, capacity: int, octets: int = AES128, seed: int = 1) -> Tree:
    return Tree.plant(arity, capacity, octets, Random(seed).randbytes)


# -- against the RFC's words, worked by hand -----------------------------------------------------


def cbc(material: bytes, plain: bytes) -> bytes:
    """CBC written out (C_n = E(P_n xor C_n-1), C_0 = IV), for a key given as IV | key."""
    ecb = Cipher(algorithms.AES(material[16:]), modes.ECB()).encryptor()  # noqa: S305 -- to build CBC from
    before, out = material[:16], b""
    for at in range(0, len(plain), 16):
        mixed = bytes(a ^ b for a, b in zip(plain[at : at + 16], before, strict=True))
        before = ecb.update(mixed)
        out += before
    return out


def test_an_eviction_in_a_tree_of_four_is_these_octets() -> None:
    """::

       1
     2   3
    4 5 6 7      member 5 leaves: new keys for 2 and 1, sent to 4 and to 3
    """
    # every key is 32 octets that count up from a number of its own
    numbers = count(1)

    def random(length: int) -> bytes:
        return b"".join(bytes([next(numbers)]) * 32 for _ in range(length // 32))

    tree = Tree.plant(2, 4, AES128, random)  # nodes 1, 2, 3: 01.., 02.., 03..
    assert [tree.join(random) for _ in range(4)] == [4, 5, 6, 7]  # 04.. to 07..
    update = tree.leave([5], random)  # 1 and 2 become 08.. and 09..
    k3, k4, new1, new2 = (bytes([n]) * 32 for n in (3, 4, 8, 9))
    node1 = "0001 03 00 00000000 00000000 00000002"
    node2 = "0002 03 00 00000000 00000000 00000002"
    expected = {
        4: bytes.fromhex("01 0002 00 0004 0000 00000001" + node2)
        + cbc(k4, new2)
        + bytes.fromhex(node1)
        + cbc(new2, new1),
        3: bytes.fromhex("01 0001 00 0003 0000 00000001" + node1) + cbc(k3, new1),
    }
    assert update.arrays == expected
    assert tree.root.material == new1
    assert [node.lkh_id for node in tree.path(4)] == [4, 2, 1]


@pytest.mark.parametrize(("arity", "capacity"), [(2, 32768), (3, 43690), (4, 49151), (16, 61439)])
def test_a_tree_holds_as_many_members_as_16_bits_of_lkh_id_allow(arity: int, capacity: int) -> None:
    assert capacity_of(arity) == capacity
    tree = Tree(arity, capacity, AES128)
    assert tree.capacity == capacity
    assert tree.path(0xFFFF)[-1].lkh_id == 1
    with pytest.raises(ValueError, match=f"must be 1 to {capacity}"):
        Tree(arity, capacity + 1, AES128)


def test_shapes_that_are_none_are_refused() -> None:
    for arity in (1, MAX_ARITY + 1):
        with pytest.raises(ValueError, match="arity"):
            Tree(arity, 8, AES128)
    with pytest.raises(ValueError, match="0 members"):
        Tree(2, 0, AES128)
    with pytest.raises(ValueError, match="not whole blocks"):
        Tree(2, 4, 16 + 24)


@given(st.integers(2, 16), st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_every_inner_node_has_children_and_every_leaf_its_place(arity: int, capacity: int) -> None:
    tree = planted(arity, capacity)
    leaves = [tree.join(Random(0).randbytes) for _ in range(capacity)]
    assert tree.full
    with pytest.raises(TreeFull):
        tree.join(Random(0).randbytes)
    above = {node.lkh_id for leaf in leaves for node in tree.path(leaf)[1:]}
    assert above == set(range(1, min(leaves)))
    assert leaves == list(range(min(leaves), min(leaves) + capacity))


def test_evicting_one_of_32768_takes_at_most_6000_octets() -> None:
    for arity in (2, 3, 4):
        tree = planted(arity, 32768)
        random = Random(2).randbytes
        leaves = [tree.join(random) for _ in range(32768)]
        for leaf in (leaves[0], leaves[-1], leaves[12345]):
            update = tree.leave([leaf], random)
            assert sum(4 + len(array) for array in update.arrays.values()) <= 6000
            assert tree.join(random) == leaf


@pytest.mark.parametrize("octets", [AES128, AES256])
def test_near_the_root_and_far_from_it_keys_are_encrypted_alike(octets: int) -> None:
    """Ciphers of nodes near the root are kept, those of leaves are not; both in many rounds."""
    tree = planted(4, 3000, octets)
    random = Random(2).randbytes
    leaves = [tree.join(random) for _ in range(3000)]
    watched = {leaf: tree.path(leaf) for leaf in leaves[:: 3000 // 20]}
    assert min(leaves) > HOT
    for leaf in leaves[1:200:7]:
        if leaf in watched:
            continue
        update = arrays(tree.leave([leaf], random))
        for who, path in watched.items():
            watched[who] = apply_updates(path, update)
            assert watched[who] == tree.path(who)


def test_a_welcomed_member_s_path_is_new_and_the_others_get_along() -> None:
    tree = planted(3, 20)
    random = Random(3).randbytes
    paths = {leaf: tree.path(leaf) for leaf in [tree.join(random) for _ in range(7)]}
    before = {node.material for path in paths.values() for node in tree.path(path[0].lkh_id)}
    (leaf,), update = tree.change((), 1, random)
    heard = arrays(update)
    assert leaf not in update.arrays
    assert not before & {node.material for node in tree.path(leaf)}
    for other, path in paths.items():
        assert apply_updates(path, heard) == tree.path(other)


def test_members_that_lie_together_leave_together_cheaply() -> None:
    tree = planted(4, 4096)
    random = Random(3).randbytes
    leaves = [tree.join(random) for _ in range(4096)]
    scattered = tree.leave(leaves[::64], random)
    together = tree.leave(leaves[1:64], random)
    assert len(together.arrays) * 8 < len(scattered.arrays)


# -- a member's path -----------------------------------------------------------------------------


def test_an_update_that_starts_nowhere_in_the_path_is_not_ours() -> None:
    tree = planted(2, 4)
    random = Random(4).randbytes
    paths = [tree.path(tree.join(random)) for _ in range(4)]
    update = arrays(tree.leave([5], random))
    with pytest.raises(NotOurs):
        apply_updates(paths[1], update)
    with pytest.raises(NotOurs):
        apply_updates(paths[0], [])
    ours = [array for array in update if array.lkh_id == 4]
    assert apply_updates(paths[0], ours) == tree.path(4)
    # at any place among the others, and again: the key it starts from is still held
    for order in (update, update[::-1]):
        assert apply_updates(paths[0], order) == tree.path(4)
        assert apply_updates(tree.path(4), order) == tree.path(4)


def test_an_older_key_of_the_same_node_is_told_apart_by_its_handle() -> None:
    tree = planted(2, 4)
    random = Random(5).randbytes
    behind = [tree.path(tree.join(random)) for _ in range(4)][2]
    tree.leave([7], random)  # not heard at leaf 6: it still holds the first key of node 3
    update = arrays(tree.leave([5], random))
    assert {array.lkh_id for array in update} == {3, 4}
    with pytest.raises(NotOurs):
        apply_updates(behind, update)


def test_keys_of_another_kind_are_refused() -> None:
    tree = planted(2, 4)
    random = Random(6).randbytes
    path, *_ = [tree.path(tree.join(random)) for _ in range(4)]
    octets = tree.leave([7], random).arrays[2]
    with pytest.raises(ValueError, match="LKH key type 2, must be AES"):
        apply_updates(path, [LkhUpdateArray.pull(Buffer(octets[:14] + b"\x02" + octets[15:]))])
    longer = LkhUpdateArray.pull(Buffer(octets + bytes(16)))
    with pytest.raises(ValueError, match="48 octets, must be 32"):
        apply_updates(path, [longer])


def test_a_path_does_not_grow_for_ever() -> None:
    """A key server could say arrays that start at the KEK itself, one after the other."""
    tree = planted(2, 4)
    path = tree.path(tree.join(Random(6).randbytes))
    for step in range(MAX_PATH):
        longer = LkhKey(100 + step, 3, 1, bytes(32))
        update = LkhUpdateArray(path[-1].lkh_id, path[-1].handle, (longer,))
        if len(path) == MAX_PATH:
            with pytest.raises(ValueError, match=f"path of {MAX_PATH + 1} keys"):
                apply_updates(path, [update])
            return
        path = apply_updates(path, [update])
    pytest.fail("it grew for ever")


def test_leaves_that_nobody_holds_cannot_leave() -> None:
    tree = planted(2, 4)
    for leaf in (0, 1, 3, 4, 8, 70000):
        with pytest.raises(ValueError, match="is no member's leaf"):
            tree.leave([leaf], Random(0).randbytes)


def test_nothing_shows_keys() -> None:
    tree = planted(2, 4)
    leaf = tree.join(Random(7).randbytes)
    shown = repr(tree) + repr(tree.path(leaf))
    for node in tree.path(leaf):
        assert node.key.reveal()[:4].hex() not in shown
        assert repr(node.iv)[2:-1] not in shown


# -- any history ---------------------------------------------------------------------------------


class Histories(RuleBasedStateMachine):
    """Joins, leaves and lost updates; every leaver keeps all it ever held and hears everything."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = Random(0)
        self.tree = planted(self.rng.choice((2, 3, 4)), 40, AES256)
        self.paths: dict[int, tuple[Node, ...]] = {}
        self.known: list[set[bytes]] = []  # of each leaver

    @rule(seed=st.integers(0, 1000), arity=st.sampled_from((2, 3, 4, 7)))
    @precondition(lambda self: not self.paths and not self.known)
    def begin(self, seed: int, arity: int) -> None:
        self.rng = Random(seed)
        self.tree = planted(arity, self.rng.randint(1, 40), AES256, seed)

    @rule()
    @precondition(lambda self: not self.tree.full)
    def join(self) -> None:
        leaf = self.tree.join(self.rng.randbytes)
        assert leaf not in self.paths
        self.paths[leaf] = self.tree.path(leaf)

    @rule(share=st.floats(0, 1))
    @precondition(lambda self: self.paths)
    def leave(self, share: float) -> None:
        some = max(1, int(share * len(self.paths)))
        gone = self.rng.sample(sorted(self.paths), some)
        for leaf in gone:
            path = self.paths.pop(leaf)
            self.known.append({node.material for node in path})
        self.distribute(self.tree.leave(gone, self.rng.randbytes))

    @rule()
    def renew(self) -> None:
        self.distribute(self.tree.leave([], self.rng.randbytes))

    @rule()
    def restart(self) -> None:
        """The key server's memory is what the pages say."""
        tree = self.tree
        again = Tree(tree.arity, tree.capacity, tree.octets)
        for number in range(tree.pages):
            again.load_page(number, tree.page(number))
        assert again.root == tree.root
        assert again.members == tree.members == len(self.paths)
        self.tree = again

    def distribute(self, update: Update) -> None:
        heard = arrays(update)
        self.rng.shuffle(heard)
        for leaf, path in self.paths.items():
            start = update.start_of(leaf)
            assert start in {node.lkh_id for node in path}
            self.paths[leaf] = apply_updates(path, heard)
        for known in self.known:
            attack(known, heard, self.materials())

    @invariant()
    def members_hold_what_the_tree_holds(self) -> None:
        for leaf, path in self.paths.items():
            assert path == self.tree.path(leaf)
            assert path[-1] == self.tree.root

    @invariant()
    def leavers_hold_nothing_of_use(self) -> None:
        for known in self.known:
            assert not known & self.materials()

    def materials(self) -> set[bytes]:
        """Every key in use."""
        used = {node.material for leaf in self.paths for node in self.tree.path(leaf)}
        return used | {self.tree.root.material}


def attack(known: set[bytes], heard: Sequence[LkhUpdateArray], right: set[bytes]) -> None:
    """Every key tried on every wrapped key, whatever the handles say, until nothing new opens.

    ``right`` tells the attacker which of its attempts came out well.
    """
    fresh = set(known)
    while fresh:
        opened = {
            Cipher(algorithms.AES(key[16:]), modes.CBC(key[:16])).decryptor().update(k.key_data)
            for key in fresh
            for array in heard
            for k in array.keys
        }
        fresh = (opened & right) - known
        known |= fresh


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)


def test_pages_are_dirty_when_their_nodes_change_and_only_then() -> None:
    tree = planted(4, 1000)
    pages = tree.take_dirty()
    assert pages == list(range(len(pages)))
    assert tree.take_dirty() == []
    random = Random(8).randbytes
    leaf = tree.join(random)
    assert tree.take_dirty() == [leaf // PAGE]
    tree.leave([leaf], random)
    touched = {node.lkh_id // PAGE for node in tree.path(leaf)}
    assert tree.take_dirty() == sorted(touched)


def test_a_page_that_is_none_is_refused() -> None:
    tree = planted(2, 4)
    with pytest.raises(ValueError, match="page 0 of 3 octets"):
        tree.load_page(0, b"abc")
    with pytest.raises(ValueError, match="page 9"):
        tree.load_page(9, b"")
    page = tree.page(0)
    with pytest.raises(ValueError, match="taken or free"):
        tree.load_page(0, b"\x02" + page[1:])


def test_the_attack_succeeds_where_a_path_was_not_renewed() -> None:
    """The attacker of these tests is one that would notice."""
    tree = planted(2, 4)
    random = Random(9).randbytes
    path, *_ = [tree.path(tree.join(random)) for _ in range(4)]
    known = {node.material for node in path}
    heard = arrays(tree.leave([7], random))  # somebody else's leaf
    attack(known, heard, {tree.root.material})
    assert tree.root.material in known
