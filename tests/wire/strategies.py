"""Payloads that could be sent, for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from gdoi_plugin.wire.attributes import Attribute
from gdoi_plugin.wire.certificate import Certificate, CertificateRequest
from gdoi_plugin.wire.delete import MAX_DELETE_SPI_SIZE, Delete
from gdoi_plugin.wire.group_sa import (
    Endpoint,
    EspTek,
    GroupAssociatedPolicy,
    GroupSecurityAssociation,
    SaKek,
    SaTek,
)
from gdoi_plugin.wire.header import Header
from gdoi_plugin.wire.identification import MAX_ID, Identification
from gdoi_plugin.wire.key_download import MAX_KEY_PACKET_SPI, KeyDownload, KeyPacket
from gdoi_plugin.wire.notification import MAX_NOTIFY_DATA, MAX_NOTIFY_SPI, Notification
from gdoi_plugin.wire.opaque import (
    Hash,
    KeyExchange,
    NatDiscovery,
    Nonce,
    Signature,
    VendorId,
)
from gdoi_plugin.wire.payload import Body
from gdoi_plugin.wire.sa import MAX_SPI, Proposal, SecurityAssociation, Transform
from gdoi_plugin.wire.sequence import SequenceNumber

uint8 = st.integers(0, 2**8 - 1)
uint16 = st.integers(0, 2**16 - 1)
uint32 = st.integers(0, 2**32 - 1)


def octets(minimum: int, maximum: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=minimum, max_size=maximum)


attribute = st.builds(Attribute, st.integers(0, 2**15 - 1), uint16 | octets(0, 40))
attributes = st.lists(attribute, max_size=4).map(tuple)

transform = st.builds(Transform, uint8, uint8, attributes)
transforms = st.lists(transform, min_size=1, max_size=3).map(tuple)
proposal = st.builds(Proposal, uint8, uint8, octets(0, MAX_SPI), transforms)
proposals = st.lists(proposal, min_size=1, max_size=3).map(tuple)
security_association = st.builds(SecurityAssociation, st.sampled_from([1, 2]), uint32, proposals)

endpoint = st.builds(Endpoint, uint8, uint16, octets(0, 255))
sa_kek = st.builds(SaKek, uint8, endpoint, endpoint, octets(16, 16), attributes)
gap = st.builds(GroupAssociatedPolicy, attributes)
esp_tek = st.builds(EspTek, uint8, endpoint, endpoint, uint8, octets(4, 4), attributes)
sa_tek = st.builds(SaTek, st.sampled_from([1, 2]), esp_tek) | st.builds(
    SaTek, uint8.filter(lambda protocol: protocol not in (1, 2, 3)), octets(0, 60)
)
group_sa = st.builds(
    GroupSecurityAssociation,
    sak=st.none() | sa_kek,
    gap=st.none() | gap,
    sats=st.lists(sa_tek, max_size=4).map(tuple),
).filter(lambda sa: sa.sak is not None or bool(sa.sats))

key_packet = st.builds(KeyPacket, uint8, octets(0, MAX_KEY_PACKET_SPI), attributes)
key_download = st.builds(KeyDownload, st.lists(key_packet, max_size=4).map(tuple))

spis = st.integers(1, MAX_DELETE_SPI_SIZE).flatmap(
    lambda size: st.lists(octets(size, size), min_size=1, max_size=8).map(tuple)
)
BODIES: dict[str, st.SearchStrategy[Body]] = {
    "SA of phase 1": security_association,
    "SA of a group": group_sa,
    "GAP": gap,
    "KD": key_download,
    "SEQ": st.builds(SequenceNumber, uint32),
    "ID": st.builds(Identification, uint8, octets(1, MAX_ID), uint8, uint16),
    "N": st.builds(
        Notification,
        uint32,
        uint8,
        octets(0, MAX_NOTIFY_SPI),
        uint16,
        octets(0, MAX_NOTIFY_DATA),
    ),
    "D": st.builds(Delete, uint32, uint8, spis),
    "KE": st.builds(KeyExchange, octets(1, KeyExchange.MAXIMUM)),
    "HASH": st.builds(Hash, octets(1, Hash.MAXIMUM)),
    "SIG": st.builds(Signature, octets(1, Signature.MAXIMUM)),
    "NONCE": st.builds(Nonce, octets(Nonce.MINIMUM, Nonce.MAXIMUM)),
    "VID": st.builds(VendorId, octets(1, VendorId.MAXIMUM)),
    "CERT": st.builds(Certificate, uint8, octets(1, 300)),
    "CERTREQ": st.builds(CertificateRequest, uint8, octets(0, 300)),
    "NAT-D": st.builds(NatDiscovery, octets(1, NatDiscovery.MAXIMUM)),
}
body = st.one_of(*BODIES.values())

cookie = octets(8, 8)
header = st.builds(Header, cookie.filter(any), cookie, uint8, uint8, st.integers(0, 7), uint32)
