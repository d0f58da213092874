"""Vendor IDs, RFC 2408 section 3.16: what phase 1 announces that RFC 2409 does not have."""

from __future__ import annotations

from ..wire.message import Message
from ..wire.opaque import VendorId
from ..wire.payload import Body
from ..wire.registry import PayloadType
from ..wire.vendor_id import DEAD_PEER_DETECTION, NAT_TRAVERSAL
from .nat import Traversal

# In messages 1 and 2, after the SA.
ANNOUNCED = (DEAD_PEER_DETECTION,)
_KNOWN = frozenset({DEAD_PEER_DETECTION, NAT_TRAVERSAL})


def announcement(nat: Traversal) -> list[Body]:
    """RFC 3947 section 3.1: its vendor ID "MUST be sent if supported"."""
    told = ANNOUNCED if nat is Traversal.OFF else (*ANNOUNCED, NAT_TRAVERSAL)
    return [VendorId(octets) for octets in told]


def announced_in(message: Message) -> frozenset[bytes]:
    """Those of a message that are known: the others are for nobody here, and may be long."""
    return _KNOWN & {p.body for p in message.all(PayloadType.VENDOR_ID)}
