"""Diffie-Hellman: MODP groups 14 to 16 (RFC 3526), ECP groups 19 and 20 (RFC 5903).

The private value comes from the library's generator: the one random source in the core that is
not an argument.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import dh, ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.utils import CryptographyDeprecationWarning

from ..wire.registry import Group
from .secret import Secret


class BadPublicValue(ValueError):
    """The peer's public value is not an element of the group."""


class PrivateValue(Protocol):
    """One side's ephemeral secret: ``public`` is the body of its KE payload."""

    @property
    def public(self) -> bytes: ...

    def shared(self, peer: bytes) -> Secret:
        """g^xy. Raises BadPublicValue for a value that is not in the group."""
        ...


# 2^n - 2^(n-64) - 1 + 2^64 * (floor(2^(n-130) pi) + c), RFC 3526: n and c of each group.
_MODP = {
    Group.MODP_2048: (2048, 124476),
    Group.MODP_3072: (3072, 1690314),
    Group.MODP_4096: (4096, 240904),
}
_ECP: dict[Group, type[ec.EllipticCurve]] = {
    Group.ECP_256: ec.SECP256R1,
    Group.ECP_384: ec.SECP384R1,
}
_UNCOMPRESSED = b"\x04"  # SEC 1's form octet


def generate(group: Group) -> PrivateValue:
    """A fresh private value of ``group``."""
    if group in _ECP:
        return EcpPrivate(ec.generate_private_key(_ECP[group]()))
    with _without_deprecation():
        return ModpPrivate(group, _modp_parameters(group).generate_private_key())


def public_length(group: Group) -> int:
    """Octets of the KE payload's body."""
    if group in _ECP:
        return 2 * ((_ECP[group]().key_size + 7) // 8)
    return _MODP[group][0] // 8


class ModpPrivate:
    """RFC 2409 section 6, RFC 3526: generator 2, values padded to the prime's length."""

    def __init__(self, group: Group, key: dh.DHPrivateKey) -> None:
        self._group = group
        self._key = key

    @property
    def public(self) -> bytes:
        y = self._key.public_key().public_numbers().y
        return y.to_bytes(public_length(self._group), "big")

    def shared(self, peer: bytes) -> Secret:
        length = public_length(self._group)
        numbers = _modp_numbers(self._group)
        y = int.from_bytes(peer, "big")
        # RFC 2631 section 2.1.5: 0, 1 and p-1 would give away g^xy.
        if len(peer) != length or not 1 < y < numbers.p - 1:
            raise BadPublicValue(f"{self._group.name}: public value of {len(peer)} octets")
        with _without_deprecation():
            raw = self._key.exchange(dh.DHPublicNumbers(y, numbers).public_key())
        return Secret(raw.rjust(length, b"\x00"))


class EcpPrivate:
    """RFC 5903 section 7: KE is x | y without a form octet, the shared secret is x alone."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        self.public = point.removeprefix(_UNCOMPRESSED)

    def shared(self, peer: bytes) -> Secret:
        if len(peer) != len(self.public):
            raise BadPublicValue(f"{self._key.curve.name}: public value of {len(peer)} octets")
        try:
            # Also refuses coordinates that are not below p.
            octets = _UNCOMPRESSED + peer
            point = ec.EllipticCurvePublicKey.from_encoded_point(self._key.curve, octets)
        except ValueError:
            raise BadPublicValue(f"{self._key.curve.name}: point is not on the curve") from None
        return Secret(self._key.exchange(ec.ECDH(), point))


@cache
def _modp_numbers(group: Group) -> dh.DHParameterNumbers:
    bits, c = _MODP[group]
    pi = _pi_bits(bits - 130)
    p = 2**bits - 2 ** (bits - 64) - 1 + 2**64 * (pi + c)
    with _without_deprecation():
        return dh.DHParameterNumbers(p, 2)


@cache
def _modp_parameters(group: Group) -> dh.DHParameters:
    """With them private values are made; a peer's value takes the numbers."""
    return _modp_numbers(group).parameters()


def _pi_bits(bits: int) -> int:
    """floor(2^bits * pi), by Machin's formula with 64 guard bits."""
    one = 1 << (bits + 64)

    def arctan_inverse(n: int) -> int:
        total = term = one // n
        k, sign = 1, -1
        while term:
            term //= n * n
            k += 2
            total += sign * (term // k)
            sign = -sign
        return total

    return (16 * arctan_inverse(5) - 4 * arctan_inverse(239)) >> 64


@contextmanager
def _without_deprecation() -> Iterator[None]:
    """cryptography warns on every use that finite-field DH will go; pyproject bounds it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        yield
