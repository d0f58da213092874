"""A rekey of a million members over 31 Rekey SAs: time until 99.99 % hold the new epoch.

A discrete-event simulation. Each member's losses, delays, acknowledgements and restarts are drawn
one by one, from a seed; sizes and numbers of PUSHes come from the project's own key trees. A time's
bound is what no protocol with this ack_wait can beat: the repetitions that the network's losses
make necessary, and nothing else. What one key server can do in a second are figures of the other
benchmarks: `pushes` and `datagrams` of push, `acks` of ledger, `registrations` of register.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import Any

from gdoi_bench.chart import chart
from gdoi_bench.figure import Figure
from gdoi_bench.population import Network
from gdoi_bench.rollout import KeyServers, Outcome, Rollout, Scenario
from gdoi_plugin.crypto.signature import SCHEMES
from gdoi_plugin.protocol.ack import MAX_JITTER
from gdoi_plugin.protocol.group import DEFAULT_PACE

SHARES = (0.5, 0.99, 0.999, 0.9999)
# With more repetitions than this the network is cut off for good.
MOST_TRIES = 64
ROUNDING = 1e-9
MILLION, REKEY_SAS = 1_000_000, 31
# One core of a virtual x86 machine: `deploy/bench push`, `ledger` (ACKs that are durable while they
# are sent) and `register` print yours.
ONE_SERVER = KeyServers(
    number=1,
    pushes=2_000,
    datagrams=250_000,
    pace=DEFAULT_PACE,
    acks=110_000,
    ack_buffer=100_000,
    registrations=500,
)
DEFAULT = Scenario(
    MILLION,
    REKEY_SAS,
    evicted=100,
    teks=4,
    servers=ONE_SERVER,
    churn=10_000,
)
HELP = {
    "members": "in the group",
    "rekey_sas": "trees of keys that they are spread over",
    "evicted": "members put out at random by this rekey; 0: new TEKs and nothing else",
    "teks": "data SAs",
    "retransmissions": "repetitions of a PUSH to the silent",
    "ack_wait": "seconds until a PUSH is repeated",
    "ack_jitter": f"seconds over which members spread their ACKs, at most {MAX_JITTER:g}",
    "churn": "members that restart in an hour",
    "away": "seconds for which a restarting member is gone, in the mean",
    "tek_lifetime": "seconds",
    "tek_left": "seconds for which the old TEKs would still have lasted",
    "loss": "share of datagrams that are lost one by one",
    "burst_loss": "share of all time for which a path is cut off",
    "burst": "seconds that it is cut off at a time, in the mean",
    "site": "members that share a path",
    "delay": "seconds from a key server to a member, at least",
    "jitter": "seconds that it may take longer",
    "reorder": "share of datagrams that may be overtaken",
    "number": "cores, of one key server or several, that share ACKs and registrations",
    "pushes": "PUSHes made and signed in a second",
    "datagrams": "sent in a second",
    "pace": "members that are sent to in a second, by unicast",
    "acks": "verified and made durable in a second by one of them",
    "ack_buffer": "ACKs that may wait for one of them",
    "registrations": "of members in a second by one of them",
}


def options(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    add = parser.add_argument
    for part in (DEFAULT, DEFAULT.network, DEFAULT.servers):
        for field in dataclasses.fields(part):
            if field.name in HELP:
                default = getattr(part, field.name)
                name = "cores" if field.name == "number" else field.name
                kind: Callable[[str], Any] = int if isinstance(default, int) else float
                kind = float if field.name in ("pushes", "datagrams", "acks", "churn") else kind
                add(
                    f"--{name.replace('_', '-')}", type=kind, default=default, help=HELP[field.name]
                )
    add("--unicast", action="store_true", help="a PUSH for each member instead of multicast")
    add("--signature", choices=sorted(SCHEMES), default=DEFAULT.scheme, help="of PUSHes")
    add("--seed", type=int, default=1, help="of the first run")
    add("--runs", type=int, default=1, help="with a seed each; figures are medians")
    add("--svg", type=Path, help="writes a picture of the first run")


def scenario_of(arguments: argparse.Namespace) -> Scenario:
    values = vars(arguments)

    def taken(part: Any) -> dict[str, Any]:
        names = {field.name for field in dataclasses.fields(part)}
        return {name: values[name] for name in names & values.keys() if name in HELP}

    return dataclasses.replace(
        DEFAULT,
        **taken(DEFAULT),
        network=dataclasses.replace(DEFAULT.network, **taken(DEFAULT.network)),
        servers=dataclasses.replace(
            DEFAULT.servers, **taken(DEFAULT.servers), number=arguments.cores
        ),
        unicast=arguments.unicast,
        scheme=arguments.signature,
    )


def measure(arguments: argparse.Namespace) -> list[Figure]:
    scenario = scenario_of(arguments)
    outcomes = []
    for run in range(arguments.runs):
        print(f"bench: run {run + 1} of {arguments.runs}", file=sys.stderr, flush=True)
        try:
            outcomes.append(Rollout(scenario, arguments.seed + run).run())
        except ValueError as error:
            raise SystemExit(f"bench: {error}") from None
    if arguments.svg is not None:
        arguments.svg.write_text(chart(scenario, outcomes[0]))
    return [*_times(scenario, outcomes), *_counts(scenario, outcomes)]


def quickest(network: Network, share: float, interval: float) -> float | None:
    """Seconds until losses alone let this share hear a PUSH that is repeated each ``interval``."""
    for tries in range(1, MOST_TRIES):
        if network.missed(tries, interval) <= 1 - share + ROUNDING:
            return (tries - 1) * interval + network.delay
    return None


def _times(scenario: Scenario, outcomes: Sequence[Outcome]) -> list[Figure]:
    figures = []
    for share in SHARES:
        taken = statistics.median(outcome.curve.reached(share) for outcome in outcomes)
        name = f"{100 * share:g} % of {scenario.members:,} members hold the new epoch"
        if taken == inf:
            # JSON has no word for it.
            name, taken = f"{name}: not in this time", scenario.tek_left
        bound = quickest(scenario.network, share, scenario.ack_wait)
        figures.append(Figure(name, taken, "s", bound=bound))
    return figures


def _counts(scenario: Scenario, outcomes: Sequence[Outcome]) -> list[Figure]:
    def median(count: Callable[[Outcome], float]) -> float:
        return statistics.median(count(outcome) for outcome in outcomes)

    attempts = max(len(outcome.silent) for outcome in outcomes)
    room = scenario.servers.ack_buffer * scenario.servers.number
    return [
        Figure("PUSHes", median(lambda o: o.pushes), "datagrams"),
        Figure("what they hold", median(lambda o: o.octets) / 1e6, "MB"),
        *(
            Figure(
                f"not heard {scenario.ack_wait:g} s after PUSH {n + 1}",
                median(lambda o, n=n: o.silent[n] if n < len(o.silent) else 0),  # type: ignore[misc]
                "members",
            )
            for n in range(attempts)
        ),
        Figure("ACKs that arrived", median(lambda o: o.acks), "datagrams"),
        Figure("ACKs that found no room", median(lambda o: o.acks_lost), "datagrams"),
        Figure(
            "most ACKs that waited; bound: room for them",
            median(lambda o: o.backlog),
            "datagrams",
            bound=None if room == inf else room,
        ),
        Figure("missed every PUSH, registered later", median(lambda o: o.missed), "members"),
        Figure("restarted meanwhile", median(lambda o: o.restarted), "members"),
    ]
