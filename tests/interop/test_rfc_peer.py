"""The peer that the other tests rely on: strict, and written without a look at the project."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from .rfc_octets import Violation, pack_phase1_sa, read_phase1_sa


def test_the_peer_is_strict() -> None:
    """The decoder this file relies on does refuse."""
    packed = pack_phase1_sa([(1, b"")])
    read_phase1_sa(packed)
    for offset in (3, 7, 9, 13, 15, 17, 19, 23):
        with pytest.raises((Violation, struct.error)):
            read_phase1_sa(packed[:offset] + bytes([packed[offset] ^ 0x41]) + packed[offset + 1 :])


@pytest.mark.parametrize("name", ["rfc_octets", "rfc_crypto", "rfc_key_server", "rfc_peer"])
def test_the_peer_knows_nothing_of_us(name: str) -> None:
    lines = (Path(__file__).parent / f"{name}.py").read_text().splitlines()
    imports = [line for line in lines if line.lstrip().startswith(("import ", "from "))]
    assert imports
    assert not [line for line in imports if "gdoi_" in line]
