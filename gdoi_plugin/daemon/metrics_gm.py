"""A member's metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ..protocol.member import GroupMember, MemberState
from .metrics import Family, Sample, answering, counter, gauge, of_both, single
from .web import Answer

if TYPE_CHECKING:
    from .shell import Shell
    from .watch import KernelWatch
    from .whereabouts import Whereabouts

_GROUP = ["group"]
_COUNTERS = (
    ("registrations", "registrations", "Registrations that led to keys"),
    ("rekeys_received", "rekeys_received", "Rekeys that were authentic and new"),
    ("rekeys_installed", "rekeys_installed", "Rekeys that the kernel holds, or held"),
    ("rekeys_refused", "rekeys_refused", "Rekeys refused by policy or by the kernel"),
    ("rekeys_acknowledged", "acknowledged", "Acknowledgements that have left"),
)


Groups = Mapping[str, GroupMember]


def metrics(
    shell: Shell,
    events: Sequence[str],
    groups: Callable[[], Groups],
    watch: KernelWatch,
    whereabouts: Whereabouts,
) -> Answer:
    def families() -> Iterator[Family]:
        yield from of_both(shell, "gdoi-gm", events, shell.store_failure is not None)
        yield from _of_groups(shell, groups())
        yield from _of_kernel(shell, watch)
        yield gauge(
            "gdoi_gm_network",
            "1 where the member's address and interface are there",
            [],
            single(whereabouts.problem is None),
        )

    return answering(families)


def _of_groups(shell: Shell, groups: Groups) -> Iterator[Family]:
    when = shell.time_of_day

    def each(name: str, about: str, read: Callable[[GroupMember], float | None]) -> Family:
        return gauge(name, about, _GROUP, [((name,), read(g)) for name, g in groups.items()])

    yield each(
        "gdoi_gm_registered",
        "1 where the member is registered with the group",
        lambda group: group.state is MemberState.REGISTERED,
    )
    yield gauge(
        "gdoi_gm_sas",
        "SAs by state: installed to receive, sending, or retiring behind a newer one",
        ["group", "state"],
        [sample for name, group in groups.items() for sample in _sas(name, group)],
    )
    yield each(
        "gdoi_gm_sa_expiry_timestamp_seconds",
        "When the first flow is left without an SA unless a rekey comes",
        lambda group: when(_first_end(group)),
    )
    yield each(
        "gdoi_gm_kek_expiry_timestamp_seconds",
        "When rekeys can no longer be read unless a new KEK comes",
        lambda group: when(group.kek.expires) if group.kek else None,
    )
    yield each(
        "gdoi_gm_rekey_seq",
        "SEQ of the last rekey under the current KEK",
        lambda group: group.kek.seq if group.kek else None,
    )
    yield each(
        "gdoi_gm_last_rekey_timestamp_seconds",
        "When the last rekey was installed",
        lambda group: when(group.last_rekey),
    )
    for name, attribute, about in _COUNTERS:
        samples = [((g,), getattr(group.counters, attribute)) for g, group in groups.items()]
        yield counter(f"gdoi_gm_{name}", about, _GROUP, samples)


def _sas(name: str, group: GroupMember) -> list[Sample]:
    sending = set(group.rollover.pinned.values())
    retiring = sum(
        held.retire_at is not None and spi not in sending
        for spi, held in group.rollover.held.items()
    )
    counts = {"sending": len(sending), "retiring": retiring}
    counts["installed"] = len(group.rollover.held) - sum(counts.values())
    return [((name, state), count) for state, count in counts.items()]


def _first_end(group: GroupMember) -> float | None:
    """Each flow lives as long as its newest SA."""
    ends: dict[object, float] = {}
    for held in group.rollover.held.values():
        flow = held.tek.flow
        ends[flow] = max(ends.get(flow, 0.0), held.expires)
    return min(ends.values(), default=None)


def _of_kernel(shell: Shell, watch: KernelWatch) -> Iterator[Family]:
    facts = watch.counters
    yield counter(
        "gdoi_gm_kernel_repairs",
        "How often SAs or policies that others had taken out of the kernel were put back",
        [],
        single(facts.repairs),
    )
    yield gauge(
        "gdoi_gm_kernel_last_repair_timestamp_seconds",
        "When that was last",
        [],
        single(shell.time_of_day(facts.last_repair)),
    )
    yield counter(
        "gdoi_gm_kernel_overruns",
        "How often the kernel's notifications were too many to be read",
        [],
        single(facts.overruns),
    )
    yield gauge(
        "gdoi_gm_kernel_contested",
        "1 while somebody undoes repair after repair",
        [],
        single(watch.contested),
    )
    yield gauge(
        "gdoi_gm_kernel_missing",
        "SAs and policies that the kernel lacks and has refused to take back",
        [],
        single(watch.missing),
    )
