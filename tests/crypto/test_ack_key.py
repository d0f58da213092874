"""GROUPKEY-PUSH-ACK, RFC 8263 section 3.2.

The RFC has no vectors. These were computed apart from this code, with ``openssl dgst``, for
base_key 00..0f, SPI 10..1f, SEQ 7 and ID 192.0.2.1.
"""

from __future__ import annotations

import hashlib
import hmac

import pytest

from gdoi_plugin.crypto.ack_key import ACK_PRFS, LABEL, ack_hash, ack_key
from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.wire.registry import AckType

BASE_KEY = Secret(bytes(range(0x10)))
SPI = bytes(range(0x10, 0x20))
SEQ = bytes.fromhex("05000008 00000007")
ID = bytes.fromhex("0000000c 01000000 c0000201")
SHA256 = (
    "a1c548623ba90cf8ea1296281ca9d227593893948d655a064ab8629c7b3a94b5",
    "d2a495a5b347101b7b4dba70993eb9242c60a8fd56af8c2d91ed288a40eefa57",
)
SHA512 = (
    "ee122fa0483dc280e40645c14dd1e46ac3879bcb1a130a7281484cef8cace849"
    "ddfd3bddd7c9385fbf21ff12dc0f2e850cccbad9fb98a310df2a5a90e0f5f430",
    "e6dd75f13eb07d410e072d80f3de98f4b5be6df00136d8867b234434000fe7ae"
    "26aa8cd1b1ea74911a82685cbf27edbd1866a3e083f351be70a3aee49ec5029d",
)
# SHA-256 with L = 256, the other reading of the RFC.
SHORT_L = (
    "71fab7364fc6213e498d6afe3fea15ad150c62cfc70fa30412cb040cd140a0a6",
    "0692726ed7383e67ac0f726db6ef8917a532408d99182c41c4eeab28b3c55f63",
)
VECTORS = {1: SHA256, 2: SHA256, 3: SHA512, 4: SHA512}
ONE = ACK_PRFS[AckType.REKEY_ACK_KEK_SHA256]


def test_the_label_has_its_null_and_18_octets() -> None:
    assert bytes.fromhex("47524f55504b45592d505553482041434b00") == LABEL


@pytest.mark.parametrize("ack_type", AckType)
def test_ack_key_and_hash(ack_type: AckType) -> None:
    kind = ACK_PRFS[ack_type]
    key = ack_key(kind, BASE_KEY, SPI)
    digest = ack_hash(kind, key, SEQ, ID)
    assert (key.reveal().hex(), digest.hex()) == VECTORS[ack_type]
    assert len(digest) == kind.octets


def test_types_2_and_4_take_the_leaf_key() -> None:
    assert [kind.leaf for kind in ACK_PRFS.values()] == [False, True, False, True]


@pytest.mark.parametrize(("ack_type", "block", "l_octets"), [(1, 64, "0200"), (3, 128, "0400")])
def test_ack_key_is_the_formula_octet_for_octet(ack_type: int, block: int, l_octets: str) -> None:
    """Key and data filled with zeros by hand, as RFC 4868 section 2.1.2 says an HMAC does."""
    key = BASE_KEY.reveal().ljust(block, b"\x00")
    data = b"GROUPKEY-PUSH ACK\x00" + SPI + bytes.fromhex(l_octets)
    name = hashlib.sha256 if ack_type == 1 else hashlib.sha512
    assert ack_key(ACK_PRFS[ack_type], BASE_KEY, SPI).reveal() == hmac.new(key, data, name).digest()


def test_another_reading_of_l_gives_another_key() -> None:
    key = ack_key(ONE, BASE_KEY, SPI, 256)
    assert (key.reveal().hex(), ack_hash(ONE, key, SEQ, ID).hex()) == SHORT_L
    assert SHORT_L != SHA256


def test_every_octet_of_the_spi_matters() -> None:
    keys = {ack_key(ONE, BASE_KEY, SPI[:i] + b"\xff" + SPI[i + 1 :]).reveal() for i in range(16)}
    assert len(keys) == 16
    assert ack_key(ONE, BASE_KEY, SPI).reveal() not in keys
