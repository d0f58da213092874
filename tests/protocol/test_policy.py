"""Policy to payloads and back, and to the stores' records and back."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.protocol.data_sa import read_keys, tek_packets
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
from gdoi_plugin.protocol.rekey_sa import encode_sak
from gdoi_plugin.protocol.rekey_sa import read_kek as read_sak_and_kek
from gdoi_plugin.wire.attributes import Attribute
from gdoi_plugin.wire.buffer import Buffer
from gdoi_plugin.wire.group_sa import Endpoint, EspTek, GroupSecurityAssociation, SaTek
from gdoi_plugin.wire.header import Header
from gdoi_plugin.wire.key_download import KeyDownload
from gdoi_plugin.wire.message import Message, encode_clear, pull_clear
from gdoi_plugin.wire.registry import (
    AddressPreservation,
    EncapsulationMode,
    ExchangeType,
    IdType,
    KekAttribute,
    PayloadType,
    SaAttribute,
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
    new_tek(keyword="aes192-sha512", lifetime_kilobytes=2**32 - 1),
    new_tek(mode=EncapsulationMode.TUNNEL, preservation=AddressPreservation.DESTINATION_ONLY),
    new_tek(flow=Flow(ip_network("10.0.0.2/32"), ip_address("239.1.1.1")), esn=True),
    *(new_tek(keyword=keyword) for keyword in TEK_SUITES),
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


def test_rekeys_from_somewhere_in_a_subnet_have_no_source() -> None:
    """SRC of a SAK is an address or none: a subnet names nobody whose rekeys could be joined."""
    kek = new_kek(source=SERVER.host)
    sak = encode_sak(kek)
    data = SERVER.host.packed[:3] + bytes([0, 255, 255, 255, 0])
    subnet = replace(sak, source=Endpoint(IdType.ID_IPV4_ADDR_SUBNET, 848, data))
    kd = encode_kd(GroupPolicy(kek, ()))
    assert read_sak_and_kek(sak, kd, None, pull=True).source == SERVER.host
    assert read_sak_and_kek(subnet, kd, None, pull=True).source is None


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
    """Numbers of the IANA registry "Magic Numbers for ISAKMP Protocol"; lengths in octets."""
    numbers = {
        keyword: (
            suite.protocol,
            suite.transform_id,
            suite.key_bits,
            suite.authentication,
            suite.encryption_octets,
            suite.integrity_octets,
            suite.icv_octets,
        )
        for keyword, suite in TEK_SUITES.items()
    }
    assert len(numbers) == len(set(numbers.values())) == 9 + 9 + 3 + 1 + 3
    assert numbers["aes128-sha256"] == (1, 12, 128, 5, 16, 32, 16)
    assert numbers["aes192-sha384"] == (1, 12, 192, 6, 24, 48, 24)
    assert numbers["aes256-sha512"] == (1, 12, 256, 7, 32, 64, 32)
    # RFC 4106: key and salt
    assert numbers["aes128gcm8"] == (1, 18, 128, None, 20, 0, 8)
    assert numbers["aes192gcm12"] == (1, 19, 192, None, 28, 0, 12)
    assert numbers["aes256gcm16"] == (1, 20, 256, None, 36, 0, 16)
    assert numbers["aes128gmac"] == (1, 23, 128, None, 20, 0, 16)
    # RFC 7634 section 2; the transform is of the private ones of RFC 2407 section 4.4.4
    assert numbers["chacha20poly1305"] == (1, 249, None, None, 36, 0, 16)
    assert [keyword for keyword, suite in TEK_SUITES.items() if suite.private] == [
        "chacha20poly1305"
    ]
    assert numbers["sha256"] == (2, 5, None, 5, 0, 32, 16)
    assert numbers["sha384"] == (2, 6, None, 6, 0, 48, 24)
    assert numbers["sha512"] == (2, 7, None, 7, 0, 64, 32)
    counters = {keyword for keyword, suite in TEK_SUITES.items() if suite.counter_mode}
    counting = ("gcm", "gmac", "chacha")
    assert counters == {k for k in TEK_SUITES if any(name in k for name in counting)}


def test_ah_sat_octet_by_octet() -> None:
    """RFC 6407 section 5.5.1, figure 8, with SA_LIFE_TYPE twice and a key for the HMAC alone."""
    policy = GroupPolicy(None, (new_tek(keyword="sha256", lifetime_kilobytes=2048),))
    header = Header(b"i" * 8, b"r" * 8, 0, ExchangeType.GROUPKEY_PULL)
    datagram = encode_clear(header, [encode_sa(policy), encode_kd(policy)])
    assert datagram[28:] == bytes.fromhex(
        "1100004a 00000002 00000000 0010 0000"  # SA: DOI 2, situation 0, first attribute is a SAT
        "0000003a 02"  # SAT: AH
        "00 01 0000 03 000000"  # any protocol, SRC: ID_IPV4_ADDR, 3 octets of zero
        "01 0000 04 efc00101"  # DST 239.192.1.1
        "05 0badcafe"  # AH_SHA2-256
        "80010001 00020004 00000e10"  # 3600 s
        "80010002 00020004 00000800"  # 2048 kB
        "80040002 80050005"  # transport mode, HMAC-SHA2-256
        "00000035 00010000 01 00 002d 04 0badcafe 00020020" + "69" * 32
    )


@pytest.mark.parametrize("attribute", [2, 1], ids=["integrity", "algorithm"])
def test_gmac_key_octet_by_octet(attribute: int) -> None:
    """RFC 6407 section 5.6.1.2: AES-GMAC's key is TEK_INTEGRITY_KEY (2), RFC 4543 section 5.1 its
    salt behind it. As it is an ESP transform's key, TEK_ALGORITHM_KEY (1) is understood too."""
    tek = new_tek(keyword="aes128gmac")
    octets = bytes.fromhex(
        "0001 0000 01 00 0021 04 0badcafe 0002 0014 000102030405060708090a0b0c0d0e0f 10111213"
    )
    header = Header(b"i" * 8, b"r" * 8, 0, ExchangeType.GROUPKEY_PULL)
    kd = encode_kd(GroupPolicy(None, (tek,)))
    assert encode_clear(header, [kd])[32:] == octets
    told = KeyDownload.pull(Buffer(octets.replace(b"\0\2\0\x14", bytes((0, attribute, 0, 20)))))
    assert read_keys(replace(tek, encryption_key=Secret(b"")), tek_packets(told)) == tek


SAT_CHANGES = {
    "AH transform unknown": ("sha256", {"transform_id": 3}, "AH transform 3 with key length None"),
    "AH with a key length": ("sha256", {"key_length": 256}, "AH transform AH_SHA2_256 with key"),
    "AH by the number of ESP": ("sha256", {"protocol_id": 1}, "ESP transform 5 with"),
    "ESP by the number of AH": ("aes128gcm16", {"protocol_id": 2}, "AH transform 20 with"),
    "tunnel to nowhere": ("aes128gcm16", {"preservation": 1}, "tunnel to another address"),
    "tunnel keeping the source": ("aes128gcm16", {"preservation": 2}, r"\(SOURCE_ONLY\)"),
    "preservation unknown": ("aes128gcm16", {"preservation": 5}, "5 is not a valid"),
}


@pytest.mark.parametrize("case", SAT_CHANGES)
def test_sat_that_is_refused(case: str) -> None:
    keyword, change, what = SAT_CHANGES[case]
    (sat,) = encode_sa(
        GroupPolicy(None, (new_tek(keyword=keyword, mode=EncapsulationMode.TUNNEL),))
    ).sats
    assert isinstance(sat.tek, EspTek)
    added = {
        "key_length": SaAttribute.KEY_LENGTH,
        "preservation": SaAttribute.ADDRESS_PRESERVATION,
    }
    more = tuple(Attribute(added[name], value) for name, value in change.items() if name in added)
    body = replace(
        sat.tek,
        transform_id=change.get("transform_id", sat.tek.transform_id),
        attributes=(*sat.tek.attributes, *more),
    )
    changed = SaTek(change.get("protocol_id", sat.protocol_id), body)
    with pytest.raises(PolicyError, match=what):
        check_sa(GroupSecurityAssociation(sats=(changed,)))


def test_same_spi_in_esp_and_ah_cannot_be_told_apart_by_key_packets() -> None:
    """RFC 6407 section 3.3: keys are matched by comparing SPI values, nothing else."""
    policy = GroupPolicy(None, (new_tek(), new_tek(keyword="sha256")))
    with pytest.raises(PolicyError, match="two SATs with the same SPI"):
        check_sa(encode_sa(policy))
    with pytest.raises(PolicyError, match="two SATs with the same SPI"):
        read_policy(encode_sa(policy), encode_kd(policy))


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
