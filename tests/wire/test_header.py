"""The ISAKMP header, RFC 2408 section 3.1, and what section 5.2 wants checked first."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdoi_plugin.wire.buffer import Buffer, DecodeError
from gdoi_plugin.wire.header import HEADER_LENGTH, MAX_MESSAGE, Header, pull_header
from gdoi_plugin.wire.registry import ExchangeType, PayloadType
from tests.wire import strategies
from tests.wire.octets import octets, with_octet

# A GROUPKEY-PUSH that would have 4 octets of ciphertext.
DRAWING = octets("""
    c1c2c3c4 c5c6c7c8   # Initiator Cookie
    d1d2d3d4 d5d6d7d8   # Responder Cookie
    12 10 21 01         # Next Payload SEQ, MjVer 1 MnVer 0, GROUPKEY-PUSH, E
    00000000            # Message ID
    00000020            # Length 32
    a5a5a5a5
""")
HEADER = Header(
    cky_i=bytes.fromhex("c1c2c3c4c5c6c7c8"),
    cky_r=bytes.fromhex("d1d2d3d4d5d6d7d8"),
    next_payload=PayloadType.SEQ,
    exchange_type=ExchangeType.GROUPKEY_PUSH,
    flags=1,
    message_id=0,
    length=32,
)


def test_the_drawing_decodes_and_encodes() -> None:
    assert pull_header(DRAWING) == HEADER
    assert HEADER.encode() == DRAWING[:HEADER_LENGTH]


def test_length_can_be_given_when_encoding() -> None:
    assert HEADER.encode(length=0x01020304)[24:] == bytes.fromhex("01020304")


def test_the_spi_is_both_cookies() -> None:
    assert HEADER.spi.hex() == "c1c2c3c4c5c6c7c8d1d2d3d4d5d6d7d8"


@pytest.mark.parametrize(("flags", "encrypted"), [(0, False), (1, True), (2, False), (7, True)])
def test_encrypted_is_bit_0_of_the_flags(flags: int, encrypted: bool) -> None:
    assert pull_header(with_octet(DRAWING, 19, flags)).encrypted is encrypted


def test_every_truncation_is_refused() -> None:
    for length in range(len(DRAWING)):
        with pytest.raises(DecodeError):
            pull_header(DRAWING[:length])


def test_one_octet_too_many_is_refused() -> None:
    """RFC 2408 section 5.1: both lengths must be the same."""
    with pytest.raises(DecodeError, match="length 32 in a message of 33 octets") as caught:
        pull_header(DRAWING + b"\x00")
    assert caught.value.offset == 24


@pytest.mark.parametrize("version", [0x00, 0x01, 0x11, 0x20, 0xFF])
def test_another_version_is_refused(version: int) -> None:
    text = f"version {version >> 4}.{version & 15} at octet 17"
    with pytest.raises(DecodeError, match=text) as caught:
        pull_header(with_octet(DRAWING, 17, version))
    assert caught.value.offset == 17


@pytest.mark.parametrize("bit", range(3, 8))
def test_an_unknown_flag_is_refused(bit: int) -> None:
    with pytest.raises(DecodeError, match=f"flags 0x{1 << bit:02x}") as caught:
        pull_header(with_octet(DRAWING, 19, 1 << bit))
    assert caught.value.offset == 19


def test_a_zero_initiator_cookie_is_refused() -> None:
    with pytest.raises(DecodeError, match="initiator cookie is zero"):
        pull_header(bytes(8) + DRAWING[8:])


def test_a_zero_responder_cookie_is_taken() -> None:
    assert pull_header(DRAWING[:8] + bytes(8) + DRAWING[16:]).cky_r == bytes(8)


@pytest.mark.parametrize(("at", "value"), [(16, 254), (18, 0), (18, 34), (18, 240)])
def test_unknown_payloads_and_exchanges_pass(at: int, value: int) -> None:
    header = pull_header(with_octet(DRAWING, at, value))
    assert (header.next_payload if at == 16 else header.exchange_type) == value


def test_the_longest_message_passes_and_one_more_octet_is_refused() -> None:
    body = bytes(MAX_MESSAGE - HEADER_LENGTH)
    assert pull_header(HEADER.encode(MAX_MESSAGE) + body).length == 65507
    with pytest.raises(DecodeError, match="message of 65508 octets"):
        pull_header(HEADER.encode(MAX_MESSAGE + 1) + body + b"\x00")


@given(header=strategies.header)
def test_round_trip(header: Header) -> None:
    assert pull_header(header.encode()) == header


@settings(max_examples=500, deadline=None)
@given(datagram=st.binary(max_size=64))
def test_any_datagram_gives_a_header_or_decode_error(datagram: bytes) -> None:
    try:
        header = pull_header(datagram)
    except DecodeError:
        return
    assert header.encode() == datagram[:HEADER_LENGTH]


@given(raw=st.binary(min_size=28, max_size=28))
def test_pull_alone_checks_nothing_and_loses_nothing(raw: bytes) -> None:
    """What the daemon shows of a datagram that ``pull_header`` refuses."""
    assert Header.pull(Buffer(raw)).encode() == raw
