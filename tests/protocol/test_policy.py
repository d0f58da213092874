"""Policy to payloads and back, and to the stores' records and back."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from gdoi_plugin.protocol.errors import PolicyError
from gdoi_plugin.protocol.policy import (
    TEK_SUITES,
    Flow,
    GroupPolicy,
    Kek,
    Tek,
    check_sa,
    encode_kd,
    encode_sa,
    read_policy,
)
from gdoi_plugin.protocol.record import kek_record, read_kek, read_tek, tek_record
from gdoi_plugin.wire.attributes import Attribute
from gdoi_plugin.wire.group_sa import GroupSecurityAssociation
from gdoi_plugin.wire.header import Header
from gdoi_plugin.wire.key_download import KeyDownload
from gdoi_plugin.wire.message import Message, encode_clear, pull_clear
from gdoi_plugin.wire.registry import (
    EncapsulationMode,
    ExchangeType,
    KekAttribute,
    PayloadType,
    SaDirection,
)
from tests.protocol.test_push import new_kek, new_tek
from tests.support.worlds import ECDSA, REKEY, RSA, SERVER, signer

TEKS = [
    new_tek(),
    new_tek(keyword="aes128-sha256", mode=EncapsulationMode.TUNNEL),
    new_tek(keyword="aes128gcm16", direction=SaDirection.SENDER_ONLY),
    new_tek(keyword="aes256gcm16", flow=Flow(ip_network("10.0.0.2/32"), ip_address("239.1.1.1"))),
    new_tek(flow=Flow(ip_network("2001:db8::/64"), ip_address("ff35::7"), 17, 1, 65535)),
    new_tek(lifetime=2**32 - 1),
]
KEKS = [
    new_kek(),
    new_kek(destination=REKEY.host, source=SERVER.host, port=4848),
    new_kek(destination=ip_address("ff35::1"), source=ip_address("2001:db8::1"), ack_type=None),
    new_kek(scheme=RSA, public_der=signer(RSA).public_der),
    new_kek(scheme=ECDSA, lifetime=1),
]


def through_the_wire(policy: GroupPolicy) -> GroupPolicy:
    header = Header(b"i" * 8, b"r" * 8, 0, ExchangeType.GROUPKEY_PULL)
    datagram = encode_clear(header, [encode_sa(policy), encode_kd(policy)])
    header = replace(header, next_payload=PayloadType.SA, length=len(datagram))
    message: Message = pull_clear(header, datagram)
    sa, kd = message.payloads
    return read_policy(sa.parse(GroupSecurityAssociation), kd.parse(KeyDownload))


@pytest.mark.parametrize("tek", TEKS, ids=lambda t: f"{t.suite.keyword} {t.flow}")
@pytest.mark.parametrize("delays", [(None, None), (0, 0), (10, 65535)], ids=str)
def test_tek_comes_back_from_the_wire(tek: Tek, delays: tuple[Any, Any]) -> None:
    policy = GroupPolicy(None, (tek,), *delays)
    assert through_the_wire(policy) == policy


@pytest.mark.parametrize("kek", KEKS, ids=lambda k: f"{k.destination}")
def test_kek_comes_back_from_the_wire(kek: Kek) -> None:
    policy = GroupPolicy(kek, (TEKS[0],), 1, 2)
    assert through_the_wire(policy) == policy
    check_sa(encode_sa(policy))


@pytest.mark.parametrize("tek", TEKS, ids=lambda t: f"{t.suite.keyword} {t.flow}")
def test_tek_comes_back_from_a_store(tek: Tek) -> None:
    assert read_tek(json.loads(json.dumps(tek_record(tek)))) == tek


@pytest.mark.parametrize("kek", KEKS, ids=lambda k: f"{k.destination}")
def test_kek_comes_back_from_a_store(kek: Kek) -> None:
    assert read_kek(json.loads(json.dumps(kek_record(kek)))) == kek


@pytest.mark.parametrize("spoil", ["spi", "flow", "suite", "key"])
def test_spoiled_record_is_an_error(spoil: str) -> None:
    record = tek_record(TEKS[0])
    changes: dict[str, dict[str, Any]] = {
        "spi": {"spi": "not hex"},
        "flow": {"destination": "nowhere"},
        "suite": {"suite": "rot13"},
        "key": {"encryption_key": None},
    }
    with pytest.raises((KeyError, ValueError, TypeError)):
        read_tek(record | changes[spoil])


def test_no_key_shows_in_any_repr() -> None:
    for thing in (*TEKS, *KEKS, GroupPolicy(KEKS[0], tuple(TEKS))):
        text = repr(thing)
        for key in (bytes(range(16)).hex(), "kkkk", "iiii", repr(bytes(range(16)))[2:-1]):
            assert key not in text


def test_suites_are_named_as_swanctl_names_them() -> None:
    assert set(TEK_SUITES) == {"aes128-sha256", "aes256-sha256", "aes128gcm16", "aes256gcm16"}
    assert TEK_SUITES["aes256gcm16"].encryption_octets == 36, "RFC 4106: key and salt"


def test_management_algorithm_is_ignored_in_a_pull_and_refused_in_a_push() -> None:
    """RFC 6407 section 5.3: "MUST NOT be included in a GROUPKEY-PULL message, and MUST be ignored
    if present"; elsewhere it is a capability that is not understood."""
    policy = GroupPolicy(new_kek(), (TEKS[0],))
    sa, kd = encode_sa(policy), encode_kd(policy)
    assert sa.sak is not None
    lkh = Attribute(KekAttribute.KEK_MANAGEMENT_ALGORITHM, 1)
    sa = replace(sa, sak=replace(sa.sak, attributes=(*sa.sak.attributes, lkh)))
    assert read_policy(sa, kd, pull=True).kek == policy.kek
    check_sa(sa)
    with pytest.raises(PolicyError, match="KEK_MANAGEMENT_ALGORITHM"):
        read_policy(sa, kd)
