"""One measured figure, and how figures are printed."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figure:
    """``goal`` is the most that ``value`` may be, None where nothing was promised; ``bound`` what
    the same work costs without us."""

    name: str
    value: float
    unit: str
    goal: float | None = None
    bound: float | None = None

    @property
    def met(self) -> bool | None:
        """None where there is no goal to meet."""
        return None if self.goal is None else self.value <= self.goal

    def document(self) -> dict[str, object]:
        ratio = None if not self.bound else round(self.value / self.bound, 3)
        return {**asdict(self), "ratio": ratio, "met": self.met}


def median_time(work: Callable[[], object], times: int) -> float:
    """Seconds. The median: neither a pause of the machine nor a lucky run counts."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
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
        ratio = "-" if not figure.bound else f"{figure.value / figure.bound:.2f}"
        goal = "-" if figure.goal is None else f"<= {figure.goal:,g}"
        met = {None: "-", True: "yes", False: "NO"}[figure.met]
        bound = "-" if figure.bound is None else f"{figure.bound:,.4g}"
        value = f"{figure.value:,.4g}" if figure.value < 1000 else f"{figure.value:,.0f}"
        table.add_row(figure.name, value, figure.unit, bound, ratio, goal, met)
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)
