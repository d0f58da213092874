"""The algorithms of an SA, and the table that recognises them when the kernel's SAs are read.

A new one is a line in `Integrity`, or a class with its `attributes` and a line in `_READERS`.
"""

from __future__ import annotations

import dataclasses
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

AttributeName = Literal[
    "XFRMA_ALG_CRYPT", "XFRMA_ALG_AUTH", "XFRMA_ALG_AUTH_TRUNC", "XFRMA_ALG_AEAD", "XFRMA_ALG_COMP"
]

MAX_NAME: Final = 63  # alg_name is 64 octets with a NUL
MAX_KEY: Final = 512  # more than any cipher's; an attribute could hold 64 KiB
CHACHA20_POLY1305: Final = "rfc7539esp(chacha20,poly1305)"


def _shown(owner: object) -> str:
    """A repr with every octet string replaced by its length."""
    parts = []
    for field in dataclasses.fields(owner):  # type: ignore[arg-type]
        value = getattr(owner, field.name)
        text = f"<{len(value)} octets>" if isinstance(value, bytes) else repr(value)
        parts.append(f"{field.name}={text}")
    return f"{type(owner).__name__}({', '.join(parts)})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AlgorithmAttribute:
    """One XFRMA_ALG_* attribute: the kernel's name, the key, and the ICV's length in bits."""

    attribute: AttributeName
    name: str
    key: bytes
    icv_bits: int = 0

    def __post_init__(self) -> None:
        if len(self.name) > MAX_NAME:
            raise ValueError(f"an algorithm's name of {len(self.name)} characters")
        if not 0 <= self.icv_bits < 2**32:
            raise ValueError(f"an ICV of {self.icv_bits} bits")
        if len(self.key) > MAX_KEY:
            raise ValueError(f"a key of {len(self.key)} octets")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AlgorithmAttribute):
            return NotImplemented
        mine = (self.attribute, self.name, self.icv_bits)
        theirs = (other.attribute, other.name, other.icv_bits)
        return hmac.compare_digest(self.key, other.key) and mine == theirs

    def __hash__(self) -> int:
        return hash((self.attribute, self.name, self.icv_bits))

    def __repr__(self) -> str:
        return _shown(self)


class Algorithm:
    """What an SA encrypts and authenticates with. Equal when the kernel would be told the same."""

    __slots__ = ()

    @property
    def attributes(self) -> tuple[AlgorithmAttribute, ...]:
        """What the kernel is told."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Algorithm):
            return NotImplemented
        return self.attributes == other.attributes

    def __hash__(self) -> int:
        return hash(self.attributes)

    def __repr__(self) -> str:
        return _shown(self)


class Integrity(Enum):
    """The kernel's name and the ICV in bits (RFC 4868 section 2.3: half the hash)."""

    HMAC_SHA2_256 = ("hmac(sha256)", 128)
    HMAC_SHA2_384 = ("hmac(sha384)", 192)
    HMAC_SHA2_512 = ("hmac(sha512)", 256)

    @property
    def kernel_name(self) -> str:
        return self.value[0]

    @property
    def icv_bits(self) -> int:
        return self.value[1]

    def keyed(self, key: bytes) -> AlgorithmAttribute:
        # XFRMA_ALG_AUTH would do for the key, but gives a 96-bit ICV: always AUTH_TRUNC.
        return AlgorithmAttribute("XFRMA_ALG_AUTH_TRUNC", self.kernel_name, key, self.icv_bits)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CbcHmac(Algorithm):
    """AES-CBC (RFC 3602) with an HMAC (RFC 4868). Several senders may share such an SA.

    encryption_key: 16, 24 or 32 octets; integrity_key: as long as the hash.
    """

    encryption_key: bytes
    integrity_key: bytes
    integrity: Integrity = Integrity.HMAC_SHA2_256

    @property
    def attributes(self) -> tuple[AlgorithmAttribute, ...]:
        return (
            self.integrity.keyed(self.integrity_key),
            AlgorithmAttribute("XFRMA_ALG_CRYPT", "cbc(aes)", self.encryption_key),
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AesGcm(Algorithm):
    """AES-GCM (RFC 4106). A single sender per SA: the kernel chooses the IV.

    key: KEYMAT of RFC 4106 section 8.1, the AES key and 4 octets of salt: 20, 28 or 36 octets;
    icv_bits: 64, 96 or 128.
    """

    key: bytes
    icv_bits: int = 128

    @property
    def attributes(self) -> tuple[AlgorithmAttribute, ...]:
        return (AlgorithmAttribute("XFRMA_ALG_AEAD", "rfc4106(gcm(aes))", self.key, self.icv_bits),)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AesGmac(Algorithm):
    """ESP with AES-GMAC (RFC 4543): authenticated, in clear. A single sender per SA, as with GCM.

    key: KEYMAT of RFC 4543 section 5.1, the AES key and 4 octets of salt: 20, 28 or 36 octets.
    """

    key: bytes

    @property
    def attributes(self) -> tuple[AlgorithmAttribute, ...]:
        # The kernel knows one length of ICV for it, that of RFC 4543 section 3.4.
        return (AlgorithmAttribute("XFRMA_ALG_AEAD", "rfc4543(gcm(aes))", self.key, 128),)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ChaCha20Poly1305(Algorithm):
    """ChaCha20 and Poly1305 (RFC 7634). A single sender per SA, as with GCM.

    key: KEYMAT of RFC 7634 section 2, the key of 32 octets and 4 octets of salt.
    """

    key: bytes

    @property
    def attributes(self) -> tuple[AlgorithmAttribute, ...]:
        # RFC 7634 section 2: the ICV is the whole tag.
        return (AlgorithmAttribute("XFRMA_ALG_AEAD", CHACHA20_POLY1305, self.key, 128),)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Hmac(Algorithm):
    """What AH authenticates with (RFC 4868). integrity_key: as long as the hash."""

    integrity_key: bytes
    integrity: Integrity = Integrity.HMAC_SHA2_256

    @property
    def attributes(self) -> tuple[AlgorithmAttribute, ...]:
        return (self.integrity.keyed(self.integrity_key),)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class OtherAlgorithm(Algorithm):
    """Any other combination, as found in the kernel. Without attributes: a larval SA."""

    attributes: tuple[AlgorithmAttribute, ...] = ()


_Found = tuple[AlgorithmAttribute, ...]


def _hmac(mac: Integrity) -> Callable[[_Found], Algorithm]:
    return lambda found: Hmac(found[0].key, mac)


def _cbc_hmac(mac: Integrity) -> Callable[[_Found], Algorithm]:
    return lambda found: CbcHmac(found[1].key, found[0].key, mac)


# (attribute, kernel's name) of each attribute in the order auth, crypt -> how to read it
_READERS: Final[dict[tuple[tuple[str, str], ...], Callable[[_Found], Algorithm]]] = {
    (("XFRMA_ALG_AEAD", "rfc4106(gcm(aes))"),): lambda a: AesGcm(a[0].key, a[0].icv_bits),
    (("XFRMA_ALG_AEAD", "rfc4543(gcm(aes))"),): lambda a: AesGmac(a[0].key),
    (("XFRMA_ALG_AEAD", CHACHA20_POLY1305),): lambda a: ChaCha20Poly1305(a[0].key),
    **{(("XFRMA_ALG_AUTH_TRUNC", mac.kernel_name),): _hmac(mac) for mac in Integrity},
    **{
        (("XFRMA_ALG_AUTH_TRUNC", mac.kernel_name), ("XFRMA_ALG_CRYPT", "cbc(aes)")): _cbc_hmac(mac)
        for mac in Integrity
    },
}


def from_attributes(found: _Found) -> Algorithm:
    """The algorithm those attributes mean; an OtherAlgorithm where the table has none."""
    reader = _READERS.get(tuple((part.attribute, part.name) for part in found))
    other = OtherAlgorithm(found)
    if reader is None:
        return other
    known = reader(found)
    return known if known == other else other  # e.g. CBC with a truncation of its own
