"""KD, RFC 6407 section 5.6: counts, lengths, and keys that do not show."""

from __future__ import annotations

import pytest

from gdoi_plugin.wire.key_download import MAX_KEY_PACKET_SPI, MAX_KEY_PACKETS, KeyDownload
from tests.wire.octets import octets, parse, refused, with_octet
from tests.wire.vectors import KD

BODY = KD.body
TEK, KEK, SID = 4, 69, 134
BASE = 32
EMPTY = octets("07 00 0005 00")  # an unknown KD Type, no SPI, no attributes


def kd(count: int, *packets: bytes) -> bytes:
    return count.to_bytes(2, "big") + bytes(2) + b"".join(packets)


@pytest.mark.parametrize(
    ("at", "what"),
    [
        (2, "KD: RESERVED2"),
        (3, "KD: RESERVED2"),
        (TEK + 1, "key packet: RESERVED"),
        (KEK + 1, "key packet: RESERVED"),
        (SID + 1, "key packet: RESERVED"),
    ],
)
def test_reserved_octets_must_be_zero(at: int, what: str) -> None:
    refused(KeyDownload, with_octet(BODY, at, 1), f"{what} is not zero")


@pytest.mark.parametrize(
    ("count", "why"),
    [(0, "KD payload: 144 octets"), (2, "KD payload: 14 octets"), (4, "KD type: 1 octets wanted")],
)
def test_the_count_must_agree_with_the_packets(count: int, why: str) -> None:
    refused(KeyDownload, with_octet(BODY, 1, count), why)


@pytest.mark.parametrize("length", range(5))
def test_a_kd_length_below_the_packet_header_is_refused(length: int) -> None:
    refused(KeyDownload, with_octet(BODY, TEK + 3, length), f"KD length {length}")


@pytest.mark.parametrize(
    ("at", "value", "why", "offset"),
    [
        (TEK + 1, 1, "key packet: RESERVED is not zero", TEK + 1),
        (SID + 3, 0x0F, "key packet: 11 octets wanted, 10 left", SID + 4),
        (TEK + 12, 0x39, "value of attribute 1: 57 octets wanted, 52 left", TEK + 13),
        (SID + 4, 11, "key packet SPI: 11 octets wanted, 9 left", SID + 5),
        (KEK + 4, 17, "key packet: SPI of 17 octets", KEK + 5),
    ],
)
def test_an_error_is_located_in_the_whole_message(
    at: int, value: int, why: str, offset: int
) -> None:
    assert refused(KeyDownload, with_octet(BODY, at, value), why).offset == BASE + offset


@pytest.mark.parametrize("kind", [0, 3, 5, 128, 255])
def test_unknown_key_packets_pass(kind: int) -> None:
    assert parse(KeyDownload, with_octet(BODY, TEK, kind)).packets[0].kd_type == kind


def test_the_number_of_packets_is_bounded() -> None:
    most = kd(MAX_KEY_PACKETS, *[EMPTY] * MAX_KEY_PACKETS)
    assert len(parse(KeyDownload, most).packets) == MAX_KEY_PACKETS
    too_many = kd(MAX_KEY_PACKETS + 1, *[EMPTY] * (MAX_KEY_PACKETS + 1))
    refused(KeyDownload, too_many, f"{MAX_KEY_PACKETS + 1} key packets, at most {MAX_KEY_PACKETS}")


def test_a_count_that_could_never_fit_is_refused_before_reading_on() -> None:
    assert refused(KeyDownload, kd(65535), "65535 key packets").offset == BASE + 4


def test_an_spi_of_16_octets_passes_and_of_17_is_refused() -> None:
    longest = octets("02 00 0015 10") + bytes(MAX_KEY_PACKET_SPI)
    assert len(parse(KeyDownload, kd(1, longest)).packets[0].spi) == 16
    refused(KeyDownload, kd(1, octets("02 00 0016 11") + bytes(17)), "SPI of 17 octets")


def test_the_number_of_attributes_is_bounded() -> None:
    packet = octets("04 00 0109 00") + octets("8001 0001") * 65
    refused(KeyDownload, kd(1, packet), "more than 64 attributes")


def test_no_packets_are_a_form_that_policy_judges() -> None:
    assert parse(KeyDownload, kd(0)).packets == ()
