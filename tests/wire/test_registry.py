"""Numbers against the tables of the RFCs, and what happens to a number without a name."""

from __future__ import annotations

from enum import IntEnum

import pytest

from gdoi_plugin.wire import registry
from gdoi_plugin.wire.registry import known, name_of

TABLES: list[tuple[type[IntEnum], str, str]] = [
    (
        registry.PayloadType,
        "RFC 2408 3.1",
        "SA 1 PROPOSAL 2 TRANSFORM 3 KE 4 ID 5 CERT 6 CERTREQ 7",
    ),
    (
        registry.PayloadType,
        "RFC 2408 3.1",
        "HASH 8 SIG 9 NONCE 10 NOTIFY 11 DELETE 12 VENDOR_ID 13",
    ),
    (registry.PayloadType, "RFC 3947 9", "NAT_D 20 NAT_OA 21"),
    (registry.PayloadType, "RFC 6407 5", "SAK 15 SAT 16 KD 17 SEQ 18 GAP 22"),
    (registry.ExchangeType, "RFC 2408 3.1", "MAIN_MODE 2 AGGRESSIVE 4 INFORMATIONAL 5"),
    (
        registry.ExchangeType,
        "RFC 6407 3.2.1 and 4.2, RFC 8263 3.1",
        "GROUPKEY_PULL 32 GROUPKEY_PUSH 33 GROUPKEY_PUSH_ACK 35",
    ),
    (
        registry.KekAttribute,
        "RFC 6407 5.3",
        "KEK_MANAGEMENT_ALGORITHM 1 KEK_ALGORITHM 2 KEK_KEY_LENGTH 3 KEK_KEY_LIFETIME 4"
        " SIG_HASH_ALGORITHM 5 SIG_ALGORITHM 6 SIG_KEY_LENGTH 7",
    ),
    (registry.KekAttribute, "RFC 8263 8", "KEK_ACK_REQUESTED 9"),
    (
        registry.LkhKeyAttribute,
        "RFC 6407 5.6.3",
        "LKH_DOWNLOAD_ARRAY 1 LKH_UPDATE_ARRAY 2 SIG_ALGORITHM_KEY 3",
    ),
    (registry.KekManagement, "RFC 6407 5.3.1", "LKH 1"),
    (registry.KekAlgorithm, "RFC 6407 5.3.2", "KEK_ALG_DES 1 KEK_ALG_3DES 2 KEK_ALG_AES 3"),
    (
        registry.SigHash,
        "RFC 6407 5.3.5",
        "SIG_HASH_MD5 1 SIG_HASH_SHA1 2 SIG_HASH_SHA256 3 SIG_HASH_SHA384 4 SIG_HASH_SHA512 5",
    ),
    (
        registry.SigAlgorithm,
        "RFC 6407 5.3.6",
        "SIG_ALG_RSA 1 SIG_ALG_DSS 2 SIG_ALG_ECDSS 3 SIG_ALG_ECDSA_256 4 SIG_ALG_ECDSA_384 5"
        " SIG_ALG_ECDSA_521 6",
    ),
    (
        registry.AckType,
        "RFC 8263 8",
        "REKEY_ACK_KEK_SHA256 1 REKEY_ACK_LKH_SHA256 2 REKEY_ACK_KEK_SHA512 3"
        " REKEY_ACK_LKH_SHA512 4",
    ),
    (
        registry.GapAttribute,
        "RFC 6407 5.4",
        "ACTIVATION_TIME_DELAY 1 DEACTIVATION_TIME_DELAY 2 SENDER_ID_REQUEST 3",
    ),
    (registry.TekProtocol, "RFC 6407 5.5", "GDOI_PROTO_IPSEC_ESP 1 GDOI_PROTO_IPSEC_AH 2"),
    (registry.KeyPacketType, "RFC 6407 5.6", "TEK 1 KEK 2 LKH 3 SID 4"),
    (
        registry.TekKeyAttribute,
        "RFC 6407 5.6.1",
        "TEK_ALGORITHM_KEY 1 TEK_INTEGRITY_KEY 2 TEK_SOURCE_AUTH_KEY 3",
    ),
    (registry.KekKeyAttribute, "RFC 6407 5.6.2", "KEK_ALGORITHM_KEY 1 SIG_ALGORITHM_KEY 2"),
    (
        registry.AddressPreservation,
        "RFC 6407 5.5.1.1.1",
        "NONE 1 SOURCE_ONLY 2 DESTINATION_ONLY 3 SOURCE_AND_DESTINATION 4",
    ),
    (registry.SaDirection, "RFC 6407 5.5.1.1.2", "SENDER_ONLY 1 RECEIVER_ONLY 2 SYMMETRIC 3"),
    (
        registry.SaAttribute,
        "RFC 2407 4.5",
        "SA_LIFE_TYPE 1 SA_LIFE_DURATION 2 GROUP_DESCRIPTION 3 ENCAPSULATION_MODE 4"
        " AUTHENTICATION_ALGORITHM 5 KEY_LENGTH 6",
    ),
    (registry.EncapsulationMode, "RFC 2407 4.5", "TUNNEL 1 TRANSPORT 2"),
    (
        registry.PhaseOneAttribute,
        "RFC 2409 appendix A",
        "ENCRYPTION_ALGORITHM 1 HASH_ALGORITHM 2 AUTHENTICATION_METHOD 3 GROUP_DESCRIPTION 4"
        " LIFE_TYPE 11 LIFE_DURATION 12 PRF 13 KEY_LENGTH 14",
    ),
    (registry.Encryption, "RFC 3602 5.3", "AES_CBC 7"),
    (registry.Hash, "RFC 4868 3", "SHA2_256 4 SHA2_384 5 SHA2_512 6"),
    (registry.Group, "RFC 3526, RFC 5903", "MODP_2048 14 MODP_3072 15 MODP_4096 16"),
    (registry.Group, "RFC 5903 5", "ECP_256 19 ECP_384 20"),
    (registry.EspTransform, "RFC 3602 5.4, RFC 4106 8.6", "ESP_AES_CBC 12 ESP_AES_GCM_16 20"),
    (registry.AuthAlgorithm, "RFC 4868 4", "HMAC_SHA2_256 5"),
    (registry.IdType, "RFC 2407 4.6.2.1", "ID_IPV4_ADDR 1 ID_FQDN 2 ID_USER_FQDN 3"),
    (registry.IdType, "RFC 2407 4.6.2.1", "ID_IPV6_ADDR 5 ID_DER_ASN1_DN 9 ID_KEY_ID 11"),
]


@pytest.mark.parametrize(
    ("enum", "section", "table"), TABLES, ids=lambda v: getattr(v, "__name__", "")
)
def test_numbers(enum: type[IntEnum], section: str, table: str) -> None:
    words = table.split()
    for name, number in zip(words[::2], words[1::2], strict=True):
        assert enum[name] == int(number), section


def test_a_number_with_a_name_becomes_the_member() -> None:
    assert known(registry.SigHash, 3) is registry.SigHash.SIG_HASH_SHA256
    assert name_of(registry.SigHash, 3) == "SIG_HASH_SHA256"


@pytest.mark.parametrize("number", [-1, 0, 6, 65535])
def test_a_number_without_a_name_stays_a_number(number: int) -> None:
    assert known(registry.SigHash, number) == number
    assert type(known(registry.SigHash, number)) is int
    assert name_of(registry.SigHash, number) == str(number)
