"""Policies in a GROUPKEY-PUSH that a member must not accept: no ACK, and nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.protocol.actions import Drop, Event
from gdoi_plugin.protocol.policy import (
    Flow,
    GroupPolicy,
    encode_kd,
    encode_sa,
)
from gdoi_plugin.wire.attributes import Attribute, uint32
from gdoi_plugin.wire.group_sa import (
    Endpoint,
    EspTek,
    GroupAssociatedPolicy,
    GroupSecurityAssociation,
    SaTek,
)
from gdoi_plugin.wire.key_download import KeyDownload
from gdoi_plugin.wire.registry import IdType
from tests.protocol.test_push import IEC, new_kek, new_tek, ready, with_sat
from tests.support.forge import multicast, only_drop, push, push_policy
from tests.support.snapshot import snapshot
from tests.support.worlds import (
    FLOW,
    RSA,
    sends,
    signer,
)

SpiChange = Callable[[GroupSecurityAssociation, KeyDownload], tuple[Any, Any]]


def sat_attributes(
    sa: GroupSecurityAssociation, *extra: Attribute, without: int = 0
) -> GroupSecurityAssociation:
    (sat,) = sa.sats
    assert isinstance(sat.tek, EspTek)
    kept = tuple(a for a in sat.tek.attributes if a.type != without)
    return with_sat(sa, attributes=(*kept, *extra))


def sak_attributes(
    sa: GroupSecurityAssociation, *extra: Attribute, without: int = 0
) -> GroupSecurityAssociation:
    assert sa.sak is not None
    kept = tuple(a for a in sa.sak.attributes if a.type != without)
    return replace(sa, sak=replace(sa.sak, attributes=(*kept, *extra)))


def rsa_1024() -> bytes:
    key = rsa.generate_private_key(65537, 1024)  # noqa: S505 -- weak is the point
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def endpoint(kind: int, data: bytes) -> Endpoint:
    return Endpoint(kind, 0, data)


def gcm_with(source: str | None) -> GroupPolicy:
    network = None if source is None else ip_network(source)
    return GroupPolicy(
        None, (new_tek(keyword="aes256gcm16", flow=Flow(network, FLOW.destination)),)
    )


TEK = GroupPolicy(None, (new_tek(),))
BOTH = GroupPolicy(new_kek(), (new_tek(),))
Change = tuple[str, GroupPolicy, Callable[[Any, Any], tuple[Any, Any]]]


def _sa(change: Callable[[GroupSecurityAssociation], Any]) -> SpiChange:
    return lambda sa, kd: (change(sa), kd)


def _first_packet(*attributes: Attribute) -> SpiChange:
    def change(sa: GroupSecurityAssociation, kd: KeyDownload) -> tuple[Any, Any]:
        packet = replace(kd.packets[0], attributes=attributes)
        return sa, KeyDownload((packet, *kd.packets[1:]))

    return change


UNACCEPTABLE: dict[str, Change] = {
    "GCM for all senders": ("may not be shared", gcm_with(None), lambda *a: a),
    "GCM for a subnet": ("may not be shared", gcm_with("10.0.0.0/24"), lambda *a: a),
    "AH by an ESP number": (
        "AH transform 12 with key length 256",
        TEK,
        _sa(lambda sa: replace(sa, sats=(replace(sa.sats[0], protocol_id=2),))),
    ),
    "IEC 61850 and no place for it": (
        "no export directory",
        BOTH,
        _sa(lambda sa: replace(sa, sats=(SaTek(3, IEC),))),
    ),
    "unicast destination": (
        "not multicast",
        TEK,
        _sa(lambda sa: with_sat(sa, destination=endpoint(1, bytes((10, 1, 1, 1))))),
    ),
    "any destination": (
        "one exact address",
        TEK,
        _sa(lambda sa: with_sat(sa, destination=endpoint(1, bytes(4)))),
    ),
    "destination subnet": (
        "one exact address",
        TEK,
        _sa(lambda sa: with_sat(sa, destination=endpoint(4, bytes((239, 0, 0, 0, 255, 0, 0, 0))))),
    ),
    "source by name": (
        "is no address or subnet",
        TEK,
        _sa(lambda sa: with_sat(sa, source=endpoint(IdType.ID_FQDN, b"gm1"))),
    ),
    "source mask with holes": (
        "is no address or subnet",
        TEK,
        _sa(lambda sa: with_sat(sa, source=endpoint(4, bytes((10, 0, 0, 0, 255, 0, 255, 0))))),
    ),
    "source mask upside down": (
        "is no address or subnet",
        TEK,
        _sa(lambda sa: with_sat(sa, source=endpoint(4, bytes((10, 0, 0, 0, 0, 0, 0, 255))))),
    ),
    "source beyond its mask": (
        "is no address or subnet",
        TEK,
        _sa(lambda sa: with_sat(sa, source=endpoint(4, bytes((10, 0, 0, 1, 255, 0, 0, 0))))),
    ),
    "IPv6 source": (
        "source 2001:db8::1/128 and destination",
        TEK,
        _sa(lambda sa: with_sat(sa, source=endpoint(5, ip_address("2001:db8::1").packed))),
    ),
    "reserved SPI": (
        "is reserved",
        GroupPolicy(None, (new_tek(255),)),
        lambda *a: a,
    ),
    "two SATs, one SPI": (
        "same SPI",
        TEK,
        _sa(lambda sa: replace(sa, sats=sa.sats * 2)),
    ),
    "unknown SAT attribute": (
        "SA attribute 99",
        TEK,
        _sa(lambda sa: sat_attributes(sa, Attribute(99, 1))),
    ),
    # RFC 3168 section 9.2.1.2: 2 forbids ECN.
    "ECN Tunnel": (
        "SA attribute 10 is unknown or not supported",
        TEK,
        _sa(lambda sa: sat_attributes(sa, Attribute(10, 2))),
    ),
    "SAT attribute twice": (
        "SA attribute 6 twice",
        TEK,
        _sa(lambda sa: sat_attributes(sa, Attribute(6, 256))),
    ),
    "SAT number of no octets": (
        "number of 0 octets",
        TEK,
        _sa(lambda sa: sat_attributes(sa, Attribute(6, b""), without=6)),
    ),
    "unknown direction": ("9", TEK, _sa(lambda sa: sat_attributes(sa, Attribute(15, 9)))),
    "tunnel elsewhere": (
        "tunnel to another address than the group (NONE)",
        TEK,
        _sa(lambda sa: sat_attributes(sa, Attribute(4, 1), Attribute(14, 1), without=4)),
    ),
    "SAT lifetime of zero": (
        "lifetime of 0 seconds",
        TEK,
        _sa(lambda sa: sat_attributes(sa, Attribute(1, 1), uint32(2, 0))),
    ),
    "unknown life type": (
        "life type 7",
        TEK,
        _sa(lambda sa: sat_attributes(sa, Attribute(1, 7), Attribute(2, 7))),
    ),
    "SAT key length 160": (
        "key length 160",
        TEK,
        _sa(lambda sa: sat_attributes(sa, Attribute(6, 160), without=6)),
    ),
    "no integrity": (
        "authentication algorithm None",
        TEK,
        _sa(lambda sa: sat_attributes(sa, without=5)),
    ),
    "TEK of 5 octets": ("keys of 5 and 0", TEK, _first_packet(Attribute(1, b"short"))),
    "TEK as a number": ("basic, must be variable", TEK, _first_packet(Attribute(1, 5))),
    "unknown TEK key": (
        "key attribute 9",
        TEK,
        _first_packet(Attribute(1, bytes(32)), Attribute(9, b"x")),
    ),
    "no TEK": ("0 TEK key packets", TEK, lambda sa, _: (sa, KeyDownload(()))),
    "unknown GAP attribute": (
        "GAP attribute 99",
        replace(TEK, activation_delay=1),
        _sa(lambda sa: replace(sa, gap=GroupAssociatedPolicy((Attribute(99, 1),)))),
    ),
    "unknown SAK attribute": (
        "KEK attribute 99",
        BOTH,
        _sa(lambda sa: sak_attributes(sa, Attribute(99, 1))),
    ),
    "LKH with a plain KEK": (
        "KEK_MANAGEMENT_ALGORITHM LKH without",
        BOTH,
        _sa(lambda sa: sak_attributes(sa, Attribute(1, 1))),
    ),
    "unknown key management": (
        "KEK_MANAGEMENT_ALGORITHM 2",
        BOTH,
        _sa(lambda sa: sak_attributes(sa, Attribute(1, 2))),
    ),
    "3DES KEK": (
        "KEK_ALG_3DES",
        BOTH,
        _sa(lambda sa: sak_attributes(sa, Attribute(2, 2), without=2)),
    ),
    "KEK of 64 bits": (
        "KEK_KEY_LENGTH 64",
        BOTH,
        _sa(lambda sa: sak_attributes(sa, Attribute(3, 64), without=3)),
    ),
    "KEK for no time": (
        "KEK_KEY_LIFETIME is zero",
        BOTH,
        _sa(lambda sa: sak_attributes(sa, uint32(4, 0), without=4)),
    ),
    "SHA-1 signature": (
        "SIG_HASH_SHA1",
        GroupPolicy(new_kek(scheme=RSA, public_der=signer(RSA).public_der), ()),
        _sa(lambda sa: sak_attributes(sa, Attribute(5, 2), without=5)),
    ),
    "DSS signature": (
        "SIG_ALG_DSS",
        BOTH,
        _sa(lambda sa: sak_attributes(sa, Attribute(6, 2), without=6)),
    ),
    "ECDSA-256 with SHA-512": (
        "signature SIG_ALG_ECDSA_256 with SIG_HASH_SHA512",
        BOTH,
        _sa(lambda sa: sak_attributes(sa, Attribute(5, 5), without=5)),
    ),
    "RSA-1024 key": (
        "RSA key of 1024 bits",
        GroupPolicy(new_kek(scheme=RSA, public_der=rsa_1024()), ()),
        lambda *a: a,
    ),
    "RSA key for ECDSA": (
        "is no key for signature algorithm",
        GroupPolicy(new_kek(public_der=signer(RSA).public_der), ()),
        lambda *a: a,
    ),
    "no key at all": (
        "not a DER SubjectPublicKeyInfo",
        GroupPolicy(new_kek(public_der=b"key"), ()),
        lambda *a: a,
    ),
    "no KEK packet": (
        "0 KEK key packets",
        BOTH,
        lambda sa, kd: (sa, KeyDownload(kd.packets[1:])),
    ),
    "KEK packet of another SPI": (
        "KEK key packets for the SAK's SPI",
        BOTH,
        lambda sa, kd: (sa, KeyDownload((replace(kd.packets[0], spi=b"\7" * 16), kd.packets[1]))),
    ),
    "KEK too short": (
        "KEK_ALGORITHM_KEY of 16 octets",
        BOTH,
        _first_packet(Attribute(1, bytes(16)), Attribute(2, b"x")),
    ),
    "KEK without its public key": ("lacks", BOTH, _first_packet(Attribute(1, bytes(32)))),
    "unknown KEK key": ("KEK key attribute 9", BOTH, _first_packet(Attribute(9, b"x"))),
}


@pytest.mark.parametrize("name", UNACCEPTABLE)
def test_unacceptable_policy_is_not_acknowledged_and_leaves_the_old_sas(name: str) -> None:
    wire, world = ready()
    why, policy, change = UNACCEPTABLE[name]
    sa, kd = change(encode_sa(policy), encode_kd(policy))
    kernel = world.member.kernel
    before = snapshot(kernel), snapshot(world.member.group.rollover)
    keks = world.member.group.kek, dict(world.member.group.previous)
    datagram = push(world, sa, kd)
    actions = multicast(world, datagram)
    assert sends(actions) == []
    assert world.member.dropped() == [Drop.UNACCEPTABLE_POLICY]
    (refused,) = (a for a in actions if isinstance(a, Event) and a.name == "rekey-refused")
    assert why in str(refused.fields["error"])
    assert refused.level == "error"
    assert (snapshot(kernel), snapshot(world.member.group.rollover)) == before
    assert (world.member.group.kek, world.member.group.previous) == keks
    assert only_drop(multicast(world, datagram)) is Drop.REPLAY, "it was authentic: its SEQ is used"

    wire.run(2.1)
    assert len(world.member.events("registering")) == 2
    wire.settle()
    world.rekey()
    wire.settle()
    assert len(world.group.ledger[world.group.epoch].acknowledged) == 1


def test_spi_in_use_with_another_key() -> None:
    _, world = ready()
    multicast(world, push_policy(world, GroupPolicy(None, (new_tek(),))))
    other = new_tek(encryption_key=Secret(b"o" * 32))
    actions = multicast(world, push_policy(world, GroupPolicy(None, (other,))))
    assert world.member.dropped() == [Drop.UNACCEPTABLE_POLICY]
    assert sends(actions) == []
    assert world.member.kernel.sas[other.spi].encryption_key == new_tek().encryption_key
