"""RFC 8052 appendix A, octet by octet.

Its figures draw authentication algorithms by numbers one below those that section 4 registers
(HMAC-SHA256-128 is 2, not 1; NONE is 1, not 0): the registry counts, as it does for the
confidentiality algorithms, which the figures draw by their registered numbers. The line "SA Attr
NP=16, RESERVED2" between the two SATs of figure 8 belongs to no payload. The lifetime is that of
the text, 3600 s; the figure has two digits the other way round. The DER of 233.252.0.1 is not
given: the octets here stand for it.
"""

from __future__ import annotations

import pytest

from gdoi_plugin.wire.attributes import Attribute
from gdoi_plugin.wire.buffer import Buffer, DecodeError
from gdoi_plugin.wire.group_sa import GroupSecurityAssociation, SaTek
from gdoi_plugin.wire.identification import Identification
from gdoi_plugin.wire.iec61850 import Iec61850Tek
from gdoi_plugin.wire.key_download import KeyDownload, KeyPacket
from gdoi_plugin.wire.oid import Oid
from gdoi_plugin.wire.payload import encode_body
from gdoi_plugin.wire.registry import (
    IdType,
    IecAttribute,
    IecAuthentication,
    IecConfidentiality,
    KeyPacketType,
    TekKeyAttribute,
    TekProtocol,
)

OID = "060B2A8648CE5683E31A080102"
ADDRESS = "8704e9fc0001"  # a stand-in of 6 octets for the DER of 233.252.0.1
SELECTOR = f"0d {OID} 0006 {ADDRESS}"
GOOSE = Oid.parse(f"1.2.840.10070.61850.8.1.2:{ADDRESS}")
HMAC_KEY, CBC_KEY, GCM_KEY = bytes(range(32)), bytes(range(16)), bytes(range(20))

FIGURE_7 = bytes.fromhex(f"0d 000000 {SELECTOR}")
FIGURE_8 = bytes.fromhex(
    "00000002 00000000 0010 0000"  # DOI 2, situation 0, first a SAT
    f"10 00 0027 03 {SELECTOR} 00000001 0002 0002 00000e10"
    f"00 00 002f 03 {SELECTOR} 00000002 0001 0004 0000a8c0 0001 0004 00000ce4"
)
FIGURE_9 = (
    bytes.fromhex("0002 0000 01 00 0041 04 00000001 0002 0020")
    + HMAC_KEY
    + bytes.fromhex("0001 0010")
    + CBC_KEY
    + bytes.fromhex("01 00 0021 04 00000002 0001 0014")
    + GCM_KEY
)

ID = Identification(IdType.ID_OID, bytes.fromhex(SELECTOR))
SA = GroupSecurityAssociation(
    sats=(
        SaTek(
            TekProtocol.GDOI_PROTO_IEC_61850,
            Iec61850Tek(
                GOOSE,
                bytes.fromhex("00000001"),
                IecAuthentication.HMAC_SHA256_128,
                IecConfidentiality.AES_CBC_128,
                3600,
            ),
        ),
        SaTek(
            TekProtocol.GDOI_PROTO_IEC_61850,
            Iec61850Tek(
                GOOSE,
                bytes.fromhex("00000002"),
                IecAuthentication.NONE,
                IecConfidentiality.AES_GCM_128,
                43200,
                (Attribute(IecAttribute.SA_ATD, (3300).to_bytes(4, "big")),),
            ),
        ),
    )
)
KD = KeyDownload(
    (
        KeyPacket(
            KeyPacketType.TEK,
            bytes.fromhex("00000001"),
            (
                Attribute(TekKeyAttribute.TEK_INTEGRITY_KEY, HMAC_KEY),
                Attribute(TekKeyAttribute.TEK_ALGORITHM_KEY, CBC_KEY),
            ),
        ),
        KeyPacket(
            KeyPacketType.TEK,
            bytes.fromhex("00000002"),
            (Attribute(TekKeyAttribute.TEK_ALGORITHM_KEY, GCM_KEY),),
        ),
    )
)


@pytest.mark.parametrize(
    ("payload", "octets"), [(ID, FIGURE_7), (SA, FIGURE_8), (KD, FIGURE_9)], ids=["7", "8", "9"]
)
def test_figure(
    payload: Identification | GroupSecurityAssociation | KeyDownload, octets: bytes
) -> None:
    assert encode_body(payload) == octets
    buf = Buffer(octets)
    assert type(payload).pull(buf) == payload
    assert not buf.remaining


def test_names_and_numbers_of_the_registries() -> None:
    """RFC 8052 section 4."""
    assert [(kind.name, kind.value) for kind in IecAuthentication] == [
        ("NONE", 1),
        ("HMAC_SHA256_128", 2),
        ("HMAC_SHA256", 3),
        ("AES_GMAC_128", 4),
        ("AES_GMAC_256", 5),
    ]
    assert [(kind.name, kind.value) for kind in IecConfidentiality] == [
        ("NONE", 1),
        ("AES_CBC_128", 2),
        ("AES_CBC_256", 3),
        ("AES_GCM_128", 4),
        ("AES_GCM_256", 5),
    ]
    assert [(kind.name, kind.value) for kind in IecAttribute] == [("SA_ATD", 1), ("SA_KDA", 2)]


def test_cut_short_anywhere_is_a_decode_error() -> None:
    whole = encode_body(SA.sats[0])
    for length in range(1, len(whole)):
        with pytest.raises(DecodeError):
            SaTek.pull(Buffer(whole[:length]))
