"""What a command of the control socket may be asked: its keys, checked before it runs.

A key that a command does not know is most likely a mistyped one, which would otherwise be taken
for a wish to have it at its default: it is refused, and so is a value of another kind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from .vici_message import Message

_SPI = re.compile(r"0x[0-9a-f]{1,8}")


class CommandFailed(Exception):
    """A handler's way to say no: the client gets success = no and this text as errmsg."""


class Kind(StrEnum):
    """What a value may be, as the documentation calls it."""

    TEXT = "text"
    YES_NO = "yes or no"
    LIST = "list"


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a request."""

    kind: Kind = Kind.TEXT
    required: bool = False


Keys: TypeAlias = Mapping[str, Key]

GROUP: Keys = {"group": Key()}
THE_GROUP: Keys = {"group": Key(required=True)}


def check(command: str, request: Message, keys: Keys) -> None:
    """Raises CommandFailed with what is wrong and what is allowed."""
    for name, value in request.items():
        if name not in keys:
            known = f"{command} takes {', '.join(keys)}" if keys else f"{command} takes none"
            raise CommandFailed(f"unknown key {name!r}; {known}")
        _check_kind(name, value, keys[name].kind)
    for name, key in keys.items():
        if key.required and not request.get(name):
            raise CommandFailed(f"{name} is missing; {command} needs it")


def _check_kind(name: str, value: object, kind: Kind) -> None:
    if kind is Kind.LIST:
        if not isinstance(value, list) or not value:
            raise CommandFailed(f"{name} must be a list, with at least one item")
    elif not isinstance(value, str):
        what = "a list" if isinstance(value, list) else "a section"
        raise CommandFailed(f"{name} is {what}, must be {kind}")
    elif kind is Kind.YES_NO and value not in ("yes", "no"):
        raise CommandFailed(f"{name} is {value!r}, must be yes or no")


def yes(request: Message, key: str) -> bool:
    return request.get(key, "no") == "yes"


def spi_of(request: Message) -> str:
    """As SAs are called everywhere: eight hexadecimal digits after 0x."""
    text = str(request.get("spi", "")).lower()
    if not _SPI.fullmatch(text):
        raise CommandFailed(f"spi {request.get('spi')!r} is no SPI; write it as 0x1a2b3c4d")
    return f"0x{int(text, 16):08x}"
