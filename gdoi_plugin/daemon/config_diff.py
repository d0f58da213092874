"""What is different between two configurations of one daemon, for an operator to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic.fields import FieldInfo

from .config_values import Section, is_time, written

# Of a list's entries that came or went: what follows is counted.
MAX_NAMED = 16
SECRET, OTHER_SECRET = "(secret)", "(another)"
# The keys that tell entries of a list apart, whatever their order.
_LABELS = ("name", "oid", "address", "destination")


@dataclass(frozen=True, slots=True)
class Change:
    """``before`` and ``after`` as the file has them, empty for what is not there."""

    key: str
    before: str
    after: str


def changes(before: Section, after: Section, prefix: str = "") -> Iterator[Change]:
    """Of two sections of one kind, key by key. Secrets are compared and not shown."""
    for name, field in type(before).model_fields.items():
        old, new = getattr(before, name), getattr(after, name)
        if old == new:
            continue
        key = prefix + name
        if isinstance(old, Section) and isinstance(new, Section):
            yield from changes(old, new, f"{key}.")
        elif _sections(old) or _sections(new):
            yield from _entries(key, old, new)
        elif isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
            yield from _items(key, old, new)
        elif not field.repr:
            yield Change(key, SECRET if old else "", (OTHER_SECRET if old else SECRET) * bool(new))
        else:
            yield Change(key, _shown(field, old), _shown(field, new))


def _sections(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(item, Section) for item in value)


def _entries(key: str, before: Sequence[Section], after: Sequence[Section]) -> Iterator[Change]:
    """Entries with the same label are one that has changed."""
    old, new = labelled(before), labelled(after)
    for label, section in old.items():
        if label in new:
            yield from changes(section, new[label], f"{key}[{label}].")
        else:
            yield Change(f"{key}[{label}]", "there", "")
    for label in new.keys() - old.keys():
        yield Change(f"{key}[{label}]", "", "new")


def labelled(sections: Sequence[Section]) -> dict[str, Section]:
    """By what an operator calls them; a second one of a name has its number."""
    seen: Counter[str] = Counter()
    found: dict[str, Section] = {}
    for section in sections:
        label = next((str(getattr(section, n)) for n in _LABELS if hasattr(section, n)), "")
        seen[label] += 1
        found[label if seen[label] == 1 else f"{label} {seen[label]}"] = section
    return found


def _items(key: str, before: Sequence[object], after: Sequence[object]) -> Iterator[Change]:
    """What has gone and what has come; a list in another order is another list."""
    was, now = Counter(map(str, before)), Counter(map(str, after))
    gone, come = list((was - now).elements()), list((now - was).elements())
    if not gone and not come:
        yield Change(key, "", "in another order")
    for text in _named(gone):
        yield Change(key, text, "")
    for text in _named(come):
        yield Change(key, "", text)


def _named(texts: Sequence[str]) -> list[str]:
    more = len(texts) - MAX_NAMED
    return [*texts[:MAX_NAMED], *([f"{more} more"] if more > 0 else [])]


def _shown(field: FieldInfo, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)) and is_time(field):
        return written(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)
