"""An engine's whole state as plain values, so that "changed nothing" can be said with ``==``."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from gdoi_plugin.crypto.secret import Secret

# A hint is a word for people, a bad ACK is remembered only to be refused again without an HMAC, and
# what an attacker has cost is counted, so that it costs no more.
NOT_STATE = frozenset(
    {"_hint", "_said", "bad_acks", "_work", "_reading", "_refusing", "_until"}
    # What follows from the rest and is kept because it is asked for often.
    | {"_keks_seen", "_forms_seen", "_expected_acks", "_pushes_prepared", "_to_prepare"}
)
# The offer of a message 1 is remembered whoever sends it, in places that are counted; and messages
# 2 to 4 of main mode are believed until 5 and 6 prove them.
UNPROVED = NOT_STATE | {"half_open", "_by_source", "offers"}


def snapshot(thing: object, without: frozenset[str] = NOT_STATE) -> Any:
    """Nested tuples of everything reachable; ``without`` names attributes that do not count.

    Keys of the cryptography library, functions and random sources stand for themselves: they
    cannot change, or are not state.
    """
    return _plain(thing, without, {})


def _plain(thing: object, without: frozenset[str], seen: dict[int, int]) -> Any:
    if thing is None or isinstance(thing, str | bytes | int | float | Enum):
        return thing
    if isinstance(thing, Secret):
        return ("Secret", thing.reveal())
    if id(thing) in seen:
        return ("again", seen[id(thing)])
    seen[id(thing)] = len(seen)
    if isinstance(thing, Mapping):
        items = ((_plain(k, without, seen), _plain(v, without, seen)) for k, v in thing.items())
        return (type(thing).__name__, *items)
    if isinstance(thing, Set):
        return ("set", *sorted(repr(_plain(item, without, {})) for item in thing))
    if isinstance(thing, list | tuple):
        return (type(thing).__name__, *(_plain(item, without, seen) for item in thing))
    if type(thing).__module__.startswith("gdoi_plugin"):
        return (
            type(thing).__name__,
            *(
                (name, _plain(getattr(thing, name), without, seen))
                for name in _attributes(thing)
                if name not in without
            ),
        )
    return type(thing).__name__


def _attributes(thing: object) -> list[str]:
    if is_dataclass(thing):
        return [field.name for field in fields(thing) if hasattr(thing, field.name)]
    return sorted(getattr(thing, "__dict__", {}))
