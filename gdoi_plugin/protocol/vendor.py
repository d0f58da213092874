"""Vendor IDs, RFC 2408 section 3.16: what phase 1 announces that RFC 2409 does not have."""

from __future__ import annotations

from ..wire.message import Message
from ..wire.opaque import VendorId
from ..wire.payload import Body
from ..wire.registry import PayloadType
from ..wire.vendor_id import DEAD_PEER_DETECTION

# In messages 1 and 2, after the SA.
ANNOUNCED = (DEAD_PEER_DETECTION,)


def announcement() -> list[Body]:
    return [VendorId(octets) for octets in ANNOUNCED]


def announced_in(message: Message) -> frozenset[bytes]:
    """Those of a message, known or not: unknown ones are for nobody here."""
    return frozenset(p.body for p in message.all(PayloadType.VENDOR_ID))
