"""Watches the kernel: what others take out of it that is ours is put back.

::

    event of somebody else's change  ->  Lost  ->  OwnTables.mend  ->  Restored
    overrun, start, now and then     ->  compare  ^

A repair begins as soon as the loss is read. What others do to their own SAs and policies costs a
look at a dictionary. Somebody who undoes repair after repair is met with pauses that grow to
:data:`LONGEST_PAUSE`, in which nothing is read either; so is a kernel that has thrown away events
again and again, whoever changes what: comparisons would take all of the processor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gdoi_xfrm import (
    DefaultChanged,
    Event,
    KernelError,
    Monitor,
    Overrun,
    PolicyAdded,
    PolicyDeleted,
    PolicyExpired,
    PolicyFlushed,
    PolicyUpdated,
    SaDeleted,
    SaExpired,
    SaFlushed,
    SaUpdated,
    policy_differences,
    sa_differences,
)

from .errors import StoreError
from .guard import Guard
from .notices import Contested, Exhausted, Expired, Notice, NotRestored, NotSaved, Restored
from .own_tables import Lost, OwnTables

# Repairs that follow each other at once; so many within this time are a quarrel.
SPACING = 0.01
BURST = 10
WINDOW = 10.0
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 1.0
# A repair that the kernel refuses is tried again; after so many refusals new keys may help.
FIRST_RETRY = 0.1
LONGEST_RETRY = 30.0
PATIENCE = 3
# How far the SAs have counted is asked so often, or seldom enough to cost one part in a hundred.
COUNT_INTERVAL = 2.0
COUNT_SHARE = 0.01
COMPARE_INTERVAL = 120.0
# Octets of events that may wait while the daemon is busy with something else.
RECEIVE_BUFFER = 1 << 20
# FLUSHSA's protocol: all of them.
_EVERY_PROTOCOL = (0, 255)


@dataclass(slots=True)
class Pace:
    """When the next repair may begin: at once, unless repairs do not last."""

    next_at: float = 0.0
    contested: bool = False
    _recent: list[float] = field(default_factory=list)
    _pause: float = 0.0

    def repaired(self, now: float) -> bool:
        """True where a quarrel begins."""
        self._recent = [at for at in self._recent if at > now - WINDOW] + [now]
        before, self.contested = (
            self.contested,
            len(self._recent) > (2 if self.contested else BURST),
        )
        self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE) if self.contested else 0
        self.next_at = now + max(self._pause, SPACING)
        return self.contested and not before

    def compared(self, began: float, now: float) -> None:
        """Since events were missed: no more than half of the time is for that."""
        self.repaired(now)
        self.next_at = max(self.next_at, now + (now - began))


@dataclass(slots=True)
class Retry:
    """When a repair that the kernel refused is tried again."""

    at: float = 0.0
    refusals: int = 0
    _delay: float = FIRST_RETRY

    def refused(self, now: float) -> None:
        self.refusals += 1
        self.at = now + self._delay
        self._delay = min(2 * self._delay, LONGEST_RETRY)


@dataclass(slots=True)
class Counters:
    repairs: int = 0
    last_repair: float | None = None
    overruns: int = 0


class KernelWatch:
    """Listens from :meth:`start` on; ``tell`` hears of everything, also that nothing is left.

    ``guard``: its policies are ours even where they were found in place, and never put there.
    """

    def __init__(
        self,
        tables: OwnTables,
        now: Callable[[], float],
        tell: Callable[[Sequence[Notice]], None],
        guard: Guard,
        receive_buffer: int = RECEIVE_BUFFER,
    ) -> None:
        self.counters = Counters()
        self._receive_buffer = receive_buffer
        self._tables, self._now, self._tell, self._guard = tables, now, tell, guard
        # None in the pauses of a quarrel, too.
        self._monitor: Monitor | None = None
        self._lost = Lost()
        # What the kernel refused to take back.
        self._left = Lost()
        # Events were missed: only a comparison tells what is lost.
        self._unsure = False
        # Because the kernel has thrown them away.
        self._overrun = False
        # Somebody has changed what happens to packets that no policy matches; maybe we ourselves.
        self._default_changed = False
        self._noticed: float | None = None
        self._pace, self._retry = Pace(), Retry()
        # When a comparison that the kernel refused may be tried again.
        self._ask_at = 0.0
        self._count_at = self._compare_at = 0.0

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listens, then compares: nothing is missed in between. Raises KernelError."""
        self._open()
        now = self._now()
        self._count_at, self._compare_at = now + COUNT_INTERVAL, now + COMPARE_INTERVAL
        self._unsure = True
        self._tell(self._step())

    def close(self) -> None:
        if self._monitor is not None:
            asyncio.get_running_loop().remove_reader(self._monitor.fileno())
            self._monitor.close()
            self._monitor = None

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` will next have something to do."""
        due = self._due
        if self._monitor is None:
            return due
        regular = min(self._count_at, self._compare_at)
        return regular if due is None else min(regular, due)

    @property
    def _due(self) -> float | None:
        """When a repair may begin; None where there is nothing to repair."""
        if self._lost or self._default_changed:
            return self._pace.next_at
        times = [self._retry.at] if self._left else []
        if self._unsure or self._tables.uncertain:
            times.append(self._ask_at)  # whatever else the kernel refuses: more may be lost
        return max(self._pace.next_at, min(times)) if times else None

    def tick(self, now: float) -> None:
        if self._monitor is None:
            if self._due is None or now < self._due:
                return
            try:
                self._open()
            except KernelError as error:  # no memory, no file descriptor: there may be later
                self._unsure = True
                self._tell(self._refused(self._left, error))
                self._pace.next_at = self._retry.at
                return
        notices = [*self._read(), *self._look(now)]
        self._tell([*notices, *self._step()])

    def _open(self) -> None:
        self._monitor = Monitor(self._tables.pid, self._receive_buffer)
        asyncio.get_running_loop().add_reader(self._monitor.fileno(), self._readable)

    @property
    def contested(self) -> bool:
        """Whether somebody undoes repair after repair, as of late."""
        last = self.counters.last_repair
        return self._pace.contested and last is not None and self._now() - last < WINDOW

    @property
    def missing(self) -> int:
        """SAs and policies that are not in the kernel as they should be."""
        return sum(
            len(lost.sas | lost.altered) + len(lost.policies) for lost in (self._lost, self._left)
        )

    # -- what has happened -----------------------------------------------------------------------

    def _readable(self) -> None:
        self._tell([*self._read(), *self._step()])

    def _read(self) -> list[Notice]:
        if self._monitor is None:
            return []
        notices: list[Notice] = []
        try:
            events = self._monitor.read()
        except KernelError:  # what cannot be read may have been about something of ours
            events = [Overrun()]
        for event in events:
            if isinstance(event, Overrun):
                self.counters.overruns += 1
                self._unsure = self._overrun = True
            else:
                notices += self._take(event)
        if self._noticed is None and self._due is not None:
            self._noticed = self._now()
        return notices

    def _take(self, event: Event) -> list[Notice]:
        """What somebody else's change does to what is ours."""
        sas, policies, lost = self._tables.sas, self._tables.policies, self._lost
        match event:
            case DefaultChanged():
                self._default_changed = True
            case SaDeleted() if event.key in sas:
                lost.sas.add(event.key)
                self._tables.deleted(event.key, event.state)
            case SaFlushed():
                every = event.protocol in _EVERY_PROTOCOL
                for key in [key for key in sas if every or key.protocol == event.protocol]:
                    lost.sas.add(key)
                    self._tables.deleted(key, None)
            case SaUpdated() if event.state.sa.key in sas:
                if sa_differences(sas[event.state.sa.key].sa, event.state.sa) == ("lifetime",):
                    lost.altered.add(event.state.sa.key)
            case SaExpired() if event.key in sas:
                if event.hard:
                    self._tables.expired(event.key)
                return [Expired(event.key, event.hard)]
            case PolicyDeleted() | PolicyExpired():
                lost.policies |= {event.key} & policies.keys()
            case PolicyFlushed():
                lost.policies |= policies.keys()
            case PolicyAdded() | PolicyUpdated() if event.policy.key in policies:
                if policy_differences(policies[event.policy.key], event.policy):
                    lost.policies.add(event.policy.key)
        return []

    def _look(self, now: float) -> list[Notice]:
        """The regular questions: how far have the SAs counted, is everything still there?"""
        if now >= self._compare_at:
            self._compare_at = now + COMPARE_INTERVAL
            self._unsure = True
        if now < self._count_at:
            return []
        notices: list[Notice] = []
        try:
            self._lost.add(self._tables.look_at_sas())
            self._tables.save_numbers()
        except KernelError:
            self._unsure = True
        except StoreError as error:
            notices.append(NotSaved(str(error)))
        self._count_at = now + max(COUNT_INTERVAL, (self._now() - now) / COUNT_SHARE)
        return [*notices, *self._exhausted()]

    def _exhausted(self) -> list[Notice]:
        sas = self._tables.exhausted()
        return [Exhausted(sas)] if sas else []

    # -- and what becomes of it ------------------------------------------------------------------

    def _step(self) -> list[Notice]:
        """A repair, where there is something to repair and its time has come."""
        now, due = self._now(), self._due
        if self._monitor is None or due is None or now < due:
            return []
        noticed, self._noticed = self._noticed or now, None
        self._default_changed = False
        lost, self._lost, left = self._lost, Lost(), self._left
        lost.add(left)
        try:
            default = self._guard.hold_default()
            if self._unsure or self._tables.uncertain:
                self._tables.own(self._guard.policies())
                lost.add(self._tables.compare())
        except KernelError as error:
            self._unsure = True
            refused = self._refused(lost, error)
            self._ask_at = self._retry.at
            return refused
        overrun, self._overrun = self._overrun, False
        self._unsure, self._left, self._ask_at = False, Lost(), 0.0
        repairs = self.counters.repairs
        if overrun:
            self._pace.compared(now, self._now())
        notices: list[Notice] = []
        if lost or default:
            # The kernel takes an SA whose time is up out before it says so: that one is no loss.
            notices += self._read()
            notices += self._mend(lost, noticed, default=default)
        else:
            self._retry = Retry()
        # Not where all that there was to do is refused: nobody quarrels about that.
        if self._pace.contested and (overrun or self.counters.repairs > repairs):
            self._pause()
        return notices

    def _mend(self, lost: Lost, noticed: float, *, default: bool) -> list[Notice]:
        mended = self._tables.mend(lost)
        now = self._now()
        notices: list[Notice] = []
        if mended or default:
            self.counters.repairs += 1
            self.counters.last_repair = now
            notices.append(Restored(mended.sas, mended.policies, now - noticed, default=default))
        notices += self._exhausted()
        if mended.error is not None:
            notices += self._refused(mended.left, mended.error)
        else:
            self._retry = Retry()
        if (mended or default) and self._pace.repaired(now):
            notices.append(Contested(BURST, WINDOW))
        return notices

    def _pause(self) -> None:
        """What happens meanwhile only a comparison will tell: it costs nothing now."""
        self.close()
        self._unsure = True

    def _refused(self, left: Lost, error: KernelError) -> list[Notice]:
        """Told once, and once more where it is time to ask for new keys."""
        self._left = left
        self._retry.refused(self._now())
        give_up = self._retry.refusals == PATIENCE
        if self._retry.refusals > 1 and not give_up:
            return []
        sas = [*left.sas, *left.altered]
        return [NotRestored(sas, list(left.policies), str(error), give_up)]
