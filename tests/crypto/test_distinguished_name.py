"""Distinguished names as people write them, as certificates have them, and with wildcards."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID

from gdoi_plugin.crypto.distinguished_name import canonical, encode, matches, text_of

# Drawn by hand: SEQUENCE of SET of SEQUENCE of OID and string, C=CH, O=Ex, CN=gm1.
BY_HAND = bytes.fromhex(
    "3028310b3009060355040613024348310b3009060355040a0c024578310c300a06035504030c03676d31"
)


def test_octets() -> None:
    assert encode("C=CH, O=Ex, CN=gm1") == BY_HAND
    assert text_of(BY_HAND) == "C=CH, O=Ex, CN=gm1"


@pytest.mark.parametrize(
    "text",
    ["C=CH,O=Ex,CN=gm1", " C=CH,  O=Ex, CN=gm1 ", "c=CH, o=Ex, cn=gm1", "C=CH, O=Ex, CN= gm1"],
)
def test_ways_to_write_one_name(text: str) -> None:
    assert encode(text) == BY_HAND


@pytest.mark.parametrize(
    "text",
    [
        "C=CH, O=A\\, B, CN=x",
        "DC=org, DC=example, CN=gm 1",
        "C=CH, OU=a+CN=b",
        "O=Ex, CN=gm1, E=gm1@example.org",
        "O=\u00c9cole, CN=gm1",
        "2.5.4.5=77, CN=gm1",
    ],
)
def test_what_is_written_can_be_read_again(text: str) -> None:
    der = encode(text)
    assert encode(text_of(der)) == der
    assert canonical(der) == der


@pytest.mark.parametrize("text", ["", "=", "CN", "CN=", "XX=1", "C=CHE", "CN=a,,O=b", "CN=a\\"])
def test_no_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no distinguished name|no distinguished name:"):
        encode(text)


@pytest.mark.parametrize(
    "der", [b"", b"\x30", b"\x30\x00", b"\x05\x00", BY_HAND[:-1], BY_HAND + b"0"]
)
def test_no_der(der: bytes) -> None:
    with pytest.raises(ValueError, match="distinguished name"):
        canonical(der)
    assert not matches(BY_HAND, der)


def test_string_types_and_spaces_do_not_count() -> None:
    printable = x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "CH"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Ex", _type=_ASN1Type.PrintableString),
            x509.NameAttribute(NameOID.COMMON_NAME, " gm1 ", _type=_ASN1Type.T61String),
        ]
    ).public_bytes()
    assert printable != BY_HAND
    assert canonical(printable) == BY_HAND


@pytest.mark.parametrize(
    ("pattern", "name", "agree"),
    [
        ("C=CH, O=Ex, CN=*", "C=CH, O=Ex, CN=gm1", True),
        ("C=CH, O=Ex, CN=*", "C=CH, O=EX, CN=gm1", True),
        ("C=CH, O=Ex, CN=*", "C=CH, O=Exx, CN=gm1", False),
        ("C=CH, O=Ex, CN=*", "C=CH, O=Ex", False),
        ("C=CH, O=Ex, CN=*", "C=CH, O=Ex, CN=gm1, OU=x", False),
        ("C=CH, O=Ex, CN=*", "O=Ex, C=CH, CN=gm1", False),
        ("C=CH, O=*, CN=*", "C=CH, O=Ex, CN=gm1", True),
        ("C=CH, O=Ex, CN=gm1", "C=CH, O=Ex, CN=gm2", False),
        ("O=Ex, CN=*", "O=Ex, OU=gm1", False),
        ("OU=a+CN=b", "OU=a+CN=b", True),
        ("OU=a+CN=b", "OU=a+CN=c", False),
        ("CN=*", "OU=a+CN=c", False),
        ("CN=a*", "CN=ab", False),
    ],
)
def test_wildcards(pattern: str, name: str, agree: bool) -> None:
    assert matches(encode(pattern), encode(name)) is agree
