"""The key packet of type LKH, RFC 6407 section 5.6.3.

A GROUPKEY-PULL brings the member's own path (LKH_DOWNLOAD_ARRAY), a GROUPKEY-PUSH what replaces
parts of everybody's (LKH_UPDATE_ARRAY). In either case the last key is the group KEK.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from ..crypto.lkh import Node, apply_updates
from ..wire import attributes as attr
from ..wire.attributes import Attribute
from ..wire.buffer import Buffer, DecodeError
from ..wire.key_download import KeyPacket
from ..wire.lkh import LkhDownloadArray, LkhKey, LkhUpdateArray
from ..wire.registry import KekAlgorithm, KeyPacketType, LkhKeyAttribute
from .errors import PolicyError

A = TypeVar("A", LkhDownloadArray, LkhUpdateArray)


def encode_download(spi: bytes, path: Sequence[Node], public_der: bytes) -> KeyPacket:
    """``path`` from the leaf to the group KEK.

    Dates stay zero: RFC 6407 section 5.6.3.1 has that for groups whose clocks are not synchronised,
    and KEK_KEY_LIFETIME says how long a KEK lasts.
    """
    buf = Buffer()
    LkhDownloadArray(
        tuple(
            LkhKey(node.lkh_id, KekAlgorithm.KEK_ALG_AES, node.handle, node.material)
            for node in path
        )
    ).push(buf)
    return _packet(spi, [Attribute(LkhKeyAttribute.LKH_DOWNLOAD_ARRAY, buf.data)], public_der)


def encode_updates(spi: bytes, updates: Iterable[bytes], public_der: bytes) -> KeyPacket:
    """``spi`` is the new Rekey SA's; ``updates`` are values of LKH_UPDATE_ARRAY."""
    arrays = [Attribute(LkhKeyAttribute.LKH_UPDATE_ARRAY, octets) for octets in updates]
    return _packet(spi, arrays, public_der)


def _packet(spi: bytes, arrays: list[Attribute], public_der: bytes) -> KeyPacket:
    key = Attribute(LkhKeyAttribute.SIG_ALGORITHM_KEY, public_der)
    return KeyPacket(KeyPacketType.LKH, spi, (*arrays, key))


def read_download(packet: KeyPacket, octets: int) -> tuple[tuple[Node, ...], bytes | None]:
    """The path, leaf first, and the public key where there is one. ``octets``: of IV | key.

    Raises PolicyError, DecodeError.
    """
    arrays, public_der = _split(packet, LkhKeyAttribute.LKH_DOWNLOAD_ARRAY)
    # RFC 6407 section 5.6.3.1: "there MUST be only one present"
    if len(arrays) != 1:
        raise PolicyError(f"{len(arrays)} LKH_DOWNLOAD_ARRAY attributes, must be one")
    keys = _pull(LkhDownloadArray, arrays[0]).keys
    for key in keys:
        if key.key_type != KekAlgorithm.KEK_ALG_AES or len(key.key_data) != octets:
            raise PolicyError(
                f"LKH key of type {key.key_type} and {len(key.key_data)} octets,"
                f" must be AES and {octets}"
            )
    if len({key.lkh_id for key in keys}) != len(keys):
        raise PolicyError("LKH_DOWNLOAD_ARRAY with two keys for one LKH ID")
    path = tuple(Node.of(key.lkh_id, key.key_handle, key.key_data) for key in keys)
    return path, public_der


def read_updates(
    packet: KeyPacket, octets: int, path: Sequence[Node]
) -> tuple[tuple[Node, ...], bytes | None]:
    """The same for a PUSH, from the ``path`` held so far.

    Raises PolicyError, DecodeError, and NotOurs where every array is for other members.
    """
    # RFC 6407 section 5.6.3.1: a download array "MUST NOT be included in a GROUPKEY-PUSH" to many
    arrays, public_der = _split(packet, LkhKeyAttribute.LKH_UPDATE_ARRAY)
    updates = [_pull(LkhUpdateArray, array) for array in arrays]
    try:
        path = apply_updates(path, updates)
    except ValueError as error:
        raise PolicyError(str(error)) from None
    if len(path[-1].material) != octets:
        raise PolicyError(f"LKH keys of {len(path[-1].material)} octets, SAK wants {octets}")
    return tuple(path), public_der


def _split(packet: KeyPacket, wanted: LkhKeyAttribute) -> tuple[list[Attribute], bytes | None]:
    """The arrays of the kind that has its place here, and SIG_ALGORITHM_KEY."""
    arrays = [a for a in packet.attributes if a.type == wanted]
    others = attr.unique((a for a in packet.attributes if a.type != wanted), "LKH key packet")
    key = others.pop(LkhKeyAttribute.SIG_ALGORITHM_KEY, None)
    if others:
        raise PolicyError(f"LKH key attribute {min(others)} is unknown or has no place here")
    return arrays, None if key is None else key.octets()


def _pull(cls: type[A], attribute: Attribute) -> A:
    buf = Buffer(attribute.octets())
    try:
        return cls.pull(buf)
    except DecodeError as error:
        kind = LkhKeyAttribute(attribute.type).name
        raise DecodeError(f"{kind}: {error.what}", error.offset) from None
