"""Which keys a member holds for IEC 61850 applications, and from when to when, RFC 8052.

As :mod:`~gdoi_plugin.protocol.rollover` for the kernel: a change is planned, carried out together
with the kernel's, and only then committed here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..wire.delete import Delete
from ..wire.oid import Oid
from ..wire.registry import TekProtocol
from .errors import PolicyError
from .iec_tek import NO_EXPIRY, IecTek
from .policy import GroupPolicy
from .record import Record, iec_record, read_iec
from .rollover import MAX_HELD, OUTGOING

# GAP's ATD is basic, two octets of seconds (RFC 6407 section 5.4.1).
MAX_ATD = 0xFFFF


@dataclass(frozen=True, slots=True)
class HeldKey:
    """Times in Unix seconds; ``expires`` infinite where nothing ends it.

    RFC 8052 section 2.2.4.1: who is told an SA_ATD waits for it "before installing it for either
    transmitting or receiving", ``receive_from``; GAP's ATD is for sending alone, ``send_from``.
    """

    tek: IecTek
    generation: int
    receive_from: float
    send_from: float
    expires: float

    def record(self) -> Record:
        return {
            "tek": iec_record(self.tek),
            "generation": self.generation,
            "receive_from": self.receive_from,
            "send_from": self.send_from,
            "expires": None if self.expires == math.inf else self.expires,
        }

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> HeldKey:
        """Raises KeyError, ValueError or TypeError for a record that is not one."""
        return cls(
            read_iec(record["tek"]),
            record["generation"],
            record["receive_from"],
            record["send_from"],
            math.inf if record["expires"] is None else record["expires"],
        )


@dataclass(frozen=True, slots=True)
class KeyPlan:
    """The table as it will be, and what of it applications are to have.

    ``exported`` is ordered: with the last key of a selector whose ``send_from`` has come one sends.
    """

    held: Mapping[bytes, HeldKey]
    exported: tuple[HeldKey, ...]

    @property
    def names(self) -> list[str]:
        return [key.tek.name for key in self.exported]


@dataclass(slots=True)
class ApplicationKeys:
    """The member's table, by SPI."""

    held: Mapping[bytes, HeldKey] = field(default_factory=dict)
    exported: tuple[HeldKey, ...] = ()

    @property
    def names(self) -> list[str]:
        """Of the keys that applications have, by SPI."""
        return [key.tek.name for key in self.exported]

    def check(self, policy: GroupPolicy) -> None:
        """Raises PolicyError."""
        new = sum(tek.spi not in self.held for tek in policy.applications)
        if len(self.held) + new > MAX_HELD:
            raise PolicyError(f"{len(self.held)} keys are held and {new} more are too many")
        for tek in policy.applications:
            known = self.held.get(tek.spi)
            if known is not None and _keys(known.tek) != _keys(tek):
                raise PolicyError(f"SPI {tek.name} is in use with another key")

    def receive(
        self, policy: GroupPolicy, deletes: Iterable[Delete], now: float, *, at_once: bool = False
    ) -> KeyPlan | None:
        """A PUSH's policy, or with ``at_once`` a PULL's: everybody else has its keys already.

        Whatever the policy has such keys for is exported again; None where nothing is.
        """
        fresh = self._fresh(policy, now, at_once=at_once)
        begins = _begins(fresh.values(), now)
        held = dict(self.held)
        self._retire_old(held, begins, policy.deactivation_delay)
        self._delete(held, deletes, policy)
        held |= fresh
        if held == self.held and not policy.applications:
            return None
        return _plan(held, now)

    def _fresh(self, policy: GroupPolicy, now: float, *, at_once: bool) -> dict[bytes, HeldKey]:
        """The policy's keys that are new here.

        Of several for one selector in a PULL, the one that lives longest is the newest.
        """
        generation = 1 + max((held.generation for held in self.held.values()), default=OUTGOING)
        newest: dict[Oid, IecTek] = {}
        for tek in policy.applications:
            if _life(tek) >= _life(newest.get(tek.selector, tek)):
                newest[tek.selector] = tek
        busy = {held.tek.selector for held in self.held.values() if held.send_from <= now}
        fresh = {}
        for tek in policy.applications:
            if tek.spi in self.held:
                continue
            outgoing = at_once and newest[tek.selector] is not tek
            delay = 0 if at_once or tek.selector not in busy else policy.activation_delay or 0
            # "If both attributes are included in a GROUPKEY-PUSH payload, the value contained in
            # SA_ATD will be used."
            begins = now + (delay if tek.sa_atd is None else tek.sa_atd)
            fresh[tek.spi] = HeldKey(
                tek,
                OUTGOING if outgoing else generation,
                now if tek.sa_atd is None else begins,
                begins,
                now + _life(tek),
            )
        return fresh

    @staticmethod
    def _retire_old(
        held: dict[bytes, HeldKey], begins: Mapping[Oid, _Begin], delay: int | None
    ) -> None:
        """RFC 6407 section 5.4.1: DTD after what replaces them is here; with an SA_ATD of its own
        the new key is here only then. Without a DTD they live until it is used."""
        for spi, old in held.items():
            begin = begins.get(old.tek.selector)
            if begin is not None:
                end = begin.sent if delay is None else begin.received + delay
                held[spi] = replace(old, expires=min(old.expires, end))

    @staticmethod
    def _delete(
        held: dict[bytes, HeldKey],
        deletes: Iterable[Delete],
        policy: GroupPolicy,
    ) -> None:
        """RFC 6407 section 5.9. A key that this PUSH replaces may finish its DTD, also where it is
        heard again and the successor is known; SPI 0 may not."""
        keep = {tek.spi for tek in policy.applications}
        replaced = {tek.selector for tek in policy.applications if policy.deactivation_delay}
        for delete in deletes:
            if delete.protocol_id != TekProtocol.GDOI_PROTO_IEC_61850:
                continue
            for spi in delete.spis:
                if not any(spi):
                    for other in held.keys() - keep:
                        del held[other]
                elif spi in held.keys() - keep and held[spi].tek.selector not in replaced:
                    del held[spi]

    def resume(self, saved: Mapping[bytes, HeldKey], now: float) -> KeyPlan | None:
        """A former run's keys that still have time left.

        No time is believed that lies further ahead than the key's own attributes allow: the clock
        that wrote it was.
        """
        if not saved:
            return None
        return _plan({spi: _bounded(held, now) for spi, held in saved.items()}, now)

    def advance(self, now: float) -> KeyPlan | None:
        """What is due; None where applications have what they should."""
        plan = _plan(self.held, now)
        return None if plan.exported == self.exported and plan.held == self.held else plan

    def commit(self, plan: KeyPlan) -> None:
        self.held, self.exported = plan.held, plan.exported

    @property
    def deadline(self) -> float | None:
        """When ``advance`` will next have something to do."""
        times = [held.expires for held in self.held.values() if held.expires < math.inf]
        there = {held.tek.spi for held in self.exported}
        times += [held.receive_from for spi, held in self.held.items() if spi not in there]
        return min(times, default=None)

    @property
    def newest(self) -> list[HeldKey]:
        """Of each selector: the keys that nothing has come to replace."""
        latest: dict[Oid, HeldKey] = {}
        for held in sorted(self.held.values(), key=_order):
            latest[held.tek.selector] = held
        return list(latest.values())


@dataclass(frozen=True, slots=True)
class _Begin:
    """Of a selector's new keys, the first: when it may be received and sent with."""

    received: float
    sent: float


def _begins(fresh: Iterable[HeldKey], now: float) -> dict[Oid, _Begin]:
    begins: dict[Oid, _Begin] = {}
    for held in fresh:
        if held.generation == OUTGOING:
            continue
        selector = held.tek.selector
        known = begins.get(selector, _Begin(math.inf, math.inf))
        begins[selector] = _Begin(
            min(known.received, max(held.receive_from, now)), min(known.sent, held.send_from)
        )
    return begins


def _plan(held: Mapping[bytes, HeldKey], now: float) -> KeyPlan:
    left = {spi: key for spi, key in held.items() if key.expires > now}
    ready = (key for key in left.values() if key.receive_from <= now)
    return KeyPlan(left, tuple(sorted(ready, key=_order)))


def _order(held: HeldKey) -> tuple[int, float, bytes]:
    return held.generation, held.expires, held.tek.spi


def _life(tek: IecTek) -> float:
    return math.inf if tek.lifetime == NO_EXPIRY else tek.lifetime


def _keys(tek: IecTek) -> tuple[object, object]:
    return tek.encryption_key, tek.integrity_key


def _bounded(held: HeldKey, now: float) -> HeldKey:
    begin = now + (MAX_ATD if held.tek.sa_atd is None else held.tek.sa_atd)
    return replace(
        held,
        receive_from=min(held.receive_from, begin),
        send_from=min(held.send_from, begin),
        expires=min(held.expires, now + _life(held.tek)),
    )
