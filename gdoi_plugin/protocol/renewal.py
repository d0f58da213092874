"""When a member registers again if no rekey comes: before the first of its keys expires.

All members of a group have the same keys: each draws a point of its own, so that the key server is
not asked by all of them at once. The kernel is given such margins as soft limits of its SAs.
"""

from __future__ import annotations

from .actions import Random
from .application_keys import ApplicationKeys
from .rekey_sas import HeldKek
from .retransmission import uniform
from .rollover import Rollover

# The last 5 % of a lifetime, at least 30 s but never more than a quarter of it.
SHARE, LEAST, MOST = 0.05, 30.0, 0.25
# Of the octets an SA may carry, the last fifth: how fast they go nobody knows beforehand.
SHARE_OF_OCTETS = 0.2
# Who joins may be told no TEKs but those of a PUSH that follows: by then it has been repeated.
TEK_PATIENCE = 30.0


def renewal(
    rollover: Rollover,
    applications: ApplicationKeys,
    kek: HeldKek | None,
    now: float,
    random: Random,
) -> float | None:
    """A random point near the end of the key that goes first; None where nothing is held."""
    held = rollover.held.values()
    renewed = {h.tek.flow for h in held if h.retire_at is None}
    # A TEK whose successor is here already asks for nothing, even while it is still sent with.
    spans: list[tuple[float, int]] = [
        (h.expires, h.tek.lifetime)
        for h in held
        if h.retire_at is None or h.tek.flow not in renewed
    ]
    newest = applications.newest
    spans += [(key.expires, key.tek.lifetime) for key in newest if key.tek.lifetime]
    if kek is not None:
        spans.append((kek.expires, kek.kek.lifetime))
    if not spans:
        return None
    chance = uniform(random, 1.0)  # one for all keys: to draw takes longer than the rest
    at = min(end - margin(life, chance) for end, life in spans)
    waits = rollover.lacks or not (held or newest)
    return min(at, now + TEK_PATIENCE) if waits else at


def margin(life: float, chance: float) -> float:
    """How many seconds before the end of a lifetime; ``chance`` is from 0 to 1."""
    return min(max(SHARE * life, LEAST), MOST * life) * (0.5 + 0.5 * chance)


def margin_of_octets(limit: int, chance: float) -> int:
    """The same for octets: from a tenth to a fifth of them."""
    return int(SHARE_OF_OCTETS * limit * (0.5 + 0.5 * chance))
