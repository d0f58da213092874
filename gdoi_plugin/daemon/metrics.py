"""Prometheus metrics: what both daemons have, and how a scrape goes.

Whatever is asked for is read from the engine at the scrape; no label has an identity or a key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import choose_encoder

from .. import __version__
from ..protocol.actions import Drop
from .web import Answer, Request, Response, refusal

if TYPE_CHECKING:
    from .shell import Shell

PATH = "/metrics"
# Beside the engine's reasons: what met a bug of ours, and what came while the database was away.
REASONS = (*(str(reason) for reason in Drop), "bug", "no-database")
# Beside the events that control clients can listen to: what daemons only log.
LOGGED = (
    "ack-process-ended",
    "bug",
    "charon-trust",
    "charon-trust-lost",
    "control",
    "control-group",
    "crl-unreadable",
    "dropped",
    "dropped-more",
    "firewall-failed",
    "keylog-failed",
    "lanes",
    "log-not-reopened",
    "loop",
    "move-failed",
    "nat-traversal-off",
    "not-served",
    "page-failed",
    "rekey-held-back",
    "send-failed",
    "started",
    "stop-failed",
    "stopped",
    "store-failed",
    "store-recovered",
    "unsealed",
)
Family = Any  # prometheus_client's Metric
Labels = tuple[str, ...]
# Label values, and the number; None: there is none now.
Sample = tuple[Labels, float | None]


def gauge(name: str, about: str, labels: Sequence[str], samples: Iterable[Sample]) -> Family:
    return _filled(GaugeMetricFamily(name, about, labels=labels), samples)


def counter(name: str, about: str, labels: Sequence[str], samples: Iterable[Sample]) -> Family:
    """``name`` without ``_total``."""
    return _filled(CounterMetricFamily(name, about, labels=labels), samples)


def _filled(family: Family, samples: Iterable[Sample]) -> Family:
    for labels, value in samples:
        if value is not None:
            family.add_metric(labels, value)
    return family


def single(value: float | None) -> list[Sample]:
    return [((), value)]


class Collected:
    """prometheus_client's collector of what ``families`` tells at a scrape."""

    def __init__(self, families: Callable[[], Iterator[Family]]) -> None:
        self._families = families

    def collect(self) -> Iterator[Family]:
        return self._families()


def answering(families: Callable[[], Iterator[Family]], ready: Answer | None = None) -> Answer:
    """For a web server. ``ready`` is waited for before each scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collected(families))
    ProcessCollector(registry=registry)

    async def answer(request: Request) -> Response:
        if request.path != PATH:
            return refusal(404, f"the metrics are at {PATH}")
        if ready is not None:
            await ready(request)
        encode, content_type = choose_encoder(request.accept)
        return Response(encode(registry), content_type)

    return answer


def of_both(shell: Shell, daemon: str, events: Sequence[str], failing: bool) -> Iterator[Family]:
    """What a member and a key server have in common. ``events``: all that control clients are told
    of."""
    yield InfoMetricFamily(
        "gdoi_build", "What is running", {"daemon": daemon, "version": __version__}
    )
    drops: Mapping[str, int] = shell.log.drops
    yield counter(
        "gdoi_dropped_datagrams",
        "Datagrams that changed nothing, by reason",
        ["reason"],
        [((reason,), drops.get(reason, 0)) for reason in REASONS],
    )
    told: Mapping[str, int] = shell.log.events
    yield counter(
        "gdoi_events",
        "Events of the log, by name",
        ["event"],
        [((event,), told.get(event, 0)) for event in dict.fromkeys((*events, *LOGGED))],
    )
    yield gauge(
        "gdoi_store_failing",
        "1 while the state cannot be saved: nothing is sent that depends on it",
        [],
        single(failing),
    )
