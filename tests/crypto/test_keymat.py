"""RFC 2409 section 5 and appendix B, written out here with hmac and hashlib alone."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from gdoi_plugin.crypto.keymat import derive, expand, phase1_iv, phase2_iv, skeyid_pre_shared
from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.wire.registry import Hash

CKY_I, CKY_R = b"\x11" * 8, b"\x22" * 8
NI_B, NR_B = bytes(range(32)), bytes(range(32, 64))
G_XY = bytes(range(256))
NAMES = {Hash.SHA2_256: "sha256", Hash.SHA2_384: "sha384", Hash.SHA2_512: "sha512"}


def mac(algorithm: Hash, key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, NAMES[algorithm]).digest()


@pytest.mark.parametrize("algorithm", NAMES)
def test_skeyid_and_its_three_children(algorithm: Hash) -> None:
    skeyid = skeyid_pre_shared(algorithm, Secret(b"mustangs"), NI_B, NR_B)
    key = mac(algorithm, b"mustangs", NI_B + NR_B)
    d = mac(algorithm, key, G_XY + CKY_I + CKY_R + b"\x00")
    a = mac(algorithm, key, d + G_XY + CKY_I + CKY_R + b"\x01")
    e = mac(algorithm, key, a + G_XY + CKY_I + CKY_R + b"\x02")
    got = derive(algorithm, skeyid, G_XY, CKY_I, CKY_R, 16)
    children = (got.skeyid, got.skeyid_d, got.skeyid_a, got.skeyid_e, got.encryption_key)
    assert [s.reveal() for s in children] == [key, d, a, e, e[:16]]


@pytest.mark.parametrize("length", [1, 16, 32])
def test_a_key_no_longer_than_skeyid_e_is_its_first_octets(length: int) -> None:
    assert expand(Hash.SHA2_256, bytes(range(32)), length) == bytes(range(length))


def test_a_longer_key_is_ka_of_appendix_b() -> None:
    """The appendix's AKULA: 320 bits of key from a SKEYID_e of 120 bits."""
    skeyid_e = bytes(range(15))
    k1 = mac(Hash.SHA2_256, skeyid_e, b"\x00")
    k2 = mac(Hash.SHA2_256, skeyid_e, k1)
    assert expand(Hash.SHA2_256, skeyid_e, 40) == (k1 + k2)[:40]


@pytest.mark.parametrize("length", [33, 64, 65, 96, 97])
def test_ka_goes_on_as_far_as_the_key_needs(length: int) -> None:
    skeyid_e = bytes(32)
    k1 = mac(Hash.SHA2_256, skeyid_e, b"\x00")
    k2 = mac(Hash.SHA2_256, skeyid_e, k1)
    k3 = mac(Hash.SHA2_256, skeyid_e, k2)
    k4 = mac(Hash.SHA2_256, skeyid_e, k3)
    assert expand(Hash.SHA2_256, skeyid_e, length) == (k1 + k2 + k3 + k4)[:length]


def test_the_first_iv_is_the_hash_of_both_public_values() -> None:
    assert phase1_iv(Hash.SHA2_384, b"gxi", b"gxr") == hashlib.sha384(b"gxigxr").digest()[:16]


def test_a_later_exchange_s_iv_is_the_hash_of_the_last_block_and_the_message_id() -> None:
    expected = hashlib.sha256(b"last phase1block" + bytes.fromhex("01020304")).digest()[:16]
    assert phase2_iv(Hash.SHA2_256, b"last phase1block", 0x01020304) == expected


def test_two_message_ids_have_two_ivs() -> None:
    assert phase2_iv(Hash.SHA2_256, bytes(16), 1) != phase2_iv(Hash.SHA2_256, bytes(16), 2)
