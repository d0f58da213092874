"""RFC 3948 section 2: what stands before a message on port 4500."""

from __future__ import annotations

import hashlib

import pytest

from gdoi_plugin.wire.buffer import DecodeError
from gdoi_plugin.wire.encapsulation import KEEPALIVE, decapsulate, encapsulate
from gdoi_plugin.wire.header import Header
from gdoi_plugin.wire.vendor_id import NAT_TRAVERSAL

MESSAGE = Header(b"initiate", b"response", 0, 2).encode()


def test_a_message_gets_four_zeros_and_loses_them() -> None:
    assert encapsulate(MESSAGE) == bytes(4) + MESSAGE
    assert decapsulate(bytes(4) + MESSAGE) == MESSAGE
    assert decapsulate(bytes(4)) == b"", "no message at all: the header will say so"


def test_a_keepalive_is_one_octet_and_no_message() -> None:
    assert encapsulate(KEEPALIVE) == b"\xff"
    assert decapsulate(b"\xff") is None


@pytest.mark.parametrize(
    ("datagram", "found"),
    [
        (b"", "nothing"),
        (bytes(3), "000000"),
        (b"\xff\xff", "ffff"),
        (bytes.fromhex("c0000001 00000001") + bytes(40), "c0000001"),
    ],
)
def test_anything_else_is_refused(datagram: bytes, found: str) -> None:
    with pytest.raises(DecodeError, match=f"^no non-ESP marker but {found}"):
        decapsulate(datagram)


def test_the_vendor_id_is_what_the_rfc_says_it_is_a_hash_of() -> None:
    assert hashlib.md5(b"RFC 3947", usedforsecurity=False).digest() == NAT_TRAVERSAL
