"""Both daemons as tests run them, with their metrics on Unix sockets, and what a scrape of each
says after a registration and two rekeys."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain

from gdoi_plugin.daemon.gcks import KeyServerDaemon
from gdoi_plugin.daemon.gm import MemberDaemon
from tests.daemon.fetching import fetch
from tests.daemon.test_daemons import Pair, option, pages, rekeyed, together, until

OPEN_METRICS = "Accept: application/openmetrics-text; version=1.0.0"
Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Scrape:
    """``values`` by name and labels, as they were said; ``families`` as they were declared."""

    text: str
    families: dict[str, Metric]
    values: dict[tuple[str, Labels], float]

    def value(self, name: str, **labels: str) -> float:
        return self.values[name, frozenset(labels.items())]

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.values}


async def scrape(path: Path, *fields: str) -> Scrape:
    got = await fetch(path, "/metrics", *fields)
    assert got.status == 200
    parse = open_metrics if "openmetrics" in got.headers["content-type"] else plain
    families = {family.name: family for family in parse(got.text)}
    samples = [sample for family in families.values() for sample in family.samples]
    values = {(s.name, frozenset(s.labels.items())): s.value for s in samples}
    assert len(values) == len(samples), "nothing twice"
    return Scrape(got.text, families, values)


def sockets(pair: Pair) -> tuple[Path, Path]:
    """The key server's and the member's."""
    those = pair.folder / "gcks-metrics.sock", pair.folder / "gm-metrics.sock"
    option(pair, f'metrics = "{those[1]}"')
    text = pair.gcks.read_text()
    wanted = f'[key_server]\nmetrics = "{those[0]}"\n'
    pair.gcks.write_text(text.replace("[key_server]\n", wanted))
    return those


Look = Callable[[KeyServerDaemon, MemberDaemon, Path, Path], Awaitable[None]]


def rekeyed_twice(pair: Pair, look: Look) -> None:
    """``look`` at both when all is acknowledged."""
    server_at, member_at = sockets(pair)

    async def scenario(server: KeyServerDaemon, member: MemberDaemon) -> None:
        await rekeyed(server, member)
        await rekeyed(server, member, kek="yes")
        await until(lambda: pages(server) == [(1, 1), (1, 1)], "acknowledged")
        await look(server, member, server_at, member_at)

    together(pair, scenario)


def both(pair: Pair, *fields: str) -> tuple[Scrape, Scrape]:
    found: list[Scrape] = []

    async def look(_: KeyServerDaemon, __: MemberDaemon, gcks: Path, gm: Path) -> None:
        found.extend([await scrape(gcks, *fields), await scrape(gm, *fields)])

    rekeyed_twice(pair, look)
    return found[0], found[1]


@pytest.fixture
def scrapes(pair: Pair) -> tuple[Scrape, Scrape]:
    """Of the key server and the member, in Prometheus' own format."""
    return both(pair)
