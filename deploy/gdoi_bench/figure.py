"""One measured figure, and how figures are printed."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.table import Table

# Of goals that have been met wherever this was measured.
UNKNOWN = "no known reason; see what else the machine does"


@dataclass(frozen=True, slots=True)
class Figure:
    """``goal`` is the most that ``value`` may be, or with ``at_least`` the least; None where
    nothing was promised. ``bound`` is what the same work costs without us. ``why``: what is known
    of a goal that is not met, for one line."""

    name: str
    value: float
    unit: str
    goal: float | None = None
    bound: float | None = None
    at_least: bool = field(default=False, kw_only=True)
    why: str = field(default=UNKNOWN, kw_only=True)

    @property
    def met(self) -> bool | None:
        """None where there is no goal to meet."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    @property
    def ratio(self) -> float | None:
        return self.value / self.bound if self.bound else None

    def document(self) -> dict[str, object]:
        """What ``--json`` prints of it."""
        ratio = None if self.ratio is None else round(self.ratio, 3)
        why = self.why if self.met is False else None
        shown = {**asdict(self), "ratio": ratio, "met": self.met, "why": why}
        del shown["at_least"]
        return shown


def median_time(work: Callable[[], object], times: int) -> float:
    """Seconds. The median: neither a pause of the machine nor a lucky run counts."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def processor_time(work: Callable[[], object], times: int) -> float:
    """The same, of this process alone: other programs only add what they take from its caches."""
    taken = []
    for _ in range(times):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return statistics.median(taken)


def lower_quartile(taken: Sequence[float]) -> float:
    """For times that are compared with shorter ones: what else the machine does only adds to
    them, and more often to the longer ones, so the median would compare its other work."""
    return sorted(taken)[len(taken) // 4]


def print_figures(figures: Sequence[Figure], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([figure.document() for figure in figures], indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("figure", "value", "unit", "bound", "ratio", "goal", "met"):
        table.add_column(title, justify="left" if title in ("figure", "unit", "met") else "right")
    for figure in figures:
        ratio = "-" if figure.ratio is None else f"{figure.ratio:.2f}"
        relation = ">=" if figure.at_least else "<="
        goal = "-" if figure.goal is None else f"{relation} {_number(figure.goal)}"
        met = {None: "-", True: "yes", False: "NO"}[figure.met]
        bound = "-" if figure.bound is None else _number(figure.bound)
        table.add_row(figure.name, _number(figure.value), figure.unit, bound, ratio, goal, met)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    console.print(table)
    for figure in figures:
        if figure.met is False:
            console.print(f"not met: {figure.name}: {figure.why}", soft_wrap=True)


def _number(value: float) -> str:
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
