"""Which TEKs a member holds, which one each flow sends with, and when that changes.

RFC 5374 section 4.2.1 and RFC 6407 section 5.4.1: a new SA receives at once, sends after ATD, and
the SAs it replaces go after DTD. A change is planned, carried out by the kernel, and only then
committed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..crypto.secret import Secret
from ..wire.delete import Delete
from ..wire.registry import EncapsulationMode, SaDirection, TekProtocol
from .actions import IPAddress
from .errors import PolicyError
from .policy import Flow, GroupPolicy, Tek
from .record import Record, read_tek, tek_record

# Eight times what one message can bring: no honest rollover overlaps as much.
MAX_HELD = 2048
# What an inbound policy wants of packets: the kernel can only ask for one of each.
Form = tuple[TekProtocol, EncapsulationMode]
# The generation of a TEK that was being replaced when it was received; all others count from 1.
OUTGOING = 0


@dataclass(frozen=True, slots=True)
class Held:
    """An installed TEK. Times in Unix seconds; ``retire_at`` None: until it expires."""

    tek: Tek
    generation: int
    active_from: float
    expires: float
    retire_at: float | None = None

    def record(self) -> Record:
        return {
            "tek": tek_record(self.tek),
            "generation": self.generation,
            "active_from": self.active_from,
            "expires": self.expires,
            "retire_at": self.retire_at,
        }

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Held:
        """What ``record`` gave. Raises KeyError, ValueError or TypeError for anything else."""
        retire_at = entry["retire_at"]
        return cls(
            read_tek(entry["tek"]),
            int(entry["generation"]),
            float(entry["active_from"]),
            float(entry["expires"]),
            None if retire_at is None else float(retire_at),
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What the kernel is to do, and the table as it will be once it has."""

    add: tuple[Tek, ...]
    outbound: tuple[Tek, ...]
    remove: tuple[Tek, ...]
    held: Mapping[bytes, Held]
    pinned: Mapping[Flow, bytes]
    inbound: tuple[Tek, ...]
    forms: Mapping[Flow, Form]
    released: tuple[Tek, ...]
    yielded: frozenset[Flow]
    # The TEK that each flow was sent with which is received alone from now on.
    silenced: tuple[Tek, ...] = ()

    @property
    def empty(self) -> bool:
        changed = self.add or self.outbound or self.remove or self.inbound
        return not (changed or self.released or self.silenced)

    def changes(self, before: Rollover) -> list[tuple[str, Tek]]:
        """For operators: an event for each TEK that comes, is sent with from now on, or goes."""
        came = [("sa-installed", tek) for tek in self.add if tek.spi not in before.held]
        sends = [
            ("sa-sending", tek) for tek in self.outbound if before.pinned.get(tek.flow) != tek.spi
        ]
        went = [
            ("sa-removed", held.tek) for spi, held in before.held.items() if spi not in self.held
        ]
        return [*came, *sends, *went]


@dataclass(slots=True)
class Rollover:
    """The member's TEK table. ``local`` is its address: it decides where the member may send."""

    local: IPAddress
    held: Mapping[bytes, Held] = field(default_factory=dict)
    pinned: Mapping[Flow, bytes] = field(default_factory=dict)
    # What the flows' inbound policies want, and flows whose packets are others' now.
    forms: Mapping[Flow, Form] = field(default_factory=dict)
    yielded: frozenset[Flow] = frozenset()
    # TEKs whose octets are used up, and when their time would have been: not to be taken again,
    # though the key server may still offer them.
    spent: dict[bytes, float] = field(default_factory=dict)
    # SPIs whose successor has been asked for, and flows that had a TEK which is spent.
    _asked: set[bytes] = field(default_factory=set)
    _lacking: set[Flow] = field(default_factory=set)

    def may_send(self, tek: Tek) -> bool:
        return tek.sent_by(self.local)

    def check(self, policy: GroupPolicy) -> None:
        """Raises PolicyError for what Linux, or the RFC, does not let this member do."""
        new = sum(tek.spi not in self.held for tek in policy.ipsec)
        if len(self.held) + new > MAX_HELD:
            raise PolicyError(f"{len(self.held)} TEKs are held and {new} more are too many")
        for tek in policy.ipsec:
            self._check_counter_mode(tek)
            known = self.held.get(tek.spi)
            if known is not None and _keys(known.tek) != _keys(tek):
                raise PolicyError(f"SPI {tek.name} is in use with another key")
            if tek.direction is SaDirection.SENDER_ONLY and not self.may_send(tek):
                raise PolicyError(
                    f"SPI {tek.name}: Sender-Only for {tek.flow}, and this member is {self.local}"
                )

    def _check_counter_mode(self, tek: Tek) -> None:
        """RFC 6407 section 3.5: no two senders may share a counter-mode key without Sender-IDs.

        The kernel chooses its own IVs, so a Sender-ID cannot be honoured; only a TEK with one
        sender is safe to send with.
        """
        if tek.suite.counter_mode and self.may_send(tek) and not tek.flow.one_sender:
            raise PolicyError(
                f"SPI {tek.name}: {tek.suite.keyword} may not be shared by several senders,"
                " Linux cannot use Sender-IDs; the key server must give each sender its own TEK"
            )

    # -- plans -----------------------------------------------------------------------------------

    def receive(
        self, policy: GroupPolicy, deletes: Iterable[Delete], now: float, *, at_once: bool = False
    ) -> Plan:
        """A PUSH's policy, or with ``at_once`` a PULL's: everybody else has its TEKs already.

        Whatever is held for the policy's flows is asked of the kernel again: an acknowledgement
        says that the kernel holds it, and somebody may have flushed its tables.
        """
        held = dict(self.held)
        policy = self._without_spent(policy, now, whole=at_once)
        leaders = self._leaders(policy, now)
        # Flows that get a newer TEK than the one they have.
        renewed = {flow for flow, spi in leaders.items() if spi not in held}
        self._delete(held, deletes, policy, leaders.keys(), now)
        removed = tuple(self.held[spi].tek for spi in self.held if spi not in held)
        if policy.deactivation_delay is not None:
            for spi, old in held.items():
                if old.tek.flow in renewed:
                    held[spi] = _retire(old, now + policy.deactivation_delay)
        generation = max((h.generation for h in self.held.values()), default=0)
        active = {h.tek.flow for h in held.values() if h.active_from <= now}
        busy = _by_destination(active)
        for tek in policy.ipsec:
            if tek.spi in held:
                continue
            end = now + tek.lifetime
            if leaders[tek.flow] != tek.spi:
                # On its way out already: it receives, and its end asks for nothing.
                held[tek.spi] = Held(tek, OUTGOING, now, end, retire_at=end)
                continue
            generation += 1
            waits = not at_once and (tek.flow in active or _overlaps_any(tek.flow, busy))
            delay = policy.activation_delay or 0 if waits else 0
            held[tek.spi] = Held(tek, generation, now + delay, end)
        asked = tuple(
            _with_remaining(h, now)
            for h in held.values()
            if h.tek.flow in leaders
            and h.expires > now
            and (h.tek.spi not in self.held or not h.tek.lifetime_kilobytes)
        )
        return self._plan(held, now, add=asked, remove=removed, confirm=leaders.keys())

    def _leaders(self, policy: GroupPolicy, now: float) -> dict[Flow, bytes]:
        """Of several TEKs for one flow the one that lives longest is the newest."""
        ends: dict[Flow, tuple[float, bytes]] = {}
        for tek in policy.ipsec:
            known = self.held.get(tek.spi)
            end = now + tek.lifetime if known is None else min(known.expires, now + tek.lifetime)
            if tek.flow not in ends or end >= ends[tek.flow][0]:
                ends[tek.flow] = (end, tek.spi)
        return {flow: spi for flow, (_, spi) in ends.items()}

    def resume(self, saved: Mapping[bytes, Held], now: float) -> Plan:
        """A former run's TEKs, installed where the kernel lacks them, and gone if their time is up.

        The kernel knows of lifetimes, but not that a TEK was to retire while nobody was there.
        No time is believed that lies further ahead than the TEK's whole life: the clock that
        wrote it was.
        """
        bounded = {spi: _bounded(h, now) for spi, h in saved.items()}
        held = {spi: h for spi, h in bounded.items() if _end(h) > now}
        add = tuple(_with_remaining(h, now) for h in held.values())
        over = tuple(h.tek for spi, h in saved.items() if spi not in held)
        return self._plan(held, now, add=add, remove=over)

    def advance(self, now: float) -> Plan:
        """Activations and retirements that are due."""
        pinned = self._choose(self.held, now, self._yield(self.held, now))
        held = {
            spi: h
            for spi, h in self.held.items()
            if spi not in self.spent
            and (_end(h) > now or (pinned.get(h.tek.flow) == spi and h.expires > now))
        }
        removed = tuple(h.tek for spi, h in self.held.items() if spi not in held)
        return self._plan(held, now, add=(), remove=removed)

    def commit(self, plan: Plan) -> None:
        self.held, self.pinned = plan.held, plan.pinned
        self.forms, self.yielded = plan.forms, plan.yielded

    def deadline(self, now: float) -> float | None:
        """When ``advance`` will next have something to do."""
        times = [h.active_from for h in self.held.values() if h.active_from > now]
        for spi, h in self.held.items():
            sending = self.pinned.get(h.tek.flow) == spi
            times.append(h.expires if sending else _end(h))
        return min(times, default=None)

    # -- what the kernel counts ------------------------------------------------------------------

    def expiring(self, spi: bytes) -> Held | None:
        """A TEK that wants a successor and has none; told once."""
        self._asked &= self.held.keys()
        held = self.held.get(spi)
        if held is None or spi in self._asked or self._succeeded(held):
            return None
        self._asked.add(spi)
        return held

    def spend(self, spi: bytes) -> None:
        """The kernel has taken it away: the next ``advance`` does without."""
        held = self.held[spi]
        self.spent[spi] = held.expires
        self._lacking.add(held.tek.flow)

    @property
    def lacks(self) -> bool:
        """Whether a flow has no TEK any more because octets were used up, and wants a new one."""
        return bool(self._lacking - {h.tek.flow for h in self.unspent})

    def again(self, held: Held, now: float) -> Plan:
        """Installs what the kernel no longer has."""
        return self._plan(
            self.held, now, add=(_with_remaining(held, now),), remove=(), confirm={held.tek.flow}
        )

    def _succeeded(self, held: Held) -> bool:
        return held.retire_at is not None or any(
            h.tek.flow == held.tek.flow and h.generation > held.generation for h in self.unspent
        )

    @property
    def unspent(self) -> list[Held]:
        return [h for spi, h in self.held.items() if spi not in self.spent]

    def _without_spent(self, policy: GroupPolicy, now: float, *, whole: bool) -> GroupPolicy:
        """``whole``: flows that it does not have are none of the group's any more."""
        self.spent = {spi: end for spi, end in self.spent.items() if end > now}
        if not self.spent:
            self._lacking.clear()
            return policy
        if whole and policy.ipsec:
            self._lacking &= {tek.flow for tek in policy.ipsec}
        spent = [tek for tek in policy.ipsec if tek.spi in self.spent]
        self._lacking |= {tek.flow for tek in spent}
        return replace(policy, teks=tuple(tek for tek in policy.teks if tek not in spent))

    # -- inside ----------------------------------------------------------------------------------

    def _delete(
        self,
        held: dict[bytes, Held],
        deletes: Iterable[Delete],
        policy: GroupPolicy,
        replaced: Collection[Flow],
        now: float,
    ) -> None:
        """RFC 6407 section 5.9. A TEK that this PUSH replaces may finish its DTD, also where it is
        heard again and its successor is known; SPI 0 may not.

        It is replaced by any for some of the same packets: flows may have been changed.
        """
        keep = {tek.spi for tek in policy.ipsec}
        deletes = list(deletes)
        replacing = _by_destination(replaced) if deletes else {}
        for delete in deletes:
            if delete.protocol_id == TekProtocol.KEK:
                continue
            mine = {s for s, h in held.items() if h.tek.protocol == delete.protocol_id} - keep
            for spi in set(delete.spis):  # SPI 0 a thousand times is a thousand tables to go over
                if not any(spi):
                    for other in mine & held.keys():
                        del held[other]
                elif spi in mine and spi in held:
                    old = held.pop(spi)
                    finishes = _overlaps_any(old.tek.flow, replacing)
                    if finishes and policy.deactivation_delay:
                        held[spi] = _retire(old, now + policy.deactivation_delay)

    def _best(
        self, held: Mapping[bytes, Held], now: float, use: Callable[[Tek], bool]
    ) -> dict[Flow, Held]:
        """Of each flow's TEKs of that use: the newest active one, else the newest there is."""
        best: dict[Flow, Held] = {}
        for candidate in held.values():
            over = candidate.expires <= now or candidate.tek.spi in self.spent
            if over or not use(candidate.tek):
                continue
            known = best.get(candidate.tek.flow)
            if known is None or _rank(candidate, now) > _rank(known, now):
                best[candidate.tek.flow] = candidate
        return best

    def _choose(
        self, held: Mapping[bytes, Held], now: float, yielded: frozenset[Flow]
    ) -> dict[Flow, bytes]:
        """The TEK each flow sends with. A new flow waits where others serve its packets until its
        TEK's time has come, and one that is replaced by others sends no more."""
        best = self._senders(held, now)
        new = {f for f, h in best.items() if h.active_from > now and f not in self.pinned}
        ready = _by_destination(best.keys() - new) if new else {}
        waiting = {flow for flow in new if _overlaps_any(flow, ready)} | yielded
        return {flow: h.tek.spi for flow, h in best.items() if flow not in waiting}

    def _senders(self, held: Mapping[bytes, Held], now: float) -> dict[Flow, Held]:
        """Of each flow the best TEK to send with; none where it is being replaced by one that is
        for receiving alone: RFC 5374 section 4.2.1 has nobody hold its keys beyond DTD."""
        newest = self._best(held, now, _for_anything)
        best = {flow: h for flow, h in newest.items() if self.may_send(h.tek)}
        if len(best) < len(newest):
            for flow, h in self._best(held, now, self.may_send).items():
                if newest[flow].active_from > now or _end(h) == h.expires:
                    best.setdefault(flow, h)
        return best

    def _yield(self, held: Mapping[bytes, Held], now: float) -> frozenset[Flow]:
        """Flows that are on their way out, and whose packets an active TEK of another serves.

        Also one that this member may not send with: from then on the others expect its packets
        from those alone who may (RFC 5374 section 4.2.1 has ATD for the whole group).
        """
        outgoing = {h.tek.flow for h in held.values() if h.retire_at is not None}
        if not outgoing:
            return frozenset()
        current = [h for spi, h in held.items() if h.retire_at is None and spi not in self.spent]
        outgoing.difference_update([h.tek.flow for h in current])
        if not outgoing:
            return frozenset()
        active = _by_destination(h.tek.flow for h in current if h.active_from <= now)
        return frozenset(flow for flow in outgoing if _overlaps_any(flow, active))

    def _plan(
        self,
        held: Mapping[bytes, Held],
        now: float,
        add: tuple[Tek, ...],
        remove: tuple[Tek, ...],
        confirm: Collection[Flow] = (),
    ) -> Plan:
        """``confirm``: flows whose policies are set again even where nothing changes."""
        yielded = self._yield(held, now)
        pinned = self._choose(held, now, yielded)
        best = self._best(held, now, _receives)
        shapes = {flow: h.tek for flow, h in best.items() if flow not in yielded}
        outbound = tuple(
            held[spi].tek
            for flow, spi in pinned.items()
            if flow in confirm or self.pinned.get(flow) != spi
        )
        inbound = tuple(
            tek
            for flow, tek in shapes.items()
            if flow in confirm or self.forms.get(flow) != _form(tek)
        )
        forms = {flow: _form(tek) for flow, tek in shapes.items()}
        new = yielded - self.yielded
        known = {**self.held, **held} if new else {}
        released = tuple(h.tek for h in known.values() if h.tek.flow in new)
        silent = self.pinned.keys() - pinned.keys() - yielded
        silenced = [held[self.pinned[f]].tek for f in silent if self.pinned[f] in held]
        return Plan(
            add,
            outbound,
            remove,
            held,
            pinned,
            inbound,
            forms,
            released,
            yielded,
            tuple(silenced),
        )


def _form(tek: Tek) -> Form:
    return tek.protocol, tek.mode


def _for_anything(_: Tek) -> bool:
    return True


def _receives(tek: Tek) -> bool:
    """RFC 6407 section 5.5.1.1.2."""
    return tek.direction is not SaDirection.SENDER_ONLY


def _by_destination(flows: Iterable[Flow]) -> dict[IPAddress, list[Flow]]:
    found: dict[IPAddress, list[Flow]] = {}
    for flow in flows:
        found.setdefault(flow.destination, []).append(flow)
    return found


def _overlaps_any(flow: Flow, flows: Mapping[IPAddress, Collection[Flow]]) -> bool:
    return any(flow.overlaps(other) for other in flows.get(flow.destination, ()))


def _keys(tek: Tek) -> tuple[Secret, Secret | None]:
    return tek.encryption_key, tek.integrity_key


def _rank(held: Held, now: float) -> tuple[bool, int]:
    return held.active_from <= now, held.generation


def _with_remaining(held: Held, now: float) -> Tek:
    """The TEK with what is left of its life, for the kernel's own count."""
    left = max(1, math.ceil(held.expires - now))
    return held.tek if left == held.tek.lifetime else replace(held.tek, lifetime=left)


def _bounded(held: Held, now: float) -> Held:
    limit = now + held.tek.lifetime
    return replace(
        held,
        active_from=min(held.active_from, limit),
        expires=min(held.expires, limit),
        retire_at=None if held.retire_at is None else min(held.retire_at, limit),
    )


def _end(held: Held) -> float:
    return held.expires if held.retire_at is None else min(held.retire_at, held.expires)


def _retire(held: Held, at: float) -> Held:
    return replace(held, retire_at=at if held.retire_at is None else min(at, held.retire_at))
