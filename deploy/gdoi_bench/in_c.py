"""Acknowledgements read and verified in C (tests/bench/ack.c)."""

from __future__ import annotations

from pathlib import Path

from gdoi_bench.bound import Bound
from gdoi_plugin.crypto.ack_key import ACK_PRFS, ack_key
from gdoi_plugin.protocol.group import Group
from gdoi_plugin.protocol.page import Rekey
from gdoi_plugin.wire.registry import AckType

RECEIVER = "127.0.0.8"


def drained(bound: Bound, path: Path, group: Group, rekey: Rekey) -> float:
    """Of the ACKs in a file: so many a second of the processor."""
    under = group.kek_of(rekey.kek_spi)
    if under is None:
        raise AssertionError("a rekey under a KEK that is gone")
    key = ack_key(ACK_PRFS[AckType.REKEY_ACK_KEK_SHA256], under.kek.key, under.kek.spi)
    read, seconds = bound.run("drain", RECEIVER, path, under.kek.spi.hex(), key.reveal().hex())
    return read / seconds
