"""Responder cookies that need no memory: RFC 2408 section 2.5.3.

"The cookie must depend on the specific parties. [...] It must not be possible for anyone other than
the issuing entity to generate cookies that will be accepted by that entity. [...] The cookie
generation function must be fast to thwart attacks intended to sabotage CPU resources."
::

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    !K!      number of the offer      !                               !
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+       HMAC, 6 octets          +
    !                                                                 !
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

    HMAC-SHA-256(secret K, number | CKY-I | source | local | offer)

K says which of two secrets, the present one or the one before.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..crypto.cookie import KEY_LENGTH, CookieKey
from ..crypto.prf import equal
from .actions import Peer, Random

# A message 3 follows its message 2 at once, or within the 31 s that an initiator resends it. A
# cookie lives for one such time at least and two at most.
SECRET_LIFETIME = 60.0
NUMBER_LENGTH = 2
MAC_LENGTH = 6
_K = 0x8000


@dataclass(slots=True)
class Cookies:
    random: Random = field(repr=False)
    _keys: list[CookieKey] = field(init=False, repr=False)
    _current: int = field(default=0, init=False)
    _until: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._keys = [CookieKey(self.random(KEY_LENGTH)) for _ in range(2)]

    def make(
        self, number: int, offer: bytes, cky_i: bytes, source: Peer, local: Peer, now: float
    ) -> bytes:
        """CKY-R of message 2. ``offer``: the fingerprint of what ``number`` stands for."""
        self._turn(now)
        word = number | (_K if self._current else 0)
        return self._cookie(word, offer, cky_i, source, local)

    def number(self, cookie: bytes) -> int:
        """Which offer a cookie speaks of, if it is one of ours."""
        return int.from_bytes(cookie[:NUMBER_LENGTH], "big") & ~_K

    def check(
        self, cookie: bytes, offer: bytes, cky_i: bytes, source: Peer, local: Peer, now: float
    ) -> bool:
        """Whether ``make`` gave it, to this source, not longer ago than a secret lives twice."""
        self._turn(now)
        word = int.from_bytes(cookie[:NUMBER_LENGTH], "big")
        return equal(cookie, self._cookie(word, offer, cky_i, source, local))

    def _cookie(self, word: int, offer: bytes, cky_i: bytes, source: Peer, local: Peer) -> bytes:
        number = word.to_bytes(NUMBER_LENGTH, "big")
        data = b"%b%b%b%b%b" % (number, cky_i, _octets(source), _octets(local), offer)
        return number + self._keys[word >> 15].mac(data, MAC_LENGTH)

    def _turn(self, now: float) -> None:
        """A new secret takes the place of the one before the present one."""
        if self._until is None:
            self._until = now + SECRET_LIFETIME
        if now < self._until:
            return
        stale = now >= self._until + SECRET_LIFETIME
        for _ in range(2 if stale else 1):
            self._current ^= 1
            self._keys[self._current] = CookieKey(self.random(KEY_LENGTH))
        self._until = now + SECRET_LIFETIME


def _octets(peer: Peer) -> bytes:
    """6 or 18 octets: both ends of a datagram have the same family."""
    return peer.host.packed + peer.port.to_bytes(2, "big")
