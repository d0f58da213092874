"""Payloads assembled by hand from the diagrams of RFC 2408 and RFC 6407, one octet at a time.

Nothing here comes out of our encoder. Each is a whole payload, its generic header first.
"""

from __future__ import annotations

from dataclasses import dataclass

from gdoi_plugin.wire.attributes import Attribute
from gdoi_plugin.wire.certificate import Certificate, CertificateRequest
from gdoi_plugin.wire.delete import Delete
from gdoi_plugin.wire.group_sa import (
    Endpoint,
    EspTek,
    GroupAssociatedPolicy,
    GroupSecurityAssociation,
    SaKek,
    SaTek,
)
from gdoi_plugin.wire.identification import Identification
from gdoi_plugin.wire.key_download import KeyDownload, KeyPacket
from gdoi_plugin.wire.notification import Notification
from gdoi_plugin.wire.opaque import (
    Hash,
    KeyExchange,
    NatDiscovery,
    Nonce,
    Signature,
    VendorId,
)
from gdoi_plugin.wire.payload import Body
from gdoi_plugin.wire.sa import Proposal, SecurityAssociation, Transform
from gdoi_plugin.wire.sequence import SequenceNumber
from tests.vectors import load
from tests.wire.octets import octets


@dataclass(frozen=True)
class Vector:
    """A payload and what it says."""

    name: str
    octets: bytes
    expected: Body
    # Bodies cut to one of these lengths are complete too: a string, or one attribute less.
    complete: frozenset[int] = frozenset()
    # Is the last field one of any length, so that an octet more is no error?
    open_ended: bool = False

    @property
    def body(self) -> bytes:
        return self.octets[4:]


# RFC 2408 sections 3.4 to 3.6; attributes of RFC 2409 appendix A, AES of RFC 3602 section 5.3.
PHASE_ONE_SA = Vector(
    "SA of main mode message 1",
    octets("""
        0d 00 0054          # Next Payload VID, RESERVED, Payload Length 84
        00000002            # DOI: GDOI
        00000000            # Situation
        00 00 0048          # the only Proposal, RESERVED, Payload Length 72
        01 01 00 02         # Proposal # 1, PROTO_ISAKMP, SPI Size 0, 2 Transforms
        03 00 0028          # another Transform follows, Payload Length 40
        01 01 0000          # Transform # 1, KEY_IKE, RESERVED2
        8001 0007           # Encryption Algorithm: AES-CBC
        800e 0100           # Key Length: 256
        8002 0004           # Hash Algorithm: SHA2-256
        8003 0001           # Authentication Method: pre-shared key
        8004 0013           # Group Description: 19
        800b 0001           # Life Type: seconds
        000c 0004 00015180  # Life Duration (TLV, 4 octets): 86400
        00 00 0018          # last Transform, Payload Length 24
        02 01 0000          # Transform # 2, KEY_IKE, RESERVED2
        8001 0007
        8002 0006           # SHA2-512
        8003 0001
        8004 0010           # group 16
    """),
    SecurityAssociation(
        doi=2,
        situation=0,
        proposals=(
            Proposal(
                number=1,
                protocol_id=1,
                spi=b"",
                transforms=(
                    Transform(
                        number=1,
                        transform_id=1,
                        attributes=(
                            Attribute(1, 7),
                            Attribute(14, 256),
                            Attribute(2, 4),
                            Attribute(3, 1),
                            Attribute(4, 19),
                            Attribute(11, 1),
                            Attribute(12, b"\x00\x01\x51\x80"),
                        ),
                    ),
                    Transform(
                        number=2,
                        transform_id=1,
                        attributes=(
                            Attribute(1, 7),
                            Attribute(2, 6),
                            Attribute(3, 1),
                            Attribute(4, 16),
                        ),
                    ),
                ),
            ),
        ),
    ),
)

# Two proposals, the first with the cookie pair's 8 octets as SPI (RFC 2408 section 3.5: 0 to 16).
TWO_PROPOSALS = Vector(
    "SA with two proposals",
    octets("""
        00 00 0038
        00000001            # DOI: IPSEC
        00000001            # SIT_IDENTITY_ONLY
        02 00 001c          # another Proposal follows, Payload Length 28
        01 01 08 01         # SPI Size 8, 1 Transform
        a1a2a3a4 a5a6a7a8   # SPI
        00 00 000c
        00 01 0000          # Transform # 0
        8001 ffff           # an algorithm with no name
        00 00 0010          # last Proposal, Payload Length 16
        02 01 00 01
        00 00 0008          # a Transform without attributes
        01 fe 0000          # an unknown Transform-Id
    """),
    SecurityAssociation(
        doi=1,
        situation=1,
        proposals=(
            Proposal(
                1, 1, bytes.fromhex("a1a2a3a4a5a6a7a8"), (Transform(0, 1, (Attribute(1, 65535),)),)
            ),
            Proposal(2, 1, b"", (Transform(1, 254, ()),)),
        ),
    ),
)

GROUP_19 = load("rfc5903")[0]
# RFC 2408 section 3.7 around the public value of RFC 5903 section 8.1.
KE = Vector(
    "KE",
    octets("0a 00 0044") + GROUP_19["gix"] + GROUP_19["giy"],
    KeyExchange(GROUP_19["gix"] + GROUP_19["giy"]),
    complete=frozenset(range(1, 64)),
    open_ended=True,
)

# RFC 6407 section 5.1: ID_KEY_ID with 4 octets, the DOI-specific field zero.
GROUP_ID = Vector(
    "ID of a group",
    octets("""
        00 00 000c
        0b 00 0000          # ID_KEY_ID, zero
        000004d2            # group 1234
    """),
    Identification(11, b"\x00\x00\x04\xd2"),
    complete=frozenset(range(5, 8)),
    open_ended=True,
)

# RFC 2407 section 4.6.2: protocol and port of a phase-1 peer.
PEER_ID = Vector(
    "ID of a phase-1 peer",
    octets("""
        08 00 000c
        01 11 0350          # ID_IPV4_ADDR, UDP, port 848
        c0000201            # 192.0.2.1
    """),
    Identification(1, b"\xc0\x00\x02\x01", protocol_id=17, port=848),
    complete=frozenset(range(5, 8)),
    open_ended=True,
)

# RFC 2408 sections 3.11 to 3.13.
HASH = Vector(
    "HASH",
    octets("0a 00 0024") + bytes(range(32)),
    Hash(bytes(range(32))),
    complete=frozenset(range(1, 32)),
    open_ended=True,
)
SIG = Vector(
    "SIG",
    octets("00 00 0044") + bytes(range(64)),
    Signature(bytes(range(64))),
    complete=frozenset(range(1, 64)),
    open_ended=True,
)
NONCE = Vector(
    "NONCE",
    octets("05 00 0014 00112233 44556677 8899aabb ccddeeff"),
    Nonce(bytes.fromhex("00112233445566778899aabbccddeeff")),
    complete=frozenset(range(8, 16)),
    open_ended=True,
)

# RFC 2408 section 3.16; the constant is that of RFC 3706 section 5.1 (dead peer detection 1.0).
VID = Vector(
    "VID",
    octets("00 00 0014 afcad713 68a1f1c9 6b8696fc 77570100"),
    VendorId(bytes.fromhex("afcad71368a1f1c96b8696fc77570100")),
    complete=frozenset(range(1, 16)),
    open_ended=True,
)

# RFC 2408 section 3.9, drawn by hand: encoding 4, X.509 certificate - signature.
CERT = Vector(
    "CERT",
    octets("09 00 000b 04 3082 0102 0304"),
    Certificate(4, bytes.fromhex("308201020304")),
    complete=frozenset(range(2, 7)),
    open_ended=True,
)

# RFC 2408 section 3.10, drawn by hand: a CA called CN=a.
CERTREQ = Vector(
    "CERTREQ",
    octets("00 00 0013 04 300c 310a 3008 0603 5504 0313 0161"),
    CertificateRequest(4, bytes.fromhex("300c310a300806035504031301 61".replace(" ", ""))),
    complete=frozenset(range(1, 15)),
    open_ended=True,
)

# RFC 3947 section 3.2, with a hash of 20 octets.
NAT_D = Vector(
    "NAT-D",
    octets("14 00 0018 00112233 44556677 8899aabb ccddeeff 01234567"),
    NatDiscovery(bytes.fromhex("00112233445566778899aabbccddeeff01234567")),
    complete=frozenset(range(1, 20)),
    open_ended=True,
)

# RFC 2408 section 3.14.
NOTIFY = Vector(
    "N without SPI and data",
    octets("""
        00 00 000c
        00000002            # DOI: GDOI
        01 00 000e          # PROTO_ISAKMP, SPI Size 0, NO-PROPOSAL-CHOSEN
    """),
    Notification(doi=2, protocol_id=1, spi=b"", notify_type=14),
    open_ended=True,
)
NOTIFY_DATA = Vector(
    "N with SPI and data",
    octets("""
        00 00 0024
        00000001            # DOI: IPSEC
        01 10 6000          # PROTO_ISAKMP, SPI Size 16, RESPONDER-LIFETIME
        c1c2c3c4 c5c6c7c8 d1d2d3d4 d5d6d7d8
        800b 0001           # RFC 2407 section 4.6.3.1: attributes as data
        800c 0e10
    """),
    Notification(
        doi=1,
        protocol_id=1,
        spi=bytes.fromhex("c1c2c3c4c5c6c7c8d1d2d3d4d5d6d7d8"),
        notify_type=24576,
        data=bytes.fromhex("800b0001800c0e10"),
    ),
    complete=frozenset(range(24, 32)),
    open_ended=True,
)

# RFC 2408 section 3.15, RFC 6407 section 5.9.
DELETE_TEKS = Vector(
    "D of two TEKs",
    octets("""
        09 00 0014          # Next Payload SIG
        00000002            # DOI: GDOI
        01 04 0002          # GDOI_PROTO_IPSEC_ESP, SPI Size 4, 2 SPIs
        deadbeef
        00000000
    """),
    Delete(doi=2, protocol_id=1, spis=(b"\xde\xad\xbe\xef", bytes(4))),
)
DELETE_KEK = Vector(
    "D of the KEK",
    octets("00 00 001c 00000002 00 10 0001 00000000 00000000 00000000 00000000"),
    Delete(doi=2, protocol_id=0, spis=(bytes(16),)),
)

# RFC 6407 sections 5.2 to 5.5, KEK_ACK_REQUESTED of RFC 8263 section 2.
GROUP_SA = Vector(
    "SA of a group",
    octets("""
        11 00 00c7          # Next Payload KD, RESERVED, Payload Length 199
        00000002            # DOI: GDOI
        00000000            # Situation
        000f 0000           # SA Attribute Next Payload SAK, RESERVED2

        16 00 0049          # SAK; Next Payload GAP, Payload Length 73
        11 01 0350          # UDP, SRC ID_IPV4_ADDR, port 848
        04 c0000201         # 192.0.2.1
        01 0350 04          # DST ID_IPV4_ADDR, port 848
        efc00001            # 239.192.0.1
        c1c2c3c4 c5c6c7c8 d1d2d3d4 d5d6d7d8  # SPI
        00000000            # RESERVED2
        8002 0003           # KEK_ALGORITHM: AES
        8003 0080           # KEK_KEY_LENGTH: 128
        0004 0004 00015180  # KEK_KEY_LIFETIME (variable): 86400
        8005 0003           # SIG_HASH_ALGORITHM: SHA256
        8006 0001           # SIG_ALGORITHM: RSA
        8007 0800           # SIG_KEY_LENGTH: 2048
        8009 0001           # KEK_ACK_REQUESTED: REKEY_ACK_KEK_SHA256

        10 00 000c          # GAP; Next Payload SAT, Payload Length 12
        8001 0005           # ACTIVATION_TIME_DELAY: 5
        8002 000f           # DEACTIVATION_TIME_DELAY: 15

        10 00 0033          # SAT; Next Payload SAT, Payload Length 51
        01                  # GDOI_PROTO_IPSEC_ESP
        00 01 0000          # any protocol, SRC ID_IPV4_ADDR, any port
        04 00000000         # any source
        01 0000 04          # DST ID_IPV4_ADDR, any port
        efc00102            # 239.192.1.2
        0c 11223344         # ESP_AES-CBC, SPI
        8001 0001           # SA Life Type: seconds
        0002 0004 00000e10  # SA Life Duration (variable): 3600
        8004 0002           # Encapsulation Mode: transport
        8005 0005           # Authentication Algorithm: HMAC-SHA2-256
        8006 0080           # Key Length: 128

        00 00 002f          # SAT; the last, Payload Length 47
        02                  # GDOI_PROTO_IPSEC_AH
        11 05 0000          # UDP, SRC ID_IPV6_ADDR, any port
        00                  # no source
        05 14e9 10          # DST ID_IPV6_ADDR, port 5353
        ff3e0000 00000000 00000000 00000001
        05 55667788         # AH_SHA2-256, SPI
        8004 0001           # tunnel
        800e 0004           # Address Preservation: source and destination
        800f 0003           # SA Direction: symmetric
    """),
    GroupSecurityAssociation(
        sak=SaKek(
            protocol=17,
            source=Endpoint(1, 848, b"\xc0\x00\x02\x01"),
            destination=Endpoint(1, 848, b"\xef\xc0\x00\x01"),
            spi=bytes.fromhex("c1c2c3c4c5c6c7c8d1d2d3d4d5d6d7d8"),
            attributes=(
                Attribute(2, 3),
                Attribute(3, 128),
                Attribute(4, b"\x00\x01\x51\x80"),
                Attribute(5, 3),
                Attribute(6, 1),
                Attribute(7, 2048),
                Attribute(9, 1),
            ),
        ),
        gap=GroupAssociatedPolicy((Attribute(1, 5), Attribute(2, 15))),
        sats=(
            SaTek(
                1,
                EspTek(
                    protocol=0,
                    source=Endpoint(1, 0, bytes(4)),
                    destination=Endpoint(1, 0, b"\xef\xc0\x01\x02"),
                    transform_id=12,
                    spi=b"\x11\x22\x33\x44",
                    attributes=(
                        Attribute(1, 1),
                        Attribute(2, b"\x00\x00\x0e\x10"),
                        Attribute(4, 2),
                        Attribute(5, 5),
                        Attribute(6, 128),
                    ),
                ),
            ),
            SaTek(
                2,
                EspTek(
                    protocol=17,
                    source=Endpoint(5, 0, b""),
                    destination=Endpoint(
                        5, 5353, bytes.fromhex("ff3e0000000000000000000000000001")
                    ),
                    transform_id=5,
                    spi=b"\x55\x66\x77\x88",
                    attributes=(Attribute(4, 1), Attribute(14, 4), Attribute(15, 3)),
                ),
            ),
        ),
    ),
)

# No SAK; a TEK protocol for private use, whose payload stays raw.
TEK_ONLY_SA = Vector(
    "SA with a raw SAT",
    octets("""
        11 00 0018
        00000002
        00000000
        0010 0000           # SA Attribute Next Payload SAT
        00 00 0008          # SAT
        80 a1b2c3           # protocol 128 and 3 octets of its own
    """),
    GroupSecurityAssociation(sats=(SaTek(128, b"\xa1\xb2\xc3"),)),
)

# RFC 6407 section 5.4: a payload of its own in GROUPKEY-PULL message 3.
GAP = Vector(
    "GAP of PULL message 3",
    octets("00 00 0008 8003 0002  # SENDER_ID_REQUEST: 2"),
    GroupAssociatedPolicy((Attribute(3, 2),)),
    complete=frozenset({0}),
)

# RFC 6407 section 5.6.
KD = Vector(
    "KD with TEK, KEK and SID",
    octets("""
        09 00 0098          # Next Payload SIG, Payload Length 152
        0003 0000           # 3 key packets, RESERVED2

        01 00 0041          # TEK, RESERVED, KD Length 65
        04 11223344         # SPI Size, SPI
        0001 0010           # TEK_ALGORITHM_KEY, 16 octets
            a0a1a2a3 a4a5a6a7 a8a9aaab acadaeaf
        0002 0020           # TEK_INTEGRITY_KEY, 32 octets
            b0b1b2b3 b4b5b6b7 b8b9babb bcbdbebf b0b1b2b3 b4b5b6b7 b8b9babb bcbdbebf

        02 00 0041          # KEK, RESERVED, KD Length 65
        10 c1c2c3c4 c5c6c7c8 d1d2d3d4 d5d6d7d8
        0001 0020           # KEK_ALGORITHM_KEY: IV, then the key
            e0e1e2e3 e4e5e6e7 e8e9eaeb ecedeeef
            f0f1f2f3 f4f5f6f7 f8f9fafb fcfdfeff
        0002 0004           # SIG_ALGORITHM_KEY
            30020500

        04 00 000e          # SID, RESERVED, KD Length 14
        00                  # no SPI
        8001 0008           # NUMBER_OF_SID_BITS: 8
        0002 0001 2a        # SID_VALUE
    """),
    KeyDownload(
        (
            KeyPacket(
                1,
                b"\x11\x22\x33\x44",
                (
                    Attribute(1, bytes(range(0xA0, 0xB0))),
                    Attribute(2, bytes(range(0xB0, 0xC0)) * 2),
                ),
            ),
            KeyPacket(
                2,
                bytes.fromhex("c1c2c3c4c5c6c7c8d1d2d3d4d5d6d7d8"),
                (Attribute(1, bytes(range(0xE0, 0x100))), Attribute(2, b"\x30\x02\x05\x00")),
            ),
            KeyPacket(4, b"", (Attribute(1, 8), Attribute(2, b"*"))),
        )
    ),
)

# RFC 6407 section 5.7.
SEQ = Vector("SEQ", octets("01 00 0008 00000007"), SequenceNumber(7))

ALL = [
    PHASE_ONE_SA,
    TWO_PROPOSALS,
    KE,
    GROUP_ID,
    PEER_ID,
    HASH,
    SIG,
    NONCE,
    VID,
    CERT,
    CERTREQ,
    NAT_D,
    NOTIFY,
    NOTIFY_DATA,
    DELETE_TEKS,
    DELETE_KEK,
    GROUP_SA,
    TEK_ONLY_SA,
    GAP,
    KD,
    SEQ,
]
