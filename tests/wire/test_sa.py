"""The phase-1 SA: RFC 2408 sections 3.4 to 3.6 and 4.2."""

from __future__ import annotations

import pytest

from gdoi_plugin.wire.attributes import MAX_ATTRIBUTES
from gdoi_plugin.wire.payload import encode_body
from gdoi_plugin.wire.sa import MAX_PROPOSALS, MAX_SPI, SecurityAssociation
from tests.wire.octets import octets, parse, refused, with_octet
from tests.wire.vectors import PHASE_ONE_SA, TWO_PROPOSALS

BODY = PHASE_ONE_SA.body
# Offsets in the body, counted off the drawing in vectors.py.
PROPOSAL, FIRST, SECOND = 8, 16, 56
# Behind an ISAKMP header and a generic header.
BASE = 32


def sa(*proposals: bytes) -> bytes:
    return octets("00000002 00000000") + b"".join(proposals)


def proposal(
    *transforms: bytes, following: int = 0, count: int | None = None, spi: bytes = b""
) -> bytes:
    counted = len(transforms) if count is None else count
    body = bytes([1, 1, len(spi), counted]) + spi + b"".join(transforms)
    return bytes([following, 0]) + (4 + len(body)).to_bytes(2, "big") + body


def transform(following: int, attributes: bytes = b"") -> bytes:
    return (
        bytes([following, 0])
        + (8 + len(attributes)).to_bytes(2, "big")
        + b"\x01\x01\x00\x00"
        + attributes
    )


@pytest.mark.parametrize(
    ("at", "what"),
    [
        (PROPOSAL + 1, "proposal: RESERVED"),
        (FIRST + 1, "transform: RESERVED"),
        (FIRST + 6, "transform: RESERVED2"),
        (FIRST + 7, "transform: RESERVED2"),
        (SECOND + 1, "transform: RESERVED"),
    ],
)
def test_reserved_octets_must_be_zero(at: int, what: str) -> None:
    error = refused(SecurityAssociation, with_octet(BODY, at, 1), f"{what} is not zero")
    assert error.offset == BASE + at - at % 2 * ("RESERVED2" in what)


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (FIRST, 0, "TRANSFORM: next payload 0, must be 3"),
        (FIRST, 2, "TRANSFORM: next payload 2, must be 3"),
        (SECOND, 3, "TRANSFORM: next payload 3, must be 0"),
        (PROPOSAL, 3, "proposal: next payload 3"),
        (PROPOSAL, 13, "proposal: next payload 13"),
    ],
)
def test_next_payload_must_agree_with_the_count(at: int, value: int, why: str) -> None:
    assert refused(SecurityAssociation, with_octet(BODY, at, value), why).offset == BASE + at


@pytest.mark.parametrize(
    ("count", "why"),
    [(0, "without a transform"), (1, "must be 0"), (3, "must be 3"), (255, "must be 3")],
)
def test_the_count_must_agree_with_the_transforms(count: int, why: str) -> None:
    refused(SecurityAssociation, with_octet(BODY, PROPOSAL + 7, count), why)


def test_a_count_that_ends_before_the_proposal_does_is_refused() -> None:
    body = sa(proposal(transform(0), transform(0), count=1))
    refused(SecurityAssociation, body, "proposal: 8 octets too many")


def test_a_proposal_that_promises_another_is_refused() -> None:
    refused(
        SecurityAssociation,
        with_octet(BODY, PROPOSAL, 2),
        "proposal: 4 octets wanted",
    )


def test_a_second_proposal_that_was_not_promised_is_refused() -> None:
    body = sa(proposal(transform(0)), proposal(transform(0)))
    refused(SecurityAssociation, body, "SA payload: 16 octets too many")


@pytest.mark.parametrize("length", range(4))
def test_a_payload_length_below_the_generic_header_is_refused(length: int) -> None:
    changed = with_octet(BODY, SECOND + 3, length)
    error = refused(SecurityAssociation, changed, f"transform: payload length {length}")
    assert error.offset == BASE + SECOND + 2


@pytest.mark.parametrize(("length", "field"), [(4, "number"), (5, "id"), (6, "RESERVED2")])
def test_a_transform_shorter_than_its_fields_is_refused(length: int, field: str) -> None:
    refused(SecurityAssociation, with_octet(BODY, SECOND + 3, length), f"transform:? {field}")


def test_an_sa_without_proposals_is_refused() -> None:
    refused(SecurityAssociation, sa(), "proposal: 4 octets wanted")


@pytest.mark.parametrize("doi", [0, 3, 2**32 - 1])
def test_a_doi_whose_situation_is_unknown_is_refused(doi: int) -> None:
    refused(SecurityAssociation, doi.to_bytes(4, "big") + BODY[4:], f"DOI {doi}")


def test_the_situation_passes_as_it_is() -> None:
    assert parse(SecurityAssociation, with_octet(BODY, 7, 4)).situation == 4


# -- bounds --------------------------------------------------------------------------------------


def test_an_spi_of_16_octets_passes_and_of_17_is_refused() -> None:
    longest = proposal(transform(0), spi=bytes(MAX_SPI))
    assert len(parse(SecurityAssociation, sa(longest)).proposals[0].spi) == 16
    refused(SecurityAssociation, sa(proposal(transform(0), spi=bytes(17))), "SPI of 17 octets")


def test_the_number_of_proposals_is_bounded() -> None:
    more, last = proposal(transform(0), following=2), proposal(transform(0))
    most = sa(*[more] * (MAX_PROPOSALS - 1), last)
    assert len(parse(SecurityAssociation, most).proposals) == MAX_PROPOSALS
    refused(SecurityAssociation, sa(*[more] * MAX_PROPOSALS, last), "more than 8 proposals")


def test_255_transforms_pass_and_come_back() -> None:
    body = sa(proposal(*[transform(3)] * 254, transform(0)))
    parsed = parse(SecurityAssociation, body)
    assert len(parsed.proposals[0].transforms) == 255
    assert encode_body(parsed) == body


def test_the_number_of_attributes_of_a_transform_is_bounded() -> None:
    most = octets("8001 0007") * MAX_ATTRIBUTES
    parse(SecurityAssociation, sa(proposal(transform(0, most))))
    too_many = sa(proposal(transform(0, most + octets("8001 0007"))))
    refused(SecurityAssociation, too_many, "more than 64 attributes")


def test_the_second_example_keeps_its_unknown_numbers() -> None:
    parsed = parse(SecurityAssociation, TWO_PROPOSALS.body)
    assert parsed.proposals[0].transforms[0].attributes[0].number() == 65535
    assert parsed.proposals[1].transforms[0].transform_id == 254
