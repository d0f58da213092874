"""LKH arrays, RFC 6407 section 5.6.3, against octets written down from figures 11 to 13."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdoi_plugin.wire.attributes import MAX_ATTRIBUTES, Attribute
from gdoi_plugin.wire.buffer import Buffer, DecodeError
from gdoi_plugin.wire.key_download import MAX_KEY_PACKET_ATTRIBUTES, KeyDownload, KeyPacket
from gdoi_plugin.wire.lkh import MAX_PATH, LkhDownloadArray, LkhKey, LkhUpdateArray
from gdoi_plugin.wire.payload import encode_body
from gdoi_plugin.wire.registry import KeyPacketType
from tests.wire.octets import octets, parse, refused, with_octet

LEAF_DATA = bytes(range(0x10, 0x30))
ROOT_DATA = bytes(range(0x40, 0x60))
LEAF_OCTETS = "0009 03 00 65000000 6600FFFF 00000007" + LEAF_DATA.hex()
ROOT_OCTETS = "0001 03 00 00000000 00000000 DEADBEEF" + ROOT_DATA.hex()
LEAF = LkhKey(9, 3, 7, LEAF_DATA, 0x65000000, 0x6600FFFF)
ROOT = LkhKey(1, 3, 0xDEADBEEF, ROOT_DATA)
#                             version  number  RESERVED
DOWNLOAD_OCTETS = octets("01 0002 00" + LEAF_OCTETS + ROOT_OCTETS)
DOWNLOAD = LkhDownloadArray((LEAF, ROOT))
#                           version  number RESERVED  LKH ID  RESERVED2  handle
UPDATE_OCTETS = octets("01 0002 00 0012 0000 00000003" + LEAF_OCTETS + ROOT_OCTETS)
UPDATE = LkhUpdateArray(0x12, 3, (LEAF, ROOT))


def encoded(array: LkhDownloadArray | LkhUpdateArray) -> bytes:
    buf = Buffer()
    array.push(buf)
    return buf.data


def test_a_download_array_is_what_figures_11_and_12_draw() -> None:
    assert LkhDownloadArray.pull(Buffer(DOWNLOAD_OCTETS)) == DOWNLOAD
    assert encoded(DOWNLOAD) == DOWNLOAD_OCTETS


def test_an_update_array_is_what_figure_13_draws() -> None:
    assert LkhUpdateArray.pull(Buffer(UPDATE_OCTETS)) == UPDATE
    assert encoded(UPDATE) == UPDATE_OCTETS


ARRAYS = pytest.mark.parametrize(
    ("cls", "whole"), [(LkhDownloadArray, DOWNLOAD_OCTETS), (LkhUpdateArray, UPDATE_OCTETS)]
)


@ARRAYS
@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (0, 2, "LKH version 2, must be 1"),
        (3, 1, "LKH array: RESERVED is not zero"),
        (2, 0, "0 LKH keys, must be 1 to 64"),
        (1, 1, "258 LKH keys, must be 1 to 64"),
        (2, 5, "96 octets are not 5 LKH keys"),
        (2, 6, "96 octets are not 6 LKH keys"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(
    cls: type[LkhDownloadArray | LkhUpdateArray], whole: bytes, at: int, value: int, why: str
) -> None:
    with pytest.raises(DecodeError) as caught:
        cls.pull(Buffer(with_octet(whole, at, value)))
    assert caught.value.what == why


def test_other_reserved_octets_must_be_zero() -> None:
    for at, why in ((7, "LKH key: RESERVED"), (55, "LKH key: RESERVED")):
        with pytest.raises(DecodeError, match=why):
            LkhDownloadArray.pull(Buffer(with_octet(DOWNLOAD_OCTETS, at, 1)))
    with pytest.raises(DecodeError, match="LKH update array: RESERVED2"):
        LkhUpdateArray.pull(Buffer(with_octet(UPDATE_OCTETS, 7, 1)))


@ARRAYS
def test_every_truncation_is_refused(
    cls: type[LkhDownloadArray | LkhUpdateArray], whole: bytes
) -> None:
    """Or splits into two keys of equal length: no field tells that those are too short."""
    for length in range(len(whole)):
        try:
            array = cls.pull(Buffer(whole[:length]))
        except DecodeError:
            continue
        assert len(array.keys[0].key_data) < len(LEAF_DATA)
        assert encoded(array) == whole[:length]


@given(st.sampled_from((LkhDownloadArray, LkhUpdateArray)), st.binary(max_size=400))
def test_any_octets_give_an_array_or_a_decode_error(
    cls: type[LkhDownloadArray | LkhUpdateArray], octets: bytes
) -> None:
    for candidate in (octets, b"\x01\x00\x02\x00" + octets):
        try:
            array = cls.pull(Buffer(candidate))
        except DecodeError:
            continue
        assert encoded(array) == candidate


def test_key_data_does_not_show() -> None:
    for text in (repr(DOWNLOAD), repr(UPDATE)):
        assert "key_data" not in text
        assert LEAF_DATA[:4].hex() not in text


def kd_with(count: int, kind: int) -> bytes:
    packet = KeyPacket(kind, bytes(16), tuple(Attribute(2, 0) for _ in range(count)))
    return encode_body(KeyDownload((packet,)))


def test_a_packet_of_type_lkh_may_have_as_many_attributes_as_it_can_hold_arrays() -> None:
    lkh = kd_with(MAX_KEY_PACKET_ATTRIBUTES, KeyPacketType.LKH)
    assert len(parse(KeyDownload, lkh).packets[0].attributes) == MAX_KEY_PACKET_ATTRIBUTES
    more = kd_with(MAX_KEY_PACKET_ATTRIBUTES + 1, KeyPacketType.LKH)
    refused(KeyDownload, more, f"more than {MAX_KEY_PACKET_ATTRIBUTES} attributes")
    other = kd_with(MAX_ATTRIBUTES + 1, KeyPacketType.TEK)
    refused(KeyDownload, other, f"more than {MAX_ATTRIBUTES} attributes")


def test_the_longest_path_allowed_is_longer_than_any_balanced_tree_s() -> None:
    keys = tuple(LkhKey(i + 1, 3, 1, LEAF_DATA) for i in range(MAX_PATH))
    assert LkhDownloadArray.pull(Buffer(encoded(LkhDownloadArray(keys)))).keys == keys
    assert (0xFFFF).bit_length() < MAX_PATH
