"""What a client of a control socket may send, and what a NAT's port may get."""

from __future__ import annotations

from gdoi_plugin.daemon.vici_message import (
    MessageError,
    Packet,
    PacketType,
    decode_packet,
    encode_packet,
    to_message,
)
from gdoi_plugin.wire.buffer import DecodeError
from gdoi_plugin.wire.encapsulation import KEEPALIVE, decapsulate, encapsulate
from tests.fuzz.target import Target


def check_vici(data: bytes) -> bool:
    try:
        packet = decode_packet(data)
    except MessageError:
        return False
    assert decode_packet(encode_packet(packet)) == packet
    return True


def check_encapsulation(datagram: bytes) -> bool:
    try:
        message = decapsulate(datagram)
    except DecodeError:
        return False
    assert message is None or message == KEEPALIVE or encapsulate(message) == datagram
    return True


def _vici_seeds() -> list[bytes]:
    fields = {"group": "video", "kek": True, "members": ["a", "b"], "sub": {"x": {"y": 1}}}
    kinds = (PacketType.CMD_RESPONSE, PacketType.CMD_REQUEST, PacketType.EVENT)
    packets = [
        Packet(kind, "" if kind == PacketType.CMD_RESPONSE else "rekey", to_message(fields))
        for kind in kinds
    ]
    packets += [Packet(PacketType.EVENT_REGISTER, "log"), Packet(PacketType.CMD_UNKNOWN)]
    return [encode_packet(packet) for packet in packets]


def targets() -> list[Target]:
    return [
        Target("control-packet", check_vici, _vici_seeds),
        Target("nat-encapsulation", check_encapsulation, lambda: [bytes(32), b"\xff"]),
    ]
