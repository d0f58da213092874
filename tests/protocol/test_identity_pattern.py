"""Authorisation lists: who is in, who is not, and what is no entry."""

from __future__ import annotations

import pytest

from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.identity_pattern import IdentityList, IdentityPattern
from gdoi_plugin.wire.registry import IdType


def identity(text: str) -> Identity:
    return Identity.parse(text).canonical


@pytest.mark.parametrize(
    ("entry", "inside", "outside"),
    [
        ("192.0.2.1", ["192.0.2.1"], ["192.0.2.2", "192.0.2.1.example.org"]),
        ("192.0.2.0/24", ["192.0.2.0", "192.0.2.255"], ["192.0.3.0", "2001:db8::1", "a.b"]),
        ("2001:db8::/32", ["2001:db8::1"], ["2001:db9::1", "192.0.2.1"]),
        ("gm1.example.org", ["gm1.example.org", "GM1.Example.Org"], ["gm2.example.org"]),
        (
            "*.example.org",
            ["gm1.example.org", "a.b.example.org"],
            ["example.org", "gm1.example.com", "gm1@example.org", "evilexample.org"],
        ),
        ("*.Example.ORG", ["gm1.example.org"], ["example.org"]),
        (
            "*@example.org",
            ["gm1@example.org", "GM1@EXAMPLE.org"],
            ["gm1@sub.example.org", "gm1.example.org", "gm1@evilexample.org"],
        ),
        ("keyid:0a0b", ["keyid:0a0b"], ["keyid:0a0c", "192.0.2.1"]),
        ("C=CH, O=Ex, CN=gm1", ["C=CH, O=Ex, CN=gm1", "C=CH, O=EX, CN=GM1"], ["CN=gm1"]),
        ("C=CH, O=Ex, CN=*", ["C=CH, O=Ex, CN=gm1"], ["C=CH, O=Ex", "gm1.example.org"]),
        ("%any", ["192.0.2.1", "gm1.example.org", "CN=x", "keyid:00"], []),
    ],
)
def test_entry(entry: str, inside: list[str], outside: list[str]) -> None:
    pattern, listed = IdentityPattern.parse(entry), IdentityList.parse([entry])
    for text in inside:
        assert pattern.matches(identity(text))
        assert identity(text) in listed
    for text in outside:
        assert not pattern.matches(identity(text))
        assert identity(text) not in listed
    assert str(pattern) == entry


@pytest.mark.parametrize(
    "entry",
    [
        "*",
        "**.example.org",
        "gm*.example.org",
        "*.",
        "*@",
        "*@*",
        "192.0.2.*",
        "192.0.2.1/24",
        "",
        "a b",
    ],
)
def test_no_entry(entry: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        IdentityPattern.parse(entry)


def test_list() -> None:
    listed = IdentityList.parse(["192.0.2.1", "*.example.org"])
    assert identity("192.0.2.1") in listed
    assert identity("gm.example.org") in listed
    assert identity("192.0.2.2") not in listed
    assert "192.0.2.1" not in listed
    assert listed
    assert not IdentityList()
    assert listed == IdentityList.parse(["192.0.2.1", "*.example.org"])
    assert IdentityList.of(identity("192.0.2.1")) == IdentityList.parse(["192.0.2.1"])


def test_what_cannot_be_read_matches_nothing_but_everybody() -> None:
    broken = Identity(IdType.ID_DER_ASN1_DN, b"\x30\x01")
    assert broken.canonical == broken
    assert str(broken) == "ID_DER_ASN1_DN:3001"
    assert broken not in IdentityList.parse(["C=CH, O=Ex, CN=*", "*.example.org", "0.0.0.0/0"])
    assert broken in IdentityList.parse(["%any"])
