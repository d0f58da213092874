"""Object identifiers: ITU-T X.690 section 8.19, RFC 8052 section 2.1."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gdoi_plugin.wire.buffer import Buffer, DecodeError
from gdoi_plugin.wire.oid import Oid


def encoded(oid: Oid) -> bytes:
    buf = Buffer()
    oid.push(buf)
    return buf.data


def test_rfc_8052_appendix_a() -> None:
    """Figure 7: OID Len=13, OID=<06 0B 2A 86 48 CE 56 83 E3 1A 08 01 02>."""
    goose = Oid.parse("1.2.840.10070.61850.8.1.2")
    assert encoded(goose) == bytes.fromhex("0d 060B2A8648CE5683E31A080102 0000")


ARCS = st.lists(st.integers(0, 2**64), max_size=8)


@given(st.integers(0, 2), st.integers(0, 39), ARCS, st.binary(max_size=64))
def test_text_and_octets(first: int, second: int, rest: list[int], payload: bytes) -> None:
    text = ".".join(map(str, (first, second, *rest)))
    if payload:
        text += f":{payload.hex()}"
    oid = Oid.parse(text)
    assert str(oid) == text
    buf = Buffer(encoded(oid))
    assert Oid.pull(buf) == oid
    assert not buf.remaining


@given(st.binary(max_size=40))
def test_any_octets_give_an_oid_or_a_decode_error(octets: bytes) -> None:
    buf = Buffer(octets)
    try:
        oid = Oid.pull(buf)
    except DecodeError:
        return
    assert encoded(oid) == octets[: len(octets) - buf.remaining]
    assert Oid.parse(str(oid)) == oid
