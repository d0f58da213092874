"""Key packets of type LKH: what each side says and what a member refuses, RFC 6407 5.6.3."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from gdoi_plugin.crypto.lkh import Node, Tree
from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.protocol.errors import PolicyError
from gdoi_plugin.protocol.policy import GroupPolicy, Kek, encode_kd, encode_sa, read_policy
from gdoi_plugin.protocol.record import kek_record, read_kek
from gdoi_plugin.wire.attributes import Attribute
from gdoi_plugin.wire.buffer import DecodeError
from gdoi_plugin.wire.group_sa import GroupSecurityAssociation
from gdoi_plugin.wire.key_download import KeyDownload, KeyPacket
from gdoi_plugin.wire.registry import KekAttribute, KeyPacketType
from tests.support.worlds import ECDSA, signer

SPI, NEW_SPI = b"oldcookieoldkek.", b"newcookienewkek."
RANDOM = Random(11).randbytes


class Group:
    """A tree of four, and what the member at leaf 4 holds of it; 32 octets of IV | key."""

    def __init__(self, octets: int = 32) -> None:
        self.tree = Tree.plant(2, 4, octets, RANDOM)
        self.leaves = [self.tree.join(RANDOM) for _ in range(4)]
        self.held = self.kek(SPI, self.tree.path(4))

    def kek(self, spi: bytes, path: tuple[Node, ...] = ()) -> Kek:
        root = self.tree.root
        return Kek(spi, root.iv, root.key, ECDSA, signer(ECDSA).public_der, 3600, path=path)

    def evict(self, leaf: int) -> GroupPolicy:
        update = self.tree.leave([leaf], RANDOM)
        return GroupPolicy(self.kek(NEW_SPI), (), updates=tuple(update.arrays.values()))


def encoded(policy: GroupPolicy) -> tuple[GroupSecurityAssociation, KeyDownload]:
    return encode_sa(policy), encode_kd(policy)


def packet_of(kd: KeyDownload) -> KeyPacket:
    (packet,) = kd.packets
    return packet


def with_attributes(kd: KeyDownload, *attributes: Attribute) -> KeyDownload:
    return KeyDownload((replace(packet_of(kd), attributes=attributes),))


def test_a_pull_brings_the_path_and_no_management_attribute() -> None:
    group = Group()
    sa, kd = encoded(GroupPolicy(group.held, ()))
    assert sa.sak is not None
    assert KekAttribute.KEK_MANAGEMENT_ALGORITHM not in {a.type for a in sa.sak.attributes}
    packet = packet_of(kd)
    assert (packet.kd_type, packet.spi) == (KeyPacketType.LKH, SPI)
    assert [a.type for a in packet.attributes] == [1, 3]
    assert read_policy(sa, kd, pull=True).kek == group.held


def test_a_push_brings_update_arrays_and_says_lkh() -> None:
    group = Group()
    sa, kd = encoded(group.evict(5))
    assert sa.sak is not None
    assert Attribute(KekAttribute.KEK_MANAGEMENT_ALGORITHM, 1) in sa.sak.attributes
    packet = packet_of(kd)
    assert (packet.kd_type, packet.spi) == (KeyPacketType.LKH, NEW_SPI)
    assert [a.type for a in packet.attributes] == [2, 2, 3]
    kek = read_policy(sa, kd, held=group.held).kek
    assert kek is not None
    assert kek.path == group.tree.path(4)
    assert (kek.iv, kek.key) == (group.tree.root.iv, group.tree.root.key)


def test_what_is_for_other_members_is_withheld_not_an_error() -> None:
    group = Group()
    evicted = group.kek(SPI, group.tree.path(5))
    sa, kd = encoded(group.evict(5))
    for held in (evicted, replace(evicted, path=())):
        told = read_policy(sa, kd, held=held)
        assert (told.kek, told.withheld) == (None, NEW_SPI)


def test_a_signature_key_that_is_left_out_is_the_one_in_use() -> None:
    group = Group()
    sa, kd = encoded(group.evict(5))
    bare = with_attributes(kd, *(a for a in packet_of(kd).attributes if a.type != 3))
    kek = read_policy(sa, bare, held=group.held).kek
    assert kek is not None
    assert kek.public_der == group.held.public_der
    sa, kd = encoded(GroupPolicy(group.held, ()))
    bare = with_attributes(kd, *(a for a in packet_of(kd).attributes if a.type != 3))
    with pytest.raises(PolicyError, match="lacks SIG_ALGORITHM_KEY"):
        read_policy(sa, bare, pull=True)


def test_arrays_have_their_place_in_one_exchange_only() -> None:
    group = Group()
    download = encoded(GroupPolicy(group.held, ()))
    update = encoded(group.evict(5))
    with pytest.raises(PolicyError, match="LKH key attribute 1 is unknown or has no place here"):
        read_policy(*download, held=group.held)
    with pytest.raises(PolicyError, match="LKH key attribute 2 is unknown or has no place here"):
        read_policy(
            update[0], with_attributes(update[1], packet_of(update[1]).attributes[0]), pull=True
        )


def refusals() -> dict[str, tuple[str, type[Exception], Attribute]]:
    good = packet_of(encoded(GroupPolicy(Group().held, ()))[1]).attributes[0].octets()
    twice = good[:4] + 3 * good[4 : 4 + 48]
    return {
        "no array": ("0 LKH_DOWNLOAD_ARRAY", PolicyError, Attribute(3, b"key")),
        "unknown attribute": ("LKH key attribute 7", PolicyError, Attribute(7, b"x")),
        "basic": ("is basic", DecodeError, Attribute(1, 5)),
        "version": (
            "LKH_DOWNLOAD_ARRAY: LKH version 2",
            DecodeError,
            Attribute(1, b"\x02" + good[1:]),
        ),
        "DES": ("type 1 and 32 octets", PolicyError, Attribute(1, good[:6] + b"\x01" + good[7:])),
        "one node twice": ("two keys for one LKH ID", PolicyError, Attribute(1, twice)),
    }


@pytest.mark.parametrize("case", refusals())
def test_a_download_array_that_is_refused(case: str) -> None:
    why, error, attribute = refusals()[case]
    group = Group()
    sa, kd = encoded(GroupPolicy(group.held, ()))
    with pytest.raises(error, match=why):
        read_policy(sa, with_attributes(kd, attribute), pull=True)


def test_two_download_arrays_are_refused() -> None:
    group = Group()
    sa, kd = encoded(GroupPolicy(group.held, ()))
    array = packet_of(kd).attributes[0]
    with pytest.raises(PolicyError, match="2 LKH_DOWNLOAD_ARRAY attributes, must be one"):
        read_policy(sa, with_attributes(kd, array, array), pull=True)


def test_keys_must_have_the_length_that_the_sak_says() -> None:
    group, other = Group(), Group(48)
    sa, _ = encoded(GroupPolicy(other.held, ()))
    _, kd = encoded(GroupPolicy(group.held, ()))
    with pytest.raises(PolicyError, match="32 octets, must be AES and 48"):
        read_policy(sa, kd, pull=True)
    sa, _ = encoded(other.evict(5))
    _, kd = encoded(group.evict(5))
    with pytest.raises(PolicyError, match="LKH keys of 32 octets, SAK wants 48"):
        read_policy(
            sa, replace(kd, packets=(replace(packet_of(kd), spi=NEW_SPI),)), held=group.held
        )


def test_both_a_kek_and_an_lkh_packet_are_one_too_many() -> None:
    group = Group()
    sa, kd = encoded(GroupPolicy(group.held, ()))
    plain = encode_kd(GroupPolicy(replace(group.held, path=()), ()))
    both = KeyDownload((*kd.packets, *plain.packets))
    with pytest.raises(PolicyError, match="2 KEK key packets"):
        read_policy(sa, both, pull=True)


def test_a_path_survives_the_store_and_does_not_show() -> None:
    held = Group().held
    assert read_kek(kek_record(held)) == held
    record = kek_record(held)
    del record["path"]  # as an earlier version wrote it
    assert read_kek(record).path == ()
    for node in held.path:
        assert node.key.reveal().hex()[:8] not in repr(held)
    assert isinstance(held.path[0].key, Secret)


# -- what a key server may do wrong on purpose ---------------------------------------------------


def update_array(count: int, node: Node, handle: int, octets: int = 32) -> Attribute:
    """``count`` keys under ``node``, each of them called ``node`` again."""
    key = node.lkh_id.to_bytes(2, "big") + bytes((3, 0)) + bytes(12) + bytes(octets)
    head = bytes((1,)) + count.to_bytes(2, "big") + bytes(1)
    start = node.lkh_id.to_bytes(2, "big") + bytes(2) + handle.to_bytes(4, "big")
    return Attribute(2, head + start + count * key)


@pytest.mark.parametrize(
    ("count", "octets", "why", "error"),
    [
        (0, 32, "0 LKH keys", DecodeError),
        (65, 32, "65 LKH keys", DecodeError),
        (64, 32, "path of 65 keys", PolicyError),
        (2, 48, "key data of 48 octets, must be 32", PolicyError),
    ],
)
def test_an_update_array_that_is_refused(
    count: int, octets: int, why: str, error: type[Exception]
) -> None:
    group = Group()
    leaf = group.held.path[0]
    sa, kd = encoded(group.evict(5))
    told = with_attributes(kd, update_array(count, leaf, leaf.handle, octets))
    with pytest.raises(error, match=why):
        read_policy(sa, told, held=group.held)


def test_a_path_that_goes_round_in_a_circle_is_no_longer_than_any() -> None:
    group = Group()
    leaf = group.held.path[0]
    sa, kd = encoded(group.evict(5))
    told = with_attributes(kd, update_array(63, leaf, leaf.handle))
    kek = read_policy(sa, told, held=group.held).kek
    assert kek is not None
    assert len(kek.path) == 64
    # All its keys have one name, which is that of the last one: there is no room after it.
    again = with_attributes(kd, update_array(64, kek.path[-1], kek.path[-1].handle))
    with pytest.raises(PolicyError, match="at most 64"):
        read_policy(sa, again, held=kek)


def test_updates_for_a_handle_or_a_node_not_held_change_nothing() -> None:
    group = Group()
    leaf = group.held.path[0]
    sa, kd = encoded(group.evict(5))
    for node, handle in ((leaf, leaf.handle + 1), (replace(leaf, lkh_id=0x7FFF), leaf.handle)):
        told = read_policy(sa, with_attributes(kd, update_array(1, node, handle)), held=group.held)
        assert (told.kek, told.withheld) == (None, NEW_SPI)
