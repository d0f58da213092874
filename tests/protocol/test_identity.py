"""Identities as people write them and as ID payloads carry them."""

from __future__ import annotations

import pytest

from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.wire.identification import Identification
from gdoi_plugin.wire.registry import IdType


@pytest.mark.parametrize(
    ("text", "kind", "data"),
    [
        ("192.0.2.1", IdType.ID_IPV4_ADDR, bytes((192, 0, 2, 1))),
        ("2001:db8::1", IdType.ID_IPV6_ADDR, bytes.fromhex("20010db8" + "0" * 23 + "1")),
        ("gm1.example.org", IdType.ID_FQDN, b"gm1.example.org"),
        ("gm1@example.org", IdType.ID_USER_FQDN, b"gm1@example.org"),
        ("keyid:0a0b0c", IdType.ID_KEY_ID, b"\x0a\x0b\x0c"),
    ],
)
def test_text_and_payload(text: str, kind: IdType, data: bytes) -> None:
    identity = Identity.parse(text)
    assert (identity.id_type, identity.data) == (kind, data)
    assert str(identity) == text
    # HASH_I over anything but protocol and port zero fails with some peers.
    assert identity.payload() == Identification(kind, data, 0, 0)
    assert Identity.of_payload(Identification(kind, data, 17, 848)) == identity


@pytest.mark.parametrize("text", ["", "two words", "tab\there", "gm-\xe9.org", "keyid:xyz"])
def test_what_is_no_identity(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no address|non-hexadecimal"):
        Identity.parse(text)


@pytest.mark.parametrize(
    ("identity", "text"),
    [
        (Identity(IdType.ID_IPV4_ADDR, b"abc"), "ID_IPV4_ADDR:616263"),
        (Identity(IdType.ID_FQDN, b"a\nb\xff"), "'a\\nb\\\\xff'"),
        (Identity(IdType.ID_DER_ASN1_DN, b"0\0"), "ID_DER_ASN1_DN:3000"),
        (Identity(200, b"x"), "200:78"),
    ],
)
def test_strange_ones_cannot_spoil_a_log(identity: Identity, text: str) -> None:
    assert str(identity) == text
    assert identity.address is None
