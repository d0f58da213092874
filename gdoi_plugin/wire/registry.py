"""Numbers, named as in the IANA registries ("ISAKMP", "IPSEC", "IKE attributes", "GDOI payloads").

A number that is not listed stays an ``int``: :func:`known` gives the enum member if there is one.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from functools import lru_cache
from typing import TypeVar

GDOI_PORT = 848  # RFC 6407 section 2.2
NAT_PORT = 4500  # RFC 3947 section 4
VERSION_1_0 = 0x10  # RFC 2408 section 3.1: major 1, minor 0

E = TypeVar("E", bound=IntEnum)


def known(enum: type[E], value: int) -> E | int:
    """The enum member for ``value``, or ``value`` itself where the registry has no name we know."""
    try:
        return enum(value)
    except ValueError:
        return value


@lru_cache(1024)  # errors that nearly never occur are named by it, too
def name_of(enum: type[E], value: int) -> str:
    """For logs: the registry's name or the bare number."""
    found = known(enum, value)
    return found.name if isinstance(found, enum) else str(value)


class Doi(IntEnum):
    ISAKMP = 0
    IPSEC = 1
    GDOI = 2


class ExchangeType(IntEnum):
    MAIN_MODE = 2  # "identity protection", RFC 2408 section 3.1
    AGGRESSIVE = 4
    INFORMATIONAL = 5
    GROUPKEY_PULL = 32  # RFC 6407 section 3.2.1
    GROUPKEY_PUSH = 33  # RFC 6407 section 4.2
    UNREGISTERED_34 = 34  # RFC 8263 section 8: "known unregistered use" (heartbeats)
    GROUPKEY_PUSH_ACK = 35  # RFC 8263 section 3.1


class Flags(IntFlag):
    """ISAKMP header flags, RFC 2408 section 3.1."""

    NONE = 0
    ENCRYPTION = 1
    COMMIT = 2
    AUTH_ONLY = 4


class PayloadType(IntEnum):
    NONE = 0
    SA = 1
    PROPOSAL = 2
    TRANSFORM = 3
    KE = 4
    ID = 5
    CERT = 6
    CERTREQ = 7
    HASH = 8
    SIG = 9
    NONCE = 10
    NOTIFY = 11
    DELETE = 12
    VENDOR_ID = 13
    SAK = 15
    SAT = 16
    KD = 17
    SEQ = 18
    NAT_D = 20  # RFC 3947 section 3.2
    NAT_OA = 21
    GAP = 22
    FRAGMENT = 132  # private use: what IKEv1 daemons send after a vendor ID of "FRAGMENTATION"


class IdType(IntEnum):
    """RFC 2407 section 4.6.2.1; ID_OID from RFC 8052."""

    ID_RESERVED = 0
    ID_IPV4_ADDR = 1
    ID_FQDN = 2
    ID_USER_FQDN = 3
    ID_IPV4_ADDR_SUBNET = 4
    ID_IPV6_ADDR = 5
    ID_IPV6_ADDR_SUBNET = 6
    ID_IPV4_ADDR_RANGE = 7
    ID_IPV6_ADDR_RANGE = 8
    ID_DER_ASN1_DN = 9
    ID_DER_ASN1_GN = 10
    ID_KEY_ID = 11
    ID_OID = 13


class NotifyType(IntEnum):
    """RFC 2408 section 3.14.1, RFC 2407 section 4.6.3."""

    INVALID_PAYLOAD_TYPE = 1
    DOI_NOT_SUPPORTED = 2
    SITUATION_NOT_SUPPORTED = 3
    INVALID_COOKIE = 4
    INVALID_MAJOR_VERSION = 5
    INVALID_MINOR_VERSION = 6
    INVALID_EXCHANGE_TYPE = 7
    INVALID_FLAGS = 8
    INVALID_MESSAGE_ID = 9
    INVALID_PROTOCOL_ID = 10
    INVALID_SPI = 11
    INVALID_TRANSFORM_ID = 12
    ATTRIBUTES_NOT_SUPPORTED = 13
    NO_PROPOSAL_CHOSEN = 14
    BAD_PROPOSAL_SYNTAX = 15
    PAYLOAD_MALFORMED = 16
    INVALID_KEY_INFORMATION = 17
    INVALID_ID_INFORMATION = 18
    INVALID_CERT_ENCODING = 19
    INVALID_CERTIFICATE = 20
    CERT_TYPE_UNSUPPORTED = 21
    INVALID_CERT_AUTHORITY = 22
    INVALID_HASH_INFORMATION = 23
    AUTHENTICATION_FAILED = 24
    INVALID_SIGNATURE = 25
    ADDRESS_NOTIFICATION = 26
    NOTIFY_SA_LIFETIME = 27
    CERTIFICATE_UNAVAILABLE = 28
    UNSUPPORTED_EXCHANGE_TYPE = 29
    UNEQUAL_PAYLOAD_LENGTHS = 30
    CONNECTED = 16384
    RESPONDER_LIFETIME = 24576
    REPLAY_STATUS = 24577
    INITIAL_CONTACT = 24578
    R_U_THERE = 36136  # RFC 3706 section 5.2
    R_U_THERE_ACK = 36137


# RFC 2408 section 3.14.1: below are errors, 8192 to 16383 being the DOI's own.
FIRST_STATUS_NOTIFY = 16384


class Protocol(IntEnum):
    """Protocol-IDs of the phase-1 proposal, RFC 2407 section 4.4.1."""

    PROTO_ISAKMP = 1


class PhaseOneTransform(IntEnum):
    KEY_IKE = 1


class PhaseOneAttribute(IntEnum):
    """RFC 2409 appendix A."""

    ENCRYPTION_ALGORITHM = 1
    HASH_ALGORITHM = 2
    AUTHENTICATION_METHOD = 3
    GROUP_DESCRIPTION = 4
    LIFE_TYPE = 11
    LIFE_DURATION = 12
    PRF = 13
    KEY_LENGTH = 14


class Encryption(IntEnum):
    AES_CBC = 7


class Hash(IntEnum):
    SHA2_256 = 4
    SHA2_384 = 5
    SHA2_512 = 6


class AuthMethod(IntEnum):
    """RFC 2409 appendix A, RFC 4754 section 6."""

    PRE_SHARED_KEY = 1
    RSA_SIG = 3
    ECDSA_256 = 9
    ECDSA_384 = 10
    ECDSA_521 = 11


class CertEncoding(IntEnum):
    """RFC 2408 section 3.9."""

    PKCS7 = 1
    X509_SIGNATURE = 4
    X509_KEY_EXCHANGE = 5
    CRL = 7
    ARL = 8


class Group(IntEnum):
    """RFC 3526 (MODP), RFC 5903 (ECP)."""

    MODP_2048 = 14
    MODP_3072 = 15
    MODP_4096 = 16
    ECP_256 = 19
    ECP_384 = 20


class LifeType(IntEnum):
    SECONDS = 1
    KILOBYTES = 2


class KekAttribute(IntEnum):
    """RFC 6407 section 5.3, RFC 8263 section 8."""

    KEK_MANAGEMENT_ALGORITHM = 1
    KEK_ALGORITHM = 2
    KEK_KEY_LENGTH = 3
    KEK_KEY_LIFETIME = 4
    SIG_HASH_ALGORITHM = 5
    SIG_ALGORITHM = 6
    SIG_KEY_LENGTH = 7
    KEK_ACK_REQUESTED = 9


class KekManagement(IntEnum):
    """RFC 6407 section 5.3.1."""

    LKH = 1


class KekAlgorithm(IntEnum):
    KEK_ALG_DES = 1
    KEK_ALG_3DES = 2
    KEK_ALG_AES = 3


class SigHash(IntEnum):
    SIG_HASH_MD5 = 1
    SIG_HASH_SHA1 = 2
    SIG_HASH_SHA256 = 3
    SIG_HASH_SHA384 = 4
    SIG_HASH_SHA512 = 5


class SigAlgorithm(IntEnum):
    SIG_ALG_RSA = 1
    SIG_ALG_DSS = 2
    SIG_ALG_ECDSS = 3
    SIG_ALG_ECDSA_256 = 4
    SIG_ALG_ECDSA_384 = 5
    SIG_ALG_ECDSA_521 = 6


class AckType(IntEnum):
    """KEK_ACK_REQUESTED values, RFC 8263 section 8."""

    REKEY_ACK_KEK_SHA256 = 1
    REKEY_ACK_LKH_SHA256 = 2
    REKEY_ACK_KEK_SHA512 = 3
    REKEY_ACK_LKH_SHA512 = 4


class GapAttribute(IntEnum):
    """RFC 6407 section 5.4."""

    ACTIVATION_TIME_DELAY = 1
    DEACTIVATION_TIME_DELAY = 2
    SENDER_ID_REQUEST = 3


class TekProtocol(IntEnum):
    """SA TEK Protocol-ID, RFC 6407 section 5.5; 3 from RFC 8052."""

    KEK = 0  # only in a Delete payload, RFC 6407 section 5.9
    GDOI_PROTO_IPSEC_ESP = 1
    GDOI_PROTO_IPSEC_AH = 2
    GDOI_PROTO_IEC_61850 = 3


class EspTransform(IntEnum):
    """IPSEC ESP transform identifiers, RFC 2407 section 4.4.4, RFC 3602, RFC 4106, RFC 4543.

    The registry has none for ChaCha20-Poly1305, which RFC 7634 brought to IKEv2 alone: this one is
    of the numbers from 249 on that RFC 2407 leaves to peers that know of each other.
    """

    ESP_AES_CBC = 12
    ESP_AES_GCM_8 = 18
    ESP_AES_GCM_12 = 19
    ESP_AES_GCM_16 = 20
    ESP_NULL_AUTH_AES_GMAC = 23
    PRIVATE_CHACHA20_POLY1305 = 249


class AhTransform(IntEnum):
    """IPSEC AH transform identifiers, RFC 2407 section 4.4.3, RFC 4868 section 2.1."""

    AH_SHA2_256 = 5
    AH_SHA2_384 = 6
    AH_SHA2_512 = 7


class IecAuthentication(IntEnum):
    """IEC 62351-9 Authentication Values, RFC 8052 section 4."""

    NONE = 1
    HMAC_SHA256_128 = 2
    HMAC_SHA256 = 3
    AES_GMAC_128 = 4
    AES_GMAC_256 = 5


class IecConfidentiality(IntEnum):
    """IEC 62351-9 Confidentiality Values, RFC 8052 section 4."""

    NONE = 1
    AES_CBC_128 = 2
    AES_CBC_256 = 3
    AES_GCM_128 = 4
    AES_GCM_256 = 5


class IecAttribute(IntEnum):
    """GDOI SA TEK Attributes, RFC 8052 section 4."""

    SA_ATD = 1
    SA_KDA = 2


class SaAttribute(IntEnum):
    """IPSEC security association attributes, RFC 2407 section 4.5, RFC 4304 section 2, RFC 6407
    section 5.5.1.1."""

    SA_LIFE_TYPE = 1
    SA_LIFE_DURATION = 2
    GROUP_DESCRIPTION = 3
    ENCAPSULATION_MODE = 4
    AUTHENTICATION_ALGORITHM = 5
    KEY_LENGTH = 6
    EXTENDED_SEQUENCE_NUMBER = 11
    ADDRESS_PRESERVATION = 14
    SA_DIRECTION = 15


class EncapsulationMode(IntEnum):
    TUNNEL = 1
    TRANSPORT = 2


class AuthAlgorithm(IntEnum):
    """Authentication Algorithm, RFC 2407 section 4.5, RFC 4868."""

    HMAC_SHA2_256 = 5
    HMAC_SHA2_384 = 6
    HMAC_SHA2_512 = 7


class AddressPreservation(IntEnum):
    NONE = 1
    SOURCE_ONLY = 2
    DESTINATION_ONLY = 3
    SOURCE_AND_DESTINATION = 4


class SaDirection(IntEnum):
    SENDER_ONLY = 1
    RECEIVER_ONLY = 2
    SYMMETRIC = 3


class KeyPacketType(IntEnum):
    """Key Download types, RFC 6407 section 5.6."""

    TEK = 1
    KEK = 2
    LKH = 3
    SID = 4


class TekKeyAttribute(IntEnum):
    TEK_ALGORITHM_KEY = 1
    TEK_INTEGRITY_KEY = 2
    TEK_SOURCE_AUTH_KEY = 3


class KekKeyAttribute(IntEnum):
    KEK_ALGORITHM_KEY = 1
    SIG_ALGORITHM_KEY = 2


class SidAttribute(IntEnum):
    """RFC 6407 section 5.6.4."""

    NUMBER_OF_SID_BITS = 1
    SID_VALUE = 2


class LkhKeyAttribute(IntEnum):
    """RFC 6407 section 5.6.3."""

    LKH_DOWNLOAD_ARRAY = 1
    LKH_UPDATE_ARRAY = 2
    SIG_ALGORITHM_KEY = 3
