"""Group policy: what both sides hold, to and from SA and KD payloads, RFC 6407 sections 5.2 to 5.6.

Each part has its own module: :mod:`~gdoi_plugin.protocol.rekey_sa` the KEK,
:mod:`~gdoi_plugin.protocol.data_sa` and :mod:`~gdoi_plugin.protocol.iec_tek` the TEKs,
:mod:`~gdoi_plugin.protocol.gap` the delays,
:mod:`~gdoi_plugin.protocol.sender_ids` what senders in counter mode get. "A GDOI implementation
MUST abort if it encounters an attribute or capability that it does not understand" (sections 5.3.2
and 5.4): whatever is not listed there is a :class:`~gdoi_plugin.protocol.errors.PolicyError` that
names it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..crypto.lkh import NotOurs
from ..wire.group_sa import GroupSecurityAssociation, SaTek
from ..wire.iec61850 import Iec61850Tek
from ..wire.key_download import KeyDownload
from ..wire.registry import KekManagement
from . import sender_ids
from .data_sa import (
    DEFAULT_LIFETIME,
    MIN_ESP_SPI,
    AnyTek,
    Flow,
    Tek,
    encode_sat,
    encode_tek_packet,
    read_keys,
    read_sat,
    tek_packets,
)
from .errors import PolicyError
from .gap import encode_gap, read_gap
from .iec_tek import IecTek, encode_iec_sat, read_iec_sat
from .rekey_sa import Kek, encode_kek_packet, encode_sak, read_kek, read_sak
from .sender_ids import SenderIds
from .suites import TEK_SUITES, TekSuite

__all__ = [
    "DEFAULT_LIFETIME",
    "MIN_ESP_SPI",
    "TEK_SUITES",
    "AnyTek",
    "Flow",
    "GroupPolicy",
    "Kek",
    "Tek",
    "TekSuite",
    "check_sa",
    "encode_kd",
    "encode_sa",
    "read_policy",
]


@dataclass(frozen=True, slots=True)
class GroupPolicy:
    """What one PULL or PUSH carries. Delays in seconds, None where there is no GAP.

    ``teks`` in the order of their SATs: ``ipsec`` are the kernel's, ``applications`` those of RFC
    8052.
    ``updates``: values of LKH_UPDATE_ARRAY that a PUSH brings its KEK by. ``withheld``: the SPI of
    a KEK that came in such arrays, all of them for other members than the reader. ``sids``: one
    sender's, and only ever in a PULL.
    """

    kek: Kek | None
    teks: tuple[AnyTek, ...]
    activation_delay: int | None = None
    deactivation_delay: int | None = None
    updates: tuple[bytes, ...] = ()
    withheld: bytes | None = None
    sids: SenderIds | None = None

    @property
    def ipsec(self) -> tuple[Tek, ...]:
        return tuple(tek for tek in self.teks if isinstance(tek, Tek))

    @property
    def applications(self) -> tuple[IecTek, ...]:
        return tuple(tek for tek in self.teks if isinstance(tek, IecTek))


def encode_sa(policy: GroupPolicy) -> GroupSecurityAssociation:
    management = KekManagement.LKH if policy.updates else None
    sak = None if policy.kek is None else encode_sak(policy.kek, management)
    gap = encode_gap(policy.activation_delay, policy.deactivation_delay)
    return GroupSecurityAssociation(sak, gap, tuple(_encode_sat(tek) for tek in policy.teks))


def _encode_sat(tek: AnyTek) -> SaTek:
    return encode_iec_sat(tek) if isinstance(tek, IecTek) else encode_sat(tek)


def encode_kd(policy: GroupPolicy) -> KeyDownload:
    packets = [] if policy.kek is None else [encode_kek_packet(policy.kek, policy.updates)]
    packets += [encode_tek_packet(tek) for tek in policy.teks]
    packets += [] if policy.sids is None else [sender_ids.encode_packet(policy.sids)]
    return KeyDownload(tuple(packets))


def read_policy(
    sa: GroupSecurityAssociation,
    kd: KeyDownload,
    *,
    pull: bool = False,
    held: Kek | None = None,
) -> GroupPolicy:
    """Policy and keys matched by SPI. Raises PolicyError, or DecodeError for malformed values.

    ``pull``: from a GROUPKEY-PULL. ``held`` is the KEK that a GROUPKEY-PUSH came under.
    """
    kek, withheld = None, None
    if sa.sak is not None:
        try:
            kek = read_kek(sa.sak, kd, held, pull=pull)
        except NotOurs:
            withheld = sa.sak.spi
    packets = tek_packets(kd)
    teks = tuple(read_keys(tek, packets) for tek in _read_sats(sa))
    activation, deactivation = read_gap(sa.gap)
    sids = sender_ids.read_packet(kd, pull=pull)
    return GroupPolicy(kek, teks, activation, deactivation, withheld=withheld, sids=sids)


def check_sa(sa: GroupSecurityAssociation) -> list[Tek]:
    """The policy of PULL message 2 alone: the kernel's TEKs, without keys. Raises PolicyError."""
    if sa.sak is not None:
        read_sak(sa.sak, pull=True)
    read_gap(sa.gap)
    return [tek for tek in _read_sats(sa) if isinstance(tek, Tek)]


def _read_sats(sa: GroupSecurityAssociation) -> list[AnyTek]:
    """Without keys. RFC 6407 section 3.3: key packets are matched by SPI, whatever the protocol."""
    teks = [_read_sat(sat) for sat in sa.sats]
    if len({tek.spi for tek in teks}) != len(teks):
        raise PolicyError("two SATs with the same SPI")
    return teks


def _read_sat(sat: SaTek) -> AnyTek:
    return read_iec_sat(sat.tek) if isinstance(sat.tek, Iec61850Tek) else read_sat(sat)
