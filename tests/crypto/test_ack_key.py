"""GROUPKEY-PUSH-ACK, RFC 8263 section 3.2, with the cross-check values of WIRE_NOTES.

The RFC has no vectors. These were computed once, apart from this code, for base_key 00..0f,
SPI 10..1f, SEQ 7 and ID 192.0.2.1.
"""

from __future__ import annotations

import hashlib
import hmac

from gdoi_plugin.crypto.ack_key import L_SHA256, LABEL, ack_hash, ack_key
from gdoi_plugin.crypto.secret import Secret

BASE_KEY = Secret(bytes(range(0x10)))
SPI = bytes(range(0x10, 0x20))
SEQ = bytes.fromhex("05000008 00000007")
ID = bytes.fromhex("0000000c 01000000 c0000201")
ACK_KEY = "a1c548623ba90cf8ea1296281ca9d227593893948d655a064ab8629c7b3a94b5"
HASH = "d2a495a5b347101b7b4dba70993eb9242c60a8fd56af8c2d91ed288a40eefa57"


def test_the_label_has_its_null_and_18_octets() -> None:
    assert bytes.fromhex("47524f55504b45592d505553482041434b00") == LABEL


def test_ack_key_and_hash() -> None:
    key = ack_key(BASE_KEY, SPI)
    assert key.reveal().hex() == ACK_KEY
    assert ack_hash(key, SEQ, ID).hex() == HASH


def test_ack_key_is_the_formula_octet_for_octet() -> None:
    """Key and data filled with zeros by hand, as RFC 4868 section 2.1.2 says an HMAC does."""
    block = BASE_KEY.reveal().ljust(64, b"\x00")
    data = b"GROUPKEY-PUSH ACK\x00" + SPI + b"\x02\x00"
    assert ack_key(BASE_KEY, SPI).reveal() == hmac.new(block, data, hashlib.sha256).digest()


def test_l_is_512_and_another_reading_gives_another_key() -> None:
    assert L_SHA256 == 512
    assert ack_key(BASE_KEY, SPI, 256) != ack_key(BASE_KEY, SPI)


def test_every_octet_of_the_spi_matters() -> None:
    keys = {ack_key(BASE_KEY, SPI[:i] + b"\xff" + SPI[i + 1 :]).reveal() for i in range(16)}
    assert len(keys) == 16
    assert ack_key(BASE_KEY, SPI).reveal() not in keys
