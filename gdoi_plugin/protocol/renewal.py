"""When a member registers again if no rekey comes: before the first of its keys expires."""

from __future__ import annotations

from .actions import Random
from .application_keys import ApplicationKeys
from .rekey_sas import HeldKek
from .retransmission import uniform
from .rollover import Rollover

# Who joins may be told no TEKs but those of a PUSH that follows: by then it has been repeated.
TEK_PATIENCE = 30.0


def renewal(
    rollover: Rollover,
    applications: ApplicationKeys,
    kek: HeldKek | None,
    now: float,
    random: Random,
) -> float | None:
    """A random point near the end of the key that goes first; None where nothing is held.

    That is in the last 5 % of its life, at least 30 s but never more than a quarter of it.
    """
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
    at = min(
        end - min(max(0.05 * life, 30.0), life / 4) * (0.5 + uniform(random, 0.5))
        for end, life in spans
    )
    return at if held or newest else min(at, now + TEK_PATIENCE)
