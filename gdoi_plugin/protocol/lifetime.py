"""RESPONDER-LIFETIME, RFC 2407 section 4.6.3.1: the responder ends the phase-1 SA earlier.

The transform goes back unchanged (RFC 2409 section 5), so this is how an initiator learns of it.
"""

from __future__ import annotations

from ..wire.attributes import Attribute, pull_attributes, push_attributes, uint32
from ..wire.buffer import Buffer
from ..wire.registry import LifeType, PhaseOneAttribute, SaAttribute

_TYPES = (PhaseOneAttribute.LIFE_TYPE, SaAttribute.SA_LIFE_TYPE)
_DURATIONS = (PhaseOneAttribute.LIFE_DURATION, SaAttribute.SA_LIFE_DURATION)


def lifetime_data(seconds: int) -> bytes:
    """ "an ISAKMP attribute list with the responder's actual SA lifetime(s)"."""
    buf = Buffer()
    kind = Attribute(PhaseOneAttribute.LIFE_TYPE, LifeType.SECONDS)
    push_attributes(buf, (kind, uint32(PhaseOneAttribute.LIFE_DURATION, seconds)))
    return buf.data


def read_lifetime(data: bytes) -> int | None:
    """Seconds; None where there are none, kilobytes say. Raises DecodeError.

    The RFC does not say whether the attributes have phase 1's numbers or phase 2's: either will do.
    """
    kind = 0
    for attribute in pull_attributes(Buffer(data)):
        if attribute.type in _TYPES:
            kind = attribute.number()
        elif attribute.type in _DURATIONS and kind == LifeType.SECONDS:
            return attribute.number()
    return None
