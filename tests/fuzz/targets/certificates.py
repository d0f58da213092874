"""Certificates as a peer sends them: a leaf, and a chain from it to a CA that is trusted.

An input is DER: of a leaf, or of a certificate between an honest leaf and the root. Signatures are
not made anew, so that nothing is ever trusted but what the honest CAs have signed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from cryptography.utils import CryptographyDeprecationWarning

from gdoi_plugin.crypto.certificate import BadCertificate, Leaf, read_leaf
from tests.fuzz.target import Target
from tests.support.pki import MOMENT, ROOT, Entity, issue, trust

SHARE = 6_000
CHAIN_SHARE = 2_000


@cache
def _between() -> Entity:
    return issue("between", ROOT, ca=True)


@cache
def _leaves() -> tuple[Entity, ...]:
    names = ("gm1.example.org", "10.0.0.2", "gm1@example.org")
    url = "http://example.org/crl"
    return (
        issue("gm1", ROOT, names=names, crl_url=url),
        issue("gm1", _between(), number=1),
        issue("gm2", ROOT, kind="rsa2048", number=2),
    )


@contextmanager
def _odd_serials() -> Iterator[None]:
    """The library warns of serial numbers that it will refuse one day."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        yield


def check_leaf(der: bytes) -> bool:
    """True where it can be read; trusted is only what our CA has signed."""
    with _odd_serials():
        return _check_leaf(der)


def _check_leaf(der: bytes) -> bool:
    try:
        leaf = read_leaf(der)
    except BadCertificate:
        return False
    try:
        trust().check(leaf, _others(), MOMENT.timestamp())
    except BadCertificate:
        return True
    signed = {entity.certificate.tbs_certificate_bytes for entity in _leaves()}
    assert leaf.certificate.tbs_certificate_bytes in signed, "trusted, and nobody signed it"
    return True


def _others() -> tuple[bytes, ...]:
    return (_between().der,)


@cache
def _honest() -> Leaf:
    return read_leaf(_leaves()[1].der)


def check_chain(der: bytes) -> bool:
    """True where the honest leaf is trusted over this certificate."""
    with _odd_serials():
        try:
            trust().check(_honest(), (der,), MOMENT.timestamp())
        except BadCertificate:
            return False
    # What is not signed may differ: the octets around it.
    assert _between().certificate.tbs_certificate_bytes in der, "trusted over what nobody signed"
    return True


def targets() -> list[Target]:
    return [
        Target("certificate-leaf", check_leaf, lambda: [e.der for e in _leaves()], SHARE),
        Target("certificate-chain", check_chain, lambda: [_between().der], CHAIN_SHARE),
    ]
