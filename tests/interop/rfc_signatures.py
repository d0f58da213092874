"""SIG_I and SIG_R of main mode: RFC 2408 3.9 and 3.10, RFC 2409 5.1, RFC 4754, from their texts.

RSA is done on the numbers themselves, so that no library decides what goes around the HASH.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding

from .rfc_octets import Payload, Violation, must

CERT, CERTREQ = 6, 7
X509_SIGNATURE = 4  # RFC 2408 3.9
ID_DER_ASN1_DN = 9
Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
# RFC 4754 4 and 7: curve -> authentication method, octets of r and of s, hash.
ECDSA: dict[str, tuple[int, int, hashes.HashAlgorithm]] = {
    "secp256r1": (9, 32, hashes.SHA256()),
    "secp384r1": (10, 48, hashes.SHA384()),
    "secp521r1": (11, 66, hashes.SHA512()),
}


def block(size: int, data: bytes) -> int:
    """RFC 2409 5.1: "private key encryption in PKCS #1 format": 00 01 FF .. FF 00 HASH."""
    return int.from_bytes(b"\0\1" + b"\xff" * (size - 3 - len(data)) + b"\0" + data, "big")


class Certified:
    """A key, its certificate, and the one CA that is believed."""

    def __init__(self, key: Key, certificate: x509.Certificate, ca: x509.Certificate) -> None:
        self.key, self.certificate, self.ca = key, certificate, ca
        self.sends_certificate = True
        # The HASH hashed once more: RFC 4754 can be read so, RFC 2409 5.1 forbids it for RSA.
        self.hashes_again = False

    @property
    def method(self) -> int:
        return 3 if isinstance(self.key, rsa.RSAPrivateKey) else ECDSA[self.key.curve.name][0]

    @property
    def name(self) -> bytes:
        return self.certificate.subject.public_bytes()

    @property
    def request(self) -> Payload:
        return CERTREQ, bytes((X509_SIGNATURE,)) + self.ca.subject.public_bytes()

    def certificates(self) -> list[Payload]:
        der = self.certificate.public_bytes(Encoding.DER)
        return [(CERT, bytes((X509_SIGNATURE,)) + der)] if self.sends_certificate else []

    def sign(self, proof: bytes) -> bytes:
        if isinstance(self.key, rsa.RSAPrivateKey):
            if self.hashes_again:
                return self.key.sign(proof, padding.PKCS1v15(), hashes.SHA256())
            numbers, size = self.key.private_numbers(), self.key.key_size // 8
            n = numbers.public_numbers.n
            return pow(block(size, proof), numbers.d, n).to_bytes(size, "big")
        _, half, name = ECDSA[self.key.curve.name]
        algorithm = ec.ECDSA(name if self.hashes_again else utils.Prehashed(name))
        r, s = utils.decode_dss_signature(self.key.sign(proof, algorithm))
        return r.to_bytes(half, "big") + s.to_bytes(half, "big")

    def check(self, certificate: x509.Certificate, signature: bytes, proof: bytes) -> None:
        """The other side's signature, by a key of the same method. Raises Violation."""
        try:
            certificate.verify_directly_issued_by(self.ca)
        except (ValueError, InvalidSignature):
            raise Violation("RFC 2408 3.9: a certificate of the CA asked for") from None
        key = certificate.public_key()
        if self.method == 3:
            must(isinstance(key, rsa.RSAPublicKey), "RFC 2409 A: RSA signatures, an RSA key")
            assert isinstance(key, rsa.RSAPublicKey)
            size, n, e = key.key_size // 8, key.public_numbers().n, key.public_numbers().e
            must(len(signature) == size, "RFC 8017: as long as the modulus")
            opened = pow(int.from_bytes(signature, "big"), e, n)
            must(opened == block(size, proof), "RFC 2409 5.1: SIG_R over the bare HASH_R")
            return
        assert isinstance(key, ec.EllipticCurvePublicKey)
        method, half, name = ECDSA[key.curve.name]
        must(method == self.method, "RFC 4754 4: the curve of the method")
        must(len(signature) == 2 * half, "RFC 4754 7: r | s, each with leading zeros")
        r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
        try:
            der = utils.encode_dss_signature(r, s)
            key.verify(der, proof, ec.ECDSA(utils.Prehashed(name)))
        except InvalidSignature:
            raise Violation("RFC 4754: SIG_R does not verify") from None


def read_certificate(body: bytes) -> x509.Certificate:
    must(body[0] == X509_SIGNATURE, "RFC 2408 3.9: X.509 certificate - signature")
    return x509.load_der_x509_certificate(body[1:])
