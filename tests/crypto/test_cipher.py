"""AES-CBC against RFC 3602 section 4 and NIST SP 800-38A; padding of RFC 2409 appendix B."""

from __future__ import annotations

import pytest

from gdoi_plugin.crypto.cipher import BLOCK, decrypt, encrypt, pad
from tests.vectors import Record, load

# NIST SP 800-38A, F.2.5 (CBC-AES256.Encrypt), first two blocks.
SP_800_38A = {
    "key": bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"),
    "iv": bytes(range(16)),
    "plaintext": bytes.fromhex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"),
    "ciphertext": bytes.fromhex("f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d"),
}
KEY, IV = bytes(16), bytes(range(16))


@pytest.mark.parametrize("record", [*load("rfc3602"), SP_800_38A])
def test_published_values(record: Record) -> None:
    key, iv = record["key"], record["iv"]
    assert encrypt(key, iv, record["plaintext"]) == record["ciphertext"]
    assert decrypt(key, iv, record["ciphertext"]) == record["plaintext"]


@pytest.mark.parametrize(("length", "padded"), [(0, 0), (1, 16), (15, 16), (16, 16), (17, 32)])
def test_padding_is_zeros_up_to_the_block_and_none_when_aligned(length: int, padded: int) -> None:
    assert pad(b"x" * length) == b"x" * length + bytes(padded - length)


def test_decryption_keeps_the_padding() -> None:
    assert decrypt(KEY, IV, encrypt(KEY, IV, b"seventeen octets!")) == b"seventeen octets!" + bytes(
        15
    )


@pytest.mark.parametrize("length", [0, 1, 15, 17, 31])
def test_ciphertext_that_is_not_whole_blocks_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"{length} octets"):
        decrypt(KEY, IV, bytes(length))


def test_a_long_message_chains_over_every_block() -> None:
    body = bytes(65440)
    blocks = encrypt(KEY, IV, body)
    assert len({blocks[i : i + BLOCK] for i in range(0, len(blocks), BLOCK)}) == len(body) // BLOCK
