"""What a rekey says to each Rekey SA of a large group: made by the project's own key trees and its
own division into PUSHes, so that numbers and sizes are the real ones."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from random import Random as Generator

from gdoi_plugin.crypto.cipher import BLOCK
from gdoi_plugin.crypto.lkh import Tree, capacity_of
from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.crypto.signature import SCHEMES, SigningKey, generate
from gdoi_plugin.protocol.actions import Random
from gdoi_plugin.protocol.forest import DEFAULT_ARITY
from gdoi_plugin.protocol.policy import TEK_SUITES, Flow, GroupPolicy, Kek, Tek
from gdoi_plugin.protocol.push import DEFAULT_PUSH_LIMIT, Content, push_length, split_content
from gdoi_plugin.wire.registry import AckType

KEK_BITS = 256
SUITE = TEK_SUITES["aes256-sha256"]
FIRST_FLOW = IPv4Address("239.192.1.1")
# ATD and DTD, seconds.
DELAYS = (10, 30)
NOBODY = 0xFFFF


@dataclass(frozen=True, slots=True)
class Page:
    """One rekey to one Rekey SA: the octets of each PUSH that it takes.

    ``own``: of an update of keys, which PUSH has what the member at each place needs, NOBODY for
    who is to have none; None where each member needs all of them.
    """

    octets: tuple[int, ...]
    own: array[int] | None = None


@dataclass(frozen=True, slots=True)
class RekeySaSaid:
    """``update`` brings a new KEK, None where the old one stays; ``keys`` brings the TEKs."""

    members: int
    update: Page | None
    keys: Page


def shares(members: int, rekey_sas: int) -> list[int]:
    """How many members each Rekey SA has."""
    return [members * (n + 1) // rekey_sas - members * n // rekey_sas for n in range(rekey_sas)]


def compose(
    members: int, rekey_sas: int, evicted: Sequence[int], teks: int, scheme: str, rng: Generator
) -> list[RekeySaSaid]:
    """A rekey after these members, by their places among all, have been evicted.

    Raises ValueError where a Rekey SA cannot have so many members.
    """
    sizes = shares(members, rekey_sas)
    if max(sizes) > capacity_of(DEFAULT_ARITY):
        raise ValueError(
            f"{max(sizes)} members in one Rekey SA, at most {capacity_of(DEFAULT_ARITY)}:"
            f" take {-(-members // capacity_of(DEFAULT_ARITY))} Rekey SAs or more"
        )
    kek = make_kek(generate(SCHEMES[scheme]), rng.randbytes)
    keys = _page(kek, keys_content(teks, rng.randbytes))
    tree, leaves = _full_tree(max(sizes), rng) if evicted else (None, [])
    said = []
    begin = 0
    for size in sizes:
        gone = [place - begin for place in evicted if begin <= place < begin + size]
        begin += size
        if tree is None or not gone:
            said.append(RekeySaSaid(size, None, keys))
            continue
        said.append(RekeySaSaid(size, _update(kek, tree, leaves[:size], gone, rng), keys))
        for _ in gone:
            tree.join(rng.randbytes)  # the next tree is like this one: full
    return said


def _full_tree(members: int, rng: Generator) -> tuple[Tree, list[int]]:
    tree = Tree.plant(DEFAULT_ARITY, members, BLOCK + KEK_BITS // 8, rng.randbytes)
    return tree, [tree.join(rng.randbytes) for _ in range(members)]


def _update(
    kek: Kek, tree: Tree, leaves: Sequence[int], gone: Sequence[int], rng: Generator
) -> Page:
    update = tree.leave([leaves[place] for place in gone], rng.randbytes)
    policy = GroupPolicy(kek, (), updates=tuple(update.arrays.values()))
    parts = split_content(kek.scheme, Content(policy), DEFAULT_PUSH_LIMIT)
    holds = {
        octets: number
        for number, part in enumerate(parts)
        if part.policy is not None
        for octets in part.policy.updates
    }
    part_of = {start: holds[octets] for start, octets in update.arrays.items()}
    own = array("H", [part_of.get(update.start_of(leaf) or 0, NOBODY) for leaf in leaves])
    for place in gone:
        own[place] = NOBODY
    return Page(tuple(push_length(kek.scheme, part) for part in parts), own)


def _page(kek: Kek, content: Content) -> Page:
    parts = split_content(kek.scheme, content, DEFAULT_PUSH_LIMIT)
    return Page(tuple(push_length(kek.scheme, part) for part in parts))


def make_kek(signer: SigningKey, random: Random) -> Kek:
    return Kek(
        spi=random(16),
        iv=random(BLOCK),
        key=Secret(random(KEK_BITS // 8)),
        scheme=signer.scheme,
        public_der=signer.public_der,
        lifetime=86400,
        destination=IPv4Address("239.192.0.1"),
        source=IPv4Address("192.0.2.1"),
        ack_type=AckType.REKEY_ACK_KEK_SHA256,
    )


def keys_content(teks: int, random: Random) -> Content:
    """A rekey with so many TEKs and no KEK."""
    made = tuple(
        Tek(
            spi=(0x1000 + n).to_bytes(4, "big"),
            flow=Flow(None, FIRST_FLOW + n),
            suite=SUITE,
            encryption_key=Secret(random(32)),
            integrity_key=Secret(random(32)),
            lifetime=3600,
        )
        for n in range(teks)
    )
    return Content(GroupPolicy(None, made, *DELAYS))
