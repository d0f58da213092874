"""What a key server's operator wants of a data-security SA, and the SAs made from it."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace

from ..crypto.secret import Secret
from ..wire.registry import AddressPreservation, EncapsulationMode, SaDirection
from .actions import IPAddress, Random
from .policy import MIN_ESP_SPI, Flow, Tek, TekSuite


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
        )

    def made(self, tek: Tek) -> bool:
        """Whether ``tek`` is what :meth:`make` makes: if not, the policy has been changed."""
        return (
            tek.flow,
            tek.suite,
            tek.mode,
            tek.direction,
            tek.lifetime_kilobytes,
            tek.preservation,
        ) == (
            self.flow,
            self.suite,
            self.mode,
            self.direction,
            self.lifetime_kilobytes,
            self.preservation,
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
