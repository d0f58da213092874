"""Sender-IDs: the part of the IVs of counter-mode SAs that is one sender's alone.

RFC 6054, and RFC 6407 sections 3.5 (who gets how many), 5.4.2 (SENDER_ID_REQUEST) and 5.6.4 (the
key packet of type SID).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ..wire import attributes as attr
from ..wire.attributes import MAX_ATTRIBUTES, Attribute
from ..wire.group_sa import GroupAssociatedPolicy
from ..wire.key_download import KeyDownload, KeyPacket
from ..wire.registry import GapAttribute, KeyPacketType, NotifyType, SidAttribute
from .actions import IPAddress
from .data_sa import Tek
from .errors import PolicyError, ProtocolError

# Of the lengths that RFC 6054 section 3 has everybody support (8, 12 and 16) the one that lasts
# longest: the end of a group's SIDs costs it all its SAs, and 48 bits left are packets enough.
DEFAULT_SID_BITS: Final = 16
# The IVs of GCM, GMAC, CCM and CTR in ESP have 64 bits; some must be left to count packets.
MAX_SID_BITS = 63
# Besides NUMBER_OF_SID_BITS a key packet has room for so many SID_VALUEs.
MAX_SIDS = MAX_ATTRIBUTES - 1
# One for each encryption module of a large router, and little of 65,536.
DEFAULT_SIDS_LIMIT = 16


@dataclass(frozen=True, slots=True)
class SenderIds:
    """What one GROUPKEY-PULL gives a sender: ``values`` of ``bits`` bits each."""

    bits: int
    values: tuple[int, ...]

    def __str__(self) -> str:
        return ", ".join(str(value) for value in self.values)


@dataclass(slots=True)
class SidCounter:
    """RFC 6407 section 3.5 items 1 and 2: SIDs are allocated sequentially, the first is zero."""

    bits: int
    next: int = 0

    def has(self, count: int) -> bool:
        return self.next + count <= 1 << self.bits

    def take(self, count: int) -> SenderIds:
        """No SID a second time until :meth:`reset`: the caller has asked :meth:`has`."""
        if not self.has(count):
            raise AssertionError("no Sender-IDs left")
        first, self.next = self.next, self.next + count
        return SenderIds(self.bits, tuple(range(first, self.next)))

    def reset(self, bits: int) -> None:
        """Only together with new data SAs, which no member has a SID for (items 5 and 6)."""
        self.bits, self.next = bits, 0


def sids_for(teks: Iterable[Tek], host: IPAddress | None, asked: int, most: int) -> int:
    """How many a member at this address gets with the keys of ``teks``.

    RFC 6407 section 3.5: one for "each group member acting in the role of sender", or as many as
    it asks for, up to ``most``. Who only listens uses up none. ``host`` None: it is behind a NAT,
    where asking tells a sender from the many that listen.
    """
    counters = [tek for tek in teks if tek.suite.counter_mode]
    if not any(tek.sent_by(host) if host is not None else asked for tek in counters):
        return 0
    return min(max(1, asked), most)


# -- the request: a GAP of its own in message 3 --------------------------------------------------


def encode_request(count: int) -> GroupAssociatedPolicy:
    return GroupAssociatedPolicy((Attribute(GapAttribute.SENDER_ID_REQUEST, count),))


def read_request(gap: GroupAssociatedPolicy) -> int:
    """How many are asked for; zero, which peers send, asks for nothing.

    Raises DecodeError, ProtocolError.
    """
    values = attr.unique(gap.attributes, "GAP")
    unknown = values.keys() - set(GapAttribute)
    if unknown:
        # RFC 6407 section 5.4: "MUST abort if it encounters an attribute [...] that it does not
        # understand"
        what, notify = f"GAP attribute {min(unknown)}", NotifyType.ATTRIBUTES_NOT_SUPPORTED
        raise ProtocolError(what, "RFC 6407 section 5.4", notify)
    request = values.get(GapAttribute.SENDER_ID_REQUEST)
    return 0 if request is None else request.number()


# -- the key packet ------------------------------------------------------------------------------


def encode_packet(sids: SenderIds) -> KeyPacket:
    """RFC 6407 section 5.6.4: the SPI Size "MUST be zero"."""
    octets = (sids.bits + 7) // 8
    values = (
        Attribute(SidAttribute.SID_VALUE, value.to_bytes(octets, "big")) for value in sids.values
    )
    bits = Attribute(SidAttribute.NUMBER_OF_SID_BITS, sids.bits)
    return KeyPacket(KeyPacketType.SID, b"", (bits, *values))


def read_packet(kd: KeyDownload, *, pull: bool) -> SenderIds | None:
    """None where there is no packet of this type. Raises PolicyError, DecodeError."""
    packets = [packet for packet in kd.packets if packet.kd_type == KeyPacketType.SID]
    if not packets:
        return None
    if not pull:
        # RFC 6407 section 5.6.4: "MUST NOT be distributed in a GROUPKEY-PUSH message"
        raise PolicyError("Sender-IDs in a GROUPKEY-PUSH, which is for many members")
    if len(packets) > 1:
        raise PolicyError(f"{len(packets)} SID key packets, must be one")
    if packets[0].spi:
        raise PolicyError(f"SID key packet with an SPI of {len(packets[0].spi)} octets")
    sids = _read_attributes(packets[0])
    if not 1 <= sids.bits <= MAX_SID_BITS:
        raise PolicyError(f"NUMBER_OF_SID_BITS {sids.bits}, must be 1 to {MAX_SID_BITS}")
    if not sids.values:
        raise PolicyError("SID key packet without SID_VALUE")
    for value in sids.values:
        if value >> sids.bits:
            raise PolicyError(f"SID_VALUE {value} has more than {sids.bits} bits")
    if len(set(sids.values)) != len(sids.values):
        raise PolicyError("SID key packet with the same SID_VALUE twice")
    return sids


def _read_attributes(packet: KeyPacket) -> SenderIds:
    values = [a for a in packet.attributes if a.type == SidAttribute.SID_VALUE]
    others = attr.unique((a for a in packet.attributes if a not in values), "SID key packet")
    bits = others.pop(SidAttribute.NUMBER_OF_SID_BITS, None)
    if others:
        raise PolicyError(f"SID attribute {min(others)} is unknown")
    if bits is None:
        raise PolicyError("SID key packet lacks NUMBER_OF_SID_BITS")
    return SenderIds(bits.number(), tuple(value.number() for value in values))
