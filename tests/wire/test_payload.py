"""Generic payload headers and chains, RFC 2408 section 3.2."""

from __future__ import annotations

import pytest

from gdoi_plugin.wire.attributes import Attribute
from gdoi_plugin.wire.buffer import Buffer, DecodeError, EncodeError
from gdoi_plugin.wire.key_download import KeyDownload, KeyPacket
from gdoi_plugin.wire.opaque import Nonce
from gdoi_plugin.wire.payload import MAX_PAYLOADS, Body, Payload, encode_chain, pull_chain
from gdoi_plugin.wire.registry import PayloadType
from gdoi_plugin.wire.sequence import SequenceNumber
from tests.wire.octets import chain, octets, payload

CHAIN = octets("""
    0a 00 0008 00000007         # SEQ; Next Payload NONCE
    e7 00 000c 0102030405060708 # NONCE; Next Payload 231, which nobody has defined
    00 00 0006 cafe             # that one
""")


def test_a_chain_is_followed_to_next_payload_zero() -> None:
    found = chain(PayloadType.SEQ, CHAIN)
    assert found == (
        Payload(18, CHAIN[:8], 28),
        Payload(10, CHAIN[8:20], 36),
        Payload(231, CHAIN[20:], 48),
    )
    assert found[0].parse(SequenceNumber) == SequenceNumber(7)
    assert found[1].parse(Nonce) == Nonce(bytes(range(1, 9)))


def test_an_unknown_payload_stays_raw() -> None:
    assert chain(PayloadType.SEQ, CHAIN)[2].body == b"\xca\xfe"


def test_the_same_payloads_encode_to_the_same_octets() -> None:
    bodies: list[Body] = [SequenceNumber(7), Nonce(bytes(range(1, 9)))]
    assert encode_chain(bodies, following=231) == CHAIN[:20]


def test_no_payloads_are_no_octets() -> None:
    assert encode_chain([]) == b""
    assert chain(PayloadType.NONE, b"") == ()


def test_every_truncation_is_refused() -> None:
    for length in range(len(CHAIN)):
        with pytest.raises(DecodeError):
            chain(PayloadType.SEQ, CHAIN[:length])


def test_what_follows_the_chain_stays_in_the_buffer() -> None:
    buf = Buffer(CHAIN + b"pad", 28)
    pull_chain(PayloadType.SEQ, buf)
    assert (buf.remaining, buf.offset) == (3, 54)


@pytest.mark.parametrize(
    ("at", "value", "why", "offset"),
    [
        (1, 1, "SEQ: RESERVED is not zero", 29),
        (3, 3, "SEQ: payload length 3", 30),
        (3, 0, "SEQ: payload length 0", 30),
        (9, 0x80, "NONCE: RESERVED is not zero", 37),
        (22, 0xFF, "231: 65282 octets wanted, 2 left", 52),
        (23, 0x07, "231: 3 octets wanted, 2 left", 52),
        (20, 1, "SA: 4 octets wanted, 0 left", 54),
        (23, 0x05, "chain: 1 octets too many", 53),
        (8, 0, "chain: 6 octets too many", 48),
    ],
)
def test_an_error_names_payload_and_offset(at: int, value: int, why: str, offset: int) -> None:
    changed = CHAIN[:at] + bytes([value]) + CHAIN[at + 1 :]
    with pytest.raises(DecodeError, match=why) as caught:
        chain(PayloadType.SEQ, changed)
    assert caught.value.offset == offset


def test_the_number_of_payloads_is_bounded() -> None:
    one = octets("0d 00 0005 61")
    last = octets("00 00 0005 61")
    assert len(chain(PayloadType.VENDOR_ID, one * (MAX_PAYLOADS - 1) + last)) == MAX_PAYLOADS
    with pytest.raises(DecodeError, match=f"more than {MAX_PAYLOADS} payloads"):
        chain(PayloadType.VENDOR_ID, one * MAX_PAYLOADS + last)


def test_parse_counts_in_the_whole_message() -> None:
    """A SEQ of 9 octets at octet 200: the surplus one is at 208."""
    surplus = payload(PayloadType.SEQ, bytes(5), offset=200)
    with pytest.raises(DecodeError, match="SEQ payload: 1 octets too many") as caught:
        surplus.parse(SequenceNumber)
    assert caught.value.offset == 208


def test_the_longest_payload_and_one_octet_more() -> None:
    body = bytes(65531)
    assert payload(231, body).octets[2:4] == b"\xff\xff"
    assert chain(231, payload(231, body).octets)[0].body == body


def test_what_is_longer_than_payload_length_can_say_is_refused_in_words() -> None:
    most = KeyDownload(
        (KeyPacket(1, b"", (Attribute(1, bytes(32750)), Attribute(2, bytes(32750)))),)
    )
    assert len(encode_chain([most])) == 65521
    more = KeyDownload((*most.packets, *most.packets))
    with pytest.raises(EncodeError, match="KD payload of 131034 octets, 65535 fit"):
        encode_chain([more])
