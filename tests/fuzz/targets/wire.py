"""Every class of the wire package that can be pulled, found by itself, and whole messages."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache, partial
from importlib import import_module
from inspect import signature
from itertools import pairwise
from typing import Any, cast

from gdoi_plugin import wire
from gdoi_plugin.protocol import rules
from gdoi_plugin.wire.buffer import Buffer, DecodeError
from gdoi_plugin.wire.header import HEADER_LENGTH, Header, pull_header
from gdoi_plugin.wire.iec61850 import Iec61850Tek
from gdoi_plugin.wire.lkh import LkhDownloadArray, LkhKey, LkhUpdateArray
from gdoi_plugin.wire.message import Message, pull_clear, pull_decrypted
from gdoi_plugin.wire.oid import Oid
from gdoi_plugin.wire.payload import Body
from gdoi_plugin.wire.registry import ExchangeType
from tests.fuzz.target import Target
from tests.wire.vectors import ALL

BLOCK = 16
RULES = (
    *rules.MAIN_MODE.values(),
    *rules.PULL.values(),
    rules.PUSH,
    rules.PUSH_ACK,
    rules.INFORMATIONAL,
)
_KEYS = tuple(LkhKey(number, 1, number, bytes(32)) for number in (1, 2))
# What stands inside the octets of other payloads.
MORE = (
    LkhDownloadArray(_KEYS),
    LkhUpdateArray(3, 4, _KEYS),
    Iec61850Tek(Oid.parse("1.2.840.10070:8704"), bytes(4), 1, 4, 3600),
)


@cache
def codecs() -> dict[str, type[Body]]:
    """Dataclasses with ``pull(buf)`` and ``push(buf)``: payloads and what is nested in them."""
    found: dict[str, type[Body]] = {}
    for info in pkgutil.iter_modules(wire.__path__, f"{wire.__name__}."):
        module = import_module(info.name)
        for name, cls in vars(module).items():
            own = isinstance(cls, type) and cls.__module__ == module.__name__
            if own and is_dataclass(cls) and not name.startswith("_") and hasattr(cls, "push"):
                pull: Callable[..., Any] = getattr(cls, "pull")  # noqa: B009 -- not of every type
                if len(signature(pull).parameters) == 1:
                    found[name] = cast(type[Body], cls)
    return found


@cache
def bodies() -> dict[int, list[type[Body]]]:
    """By payload type; an SA is one thing in phase 1 and another in a group's messages."""
    found: dict[int, list[type[Body]]] = {}
    for cls in codecs().values():
        if hasattr(cls, "TYPE"):
            found.setdefault(cls.TYPE, []).append(cls)
    return found


def _encode(value: Body) -> bytes:
    buf = Buffer()
    value.push(buf)
    return buf.data


# -- one class -----------------------------------------------------------------------------------


def check_codec(cls: type[Body], data: bytes) -> bool:
    """A value or DecodeError; and what is decoded encodes to octets that decode to the same."""
    buf = Buffer(data)
    try:
        value = cls.pull(buf)
    except DecodeError as error:
        assert 0 <= error.offset <= len(data), f"offset {error.offset}"
        return False
    again = Buffer(_encode(value))
    assert cls.pull(again) == value
    assert not again.remaining
    return True


def _within(thing: object) -> Iterator[object]:
    """A dataclass and all the dataclasses in it."""
    if is_dataclass(thing):
        yield thing
        for field in fields(thing):
            yield from _within(getattr(thing, field.name))
    elif isinstance(thing, tuple):
        for item in thing:
            yield from _within(item)


def _codec_seeds(cls: type[Body]) -> list[bytes]:
    if cls is Header:  # type: ignore[comparison-overlap]
        return [datagram[:HEADER_LENGTH] for datagram in _clear_seeds()]
    values = [part for thing in (*MORE, *(v.expected for v in ALL)) for part in _within(thing)]
    return [_encode(value) for value in values if isinstance(value, cls)] or [bytes(range(64))]


# -- whole messages ------------------------------------------------------------------------------


def _check_message(message: Message) -> None:
    """Against every rule, and every payload as whatever it may be."""
    for rule in RULES:
        try:
            rules.check(rule, message)
        except DecodeError:
            continue
    for payload in message.payloads:
        for cls in bodies().get(payload.kind, ()):
            try:
                payload.parse(cls)
            except DecodeError:
                continue


def check_clear(datagram: bytes) -> bool:
    try:
        message = pull_clear(pull_header(datagram), datagram)
    except DecodeError as error:
        assert 0 <= error.offset <= max(len(datagram), HEADER_LENGTH)
        return False
    _check_message(message)
    return True


def check_decrypted(data: bytes) -> bool:
    """Next Payload of the header, then the plaintext; padded, as a cipher would have it."""
    header = Header(b"\1" * 8, b"\2" * 8, data[0] if data else 0, ExchangeType.GROUPKEY_PUSH, 1)
    plain = data[1:] + bytes(-len(data[1:]) % BLOCK)
    try:
        message = pull_decrypted(header, plain, BLOCK)
    except DecodeError:
        return False
    _check_message(message)
    return True


def _clear_seeds() -> list[bytes]:
    chains = [(vector.expected.TYPE, b"\0" + vector.octets[1:]) for vector in ALL]
    seeds = []
    for exchange in ExchangeType:
        for kind, octets in chains:
            length = HEADER_LENGTH + len(octets)
            header = Header(b"\1" * 8, b"\2" * 8, kind, exchange, 0, 0, length)
            seeds.append(header.encode() + octets)
    return seeds


def _decrypted_seeds() -> list[bytes]:
    """Payloads one after another: each names the next."""
    seeds = [bytes([v.expected.TYPE, 0]) + v.octets[1:] for v in ALL]
    for first, second in pairwise(ALL):
        linked = bytes([second.expected.TYPE]) + first.octets[1:]
        seeds.append(bytes([first.expected.TYPE]) + linked + b"\0" + second.octets[1:])
    return seeds


def targets() -> list[Target]:
    found = [
        Target(f"wire-{name}", partial(check_codec, cls), partial(_codec_seeds, cls))
        for name, cls in codecs().items()
    ]
    return [
        *found,
        Target("message-clear", check_clear, _clear_seeds),
        Target("message-decrypted", check_decrypted, _decrypted_seeds),
    ]
