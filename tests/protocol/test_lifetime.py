"""The attributes of RESPONDER-LIFETIME, in every form that is seen."""

from __future__ import annotations

import struct

import pytest

from gdoi_plugin.protocol.lifetime import lifetime_data, read_lifetime
from gdoi_plugin.wire.buffer import DecodeError


def basic(number: int, value: int) -> bytes:
    return struct.pack("!HH", 0x8000 | number, value)


def variable(number: int, value: bytes) -> bytes:
    return struct.pack("!HH", number, len(value)) + value


def test_what_we_say() -> None:
    assert lifetime_data(3600) == basic(11, 1) + variable(12, bytes.fromhex("00000e10"))
    assert read_lifetime(lifetime_data(3600)) == 3600


@pytest.mark.parametrize(
    ("data", "seconds"),
    [
        (basic(11, 1) + basic(12, 3600), 3600),
        (basic(1, 1) + basic(2, 3600), 3600),
        (basic(1, 1) + variable(2, bytes.fromhex("0e10")), 3600),
        (basic(11, 2) + basic(12, 5000) + basic(11, 1) + basic(12, 60), 60),
        (basic(11, 2) + basic(12, 5000), None),
        (basic(12, 5000), None),
        (b"", None),
    ],
    ids=["basic", "phase 2's numbers", "two octets", "kilobytes too", "kilobytes", "no type", "-"],
)
def test_what_others_say(data: bytes, seconds: int | None) -> None:
    assert read_lifetime(data) == seconds


@pytest.mark.parametrize(
    "data", [b"\x80", variable(12, bytes(4))[:-1], basic(11, 1) + variable(12, b"")]
)
def test_what_is_no_attribute_list(data: bytes) -> None:
    with pytest.raises(DecodeError):
        read_lifetime(data)
