"""Responder cookies: made and checked without memory, RFC 2408 section 2.5.3."""

from __future__ import annotations

from ipaddress import ip_address
from random import Random

import pytest

from gdoi_plugin.crypto.cookie import CookieKey
from gdoi_plugin.protocol.actions import Peer
from gdoi_plugin.protocol.cookies import NUMBER_LENGTH, SECRET_LIFETIME, Cookies
from gdoi_plugin.protocol.offers import MAX_PROVED, MAX_UNPROVED
from tests.support.snapshot import snapshot

OFFER = bytes(range(32))
CKY_I = b"initiate"
SOURCE, LOCAL = Peer(ip_address("192.0.2.1"), 848), Peer(ip_address("192.0.2.2"), 848)
START = 1_700_000_000.0


def cookies() -> Cookies:
    return Cookies(Random(1).randbytes)


def test_hmac_of_rfc_4231() -> None:
    """Test case 2, its first six octets."""
    assert CookieKey(b"Jefe").mac(b"what do ya want for nothing?", 6).hex() == "5bdcc146bf60"


def test_a_cookie_depends_on_everything_it_should() -> None:
    ours = cookies()
    cookie = ours.make(7, OFFER, CKY_I, SOURCE, LOCAL, START)
    assert len(cookie) == 8
    assert ours.number(cookie) == 7
    assert ours.check(cookie, OFFER, CKY_I, SOURCE, LOCAL, START)
    for offer, cky_i, source, local in (
        (bytes(32), CKY_I, SOURCE, LOCAL),
        (OFFER, b"another!", SOURCE, LOCAL),
        (OFFER, CKY_I, Peer(SOURCE.host, 849), LOCAL),
        (OFFER, CKY_I, Peer(SOURCE.host + 1, 848), LOCAL),
        (OFFER, CKY_I, SOURCE, Peer(LOCAL.host, 4500)),
        (OFFER, CKY_I, LOCAL, SOURCE),
    ):
        assert not ours.check(cookie, offer, cky_i, source, local, START)
    assert not Cookies(Random(2).randbytes).check(cookie, OFFER, CKY_I, SOURCE, LOCAL, START)


@pytest.mark.parametrize(("age", "good"), [(0, True), (59.9, True), (60, True), (119.9, False)])
def test_the_secret_turns(age: float, good: bool) -> None:
    """Made in the last moment of a secret, a cookie lives for one lifetime more."""
    ours = cookies()
    ours.make(1, OFFER, CKY_I, SOURCE, LOCAL, START)
    made = START + SECRET_LIFETIME - 1
    cookie = ours.make(1, OFFER, CKY_I, SOURCE, LOCAL, made)
    assert ours.check(cookie, OFFER, CKY_I, SOURCE, LOCAL, made + age) == good


def test_after_a_long_silence_both_secrets_are_new() -> None:
    ours = cookies()
    old = ours.make(1, OFFER, CKY_I, SOURCE, LOCAL, START)
    later = START + 10 * SECRET_LIFETIME
    assert not ours.check(old, OFFER, CKY_I, SOURCE, LOCAL, later)
    new = ours.make(1, OFFER, CKY_I, SOURCE, LOCAL, later)
    assert ours.check(new, OFFER, CKY_I, SOURCE, LOCAL, later + SECRET_LIFETIME)


def test_checking_and_making_keep_nothing() -> None:
    ours = cookies()
    ours.make(1, OFFER, CKY_I, SOURCE, LOCAL, START)
    before = snapshot(ours)
    for number in range(1, 100):
        cookie = ours.make(number, OFFER, CKY_I, SOURCE, LOCAL, START)
        ours.check(cookie, OFFER, CKY_I, SOURCE, LOCAL, START)
    assert snapshot(ours) == before


def test_a_cookie_is_never_zero() -> None:
    """RFC 2408 section 3.1: zero means "none yet". Offers are numbered from 1."""
    assert cookies().make(1, OFFER, CKY_I, SOURCE, LOCAL, START)[:2] == b"\0\1"
    assert MAX_UNPROVED + MAX_PROVED < 1 << 8 * NUMBER_LENGTH - 1, "a bit says which secret"
