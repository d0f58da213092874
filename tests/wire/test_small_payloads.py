"""Bounds of ID, N, D, SEQ and the payloads of one string of octets.

RFC 2408 sections 3.7 to 3.16, RFC 6407 sections 5.7 to 5.9.
"""

from __future__ import annotations

import pytest

from gdoi_plugin.wire.delete import MAX_DELETE_SPIS, Delete
from gdoi_plugin.wire.identification import MAX_ID, Identification
from gdoi_plugin.wire.notification import MAX_NOTIFY_DATA, Notification
from gdoi_plugin.wire.opaque import Hash, KeyExchange, NatDiscovery, Nonce, Signature, VendorId
from gdoi_plugin.wire.registry import FIRST_STATUS_NOTIFY, NotifyType
from gdoi_plugin.wire.sequence import SequenceNumber
from tests.wire.octets import octets, parse, refused, with_octet
from tests.wire.vectors import DELETE_KEK, DELETE_TEKS, NOTIFY, NOTIFY_DATA

BASE = 32


# -- one string of octets ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "minimum", "maximum"),
    [
        (KeyExchange, 1, 1024),
        (Hash, 1, 64),
        (Signature, 1, 1024),
        (Nonce, 8, 256),  # RFC 2409 section 5
        (VendorId, 1, 4096),
        (NatDiscovery, 1, 64),  # SHA2-512
    ],
)
def test_a_string_has_its_bounds(
    cls: type[KeyExchange | Hash | Signature | Nonce | VendorId | NatDiscovery],
    minimum: int,
    maximum: int,
) -> None:
    for length in (minimum, maximum):
        assert parse(cls, bytes(length)).data == bytes(length)
    for length in (minimum - 1, maximum + 1):
        refused(
            cls, bytes(length), f"{cls.TYPE.name} payload of {length} octets, must be {minimum}"
        )


# -- ID ------------------------------------------------------------------------------------------


def test_identification_data_has_its_bounds() -> None:
    head = octets("0b 00 0000")
    for length in (1, MAX_ID):
        assert len(parse(Identification, head + bytes(length)).data) == length
    for length in (0, MAX_ID + 1):
        refused(Identification, head + bytes(length), f"identification data of {length} octets")


@pytest.mark.parametrize("id_type", [0, 12, 14, 255])
def test_unknown_id_types_pass(id_type: int) -> None:
    assert parse(Identification, bytes([id_type]) + octets("11 0350 aa")).id_type == id_type


# -- N -------------------------------------------------------------------------------------------


def test_a_notify_spi_has_its_bound() -> None:
    error = refused(
        Notification, with_octet(NOTIFY_DATA.body, 5, 17) + bytes(9), "notify: SPI of 17 octets"
    )
    assert error.offset == BASE + 8


def test_a_notify_spi_must_be_there() -> None:
    refused(Notification, with_octet(NOTIFY.body, 5, 1), "notify SPI: 1 octets wanted, 0 left")


def test_notification_data_has_its_bound() -> None:
    most = NOTIFY.body + bytes(MAX_NOTIFY_DATA)
    assert len(parse(Notification, most).data) == MAX_NOTIFY_DATA
    refused(Notification, most + b"\x00", f"notification data of {MAX_NOTIFY_DATA + 1} octets")


@pytest.mark.parametrize("number", [0, 31, 8192, 16383, 40959, 65535])
def test_unknown_notify_types_pass(number: int) -> None:
    body = NOTIFY.body[:6] + number.to_bytes(2, "big")
    assert parse(Notification, body).notify_type == number


def test_status_begins_with_connected() -> None:
    """RFC 2408 section 3.14.1: 8192 to 16383 are private *errors*."""
    assert NotifyType.CONNECTED == FIRST_STATUS_NOTIFY
    statuses = {n.name for n in NotifyType if n >= FIRST_STATUS_NOTIFY}
    of_rfc_2407 = {"CONNECTED", "RESPONDER_LIFETIME", "REPLAY_STATUS", "INITIAL_CONTACT"}
    assert statuses == of_rfc_2407 | {"R_U_THERE", "R_U_THERE_ACK"}


# -- D -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 17, 255])
def test_an_spi_size_out_of_bounds_is_refused(size: int) -> None:
    refused(Delete, with_octet(DELETE_TEKS.body, 5, size), f"delete: SPI size {size}")


@pytest.mark.parametrize(
    ("count", "why"),
    [
        (0, "delete: 0 SPIs"),
        (1, "DELETE payload: 4 octets too many"),
        (3, "SPIs: 12 octets wanted, 8 left"),
    ],
)
def test_the_count_must_agree_with_the_spis(count: int, why: str) -> None:
    refused(Delete, with_octet(DELETE_TEKS.body, 7, count), why)


def test_the_number_of_spis_is_bounded() -> None:
    head = octets("00000002 01 04")
    most = head + MAX_DELETE_SPIS.to_bytes(2, "big") + bytes(4 * MAX_DELETE_SPIS)
    assert len(parse(Delete, most).spis) == MAX_DELETE_SPIS
    more = head + (MAX_DELETE_SPIS + 1).to_bytes(2, "big") + bytes(4 * MAX_DELETE_SPIS + 4)
    refused(Delete, more, f"delete: {MAX_DELETE_SPIS + 1} SPIs")


@pytest.mark.parametrize("protocol", [3, 127, 255])
def test_unknown_protocols_pass(protocol: int) -> None:
    assert parse(Delete, with_octet(DELETE_KEK.body, 4, protocol)).protocol_id == protocol


# -- SEQ -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 2**32 - 1])
def test_a_sequence_number_has_32_bits(number: int) -> None:
    assert parse(SequenceNumber, number.to_bytes(4, "big")).number == number


@pytest.mark.parametrize("length", [0, 1, 2, 3, 5, 8])
def test_another_length_is_refused(length: int) -> None:
    """RFC 6407 section 5.7: a Payload Length other than 8."""
    refused(SequenceNumber, bytes(length), "octets")
