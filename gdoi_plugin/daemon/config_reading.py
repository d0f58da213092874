"""Reading a configuration file: errors name the file, the key, and what is allowed."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from .config_values import Section
from .errors import ConfigError

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
S = TypeVar("S", bound=Section)


def read_file(path: Path, model: type[S]) -> S:
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise ConfigError(path, "", error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        # tomllib's own errors, octets that are not UTF-8, numbers and nesting beyond all measure.
        raise ConfigError(path, "", f"not TOML: {error}") from None
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise ConfigError(path, _key(first["loc"]), _allowed(first, model)) from None


def _key(location: Sequence[int | str]) -> str:
    """``group.0.rekey.address``; a key that TOML wants quoted is quoted, so it stays one line."""
    return ".".join(
        str(part) if isinstance(part, int) or _BARE_KEY.fullmatch(part) else json.dumps(part)
        for part in location
    )


# pydantic's words are Python's; an operator writes TOML.
_ALLOWED = {
    "missing": "missing",
    "model_type": "must be a table",
    "list_type": "must be an array",
    "int_type": "must be a whole number",
    "string_type": "must be a string",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
}


def _allowed(error: Any, model: type[BaseModel]) -> str:
    if error["type"] == "extra_forbidden":
        known = ", ".join(sorted(_fields_at(model, error["loc"][:-1])))
        return f"unknown key; known here: {known}"
    if error["type"] in _ALLOWED:
        return _ALLOWED[error["type"]]
    return str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")


def _fields_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The keys a section may have."""
    for part in location:
        if isinstance(part, int):
            continue
        annotation: Any = model.model_fields[part].annotation
        for candidate in (annotation, *getattr(annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return list(model.model_fields)


def unique(path: Path, key: str, values: Sequence[Hashable]) -> None:
    for value, count in Counter(values).items():
        if count > 1:
            raise ConfigError(path, key, f"{value} twice")
