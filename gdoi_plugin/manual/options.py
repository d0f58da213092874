"""The options of both configuration files: names, bounds and defaults from the models, meanings
from the tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from gdoi_xfrm import Mark
from pydantic.fields import FieldInfo

from ..daemon.config_gcks import _ServerFile
from ..daemon.config_member import _MemberFile
from ..daemon.config_values import Between, OneOf, Section, is_time, written
from ..protocol.actions import Peer
from ..protocol.group_id import GroupId
from .options_common import COMMON
from .options_gcks import GCKS
from .options_gm import GM

Meanings = Mapping[str, Mapping[str, str]]
FILES: dict[str, tuple[type[Section], Meanings]] = {
    "gm.toml": (_MemberFile, GM),
    "gcks.toml": (_ServerFile, GCKS),
}
_WORDS: dict[type, str] = {
    bool: "true or false",
    int: "a number",
    str: "text",
    Path: "the name of a file",
    Mark: "a mark",
    GroupId: "a number or text",
    IPv4Address: "an address",
    IPv6Address: "an address",
    IPv4Network: "a network",
    IPv6Network: "a network",
    Peer: "an address and port",
}


class Undescribed(Exception):
    """The sentence says where to describe the option."""


@dataclass(frozen=True, slots=True)
class Option:
    """``default`` as TOML has it, empty for none; ``allowed`` in words."""

    name: str
    required: bool
    default: str
    allowed: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Table:
    """A section of a file: ``[member]``, ``[[group.key_server]]``."""

    path: str
    header: str
    meaning: str
    options: Sequence[Option]


def tables(file: str) -> list[Table]:
    """Of ``gm.toml`` or ``gcks.toml``, in the order of a file. Raises Undescribed."""
    model, meanings = FILES[file]
    return list(_tables(file, model, meanings, ""))


def _tables(file: str, model: type[Section], meanings: Meanings, path: str) -> Iterator[Table]:
    for name, field in model.model_fields.items():
        inner = _section(field)
        if inner is None:
            continue
        whole = f"{path}.{name}" if path else name
        many = get_origin(field.annotation) is list
        header = f"[[{whole}]]" if many else f"[{whole}]"
        options = [
            _option(file, whole, key, value, meanings)
            for key, value in inner.model_fields.items()
            if _section(value) is None
        ]
        options.sort(key=lambda option: (not option.required, option.name))
        yield Table(whole, header, _meaning(file, path, name, meanings), options)
        yield from _tables(file, inner, meanings, whole)


def described(file: str) -> set[tuple[str, str]]:
    """Section and option of every row of the file's own table of meanings."""
    return {(path, name) for path, rows in FILES[file][1].items() for name in rows}


def _section(field: FieldInfo) -> type[Section] | None:
    for candidate in (field.annotation, *get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def _option(file: str, path: str, name: str, field: FieldInfo, meanings: Meanings) -> Option:
    meaning = _meaning(file, path, name, meanings)
    required = field.is_required()
    default = "" if required else _toml(field, field.default)
    return Option(name, required, default, _allowed(field.annotation, field.metadata), meaning)


def _meaning(file: str, path: str, name: str, meanings: Meanings) -> str:
    text = meanings.get(path, {}).get(name) or COMMON.get(name)
    if text is None:
        where = f"gdoi_plugin/manual/options_{file.removesuffix('.toml')}.py"
        raise Undescribed(
            f"option {name} of [{path}] in {file} is not described: add it to {where}"
        )
    return text


def _toml(field: FieldInfo, value: object) -> str:
    if value is None or value == []:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return json.dumps(written(value)) if is_time(field) else str(value)
    if isinstance(value, (str, Path)):
        return json.dumps(str(value))
    if isinstance(value, list):
        return json.dumps(value)
    return json.dumps(str(value))


def _allowed(annotation: Any, metadata: Sequence[Any]) -> str:
    """In words, with the bounds that the model checks."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _allowed(inner, (*metadata, *more))
    checks = [getattr(check, "func", None) for check in metadata]
    bounds = next((c for c in checks if isinstance(c, (Between, OneOf))), None)
    if isinstance(bounds, OneOf):
        return str(bounds)
    if isinstance(bounds, Between):
        return f"a time, {bounds}" if bounds.times else f"a number, {bounds}"
    if "parse_duration" in {getattr(check, "__name__", "") for check in checks}:
        return "a time"
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}" if len(parts) > 1 else f'"{parts[0]}"'
    if origin in (list, tuple):
        return f"an array of {_plural(_allowed(parts[0], ()))}"
    if origin in (Union, UnionType):
        kinds = [_allowed(part, ()) for part in parts if part is not NoneType]
        return " or ".join(dict.fromkeys(kinds))
    if annotation not in _WORDS:
        raise Undescribed(f"what {annotation} is in words: add it to _WORDS of {__name__}")
    return _WORDS[annotation]


def _plural(words: str) -> str:
    """Of "a network", "the name of a file", "one of this, that"."""
    if words.startswith('"'):
        return words
    if words == "the name of a file":
        return "names of files"
    if words.startswith("one of "):
        return f"any of {words.removeprefix('one of ')}"
    if words.startswith("a number, "):
        return f"numbers{words.removeprefix('a number')}"
    return {"text": "texts"}.get(
        words, words.partition(" ")[2] + ("es" if words[-1] == "s" else "s")
    )
