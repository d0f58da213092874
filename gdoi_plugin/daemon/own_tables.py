"""What this daemon has put into the kernel, and how to put it back as it was.

Every transaction goes through here and is remembered once the kernel has agreed. An SA that comes
back, in whatever way, goes on with the sequence numbers and octets that it had: receivers with a
replay window would drop numbers that they have seen, and old packets must not be taken again.
That holds over the end of this process, too: see ``daemon.numbers``.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from gdoi_xfrm import (
    AddPolicy,
    AddSa,
    DeletePolicy,
    DeleteSa,
    InstallSa,
    KernelError,
    Operation,
    Outcome,
    Policy,
    PolicyKey,
    Result,
    Sa,
    SaKey,
    SaState,
    UpdatePolicy,
    UpdateSa,
    Xfrm,
    policy_differences,
    sa_differences,
)

from .numbers import Numbers

# As many as a member holds at once: none of an honest rollover's is forgotten.
MAX_PAST = 2048


@dataclass(frozen=True, slots=True)
class OwnSa:
    """An SA as it is to be put back, with numbers that were right at ``at``.

    ``still``: they are right now, since the kernel has it no more.
    """

    sa: Sa
    at: float
    still: bool = False

    def continued(self, now: float) -> Sa:
        """To be installed in its place: no number below is free for sure, so none is used."""
        return self.sa if self.still else self.sa.unseen(now - self.at)

    @property
    def exhausted(self) -> bool:
        """It can receive, and sends nothing: the kernel never begins at 1 again."""
        return self.sa.output_sequence == self.sa.last_number

    def gone(self, now: float) -> OwnSa:
        """From now on it counts no further."""
        return self if self.still else OwnSa(self.continued(now), now, still=True)

    def learned(self, state: SaState, at: float, *, still: bool = False) -> OwnSa:
        """With what the kernel has counted. Numbers never go back, whatever comes in what order."""
        sa = replace(
            self.sa,
            output_sequence=max(self.sa.output_sequence, state.output_sequence),
            input_sequence=max(self.sa.input_sequence, state.input_sequence),
            usage=state.usage,
        )
        return OwnSa(sa, at, still)

    def is_of(self, sa: Sa) -> bool:
        """Whether both are one SA, which must use no number twice, and not only one SPI."""
        return (self.sa.key, self.sa.algorithm, self.sa.esn) == (sa.key, sa.algorithm, sa.esn)


@dataclass(slots=True)
class Lost:
    """What the kernel should hold and does not, or not as it should."""

    sas: set[SaKey] = field(default_factory=set)
    # There, with other lifetimes.
    altered: set[SaKey] = field(default_factory=set)
    policies: set[PolicyKey] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.sas or self.altered or self.policies)

    def note(self, key: SaKey | PolicyKey) -> None:
        if isinstance(key, PolicyKey):
            self.policies.add(key)
        else:
            self.sas.add(key)

    def add(self, other: Lost) -> None:
        self.sas |= other.sas
        self.altered |= other.altered
        self.policies |= other.policies


@dataclass(slots=True)
class Mended:
    """What has been put back; what could not be, and the first reason why."""

    sas: list[SaKey] = field(default_factory=list)
    policies: list[PolicyKey] = field(default_factory=list)
    left: Lost = field(default_factory=Lost)
    error: KernelError | None = None

    def __bool__(self) -> bool:
        return bool(self.sas or self.policies)


class OwnTables(Xfrm):
    """The kernel's tables, with a memory of what is this daemon's in them."""

    def __init__(self, now: Callable[[], float], numbers: Numbers | None = None) -> None:
        super().__init__()
        self._now = now
        self._numbers = numbers or Numbers()
        self.sas: dict[SaKey, OwnSa] = {}
        self.policies: dict[PolicyKey, Policy] = {}
        # Whose time is up, or which are taken out, also by a transaction that failed. Should they
        # come again, they go on.
        self._past: dict[SaKey, OwnSa] = {}
        # Of those that may have used every sequence number, whom :meth:`exhausted` has told of.
        self._exhausted: set[SaKey] = set()
        # A transaction failed and could not be undone: nobody knows what the kernel holds.
        self.uncertain = False

    # -- what is put in --------------------------------------------------------------------------

    def transaction(self, operations: Sequence[Operation]) -> list[Result]:
        """Raises KernelError, and StoreError where SAs are installed: nothing is changed then."""
        began = self._now()
        try:
            results = super().transaction(operations)
        except KernelError as error:
            self.uncertain |= bool(error.not_undone)
            raise
        for asked, result in zip(operations, results, strict=True):
            if isinstance(asked, InstallSa) and result.outcome is Outcome.ADOPTED:
                self._adopt(asked.sa, result, began)
            else:
                self._remember(result.operation, began)
        return results

    def _remember(self, operation: Operation, at: float) -> None:
        match operation:
            case AddSa() | InstallSa() | UpdateSa():
                self.sas[operation.key] = OwnSa(operation.sa, at)
                self._past.pop(operation.key, None)
            case DeleteSa() if operation.key in self.sas:
                self.expired(operation.key)
            case AddPolicy() | UpdatePolicy():
                self.policies[operation.key] = operation.policy
            case DeletePolicy():
                self.policies.pop(operation.key, None)

    def missing(self, sas: Sequence[Sa]) -> Sequence[Sa]:
        """A rekey or registration brings an SA again that somebody may have taken out.

        Raises StoreError.
        """
        now = self._now()
        continued = [self._continued(sa, now) for sa in sas]
        self._reserve(continued, now)
        for sa in continued:  # should one be in and not be undone, only the reservation counts
            self._past.pop(sa.key, None)
        return continued

    def undone(self, sas: Sequence[Sa]) -> None:
        """What the kernel has refused has used nothing: trying again costs no numbers."""
        now = self._now()
        for sa in sorted(sas, key=lambda sa: sa.output_sequence):  # of one SA's, the highest
            own = self.sas.get(sa.key)
            if own is not None and own.is_of(sa):
                known = replace(own.sa, output_sequence=sa.output_sequence)
                self.sas[sa.key] = OwnSa(known, now, still=True)
            else:
                self._ended(OwnSa(sa, now, still=True))

    def _continued(self, sa: Sa, now: float) -> Sa:
        known = (self.sas.get(sa.key), self._past.get(sa.key))
        former = next((own for own in known if own is not None and own.is_of(sa)), None)
        if former is None:  # then this member may have its last numbers
            return self._numbers.continued(sa, now)
        own = former.continued(now)
        # Of its seconds the caller gives what is left; of its octets, all.
        usage = None if own.usage is None else replace(own.usage, added_time=int(time.time()))
        return replace(
            sa,
            output_sequence=own.output_sequence,
            input_sequence=own.input_sequence,
            usage=usage,
        )

    def _reserve(self, new: Iterable[Sa], now: float) -> None:
        """Before any of them can send."""
        unreserved = [sa for sa in new if not self._numbers.reserved(sa)]
        if unreserved and not self._numbers.add(unreserved, now):
            self._keep([*self._running(), *unreserved])

    def save_numbers(self, *, at_once: bool = False) -> None:
        """For the next process; as a rule only where it is time to. Raises StoreError."""
        running = self._running()
        if at_once or self._numbers.due(running, self._now()):
            self._keep(running)

    def _running(self) -> list[Sa]:
        return [own.sa for own in self.sas.values() if not own.still]

    def _keep(self, running: Iterable[Sa]) -> None:
        ended = [own.sa for own in [*self._past.values(), *self.sas.values()] if own.still]
        self._numbers.keep(running, ended, self._now())

    def _adopt(self, asked: Sa, result: Result, at: float) -> None:
        """Its numbers and lifetimes are those it had before. What is ours already the next look at
        all SAs tells of: an ACK may be waiting."""
        known = self.sas.get(asked.key)
        if known is not None and not known.still:
            return
        state, own = result.found, known or OwnSa(asked, at)
        if state is not None:
            former = OwnSa(replace(own.sa, lifetime=state.sa.lifetime), own.at)
            own = former.learned(state, at)
        self.sas[asked.key] = own

    def own(self, policies: Iterable[Policy]) -> None:
        """What the kernel has for them is this daemon's, or they themselves if it has nothing."""
        new = [policy for policy in policies if policy.key not in self.policies]
        found = self.get_policies([policy.key for policy in new])
        for policy, there in zip(new, found, strict=True):
            self.policies[policy.key] = there or policy

    def expired(self, key: SaKey) -> None:
        """An SA whose time is up, or its octets: it is not put back."""
        self._ended(self.sas.pop(key).gone(self._now()))

    def _ended(self, own: OwnSa) -> None:
        self._past[own.sa.key] = own
        while len(self._past) > MAX_PAST:
            del self._past[next(iter(self._past))]

    # -- what has become of it -------------------------------------------------------------------

    def deleted(self, key: SaKey, state: SaState | None) -> None:
        """By somebody else; ``state``: the kernel's last words on it, if it had any."""
        own, now = self.sas[key], self._now()
        known = own.gone(now) if state is None else own.learned(state, now, still=True)
        self.sas[key] = known

    def look_at_sas(self) -> Lost:
        """Notes how far every SA has counted."""
        lost, at = Lost(), self._now()
        keys = list(self.sas)
        for key, state in zip(keys, self.get_sas(keys), strict=True):
            own = self.sas[key]
            if state is None or state.larval:
                self.deleted(key, None)
                lost.sas.add(key)
                continue
            differing = sa_differences(own.sa, state.sa)
            if differing == ("lifetime",):
                lost.altered.add(key)
            elif differing:
                lost.sas.add(key)
                continue
            self.sas[key] = own.learned(state, at)
        return lost

    def exhausted(self) -> list[SaKey]:
        """Those that send nothing any more, each once."""
        used = {key for key, own in self.sas.items() if own.exhausted}
        new, self._exhausted = used - self._exhausted, used
        return list(new)

    def compare(self) -> Lost:
        """Everything that is ours; nothing of others' is looked at."""
        lost, keys = self.look_at_sas(), list(self.policies)
        for key, found in zip(keys, self.get_policies(keys), strict=True):
            if found is None or policy_differences(self.policies[key], found):
                lost.policies.add(key)
        self.uncertain = False
        return lost

    # -- putting it back -------------------------------------------------------------------------

    def mend(self, lost: Lost) -> Mended:
        """Policies first, without them packets go out in clear; as much as can be."""
        now, mended = self._now(), Mended()
        own_policies = lost.policies & self.policies.keys()
        policies = [UpdatePolicy(self.policies[key]) for key in own_policies]
        sas: list[Operation] = [
            InstallSa(self.sas[key].continued(now)) for key in lost.sas & self.sas.keys()
        ]
        sas += [UpdateSa(self.sas[key].sa) for key in lost.altered & self.sas.keys() - lost.sas]
        for result in [*self._each(policies), *self._each(sas)]:
            self._note(self._oust(result), mended, now)
        return mended

    def _oust(self, result: Result) -> Result:
        """An SA that was put where ours was, under our reqid, which is nobody else's: it goes.

        Where the kernel does not tell whose it is, it stays.
        """
        refused = result.error is not None and result.error.errno == errno.EEXIST
        if not refused or not isinstance(result.operation, InstallSa):
            return result
        try:
            there = self.find_sa(result.operation.key)
        except KernelError:
            return result
        if there is None or there.sa.reqid != result.operation.sa.reqid:
            return result
        return self.apply([DeleteSa(result.operation.key), result.operation])[-1]

    def _each(self, operations: Sequence[Operation]) -> list[Result]:
        """``apply`` skips what comes after something that fails."""
        results: list[Result] = []
        while operations:
            done = self.apply(operations)
            results += [result for result in done if result.outcome is not Outcome.SKIPPED]
            operations = [r.operation for r in done if r.outcome is Outcome.SKIPPED]
        return results

    def _note(self, result: Result, mended: Mended, now: float) -> None:
        key = result.operation.key
        if result.error is not None:
            mended.error = mended.error or result.error
            mended.left.note(key)
        elif isinstance(key, PolicyKey):
            mended.policies.append(key)
        elif result.outcome is Outcome.ADOPTED:  # nothing is missing any more
            self.sas[key] = replace(self.sas[key], still=False)
        else:
            self._remember(result.operation, now)
            mended.sas.append(key)
