"""The group's SA with SAK, GAP and SATs: RFC 6407 sections 5.2 to 5.5."""

from __future__ import annotations

import pytest

from gdoi_plugin.wire.attributes import MAX_ATTRIBUTES
from gdoi_plugin.wire.group_sa import (
    MAX_SATS,
    EspTek,
    GroupAssociatedPolicy,
    GroupSecurityAssociation,
    SaTek,
)
from gdoi_plugin.wire.registry import TekProtocol
from tests.wire.octets import octets, parse, refused, with_octet
from tests.wire.vectors import GROUP_SA, TEK_ONLY_SA

BODY = GROUP_SA.body
# Offsets of the inner payloads in the body, counted off the drawing in vectors.py.
SAK, GAP, SAT, LAST = 12, 85, 97, 148
BASE = 32  # behind an ISAKMP header and a generic header
HEAD = octets("00000002 00000000")


def inner(following: int, body: bytes) -> bytes:
    return bytes([following, 0]) + (4 + len(body)).to_bytes(2, "big") + body


def sa(first: int, *payloads: bytes) -> bytes:
    return HEAD + first.to_bytes(2, "big") + bytes(2) + b"".join(payloads)


SAK_BODY = BODY[SAK + 4 : GAP]
GAP_BODY = BODY[GAP + 4 : SAT]
SAT_BODY = BODY[SAT + 4 : LAST]


@pytest.mark.parametrize(
    ("at", "what"),
    [
        (4, "situation"),
        (7, "situation"),
        (10, "SA: RESERVED2"),
        (11, "SA: RESERVED2"),
        (SAK + 1, "SAK: RESERVED"),
        (SAK + 37, "SAK: RESERVED2"),
        (SAK + 40, "SAK: RESERVED2"),
        (GAP + 1, "GAP: RESERVED"),
        (SAT + 1, "SAT: RESERVED"),
        (LAST + 1, "SAT: RESERVED"),
    ],
)
def test_reserved_octets_must_be_zero(at: int, what: str) -> None:
    refused(GroupSecurityAssociation, with_octet(BODY, at, 1), f"{what} is not zero")


@pytest.mark.parametrize("doi", [0, 1, 3, 2**32 - 1])
def test_the_doi_must_be_gdoi(doi: int) -> None:
    body = doi.to_bytes(4, "big") + BODY[4:]
    refused(GroupSecurityAssociation, body, f"DOI {doi}, must be 2")


# -- order, RFC 6407 section 5.2.1 ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "payloads", "parts"),
    [
        (15, [(0, SAK_BODY)], (True, False, 0)),
        (15, [(22, SAK_BODY), (0, GAP_BODY)], (True, True, 0)),
        (15, [(16, SAK_BODY), (0, SAT_BODY)], (True, False, 1)),
        (22, [(16, GAP_BODY), (0, SAT_BODY)], (False, True, 1)),
        (16, [(16, SAT_BODY), (16, SAT_BODY), (0, SAT_BODY)], (False, False, 3)),
    ],
)
def test_orders_that_the_rfc_allows(
    first: int, payloads: list[tuple[int, bytes]], parts: tuple[bool, bool, int]
) -> None:
    found = parse(GroupSecurityAssociation, sa(first, *(inner(*p) for p in payloads)))
    assert (found.sak is not None, found.gap is not None, len(found.sats)) == parts


@pytest.mark.parametrize(
    ("first", "payloads", "wrong"),
    [
        (15, [(15, SAK_BODY), (0, SAK_BODY)], 15),  # "zero or one SAK"
        (22, [(22, GAP_BODY), (16, GAP_BODY), (0, SAT_BODY)], 22),  # "zero or one GAP"
        (16, [(15, SAT_BODY), (0, SAK_BODY)], 15),
        (16, [(22, SAT_BODY), (0, GAP_BODY)], 22),
        (22, [(15, GAP_BODY), (0, SAK_BODY)], 15),
        (15, [(17, SAK_BODY)], 17),  # KD follows the SA, not the SAK
        (15, [(255, SAK_BODY)], 255),
        (0x0F00, [(0, SAK_BODY)], 0x0F00),  # the field has two octets
        (1, [], 1),
    ],
)
def test_other_orders_and_payloads_are_refused(
    first: int, payloads: list[tuple[int, bytes]], wrong: int
) -> None:
    body = sa(first, *(inner(*p) for p in payloads))
    refused(GroupSecurityAssociation, body, f"SA attribute payload {wrong} unknown or out of order")


def test_either_a_sak_or_a_sat_must_be_there() -> None:
    for body in (sa(0), sa(22, inner(0, GAP_BODY))):
        refused(GroupSecurityAssociation, body, "SA without SAK and without SAT")


def test_a_promised_payload_that_is_missing_is_refused() -> None:
    refused(GroupSecurityAssociation, with_octet(BODY, LAST, 16), "SAT: 4 octets wanted")


def test_a_payload_that_was_not_promised_is_refused() -> None:
    refused(GroupSecurityAssociation, with_octet(BODY, SAT, 0), "SA payload: 47 octets too many")


# -- offsets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "value", "why", "offset"),
    [
        (SAK + 37, 9, "SAK: RESERVED2 is not zero", SAK + 37),
        (SAK + 2, 0xFF, "SAK: 65349 octets wanted", SAK + 4),
        (GAP + 3, 3, "GAP: payload length 3", GAP + 2),
        (SAT + 9, 0xFF, "SAT SRC identification data: 255 octets wanted, 41 left", SAT + 10),
        (LAST + 43, 0, "value of attribute 15: 3 octets wanted, 0 left", LAST + 47),
    ],
)
def test_an_error_is_located_in_the_whole_message(
    at: int, value: int, why: str, offset: int
) -> None:
    error = refused(GroupSecurityAssociation, with_octet(BODY, at, value), why)
    assert error.offset == BASE + offset


# -- numbers and bounds --------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [0, 4, 127, 128, 255])
def test_a_sat_of_another_protocol_stays_raw(protocol: int) -> None:
    body = with_octet(TEK_ONLY_SA.body, 16, protocol)
    assert parse(GroupSecurityAssociation, body).sats == (SaTek(protocol, b"\xa1\xb2\xc3"),)


@pytest.mark.parametrize("protocol", [1, 2])
def test_esp_and_ah_have_one_form(protocol: int) -> None:
    body = sa(16, inner(0, with_octet(SAT_BODY, 0, protocol)))
    (sat,) = parse(GroupSecurityAssociation, body).sats
    assert sat.protocol_id is TekProtocol(protocol)
    assert isinstance(sat.tek, EspTek)
    assert sat.tek.spi.hex() == "11223344"


def test_an_empty_source_stands_for_every_sender() -> None:
    """RFC 6407 section 5.5.1: identification data of no octets."""
    (_, sat) = parse(GroupSecurityAssociation, BODY).sats
    assert isinstance(sat.tek, EspTek)
    assert sat.tek.source.data == b""


def test_the_number_of_sats_is_bounded() -> None:
    sats = [inner(16, b"\x80")] * (MAX_SATS - 1)
    most = sa(16, *sats, inner(0, b"\x80"))
    assert len(parse(GroupSecurityAssociation, most).sats) == MAX_SATS
    too_many = sa(16, *sats, inner(16, b"\x80"), inner(0, b"\x80"))
    refused(GroupSecurityAssociation, too_many, f"more than {MAX_SATS} SATs")


@pytest.mark.parametrize(("kind", "body"), [(15, SAK_BODY), (16, SAT_BODY)])
def test_the_number_of_attributes_is_bounded(kind: int, body: bytes) -> None:
    too_many = sa(kind, inner(0, body + octets("8001 0001") * MAX_ATTRIBUTES))
    refused(GroupSecurityAssociation, too_many, "more than 64 attributes")


def test_the_attributes_of_a_gap_are_bounded() -> None:
    too_many = octets("8001 0001") * (MAX_ATTRIBUTES + 1)
    refused(GroupAssociatedPolicy, too_many, "more than 64 attributes")
