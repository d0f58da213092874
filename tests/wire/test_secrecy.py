"""No key octets in the repr of anything decoded, nor in a DecodeError."""

from __future__ import annotations

import pytest

from gdoi_plugin.wire.attributes import Attribute
from gdoi_plugin.wire.buffer import DecodeError
from gdoi_plugin.wire.header import Header
from gdoi_plugin.wire.key_download import KeyDownload, KeyPacket
from gdoi_plugin.wire.message import Message
from gdoi_plugin.wire.opaque import Hash, KeyExchange, Nonce, Signature, VendorId
from gdoi_plugin.wire.registry import PayloadType
from tests.wire.octets import parse, payload
from tests.wire.vectors import KD

KEY = b"\xa5KEYkeyKEYkey-\x5a"


def shows_key(text: str) -> bool:
    """Characters, hex, Python escapes or numbers of the key, in whole or its inner part."""
    inner = KEY[1:-1]
    forms = (
        inner.decode(),
        inner.hex(),
        ", ".join(map(str, inner)),
        str(int.from_bytes(KEY, "big")),
    )
    return any(form.lower() in text.lower() for form in forms)


def test_the_check_itself_finds_a_key() -> None:
    for text in (repr(KEY), KEY.hex(), str(list(KEY)), str(int.from_bytes(KEY, "big"))):
        assert shows_key(text)


@pytest.mark.parametrize(
    "holder",
    [
        Attribute(1, KEY),
        KeyPacket(1, b"spi!", (Attribute(1, KEY), Attribute(2, KEY))),
        KeyDownload((KeyPacket(2, b"spi!", (Attribute(1, KEY),)),)),
        payload(PayloadType.KD, KEY),
        Message(Header(b"i" * 8, b"r" * 8, 17, 33), (payload(PayloadType.KD, KEY),)),
        KeyExchange(KEY),
        Hash(KEY),
        Signature(KEY),
        Nonce(KEY),
        VendorId(KEY),
    ],
    ids=lambda holder: type(holder).__name__,
)
def test_repr_str_and_format(holder: object) -> None:
    for text in (repr(holder), str(holder), f"{holder}", f"{[holder]}"):
        assert not shows_key(text)
        assert type(holder).__name__ in text


def test_a_basic_value_does_not_show_either() -> None:
    assert "42405" not in repr(Attribute(1, 42405))


def test_decode_errors_of_a_kd_show_no_key() -> None:
    """Every truncation and every flipped octet of a KD with keys a0..bf and e0..ff."""
    bodies = [KD.body[:length] for length in range(len(KD.body))]
    bodies += [KD.body[:i] + bytes([o ^ 0xFF]) + KD.body[i + 1 :] for i, o in enumerate(KD.body)]
    texts = []
    for body in bodies:
        try:
            parse(KeyDownload, body)
        except DecodeError as error:
            texts.append(str(error))
    assert len(texts) > 160
    for text in texts:
        assert "a1a2a3" not in text
        assert "xa1" not in text
        assert "161, 162" not in text
