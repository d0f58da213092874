"""LKH as RFC 6407 5.6.3 and RFC 2627 5.4 have it, both roles, written from the texts alone."""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from .rfc_crypto import cbc
from .rfc_octets import must

AES = 3  # KEK_ALG_AES


class Node(NamedTuple):
    """A key of the tree: LKH ID, key handle, IV and key."""

    number: int
    handle: int
    iv: bytes
    key: bytes

    def pack(self, data: bytes) -> bytes:
        """Figure 12, `data` in the clear or encrypted; no dates, clocks need not agree."""
        return struct.pack("!HBBIII", self.number, AES, 0, 0, 0, self.handle) + data

    def wrap(self, other: Node) -> bytes:
        return cbc(self.key, self.iv, other.iv + other.key, encrypt=True)


class Entry(NamedTuple):
    number: int
    handle: int
    data: bytes


def _head(octets: bytes, header: int) -> list[Entry]:
    """Version, number of keys, RESERVED; then `header` octets in all, then the keys."""
    must(octets[0] == 1, "RFC 6407 5.6.3.1: LKH version must be one")
    (count,) = struct.unpack("!H", octets[1:3])
    must(octets[3] == 0, "RFC 6407 5.6.3.1: RESERVED set to zero")
    body = octets[header:]
    must(count >= 1 and len(body) % count == 0, "RFC 6407 5.6.3.1: so many LKH keys")
    size, found = len(body) // count, []
    for at in range(0, len(body), size):
        number, kind, reserved, _, _, handle = struct.unpack("!HBBIII", body[at : at + 16])
        must(kind == AES, "RFC 6407 5.3.2: the KEK's algorithm for all keys")
        must(reserved == 0, "RFC 6407 5.6.3.1: RESERVED of an LKH key set to zero")
        found.append(Entry(number, handle, body[at + 16 : at + size]))
    return found


def read_download(octets: bytes) -> list[Node]:
    """Figure 11: leaf first, the group KEK last."""
    return [Node(e.number, e.handle, e.data[:16], e.data[16:]) for e in _head(octets, 4)]


def take_updates(path: list[Node], arrays: list[bytes]) -> list[Node] | None:
    """RFC 6407 4.4: the path after these arrays; None where none of them starts at a key of it."""
    for octets in arrays:
        entries = _head(octets, 12)
        number, reserved2, handle = struct.unpack("!HHI", octets[4:12])
        must(reserved2 == 0, "RFC 6407 5.6.3.2: RESERVED2 set to zero")
        at = next((n for n, k in enumerate(path) if (k.number, k.handle) == (number, handle)), None)
        if at is None:
            continue
        above = [node.number for node in path[at + 1 :]]
        must([e.number for e in entries] == above, "RFC 6407 5.6.3.2: along the path to the KEK")
        taken = path[: at + 1]
        for entry in entries:
            must(len(entry.data) == len(path[0].iv + path[0].key), "keys of one length")
            data = cbc(taken[-1].key, taken[-1].iv, entry.data, encrypt=False)
            taken.append(Node(entry.number, entry.handle, data[:16], data[16:]))
        old = {(node.number, node.handle) for node in path[at + 1 :]}
        new = {(node.number, node.handle) for node in taken[at + 1 :]}
        must(not old & new, "RFC 6407 5.6.3.1: each new key a handle distinct from the previous")
        return taken
    return None


@dataclass
class Tree:
    """A key server's tree of eight leaves, numbered by nobody's rule but its own.

    ::

                 root
               a      b
             c   d  e   f
            0 1 2 3 4 5 6 7
    """

    bits: int = 256
    nodes: dict[str, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ["root", *"abcdef", *"01234567"]
        numbers = secrets.SystemRandom().sample(range(0x10000), len(names))
        for name, number in zip(names, numbers, strict=True):
            self.nodes[name] = self._fresh(number, secrets.randbits(32))

    def _fresh(self, number: int, handle: int) -> Node:
        return Node(number, handle, secrets.token_bytes(16), secrets.token_bytes(self.bits // 8))

    @staticmethod
    def above(leaf: int) -> list[str]:
        return ["cdef"[leaf // 2], "ab"[leaf // 4], "root"]

    def path(self, leaf: int) -> list[Node]:
        return [self.nodes[name] for name in (str(leaf), *self.above(leaf))]

    def download(self, leaf: int) -> bytes:
        path = self.path(leaf)
        keys = b"".join(node.pack(node.iv + node.key) for node in path)
        return struct.pack("!BHB", 1, len(path), 0) + keys

    def evict(self, leaf: int) -> list[bytes]:
        """New keys above this leaf; an array for each subtree that hangs off its path."""
        above = self.above(leaf)
        for name in above:
            old = self.nodes[name]
            self.nodes[name] = self._fresh(old.number, (old.handle + 1) % 2**32)
        siblings = [str(leaf ^ 1), "cdef"[leaf // 2 ^ 1], "ab"[leaf // 4 ^ 1]]
        return [self._array(start, above[place:]) for place, start in enumerate(siblings)]

    def _array(self, start: str, above: list[str]) -> bytes:
        first = under = self.nodes[start]
        keys = b""
        for name in above:
            keys += self.nodes[name].pack(under.wrap(self.nodes[name]))
            under = self.nodes[name]
        head = struct.pack("!BHBHHI", 1, len(above), 0, first.number, 0, first.handle)
        return head + keys
