"""AES-CBC, for phase 1, GROUPKEY-PULL and the KEK (RFC 3602, RFC 6407 section 5.3.2.3)."""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

BLOCK = 16


def pad(plaintext: bytes) -> bytes:
    """Zeros up to the block, none when aligned (RFC 2409 appendix B)."""
    return plaintext + bytes(-len(plaintext) % BLOCK)


def encrypt(key: bytes, iv: bytes, plaintext: bytes) -> bytes:
    """``plaintext`` is padded with zeros; the result is a whole number of blocks."""
    context = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    return context.update(pad(plaintext)) + context.finalize()


def decrypt(key: bytes, iv: bytes, ciphertext: bytes) -> bytes:
    """Padding stays on. Raises ValueError for an empty or unaligned ciphertext."""
    if not ciphertext or len(ciphertext) % BLOCK:
        raise ValueError(f"ciphertext of {len(ciphertext)} octets is not whole blocks")
    context = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor()
    return context.update(ciphertext) + context.finalize()
