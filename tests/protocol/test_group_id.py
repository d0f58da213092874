"""Group identities as people write them and as ID payloads carry them."""

from __future__ import annotations

import pytest

from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.wire.buffer import DecodeError
from gdoi_plugin.wire.identification import Identification
from gdoi_plugin.wire.registry import IdType

# RFC 8052 appendix A, figure 7: the OID of 61850_UDP_ADDR_GOOSE; the payload is a made-up one.
GOOSE = bytes.fromhex("0d 060b2a8648ce5683e31a080102")


@pytest.mark.parametrize(
    ("text", "kind", "data"),
    [
        ("0", IdType.ID_KEY_ID, bytes(4)),
        ("4294967295", IdType.ID_KEY_ID, b"\xff\xff\xff\xff"),
        ("239.1.1.1", IdType.ID_IPV4_ADDR, bytes((239, 1, 1, 1))),
        ("ff05::1", IdType.ID_IPV6_ADDR, bytes.fromhex("ff05" + "0" * 27 + "1")),
        ("oid:1.2.840.10070.61850.8.1.2", IdType.ID_OID, GOOSE + bytes(2)),
        ("oid:1.2.840.10070.61850.8.1.2:0500", IdType.ID_OID, GOOSE + b"\0\2\5\0"),
        ("oid:2.999", IdType.ID_OID, bytes.fromhex("04 06028837 0000")),
        ("oid:0.0", IdType.ID_OID, bytes.fromhex("03 060100 0000")),
    ],
)
def test_text_and_payload(text: str, kind: IdType, data: bytes) -> None:
    group = GroupId.parse(text)
    assert (group.id_type, group.data) == (kind, data)
    assert str(group) == text
    # RFC 6407 section 5.1: the DOI-specific field is zero
    assert group.payload() == Identification(kind, data, 0, 0)
    assert GroupId.of_payload(Identification(kind, data)) == group
    assert 0 <= group.key < 2**63, "a signed 64-bit column holds it"


def test_a_number_has_four_octets() -> None:
    assert GroupId.parse("1234") == GroupId.of_number(1234)
    assert GroupId.of_number(1234).data == bytes.fromhex("000004d2")


def test_keys_of_other_kinds_meet_no_number_and_not_each_other() -> None:
    texts = ["239.1.1.1", "239.1.1.2", "ff05::1", "oid:1.2.3", "oid:1.2.3:05"]
    keys = {GroupId.parse(text).key for text in texts}
    assert len(keys) == len(texts)
    assert min(keys) > 0xFFFFFFFF
    # A store holds it: another value after an upgrade would be another group.
    assert GroupId.parse("239.1.1.1").key == 0x4CBE26DD5CA4B028


@pytest.mark.parametrize(
    "text",
    [
        "",
        "video.example.org",
        "video@example.org",
        "4294967296",
        "-1",
        "192.0.2.300",
        "fe80::1%eth0",
        "keyid:000004d2",
        "oid:",
        "oid:1",
        "oid:3.1",
        "oid:1.40",
        "oid:1.02",
        "oid:1.2.3:",
        "oid:1.2.3:0",
        "oid:1.2." + ".".join(["1" * 38] * 20),
        "oid:1.2.3:" + "00" * 513,
    ],
)
def test_what_names_no_group(text: str) -> None:
    with pytest.raises(ValueError, match=r"names no group|OID|hexadecimal"):
        GroupId.parse(text)


@pytest.mark.parametrize(
    ("kind", "data", "what"),
    [
        # RFC 6407 section 5.1: ID_KEY_ID "MUST specify a 4-octet group identifier"
        (IdType.ID_KEY_ID, "766964656f", "ID_KEY_ID of 5 octets"),
        (IdType.ID_KEY_ID, "0004d2", "ID_KEY_ID of 3 octets"),
        (IdType.ID_FQDN, "76", "ID_FQDN"),
        (IdType.ID_IPV4_ADDR_SUBNET, "c0000200ffffff00", "ID_IPV4_ADDR_SUBNET"),
        (IdType.ID_IPV4_ADDR, "c00002", "3 octets"),
        (IdType.ID_IPV6_ADDR, "c0000201", "4 octets"),
        (IdType.ID_OID, "", "OID length"),
        (IdType.ID_OID, "00 0000", "not a DER"),
        (IdType.ID_OID, "03 040100 0000", "not a DER"),
        (IdType.ID_OID, "03 060200 0000", "not a DER"),
        (IdType.ID_OID, "04 06028001 0000", "leading zero"),
        (IdType.ID_OID, "04 06020181 0000", "inside a number"),
        (IdType.ID_OID, "03 060100 0000 00", "1 octets too many"),
        (IdType.ID_OID, "03 060100 0201", "513 octets"),
        (IdType.ID_OID, "03 060100 0002 05", "2 octets wanted"),
    ],
)
def test_payload_that_names_no_group(kind: IdType, data: str, what: str) -> None:
    with pytest.raises(DecodeError, match=what):
        GroupId.of_payload(Identification(kind, bytes.fromhex(data)))
