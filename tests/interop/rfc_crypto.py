"""GDOI's cryptography, written from the RFC texts alone: keys, hashes, signatures."""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass, field
from functools import cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from .rfc_octets import (
    ENCRYPTED,
    HASH,
    INFORMATIONAL,
    Header,
    Payload,
    Suite,
    Violation,
    chain,
    kinds,
    must,
    read_header,
    unchain,
)

SigningKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def prf(name: str, key: bytes, *data: bytes) -> bytes:
    return hmac.digest(key, b"".join(data), name)


def digest(name: str, *data: bytes) -> bytes:
    return hashlib.new(name, b"".join(data)).digest()


def cbc(key: bytes, iv: bytes, octets: bytes, *, encrypt: bool) -> bytes:
    cipher = Cipher(algorithms.AES(key), modes.CBC(iv))
    worker = cipher.encryptor() if encrypt else cipher.decryptor()
    return worker.update(octets) + worker.finalize()


def pad(octets: bytes) -> bytes:
    """RFC 2409 B: zeros up to the block."""
    return octets + bytes(-len(octets) % 16)


def _pi(bits: int) -> int:
    """floor(pi * 2**bits), by Machin's formula."""
    one = 1 << (bits + 64)

    def arctan(x: int) -> int:
        total = power = one // x
        n, sign = 3, -1
        while power:
            power //= x * x
            total += sign * (power // n)
            n, sign = n + 2, -sign
        return total

    return (4 * (4 * arctan(5) - arctan(239))) >> 64


@cache
def modp(bits: int, extra: int) -> int:
    """RFC 3526: 2^n - 2^(n-64) - 1 + 2^64 * (floor(2^(n-130) pi) + extra)."""
    return (1 << bits) - (1 << bits - 64) - 1 + ((_pi(bits - 130) + extra) << 64)


MODP = {
    14: (2048, 124476),
    15: (3072, 1690314),
    16: (4096, 240904),
}
CURVES: dict[int, tuple[ec.EllipticCurve, int]] = {
    19: (ec.SECP256R1(), 32),
    20: (ec.SECP384R1(), 48),
}


class DiffieHellman:
    """One side's key; `public` as in the KE payload."""

    def __init__(self, group: int, secret: int) -> None:
        self.group = group
        if group in MODP:
            bits, extra = MODP[group]
            self.size, self.prime = bits // 8, modp(bits, extra)
            self.secret = secret % 2**512
            self.public = pow(2, self.secret, self.prime).to_bytes(self.size, "big")
        else:
            curve, self.half = CURVES[group]
            self.key = ec.derive_private_key(secret % 2**250, curve)
            numbers = self.key.public_key().public_numbers()
            # RFC 5903 7: x | y, each as long as the field.
            self.public = b"".join(n.to_bytes(self.half, "big") for n in (numbers.x, numbers.y))

    def shared(self, other: bytes) -> bytes:
        must(len(other) == len(self.public), "RFC 2409 5: KE MUST be the length of the group")
        if self.group in MODP:
            y = int.from_bytes(other, "big")
            must(1 < y < self.prime - 1, "public value in range")
            return pow(y, self.secret, self.prime).to_bytes(self.size, "big")
        x, y = (int.from_bytes(other[s], "big") for s in (slice(self.half), slice(self.half, None)))
        peer = ec.EllipticCurvePublicNumbers(x, y, self.key.curve).public_key()
        return self.key.exchange(ec.ECDH(), peer)


# RFC 6407 5.3.5, SIG_HASH_ALGORITHM; RFC 4754 3, a curve and its hash by SIG_ALGORITHM.
SIG_HASHES: dict[int, hashes.HashAlgorithm] = {
    3: hashes.SHA256(),
    4: hashes.SHA384(),
    5: hashes.SHA512(),
}
ECDSA: dict[int, tuple[str, int, hashes.HashAlgorithm]] = {
    4: ("secp256r1", 32, hashes.SHA256()),
    5: ("secp384r1", 48, hashes.SHA384()),
    6: ("secp521r1", 66, hashes.SHA512()),
}


def verify(algorithm: int, digest: int, key: bytes, signature: bytes, data: bytes) -> None:
    """SIG_ALGORITHM 1 with SIG_HASH_ALGORITHM `digest`, or 4 to 6. Raises Violation."""
    public = serialization.load_der_public_key(key)
    try:
        if algorithm == 1:
            must(isinstance(public, rsa.RSAPublicKey), "SIG_ALG_RSA with another key")
            assert isinstance(public, rsa.RSAPublicKey)
            must(len(signature) == public.key_size // 8, "RFC 8017: as long as the modulus")
            public.verify(signature, data, padding.PKCS1v15(), SIG_HASHES[digest])
        else:
            curve, half, implied = ECDSA[algorithm]
            assert isinstance(public, ec.EllipticCurvePublicKey)
            must(public.curve.name == curve, "RFC 6407 5.3.6: the curve of SIG_ALGORITHM")
            must(len(signature) == 2 * half, "RFC 4754: r | s, as long as the order each")
            r, s = (int.from_bytes(n, "big") for n in (signature[:half], signature[half:]))
            public.verify(utils.encode_dss_signature(r, s), data, ec.ECDSA(implied))
    except InvalidSignature:
        raise Violation("RFC 6407 4: the SIG payload does not verify") from None


def sig_algorithm(key: SigningKey) -> int:
    if isinstance(key, rsa.RSAPrivateKey):
        return 1
    return next(n for n, (curve, _, _) in ECDSA.items() if curve == key.curve.name)


def signature_size(key: SigningKey) -> int:
    algorithm = sig_algorithm(key)
    return key.key_size // 8 if algorithm == 1 else 2 * ECDSA[algorithm][1]


def sign(key: SigningKey, data: bytes, digest: int = 3) -> bytes:
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), SIG_HASHES[digest])
    _, half, implied = ECDSA[sig_algorithm(key)]
    r, s = utils.decode_dss_signature(key.sign(data, ec.ECDSA(implied)))
    return r.to_bytes(half, "big") + s.to_bytes(half, "big")


def public_der(key: SigningKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


ACK_HASHES = {1: "sha256", 2: "sha256", 3: "sha512", 4: "sha512"}


@dataclass
class Kek:
    """A Rekey SA, seen from either side."""

    spi: bytes
    iv: bytes
    key: bytes
    signature: int  # SIG_ALGORITHM
    signing_key: bytes  # DER
    ack: int = 0
    seq: int = 0
    sig_hash: int = 3  # SIG_HASH_ALGORITHM, for RSA

    def seal(self, octets: bytes) -> bytes:
        return cbc(self.key, self.iv, octets, encrypt=True)

    def open(self, octets: bytes) -> bytes:
        return cbc(self.key, self.iv, octets, encrypt=False)


def ack_hash(name: str, kek_key: bytes, spi: bytes, covered: bytes, bits: int = 0) -> bytes:
    """RFC 8263 3.2, `kek_key` without its IV; L is the prf's block in bits, unless told."""
    bits = bits or {"sha256": 512, "sha512": 1024}[name]
    ack_key = prf(name, kek_key, b"GROUPKEY-PUSH ACK\0", spi, struct.pack("!H", bits))
    return prf(name, ack_key, covered)


# -- an ISAKMP SA ----------------------------------------------------------------------------------


@dataclass
class Isakmp:
    """Keys of a phase 1; RFC 2409 5 and appendix B."""

    suite: Suite
    cky_i: bytes
    cky_r: bytes
    skeyid: bytes
    skeyid_a: bytes
    key: bytes
    iv: bytes  # of phase 1, after its last message: the last block of ciphertext
    ivs: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def derive(
        cls,
        suite: Suite,
        cookies: tuple[bytes, bytes],
        psk: bytes | None,
        nonces: tuple[bytes, bytes],
        publics: tuple[bytes, bytes],
        shared: bytes,
    ) -> Isakmp:
        name, both = suite.hash, b"".join(cookies)
        # RFC 2409 5: of a pre-shared key, or, for signatures, prf(Ni_b | Nr_b, g^xy).
        skeyid = prf(name, b"".join(nonces), shared) if psk is None else prf(name, psk, *nonces)
        skeyid_d = prf(name, skeyid, shared, both, b"\0")
        skeyid_a = prf(name, skeyid, skeyid_d, shared, both, b"\1")
        skeyid_e = prf(name, skeyid, skeyid_a, shared, both, b"\2")
        # RFC 2409 B: 256 bits at most, and every hash here gives as many.
        key = skeyid_e[: suite.bits // 8]
        return cls(suite, *cookies, skeyid, skeyid_a, key, digest(name, *publics)[:16])

    def auth(self, mine: bytes, theirs: bytes, initiator: bool, sa_b: bytes, id_b: bytes) -> bytes:
        """HASH_I or HASH_R, seen from whom it authenticates (`mine` is that side's g^x)."""
        cookies = [self.cky_i, self.cky_r] if initiator else [self.cky_r, self.cky_i]
        return prf(self.suite.hash, self.skeyid, mine, theirs, *cookies, sa_b, id_b)

    def hash(self, message_id: int, *data: bytes) -> bytes:
        return prf(self.suite.hash, self.skeyid_a, struct.pack("!I", message_id), *data)

    def seal(self, exchange: int, message_id: int, payloads: list[Payload]) -> bytes:
        body = pad(chain(payloads))
        header = Header(
            self.cky_i, self.cky_r, payloads[0][0], exchange, ENCRYPTED, message_id, 28 + len(body)
        )
        sealed = cbc(self.key, self._iv(message_id), body, encrypt=True)
        self._advance(message_id, sealed)
        return header.pack() + sealed

    def open(self, datagram: bytes, exchange: int) -> tuple[Header, list[Payload]]:
        header = read_header(datagram)
        must(header.flags == ENCRYPTED, "RFC 2409 5: encrypted after HDR")
        must((header.cky_i, header.cky_r) == (self.cky_i, self.cky_r), "cookies of this SA")
        must(header.exchange == exchange, f"exchange {header.exchange}, not {exchange}")
        sealed = datagram[28:]
        must(len(sealed) % 16 == 0, "RFC 2409 B: whole blocks")
        opened = cbc(self.key, self._iv(header.message_id), sealed, encrypt=False)
        self._advance(header.message_id, sealed)
        return header, unchain(header.next, opened, padded=True)

    def _iv(self, message_id: int) -> bytes:
        if message_id == 0:
            return self.iv
        fresh = digest(self.suite.hash, self.iv, struct.pack("!I", message_id))[:16]
        return self.ivs.get(message_id, fresh)

    def _advance(self, message_id: int, sealed: bytes) -> None:
        if message_id == 0:
            self.iv = sealed[-16:]
        else:
            self.ivs[message_id] = sealed[-16:]


def inform(sa: Isakmp, message_id: int, payload: Payload) -> bytes:
    """A protected Informational exchange; RFC 2409 5.7."""
    proof = sa.hash(message_id, chain([payload]))
    return sa.seal(INFORMATIONAL, message_id, [(HASH, proof), payload])


def informed(sa: Isakmp, datagram: bytes) -> list[Payload]:
    """What a protected Informational exchange says, its HASH(1) verified."""
    header, payloads = sa.open(datagram, INFORMATIONAL)
    must(header.message_id, "RFC 2409 5.7: an M-ID unique to this exchange")
    must(kinds(payloads)[0] == HASH, "RFC 2409 5.7: HDR*, HASH(1), N/D")
    proof = sa.hash(header.message_id, chain(payloads[1:]))
    must(hmac.compare_digest(payloads[0][1], proof), "RFC 2409 5.7: HASH(1)")
    return payloads[1:]
