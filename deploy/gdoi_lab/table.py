"""The lab scenarios' table: what was sent, received, lost and in clear, a row for each stretch.

Scenarios are tests below tests/lab; each reports its rows into the results folder, and
`deploy/lab scenarios` and `deploy/test` print them. A row is an account and no verdict: whether
all is as it should be is what the test asserts, and ``note`` says what a loss is due to.
"""

import json
import os
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

# A file for each process: two lab kernels can share the folder, but not append to one file.
ROWS = "scenarios-{}.jsonl"
_OURS = ROWS.format(secrets.token_hex(4))
_TITLES = ("scenario", "sent", "received", "lost", "in clear", "seconds", "rekeys", "note")


@dataclass(frozen=True, slots=True)
class Row:
    """One stretch of traffic.

    sent: packets that members sent, by the traffic program's account
    received: of these, arrivals at the other members: each packet has as many as there are
    lost: arrivals that failed to come
    clear: packets of members to the group that a capture saw outside of ESP and AH
    seconds: how long there was traffic
    rekeys: distinct rekeys that the key server sent meanwhile
    note: why something is lost on purpose, or what was measured besides ("restored in 12 ms")
    """

    scenario: str
    sent: int
    received: int
    lost: int
    clear: int
    seconds: float
    rekeys: int = 0
    note: str = ""


def report(row: Row) -> None:
    """Adds a row to the run's table; does nothing outside of a lab run (no GDOI_LAB_RESULTS)."""
    results = os.environ.get("GDOI_LAB_RESULTS")
    if results is None:
        return
    with (Path(results) / _OURS).open("a") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def read_rows(results: Path) -> list[Row]:
    """The rows that were reported into a results folder, by scenario."""
    files = sorted(results.glob(ROWS.format("*")))
    rows = [Row(**json.loads(line)) for file in files for line in file.read_text().splitlines()]
    return sorted(rows, key=lambda row: row.scenario)


def format_rows(rows: Iterable[Row]) -> str:
    """The table as text, numbers to the right."""
    names = [field.name for field in fields(Row)]
    cells = [[_cell(getattr(row, name)) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(_TITLES, *cells, strict=True)]
    lines = []
    for line in (_TITLES, *cells):
        first, *numbers, note = line
        middle = "".join(f"  {n:>{w}}" for n, w in zip(numbers, widths[1:-1], strict=True))
        lines.append(f"{first:<{widths[0]}}{middle}  {note}".rstrip())
    return "\n".join(lines)


def _cell(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)
