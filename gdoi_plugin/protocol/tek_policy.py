"""What a key server's operator wants of a data-security SA, and the SAs made from it."""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf

from ..crypto.secret import Secret
from ..wire.registry import AddressPreservation, EncapsulationMode, SaDirection, TekProtocol
from .actions import IPAddress, Random
from .iec_tek import IecTek, IecTekConfig
from .policy import MIN_ESP_SPI, AnyTek, Flow, Tek, TekSuite

# A TEK is replaced 90 s before it ends or 10 % of its life, and always before members' own timers,
# which ask for a new registration in the last 5 %.
TEK_LEAD = 90.0
# A member that registers again with a TEK younger than this has not used it up: it has missed it.
# No member makes a group's TEKs go faster than that.
MIN_AGE = 5.0
# Nor does one pile up more TEKs of a flow than this that wait for their DTD: each takes a place in
# all members' tables, which are bounded.
MOST_OUTGOING = 16
# So many seconds take 2^32 packets at 15 million in a second, what 10 Gbit/s of small ones are. Who
# joins an SA with 64-bit sequence numbers later could not know their upper half, which is not sent.
MAX_ESN_AGE = 2**32 / 15e6


@dataclass(frozen=True, slots=True)
class TekConfig:
    """One data-security SA of a group's policy. ``lifetime`` in seconds.

    ``per_member``: a PULL tells the one sender Sender-Only and all others Receiver-Only; a PUSH,
    which is for everybody, can only say Symmetric (RFC 6407 section 5.5.1.1.2).
    """

    flow: Flow
    suite: TekSuite
    lifetime: int = 3600
    mode: EncapsulationMode = EncapsulationMode.TRANSPORT
    lifetime_kilobytes: int | None = None
    direction: SaDirection = SaDirection.SYMMETRIC
    per_member: bool = False
    preservation: AddressPreservation = AddressPreservation.SOURCE_AND_DESTINATION
    esn: bool = False

    @property
    def protocol(self) -> TekProtocol:
        return self.suite.protocol

    def make(self, random: Random, taken: Container[bytes]) -> Tek:
        """A new SA with an SPI that is not ``taken``."""
        suite = self.suite
        integrity = Secret(random(suite.integrity_octets)) if suite.integrity_octets else None
        return Tek(
            spi=new_spi(random, taken),
            flow=self.flow,
            suite=suite,
            encryption_key=Secret(random(suite.encryption_octets)),
            integrity_key=integrity,
            lifetime=self.lifetime,
            mode=self.mode,
            direction=self.direction,
            lifetime_kilobytes=self.lifetime_kilobytes,
            preservation=self.preservation,
            esn=self.esn,
        )

    def made(self, tek: object) -> bool:
        """Whether ``tek`` is what :meth:`make` makes: if not, the policy has been changed."""
        return isinstance(tek, Tek) and (
            tek.flow,
            tek.suite,
            tek.mode,
            tek.direction,
            tek.lifetime_kilobytes,
            tek.preservation,
            tek.esn,
        ) == (
            self.flow,
            self.suite,
            self.mode,
            self.direction,
            self.lifetime_kilobytes,
            self.preservation,
            self.esn,
        )

    def for_member(self, tek: Tek, member: IPAddress) -> Tek:
        """As one member is told it in its PULL."""
        if not self.per_member or tek.flow.source is None:
            return tek
        sends = member in tek.flow.source
        return replace(
            tek, direction=SaDirection.SENDER_ONLY if sends else SaDirection.RECEIVER_ONLY
        )


def new_spi(random: Random, taken: Container[bytes]) -> bytes:
    while int.from_bytes(spi := random(4), "big") < MIN_ESP_SPI or spi in taken:
        pass
    return spi


AnyTekConfig = TekConfig | IecTekConfig


@dataclass(frozen=True, slots=True)
class ServerTek:
    """``tek.lifetime`` is the whole; ``retire_at`` set once another has taken its place."""

    tek: AnyTek
    created: float
    expires: float
    retire_at: float | None = None

    def remaining(self, now: float) -> AnyTek:
        """As a member that registers now is to be told it."""
        end = self.expires if self.retire_at is None else min(self.expires, self.retire_at)
        left = remaining(end, self.tek.lifetime, now)
        if isinstance(self.tek, IecTek):
            return self.tek.later(now - self.created, left)
        return replace(self.tek, lifetime=left)


def told_to(configs: Iterable[AnyTekConfig], tek: AnyTek, member: IPAddress) -> AnyTek:
    """As this one member is told it in its PULL."""
    if isinstance(tek, Tek):
        for config in configs:
            if isinstance(config, TekConfig) and config.flow == tek.flow and config.per_member:
                return config.for_member(tek, member)
    return tek


def renewed(
    teks: Sequence[ServerTek],
    configs: Iterable[AnyTekConfig],
    random: Random,
    now: float,
    *,
    delay: int | None,
    in_advance: bool,
) -> list[ServerTek]:
    """With a new TEK for each of the policy's; the old ones retire ``delay`` after, None at once.

    ``in_advance``: what has an SA_ATD waits for it, and its predecessor retires so much later.
    """
    wait = in_advance and delay is not None
    busy = {t.tek.flow for t in teks if wait and t.retire_at is None}
    taken = {t.tek.spi for t in teks}
    new: list[AnyTek] = []
    for config in configs:
        tek: AnyTek = config.make(random, taken)
        taken.add(tek.spi)
        new.append(tek if tek.flow in busy else at_once(tek))
    waits = {tek.flow: _wait(tek) for tek in new}
    # A DTD that is shorter than the last one, after which some are still waiting, is for those too.
    over = {t.tek.spi: now + (delay or 0) + waits.get(t.tek.flow, 0) for t in teks}
    old = [replace(t, retire_at=min(over[t.tek.spi], t.retire_at or inf)) for t in teks]
    # Where all go at once, those that are on their way out already go too.
    left = [t for t in old if delay is not None and t.retire_at and t.retire_at > now]
    return left + [ServerTek(tek, now, now + tek.lifetime) for tek in new]


def next_renewal(
    teks: Iterable[ServerTek], configs: Iterable[AnyTekConfig], late: int = 0
) -> float | None:
    """When the first current TEK is to be replaced, None without any. ``late``: seconds more that
    it takes until everybody sends with the next one."""
    waits: dict[Hashable, int] = {
        config.flow: config.sa_atd or 0 for config in configs if isinstance(config, IecTekConfig)
    }
    return min(
        (
            t.expires - _lead(t, late + (waits.get(t.tek.flow, 0) if waits else 0))
            for t in teks
            if t.retire_at is None
        ),
        default=None,
    )


def outdated(teks: Iterable[ServerTek], configs: Sequence[AnyTekConfig]) -> bool:
    """Whether the current TEKs are not what the configuration wants."""
    current = [t.tek for t in teks if t.retire_at is None]
    return len(current) != len(configs) or not all(
        any(policy.made(tek) and policy.lifetime == tek.lifetime for tek in current)
        for policy in configs
    )


def given_up(teks: Iterable[ServerTek], configs: Iterable[AnyTekConfig]) -> list[Tek]:
    """TEKs on their way out whose flows the policy no longer has, so that nothing replaces them."""
    wanted = {config.flow for config in configs}
    return [
        t.tek
        for t in teks
        if t.retire_at is not None and isinstance(t.tek, Tek) and t.tek.flow not in wanted
    ]


def transformed(
    teks: Iterable[ServerTek], configs: Iterable[AnyTekConfig]
) -> list[tuple[Tek, TekConfig]]:
    """Where a flow is to have another mode or protocol: a kernel receives one of each at a time."""
    now = {config.flow: config for config in configs if isinstance(config, TekConfig)}
    return [
        (t.tek, config)
        for t in teks
        if t.retire_at is None
        and isinstance(t.tek, Tek)
        and (config := now.get(t.tek.flow)) is not None
        and (t.tek.mode, t.tek.protocol) != (config.mode, config.protocol)
    ]


def wanted_by(
    teks: Iterable[ServerTek], now: float, *, again: bool, delays: tuple[int, int]
) -> str | None:
    """Why a registration makes new TEKs due, None where it does not.

    ``again``: of a member that has these TEKs. One whose octets are nearly used up, which only its
    kernel knows, cannot say it otherwise. ``delays``: ATD and DTD.
    """
    pause = _pause(*delays)
    for tek in (t.tek for t in teks if t.retire_at is None and _age(t, now) >= pause):
        if again and isinstance(tek, Tek) and tek.lifetime_kilobytes is not None:
            return "tek-kilobytes"
    for tek in (t.tek for t in teks if t.retire_at is None and _age(t, now) >= MAX_ESN_AGE):
        if isinstance(tek, Tek) and tek.esn:
            return "esn"
    return None


def _age(tek: ServerTek, now: float) -> float:
    return now - tek.created


def _pause(activation: int, deactivation: int) -> float:
    """Nobody sends with a TEK before ATD, so nobody has used it up."""
    return max(MIN_AGE, activation, deactivation / MOST_OUTGOING)


def remaining(end: float, life: int, now: float) -> int:
    """Whole seconds until ``end``, at least 1; never more than a whole life, whatever a clock
    that has been set back would make of it."""
    return max(1, min(life, int(end - now)))


def _lead(tek: ServerTek, wait: int) -> float:
    """How long before its end it is replaced, by one that ``wait`` seconds later is used."""
    life = tek.expires - tek.created
    return min(max(TEK_LEAD, 0.1 * life) + wait, life / 2)


def _wait(tek: AnyTek) -> int:
    return (tek.sa_atd or 0) if isinstance(tek, IecTek) else 0


def at_once(tek: AnyTek) -> AnyTek:
    """Where there is nothing to go on with for as long as SA_ATD says."""
    return replace(tek, sa_atd=None) if isinstance(tek, IecTek) else tek
