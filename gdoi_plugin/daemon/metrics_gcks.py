"""A key server's metrics. Of its members there are numbers by state, and none of each."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import HistogramMetricFamily

from ..protocol.group import Group
from .metrics import Family, Sample, answering, counter, gauge, of_both, single
from .survey import ROUND_TRIPS, GroupView, Surveyor, Totals
from .web import Answer, Request, Response

if TYPE_CHECKING:
    from .gcks import KeyServerDaemon

_GROUP = ["group"]


def metrics(daemon: KeyServerDaemon, events: tuple[str, ...], surveyor: Surveyor) -> Answer:
    async def look(_: Request) -> Response:
        await surveyor.look()
        return Response(b"")

    def families() -> Iterator[Family]:
        yield from of_both(daemon, "gdoi-gcks", events, daemon.trouble is not None)
        yield from _of_groups(daemon, surveyor)
        yield from _of_totals(daemon, surveyor)
        yield from _of_phase1(daemon)
        yield from _of_receiving(daemon)
        leads, fence = daemon.role
        yield gauge("gdoi_gcks_leader", "1 at the key server that rekeys", [], single(leads))
        yield gauge(
            "gdoi_gcks_fence",
            "How many leaders there have been when this one became it; 0: it is none, or alone",
            [],
            single(fence),
        )

    return answering(families, look)


def _of_groups(daemon: KeyServerDaemon, surveyor: Surveyor) -> Iterator[Family]:
    members: list[Sample] = []
    for key, group in daemon.engine.groups.items():
        counts = surveyor.views.get(key, GroupView()).counts
        members += [((group.config.name, str(state)), n) for state, n in counts.items()]
    yield gauge(
        "gdoi_gcks_members",
        "Registered members by state; pending and missing have not acknowledged the last rekey",
        ["group", "state"],
        members,
    )
    named = [(group.config.name, group) for group in daemon.engine.groups.values()]
    when = daemon.time_of_day

    def each(name: str, about: str, samples: Iterator[tuple[str, float | None]]) -> Family:
        return gauge(name, about, _GROUP, [((group,), value) for group, value in samples])

    yield each(
        "gdoi_gcks_group_epoch",
        "Epoch of the group's policy: each rekey opens one",
        ((name, group.epoch) for name, group in named),
    )
    yield each(
        "gdoi_gcks_evicted_members",
        "Members that an operator keeps out",
        ((name, len(group.denied)) for name, group in named),
    )
    yield each(
        "gdoi_gcks_last_rekey_timestamp_seconds",
        "When the last rekey for everybody was sent first",
        ((name, when(page.first_sent)) for name, g in named if (page := g.last_rekey())),
    )
    yield each(
        "gdoi_gcks_next_rekey_timestamp_seconds",
        "When the next rekey is due",
        ((name, when(group.next_rekey()[0])) for name, group in named if group.sas),
    )
    yield each(
        "gdoi_gcks_kek_expiry_timestamp_seconds",
        "When the KEK that ends first does so",
        ((name, when(min((sa.kek.expires for sa in g.sas), default=None))) for name, g in named),
    )
    yield each(
        "gdoi_gcks_tek_expiry_timestamp_seconds",
        "When the TEK that ends first, of those that are not replaced yet, does so",
        ((name, when(_first_end(group))) for name, group in named),
    )


def _first_end(group: Group) -> float | None:
    return min((t.expires for t in group.teks if t.retire_at is None), default=None)


def _of_totals(daemon: KeyServerDaemon, surveyor: Surveyor) -> Iterator[Family]:
    totals = [(g.config.name, surveyor.totals(key)) for key, g in daemon.engine.groups.items()]
    yield counter(
        "gdoi_gcks_rekeys",
        "Rekeys of the group, those of other key servers included",
        _GROUP,
        [((name,), total.rekeys) for name, total in totals],
    )
    yield counter(
        "gdoi_gcks_rekey_rounds",
        "How often rekeys were said, repetitions included",
        _GROUP,
        [((name,), total.said) for name, total in totals],
    )
    yield counter(
        "gdoi_gcks_acks",
        "Acknowledgements that count: one of each member and rekey",
        _GROUP,
        [((name,), total.acks) for name, total in totals],
    )
    round_trips = HistogramMetricFamily(
        "gdoi_gcks_ack_round_trip_seconds",
        "From when a rekey left for a member until its acknowledgement",
        labels=_GROUP,
    )
    for name, total in totals:
        round_trips.add_metric([name], _buckets(total), total.seconds)
    yield round_trips


def _buckets(total: Totals) -> list[tuple[str, float]]:
    bounds = [*(str(bound) for bound in ROUND_TRIPS), "+Inf"]
    return list(zip(bounds, accumulate(total.round_trips), strict=True))


def _of_phase1(daemon: KeyServerDaemon) -> Iterator[Family]:
    isakmp = daemon.engine.isakmp
    yield gauge(
        "gdoi_gcks_phase1_half_open",
        "Phase-1 exchanges that wait for their peer's proof",
        [],
        single(len(isakmp.half_open)),
    )
    yield counter(
        "gdoi_gcks_phase1_evicted",
        "Half-open exchanges given up for others, by the bound that was reached",
        ["bound"],
        [((bound,), isakmp.evicted[bound]) for bound in ("source", "total")],
    )
    yield gauge(
        "gdoi_gcks_phase1_established",
        "Phase-1 SAs with members",
        [],
        single(len(isakmp.sessions)),
    )


def _of_receiving(daemon: KeyServerDaemon) -> Iterator[Family]:
    facts = daemon.acks.facts()
    yield gauge(
        "gdoi_gcks_receive_buffer_bytes",
        "Room for acknowledgements that was asked of the kernel; 0 before the first rekey",
        [],
        single(facts["buffer"]),
    )
    yield counter(
        "gdoi_gcks_receive_buffer_drops",
        "Datagrams that the kernel dropped because the receive buffer was full",
        [],
        single(facts["dropped"]),
    )
