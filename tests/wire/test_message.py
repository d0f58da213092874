"""Whole messages: in clear, and decrypted bodies with their padding."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdoi_plugin.wire.buffer import DecodeError, EncodeError
from gdoi_plugin.wire.encapsulation import encapsulate
from gdoi_plugin.wire.header import HEADER_LENGTH, MAX_MESSAGE, MAX_SENT, Header, pull_header
from gdoi_plugin.wire.identification import Identification
from gdoi_plugin.wire.message import (
    Message,
    encode_clear,
    pull_clear,
    pull_decrypted,
    with_body,
)
from gdoi_plugin.wire.opaque import Hash, Nonce, VendorId
from gdoi_plugin.wire.payload import Body, encode_chain
from gdoi_plugin.wire.registry import ExchangeType, PayloadType
from gdoi_plugin.wire.sequence import SequenceNumber
from tests.wire import strategies
from tests.wire.octets import octets, with_octet
from tests.wire.vectors import ALL

BLOCK = 16

# RFC 8263 section 3, with a HASH computed by hand.
ACK = octets("""
    10111213 14151617   # cookies of the PUSH
    18191a1b 1c1d1e1f
    08 10 23 00         # Next Payload HASH, 1.0, GROUPKEY-PUSH-ACK, no flags
    00000000            # Message ID
    00000054            # Length 84
    12 00 0024          # HASH
        d2a495a5 b347101b 7b4dba70 993eb924 2c60a8fd 56af8c2d 91ed288a 40eefa57
    05 00 0008 00000007 # SEQ
    00 00 000c          # ID
        01 00 0000 c0000201
""")
ACK_HEADER = Header(bytes(range(16, 24)), bytes(range(24, 32)), 8, 35, length=84)
ACK_BODIES: list[Body] = [
    Hash(ACK[32:64]),
    SequenceNumber(7),
    Identification(1, b"\xc0\x00\x02\x01"),
]

# GROUPKEY-PULL message 1 as it comes out of the cipher, RFC 6407 section 3.2.
PULL_HEADER = Header(
    b"I" * 8, b"R" * 8, PayloadType.HASH, ExchangeType.GROUPKEY_PULL, 1, 0x01020304
)
PULL_BODY = octets("""
    0a 00 0024          # HASH
        00010203 04050607 08090a0b 0c0d0e0f 10111213 14151617 18191a1b 1c1d1e1f
    05 00 0014          # Ni
        00112233 44556677 8899aabb ccddeeff
    00 00 000c          # ID
        0b 00 0000 000004d2
""")
PADDING = bytes(12)


def clear(datagram: bytes) -> Message:
    return pull_clear(pull_header(datagram), datagram)


def message(*bodies: Body, padding: bytes = b"") -> bytes:
    header = replace(ACK_HEADER, next_payload=bodies[0].TYPE if bodies else 0)
    return with_body(header, header.next_payload, encode_chain(bodies) + padding)


# -- in clear ------------------------------------------------------------------------------------


def test_the_ack_decodes_and_encodes() -> None:
    ack = clear(ACK)
    assert ack.header == ACK_HEADER
    assert ack.kinds == (8, 18, 5)
    types = (Hash, SequenceNumber, Identification)
    assert [p.parse(cls) for p, cls in zip(ack.payloads, types, strict=True)] == ACK_BODIES
    assert encode_clear(replace(ACK_HEADER, next_payload=0, length=28), ACK_BODIES) == ACK


def test_what_the_hash_covers_are_the_octets_as_received() -> None:
    ack = clear(ACK)
    covered = ack.first(PayloadType.SEQ).octets + ack.first(PayloadType.ID).octets
    assert covered == ACK[64:]


def test_all_gives_each_payload_of_a_kind_in_order() -> None:
    found = clear(message(VendorId(b"1234"), SequenceNumber(1), VendorId(b"5678")))
    assert [p.body for p in found.all(PayloadType.VENDOR_ID)] == [b"1234", b"5678"]
    assert found.first(PayloadType.VENDOR_ID).body == b"1234"
    assert found.all(PayloadType.SIG) == ()


def test_every_truncation_is_refused_even_with_a_length_that_fits() -> None:
    header = pull_header(ACK)
    for length in range(HEADER_LENGTH, len(ACK)):
        with pytest.raises(DecodeError):
            pull_clear(header, ACK[:length])


@pytest.mark.parametrize("octet", [b"\x00", b"\x01"], ids=bytes.hex)
def test_an_octet_behind_an_aligned_chain_is_refused(octet: bytes) -> None:
    with pytest.raises(DecodeError, match="message: 1 octets too many") as caught:
        clear(message(*ACK_BODIES, padding=octet))
    assert caught.value.offset == 84


@pytest.mark.parametrize(("length", "padding"), [(5, 3), (6, 2), (7, 1), (8, 0)])
def test_zeros_may_make_the_message_4_octet_aligned(length: int, padding: int) -> None:
    """RFC 2408 sections 3.5 and 3.6."""
    vid = VendorId(b"v" * length)
    assert clear(message(vid, padding=bytes(padding))).payloads[0].parse(VendorId) == vid
    assert clear(message(vid)).kinds == (13,)


@pytest.mark.parametrize("padding", ["00", "0000", "00000000", "0000000000000000"])
def test_zeros_that_do_not_align_are_refused(padding: str) -> None:
    """A chain of 9 octets wants 3."""
    with pytest.raises(DecodeError, match="octets too many"):
        clear(message(VendorId(b"abcde"), padding=bytes.fromhex(padding)))


def test_alignment_by_anything_but_zeros_is_refused() -> None:
    with pytest.raises(DecodeError, match="padding is not zero"):
        clear(message(VendorId(b"abcde"), padding=b"\x00\x00\x02"))


def test_a_message_without_payloads_is_a_header() -> None:
    assert clear(message()).payloads == ()
    assert encode_clear(ACK_HEADER, []) == message()


# -- decrypted -----------------------------------------------------------------------------------


def test_pull_message_1_decodes() -> None:
    found = pull_decrypted(PULL_HEADER, PULL_BODY + PADDING, BLOCK)
    assert found.kinds == (8, 10, 5)
    assert found.payloads[1].parse(Nonce).data.hex() == "00112233445566778899aabbccddeeff"
    assert found.payloads[2].parse(Identification) == Identification(11, b"\x00\x00\x04\xd2")
    assert found.payloads[2].offset == 28 + 36 + 20


@pytest.mark.parametrize("length", range(BLOCK + 1))
def test_a_block_of_zeros_or_less_is_padding(length: int) -> None:
    """RFC 2409 appendix B; when aligned some add none and some a whole block."""
    assert len(pull_decrypted(PULL_HEADER, PULL_BODY + bytes(length), BLOCK).payloads) == 3


@pytest.mark.parametrize("length", [BLOCK + 1, 4 * BLOCK])
def test_more_than_a_block_of_padding_is_refused(length: int) -> None:
    with pytest.raises(DecodeError, match=f"{length} octets of padding") as caught:
        pull_decrypted(PULL_HEADER, PULL_BODY + bytes(length), BLOCK)
    assert caught.value.offset == HEADER_LENGTH + len(PULL_BODY)


@pytest.mark.parametrize("at", range(len(PADDING)))
def test_padding_other_than_zero_is_refused(at: int) -> None:
    with pytest.raises(DecodeError, match="padding is not zero"):
        pull_decrypted(PULL_HEADER, PULL_BODY + with_octet(PADDING, at, 1), BLOCK)


def test_every_truncation_of_a_decrypted_body_is_refused() -> None:
    for length in range(len(PULL_BODY)):
        with pytest.raises(DecodeError):
            pull_decrypted(PULL_HEADER, PULL_BODY[:length], BLOCK)


# -- any octets ----------------------------------------------------------------------------------


def read_all(found: Message) -> None:
    """Parse each payload as every class that could claim its type."""
    for received in found.payloads:
        for vector in ALL:
            if received.kind == vector.expected.TYPE:
                try:
                    received.parse(type(vector.expected))
                except DecodeError as error:
                    assert received.offset <= error.offset  # noqa: PT017


def either(datagram: bytes) -> None:
    try:
        header = pull_header(datagram)
        read_all(pull_clear(header, datagram))
    except DecodeError:
        return


@given(bodies=st.lists(strategies.body, max_size=5))
@settings(max_examples=80, deadline=None)
def test_round_trip(bodies: list[Body]) -> None:
    found = clear(encode_clear(ACK_HEADER, bodies))
    assert [p.parse(type(b)) for p, b in zip(found.payloads, bodies, strict=True)] == bodies


@given(datagram=st.binary(max_size=200))
@settings(max_examples=350, deadline=None)
def test_any_datagram_gives_a_message_or_decode_error(datagram: bytes) -> None:
    either(datagram)


@given(kind=strategies.uint8, body=st.binary(max_size=300))
@settings(max_examples=350, deadline=None)
def test_any_body_behind_a_true_header_gives_a_message_or_decode_error(
    kind: int, body: bytes
) -> None:
    either(with_body(ACK_HEADER, kind, body))


@given(data=st.data())
@settings(max_examples=350, deadline=None)
def test_any_change_of_a_message_gives_a_message_or_decode_error(data: st.DataObject) -> None:
    vector = data.draw(st.sampled_from(ALL))
    changed = bytearray(with_body(ACK_HEADER, vector.expected.TYPE, b"\x00" + vector.octets[1:]))
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(strategies.uint8)
    either(bytes(changed))


@given(kind=strategies.uint8, plaintext=st.binary(max_size=300))
@settings(max_examples=350, deadline=None)
def test_any_plaintext_gives_a_message_or_decode_error(kind: int, plaintext: bytes) -> None:
    """What a wrong key makes of a ciphertext."""
    try:
        read_all(pull_decrypted(replace(PULL_HEADER, next_payload=kind), plaintext, BLOCK))
    except DecodeError:
        return


def test_a_message_leaves_room_for_the_marker_in_a_datagram() -> None:
    header = Header(b"initiate", b"response", 0, ExchangeType.GROUPKEY_PUSH)
    largest = with_body(header, PayloadType.SEQ, bytes(MAX_SENT - HEADER_LENGTH))
    assert len(encapsulate(largest)) == MAX_MESSAGE
    said = f"GROUPKEY-PUSH message of {MAX_SENT + 1} octets, {MAX_SENT} fit a UDP datagram"
    with pytest.raises(EncodeError, match=said):
        with_body(header, PayloadType.SEQ, bytes(MAX_SENT + 1 - HEADER_LENGTH))
