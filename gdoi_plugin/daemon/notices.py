"""What the watch over the kernel has to say, and the event an operator hears of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gdoi_xfrm import PolicyKey, SaKey

from ..protocol.actions import Event

# SAs and policies that an event names; it counts all of them.
MAX_NAMED = 8


@dataclass(frozen=True, slots=True)
class Restored:
    """The kernel holds this again. ``took``: seconds since the loss was noticed."""

    sas: Sequence[SaKey]
    policies: Sequence[PolicyKey]
    took: float
    # What happens to packets that no policy matches had been changed, too.
    default: bool = False

    @property
    def told(self) -> Event:
        fields = _fields(self.sas, self.policies)
        if self.default:
            fields["default"] = "block"
        fields["milliseconds"] = round(1000 * self.took, 1)
        return Event("kernel-restored", fields, "warning")


@dataclass(frozen=True, slots=True)
class NotRestored:
    """The kernel refuses. ``give_up``: it has refused often enough to register again."""

    sas: Sequence[SaKey]
    policies: Sequence[PolicyKey]
    error: str
    give_up: bool

    @property
    def told(self) -> Event:
        fields = _fields(self.sas, self.policies) | {"error": self.error}
        return Event("kernel-not-restored", fields, "error")


@dataclass(frozen=True, slots=True)
class Exhausted:
    """In the kernel, but not to send with: every sequence number may have been used."""

    sas: Sequence[SaKey]

    @property
    def told(self) -> Event:
        return Event("sequence-exhausted", _fields(self.sas, ()), "error")


@dataclass(frozen=True, slots=True)
class NotSaved:
    """After a crash these SAs might use sequence numbers again."""

    error: str

    @property
    def told(self) -> Event:
        return Event("numbers-not-saved", {"error": self.error}, "error")


@dataclass(frozen=True, slots=True)
class Contested:
    """Somebody undoes repair after repair: more than so many within so many seconds."""

    repairs: int
    seconds: float

    @property
    def told(self) -> Event:
        fields = {"repairs": self.repairs, "seconds": self.seconds}
        return Event("kernel-contested", fields, "error")


@dataclass(frozen=True, slots=True)
class Expired:
    """The kernel says that an SA has reached a limit; hard: and has taken it away."""

    sa: SaKey
    hard: bool


Notice = Restored | NotRestored | Exhausted | NotSaved | Contested | Expired


def _fields(
    sas: Sequence[SaKey], policies: Sequence[PolicyKey]
) -> dict[str, str | int | float | list[str]]:
    keys: Iterable[SaKey | PolicyKey] = (*sas[:MAX_NAMED], *policies[:MAX_NAMED])
    return {"sas": len(sas), "policies": len(policies), "missing": [str(key) for key in keys]}
