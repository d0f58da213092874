"""How answers are shown: columns of the tables, times and numbers, JSON.

What a list command's item may hold stands in `COLUMNS`, once; the keys are those on the wire.
Text in answers may have come from the network, a member's identity for one: control characters
in it are shown as escapes, so that nobody writes on the operator's terminal.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gdoi_plugin.cli.client import Fields


def plain(value: Any) -> str:
    """`value` in one line without control characters."""
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value)
    if isinstance(value, dict):
        return " ".join(f"{plain(key)}={plain(item)}" for key, item in value.items())
    text = str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def duration(seconds: float) -> str:
    """The two largest units: 3d 4h, 12m 5s, 40s."""
    units = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    left = int(seconds)
    parts: list[str] = []
    for unit, size in units:
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2]) or "0s"


def moment(value: Any) -> str:
    """Unix time as local time and distance from now."""
    when = float(value)
    away = time.time() - when
    near = f"{duration(away)} ago" if away >= 0 else f"in {duration(-away)}"
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(when))} ({near})"


def remaining(value: Any) -> str:
    return duration(max(float(value), 0))


def round_trip(value: Any) -> str:
    seconds = float(value)
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def quantity(value: Any) -> str:
    return f"{int(value):,}"


@dataclass(frozen=True, slots=True)
class Column:
    key: str
    heading: str = ""
    show: Callable[[Any], str] = plain
    right: bool = False

    @property
    def title(self) -> str:
        return self.heading or self.key.replace("-", " ")

    def cell(self, item: Fields) -> str:
        """The text for `item`; a value that is not what it should be is shown as it came."""
        value = item.get(self.key, "")
        if value in ("", []):
            return "-"
        try:
            return self.show(value)
        except (ValueError, TypeError, OverflowError, OSError):
            return plain(value)


def _counts(*keys: str) -> tuple[Column, ...]:
    return tuple(Column(key, right=True) for key in keys)


COLUMNS: dict[str, tuple[Column, ...]] = {
    "list-group": (
        Column("group"),
        Column("name"),
        Column("state"),
        Column("key-server"),
        *_counts("epoch", "seq"),
        Column("kek-spi", "KEK SPI"),
        Column("transport"),
        Column("key-management", "keys"),
        *_counts("trees", "leaves", "capacity", "denied"),
        *_counts("members", "acknowledged", "pending", "missing"),
        Column("sas", "SAs", right=True),
        Column("sender-ids", "SIDs"),
        Column("next-sender-id", "next SID", right=True),
        *_counts("sid-bits"),
        Column("next-rekey", show=moment),
        Column("last-rekey", show=moment),
        *_counts("rekeys-received", "rekeys-installed", "rekeys-acknowledged"),
    ),
    "list-member": (
        Column("group"),
        Column("identity"),
        Column("address"),
        Column("state"),
        Column("ike", "IKE"),
        Column("registered", show=moment),
        Column("last-ack", "last ACK", show=moment),
        Column("rtt", "ACK time", show=round_trip, right=True),
        *_counts("acknowledged", "missed", "tree", "leaf"),
    ),
    "list-rekey": (
        Column("group"),
        *_counts("epoch", "seq"),
        Column("reason"),
        Column("sent", show=moment),
        *_counts("expected", "acknowledged"),
        Column("missing"),
    ),
    "list-sa": (
        Column("group"),
        Column("spi", "SPI"),
        Column("source"),
        Column("destination"),
        Column("mode"),
        Column("algorithm"),
        Column("direction"),
        Column("oid", "OID"),
        Column("auth"),
        Column("conf"),
        Column("state"),
        Column("remaining", show=remaining, right=True),
        Column("bytes", show=quantity, right=True),
        Column("packets", show=quantity, right=True),
    ),
    "rekey-sa": (
        Column("spi", "Rekey SA"),
        Column("algorithm"),
        Column("signature"),
        Column("source"),
        Column("destination"),
        *_counts("port"),
        Column("ack", "ACK"),
        *_counts("seq"),
        Column("lifetime", show=remaining, right=True),
        Column("remaining", show=remaining, right=True),
        Column("state"),
    ),
    "data-sa": (
        Column("spi", "data SA"),
        Column("source"),
        Column("destination"),
        *_counts("protocol", "source-port", "destination-port"),
        Column("mode"),
        Column("address-preservation", "addresses"),
        Column("algorithm"),
        Column("direction"),
        Column("oid", "OID"),
        Column("payload"),
        Column("auth"),
        Column("conf"),
        Column("sa-atd", "SA_ATD", show=remaining, right=True),
        Column("sa-kda", "SA_KDA", right=True),
        Column("esn", "ESN"),
        Column("lifetime", show=remaining, right=True),
        Column("lifetime-kilobytes", "KiB", show=quantity, right=True),
        Column("remaining", show=remaining, right=True),
        Column("state"),
    ),
    "change": (Column("key"), Column("before"), Column("after")),
    "list-key": (
        Column("group"),
        Column("spi", "SPI"),
        Column("oid", "OID"),
        Column("payload"),
        Column("auth"),
        Column("conf"),
        Column("state"),
        Column("send-from", show=moment),
        Column("remaining", show=remaining, right=True),
        Column("auth-key"),
        Column("conf-key"),
    ),
}


def table(event: str, items: Sequence[Fields]) -> Table:
    """The items of a list command; columns that none of them fills are left out."""
    result = Table(box=None, pad_edge=False, header_style="bold")
    columns = [column for column in COLUMNS[event] if any(column.key in item for item in items)]
    for column in columns:
        result.add_column(
            column.title, justify="right" if column.right else "left", overflow="fold"
        )
    for item in items:
        result.add_row(*(Text(column.cell(item)) for column in columns))
    return result


def flat(section: Fields, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Sections inside sections with dots between their names."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def console() -> Console:
    """A terminal's width for a terminal; into a pipe or file lines are never broken."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 2000)


def say(line: str) -> None:
    print(plain(line), flush=True)


def note(line: str) -> None:
    print(f"gdoictl: {plain(line)}", file=sys.stderr, flush=True)


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=2), flush=True)
