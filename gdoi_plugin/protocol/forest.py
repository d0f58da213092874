"""A group's Rekey SAs at the key server: one, or with LKH one for each tree of keys.

A tree has no more leaves than its 16-bit LKH IDs can name, so a large group is a forest: several
Rekey SAs, each with its own KEK, SEQ and tree, that bring their members the same TEKs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..crypto.cipher import BLOCK
from ..crypto.lkh import Tree
from ..crypto.signature import SigningKey
from .actions import Random
from .policy import Kek
from .record import Record

# Of all arities about the shortest updates; and a tree of six levels, small enough to keep at hand.
DEFAULT_ARITY = 4
DEFAULT_MEMBERS = 4096


@dataclass(frozen=True, slots=True)
class LkhPolicy:
    """``members`` is the size of one tree; whoever registers when it is full goes into the next."""

    arity: int = DEFAULT_ARITY
    members: int = DEFAULT_MEMBERS
    # RFC 6407 section 7.4.2: who joins reads nothing of what was before.
    rekey_on_join: bool = False


@dataclass(slots=True)
class ServerKek:
    """A Rekey SA with its private key; ``seq`` is the last one given out."""

    kek: Kek
    signer: SigningKey
    seq: int
    created: float
    expires: float
    # Set once a newer KEK has been sent: until then ACKs under this one count (RFC 8263 section 6).
    retire_at: float | None = None


@dataclass(slots=True)
class RekeySa:
    """The KEK in use and, with LKH, the tree whose root it is."""

    kek: ServerKek
    tree: Tree | None = None
    # The SPI of the KEK after this one: whoever joins is told it before the KEK is made.
    next_spi: bytes = b""

    @property
    def full(self) -> bool:
        return self.tree is not None and self.tree.full

    def fits(self, policy: LkhPolicy | None, kek_bits: int) -> bool:
        """Whether the configuration still wants keys managed as they are here."""
        if self.tree is None or policy is None:
            return self.tree is None and policy is None
        return (self.tree.arity, self.tree.octets) == (policy.arity, BLOCK + kek_bits // 8)


def plant(policy: LkhPolicy | None, kek_bits: int, random: Random) -> Tree | None:
    if policy is None:
        return None
    return Tree.plant(policy.arity, policy.members, BLOCK + kek_bits // 8, random)


def cookies(random: Random) -> bytes:
    """The SPI of a Rekey SA. A cookie of zeros means "none" in an ISAKMP header."""
    spi = bytes(16)
    while not (any(spi[:8]) and any(spi[8:])):
        spi = random(16)
    return spi


# -- the saved state -----------------------------------------------------------------------------


def sa_record(sa: RekeySa) -> Record:
    """The shape of its tree; the keys are in the pages."""
    shape = sa.tree and {
        "arity": sa.tree.arity,
        "capacity": sa.tree.capacity,
        "octets": sa.tree.octets,
    }
    return {"spi": sa.kek.kek.spi.hex(), "next_spi": sa.next_spi.hex(), "tree": shape}


def read_sa(record: Mapping[str, Any], keks: dict[bytes, ServerKek]) -> RekeySa:
    """Takes its KEK out of ``keks``."""
    shape = record["tree"]
    tree = shape and Tree(shape["arity"], shape["capacity"], shape["octets"])
    next_spi = bytes.fromhex(record.get("next_spi", ""))
    return RekeySa(keks.pop(bytes.fromhex(record["spi"])), tree, next_spi)


def dirty_pages(group: int, sas: Iterable[RekeySa]) -> list[Record]:
    """What has changed in the trees since this was asked last."""
    return [
        {
            "group": group,
            "tree": number,
            "page": page,
            "nodes": sa.tree.page(page),
        }
        for number, sa in enumerate(sas)
        if sa.tree is not None
        for page in sa.tree.take_dirty()
    ]


def restore_pages(sas: list[RekeySa], pages: Iterable[Mapping[str, Any]]) -> None:
    """Raises KeyError, ValueError or TypeError for records that are not pages of these trees."""
    for record in pages:
        tree = sas[record["tree"]].tree if record["tree"] < len(sas) else None
        if tree is None:
            raise ValueError(f"a page of tree {record['tree']}, which is none")
        tree.load_page(record["page"], record["nodes"])
    for number, sa in enumerate(sas):
        if sa.tree is not None and (sa.tree.root.iv, sa.tree.root.key) != (
            sa.kek.kek.iv,
            sa.kek.kek.key,
        ):
            raise ValueError(f"the root of tree {number} is not the group KEK")
