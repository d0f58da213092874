"""What the members of a swarm hold: shared keys once for all of them, a member's own beside it.

A multicast PUSH is decrypted, verified and read once. Who of the members can read it follows from
which KEK each has come to; a key tree's nodes are kept once, and each update array is applied once.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

from gdoi_plugin.crypto.ack_key import ACK_PRFS, ack_key
from gdoi_plugin.crypto.lkh import Node, apply_updates
from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.crypto.signature import VerifyKey, load_public
from gdoi_plugin.protocol.ack import base_key, build_ack
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.policy import Kek, read_policy
from gdoi_plugin.protocol.pull import PullResult
from gdoi_plugin.protocol.push import open_push
from gdoi_plugin.wire.buffer import Buffer
from gdoi_plugin.wire.group_sa import GroupSecurityAssociation
from gdoi_plugin.wire.header import HEADER_LENGTH, pull_header
from gdoi_plugin.wire.key_download import KeyDownload
from gdoi_plugin.wire.lkh import LkhUpdateArray
from gdoi_plugin.wire.payload import GENERIC_HEADER_LENGTH
from gdoi_plugin.wire.registry import Hash, KeyPacketType, LkhKeyAttribute

_HASHES = {Hash.SHA2_256: "sha256", Hash.SHA2_512: "sha512"}
# PUSHes whose meaning is remembered: by unicast each comes to every member.
MOST_HEARD = 256
ID_OCTETS = 4  # an IPv4 address ends the ACK


class SwarmError(Exception):
    """What must not happen to a swarm that does everything right."""


@dataclass(slots=True)
class SwarmMember:
    """100,000 of these. ``kek``: the newest Rekey SA it holds, by its place in its tree's line."""

    host: bytes
    tree: int = 0
    kek: int = 0
    leaf: Secret | None = None
    silent: bool = False
    acknowledged: int = 0

    @property
    def address(self) -> IPv4Address:
        return IPv4Address(self.host)


@dataclass(slots=True)
class _Held:
    """A Rekey SA: ``place`` in the line of those of one tree, each brought under one before it."""

    kek: Kek
    verify_key: VerifyKey
    tree: int
    place: int


@dataclass(frozen=True, slots=True)
class Heard:
    """A PUSH that was read: for members of ``tree`` whose KEK has place ``under`` or a later one.

    ``brings``: the place of the KEK in it. ``acks`` makes their ACKs.
    """

    seq: int
    tree: int
    under: int
    brings: int | None
    acks: AckMaker | None


class AckMaker:
    """Acknowledgements of one PUSH: alike but for the HASH and the address at the end."""

    def __init__(self, held: Kek, seq: int, ack_type: int) -> None:
        self._kek, self._kind = held, ACK_PRFS[ack_type]
        who = Identity.of_address(IPv4Address(0)).payload()
        base = base_key(ack_type, held, Secret(bytes(len(held.key))))
        if base is None:
            raise SwarmError(f"ACK type {ack_type}")
        made = build_ack(ack_type, base, held, seq, who)
        start = HEADER_LENGTH + GENERIC_HEADER_LENGTH
        self._head = made[:start]
        self._rest = made[start + self._kind.octets : -ID_OCTETS]
        self._hash = _HASHES[self._kind.hash]
        self._shared = None if self._kind.leaf else ack_key(self._kind, held.key, held.spi).reveal()

    def make(self, member: SwarmMember) -> bytes:
        """RFC 8263 section 3.2: HASH = prf(ack_key, SEQ | ID), by the member's own key."""
        key = self._shared
        if key is None:
            if member.leaf is None:
                raise SwarmError(f"{member.address} has no leaf of the tree")
            key = ack_key(self._kind, member.leaf, self._kek.spi).reveal()
        covered = self._rest + member.host
        return self._head + hmac.digest(key, covered, self._hash) + covered


@dataclass(slots=True)
class SwarmKeys:
    """Every Rekey SA that some member has come to know."""

    _by_spi: dict[bytes, _Held] = field(default_factory=dict)
    # The Rekey SAs of each tree, in the order in which they came; without LKH there is one line.
    _lines: list[list[_Held]] = field(default_factory=list)
    _nodes: dict[tuple[int, int], Node] = field(default_factory=dict)  # by tree and LKH ID
    _heard: dict[bytes, Heard | None] = field(default_factory=dict)

    # -- registration ----------------------------------------------------------------------------

    def registered(self, host: bytes, result: PullResult) -> SwarmMember:
        policy = read_policy(result.sa, result.kd, pull=True)
        if policy.kek is None:
            raise SwarmError("a group without rekeys")
        return self.holds(host, policy.kek)

    def holds(self, host: bytes, kek: Kek) -> SwarmMember:
        """A member that has this KEK, as it is or by a tree's path."""
        held = self._by_spi.get(kek.spi) or self._add(kek, self._tree_of(kek))
        for node in kek.path:
            self._nodes[held.tree, node.lkh_id] = node
        return SwarmMember(host, held.tree, held.place, kek.leaf)

    def _tree_of(self, kek: Kek) -> int:
        """Of a KEK that nobody had before: a tree is known by its inner nodes."""
        if not kek.path:
            return 0
        trees = range(len(self._lines))
        inner = kek.path[1:-1]
        return next(
            (t for t in trees if any(self._nodes.get((t, n.lkh_id)) == n for n in inner)),
            len(self._lines),
        )

    def _add(self, kek: Kek, tree: int) -> _Held:
        if tree == len(self._lines):
            self._lines.append([])
        line = self._lines[tree]
        held = _Held(kek, load_public(kek.scheme, kek.public_der), tree, len(line))
        line.append(held)
        self._by_spi[kek.spi] = held
        return held

    # -- GROUPKEY-PUSH ---------------------------------------------------------------------------

    def hear(self, datagram: bytes) -> Heard | None:
        """None for a PUSH under a KEK that nobody has been given. Raises SwarmError, AuthError,
        DecodeError, PolicyError."""
        if datagram not in self._heard:
            if len(self._heard) >= MOST_HEARD:
                self._heard.clear()
            self._heard[datagram] = self._read(datagram)
        return self._heard[datagram]

    def _read(self, datagram: bytes) -> Heard | None:
        header = pull_header(datagram)
        under = self._by_spi.get(header.spi)
        if under is None:
            return None
        push = open_push(under.kek, under.verify_key, -1, header, datagram)
        brought = None if push.policy is None else self._take(*push.policy, under)
        latest = brought or under
        ack_type = latest.kek.ack_type
        acks = None if ack_type is None else AckMaker(under.kek, push.seq, ack_type)
        brings = None if brought is None else brought.place
        return Heard(push.seq, under.tree, under.place, brings, acks)

    def _take(self, sa: GroupSecurityAssociation, kd: KeyDownload, under: _Held) -> _Held | None:
        """The KEK that a PUSH brings, and the keys of its tree."""
        known: list[Node] = []
        for update in _updates(kd):
            start = self._nodes.get((under.tree, update.lkh_id))
            if start is not None and start.handle == update.key_handle:
                known.append(start)
                for node in apply_updates((start,), [update])[1:]:
                    self._nodes[under.tree, node.lkh_id] = node
        # Any member's path would do: what is read is the KEK that they all end in.
        policy = read_policy(sa, kd, held=replace(under.kek, path=tuple(known[:1])))
        if policy.kek is None:
            return None
        return self._by_spi.get(policy.kek.spi) or self._add(policy.kek, under.tree)


def _updates(kd: KeyDownload) -> list[LkhUpdateArray]:
    packets = [packet for packet in kd.packets if packet.kd_type == KeyPacketType.LKH]
    return [
        LkhUpdateArray.pull(Buffer(attribute.octets()))
        for packet in packets
        for attribute in packet.attributes
        if attribute.type == LkhKeyAttribute.LKH_UPDATE_ARRAY
    ]
