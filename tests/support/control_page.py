"""What deploy/docs/control.md says of commands and events, as data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "deploy" / "docs" / "control.md"
DAEMONS = ("gdoi-gcks", "gdoi-gm")
_SECTION = re.compile(r"^### `([a-z-]+)`\n(.*?)(?=^### |\Z)", re.DOTALL | re.MULTILINE)
_BULLET = re.compile(r"^\* (\w+)(?: of (gdoi-\w+))?: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Keys:
    """``a.*`` is a section whose keys are names of something."""

    always: frozenset[str]
    sometimes: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> Keys:
        sometimes = re.findall(r"\(`([^`]+)`\)", text)
        always = re.findall(r"`([^`]+)`", re.sub(r"\(`[^`]+`\)", "", text))
        return cls(frozenset(always), frozenset(sometimes))

    @property
    def all(self) -> frozenset[str]:
        return self.always | self.sometimes

    def complaints(self, message: Mapping[str, object]) -> list[str]:
        """What the page has not, and what the message has not."""
        open_ended = {key.removesuffix(".*") for key in self.all if key.endswith(".*")}
        got = set(_flat(message, open_ended))
        found = [f"{key} is not in the page" for key in got - self.all]
        missing = {key.removesuffix(".*") for key in self.always} - {
            g.removesuffix(".*") for g in got
        }
        return sorted([*found, *(f"{key} is not in the message" for key in missing)])


def _flat(message: Mapping[str, object], open_ended: set[str], before: str = "") -> list[str]:
    found: list[str] = []
    for key, value in message.items():
        name = before + key
        if name in open_ended:
            found.append(f"{name}.*")
        elif isinstance(value, Mapping):
            found += _flat(value, open_ended, f"{name}.")
        else:
            found.append(name)
    return found


NONE = Keys(frozenset(), frozenset())


@dataclass
class Command:
    """``lines``: of each bullet, by its first word and the daemon that it is about."""

    name: str
    daemons: frozenset[str] = frozenset()
    event: str = ""
    lines: dict[tuple[str, str], Keys] = field(default_factory=dict)

    def keys(self, what: str, daemon: str) -> Keys:
        return self.lines.get((what, daemon)) or self.lines.get((what, "")) or NONE


def commands() -> dict[str, Command]:
    found: dict[str, Command] = {}
    text = PAGE.read_text().split("\n## Commands\n")[1].split("\n## Events\n")[0]
    for name, body in _SECTION.findall(text):
        command = found[name] = Command(name)
        for word, about, rest in _BULLET.findall(body):
            if word == "of":
                command.daemons = frozenset(re.findall(r"`(gdoi-\w+)`", rest))
            elif word == "event":
                command.event = rest.strip("`")
            else:
                assert word in ("request", "answer", "item"), f"{name}: {word}"
                command.lines[word, about] = Keys.parse(rest)
    return found


def events(daemon: str) -> dict[str, Keys]:
    """Those of one daemon; an event of both may have a row for each."""
    text = PAGE.read_text().split("\n## Events\n")[1]
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| ([^|]*) \| ([^|]*) \|", text, re.MULTILINE)
    found: dict[str, Keys] = {}
    for name, of, keys in rows:
        if daemon in re.findall(r"gdoi-\w+", of):
            assert name not in found, f"{name} of {daemon} has two rows"
            found[name] = Keys.parse(keys)
    return found
