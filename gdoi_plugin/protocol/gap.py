"""GAP: activation and deactivation delays, RFC 6407 section 5.4."""

from __future__ import annotations

from ..wire import attributes as attr
from ..wire.attributes import Attribute
from ..wire.group_sa import GroupAssociatedPolicy
from ..wire.registry import GapAttribute
from .errors import PolicyError


def encode_gap(
    activation_delay: int | None, deactivation_delay: int | None
) -> GroupAssociatedPolicy | None:
    """None where there is nothing to say."""
    delays = (
        (GapAttribute.ACTIVATION_TIME_DELAY, activation_delay),
        (GapAttribute.DEACTIVATION_TIME_DELAY, deactivation_delay),
    )
    present = tuple(Attribute(kind, value) for kind, value in delays if value is not None)
    return GroupAssociatedPolicy(present) if present else None


def read_gap(gap: GroupAssociatedPolicy | None) -> tuple[int | None, int | None]:
    """ATD and DTD in seconds. Raises PolicyError."""
    if gap is None:
        return None, None
    values = attr.unique(gap.attributes, "GAP")
    delays = []
    for kind in (GapAttribute.ACTIVATION_TIME_DELAY, GapAttribute.DEACTIVATION_TIME_DELAY):
        attribute = values.pop(kind, None)
        delays.append(None if attribute is None else min(attribute.number(), 0xFFFF))
    values.pop(GapAttribute.SENDER_ID_REQUEST, None)  # only a member asks; zero is seen from peers
    if values:
        raise PolicyError(f"GAP attribute {min(values)} is unknown")
    return delays[0], delays[1]
