"""A key server's ``[[group.tek]]`` and ``[[group.iec61850]]``: data-security SAs of a policy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, model_validator

from ..protocol.iec_tek import (
    AUTHENTICATIONS,
    CONFIDENTIALITIES,
    MAX_SA_KDA,
    IecSuite,
    IecTekConfig,
)
from ..protocol.policy import Flow
from ..protocol.sender_ids import DEFAULT_SID_BITS, DEFAULT_SIDS_LIMIT, MAX_SIDS
from ..protocol.suites import AH_SUITES, ESP_SUITES, TekSuite
from ..protocol.tek_policy import TekConfig
from ..wire.oid import Oid
from ..wire.registry import AddressPreservation, EncapsulationMode, SaDirection
from .config_values import Prefix, Protected, Seconds, Section, Selector, number_range, span

DEFAULT_PROPOSAL = "aes256-sha256"
# What a member that registers is told, outgoing ones included, is to fit one message.
MAX_TEKS = 64
# SA Life Duration has four octets.
MAX_KILOBYTES = 0xFFFFFFFF


def _one_of(known: Mapping[str, object]) -> AfterValidator:
    def check(value: str) -> str:
        if value not in known:
            raise ValueError(f"must be one of {', '.join(known)}")
        return value

    return AfterValidator(check)


class SenderIdOptions(Section):
    """Of a group: how long Sender-IDs are, and how many a member gets that asks for several."""

    sid_bits: Literal[8, 12, 16] = DEFAULT_SID_BITS
    sender_ids_limit: Annotated[int, number_range(1, MAX_SIDS)] = DEFAULT_SIDS_LIMIT

    def check_room(self, teks: Iterable[TekEntry]) -> None:
        """If all senders could not have theirs at once, the group would be made anew for ever."""
        senders = len({tek.source for tek in teks if tek.counter_mode})
        if senders * self.sender_ids_limit > 1 << self.sid_bits:
            raise ValueError(
                f"{senders} senders with up to sender_ids_limit = {self.sender_ids_limit}"
                f" Sender-IDs each are more than sid_bits = {self.sid_bits} can tell apart"
            )


class TekEntry(Section):
    destination: Protected
    source: Prefix | None = None
    protocol: Annotated[int, number_range(0, 255)] = 0
    source_port: Selector = 0
    destination_port: Selector = 0
    proposal: Annotated[str, _one_of(ESP_SUITES)] | None = None
    ah_proposal: Annotated[str, _one_of(AH_SUITES)] | None = None
    lifetime: Annotated[Seconds, span(30, 30 * 86400)] = 3600
    lifetime_kilobytes: Annotated[int, number_range(1, MAX_KILOBYTES)] | None = None
    mode: Literal["transport", "tunnel"] = "transport"
    direction: Literal["symmetric", "per-member", "receiver-only"] = "symmetric"
    address_preservation: Literal["source-and-destination", "destination-only"] | None = None

    @property
    def _one_source(self) -> bool:
        return self.source is not None and self.source.prefixlen == self.source.max_prefixlen

    @property
    def _suite(self) -> TekSuite:
        if self.ah_proposal is not None:
            return AH_SUITES[self.ah_proposal]
        return ESP_SUITES[self.proposal or DEFAULT_PROPOSAL]

    @property
    def counter_mode(self) -> bool:
        return self._suite.counter_mode

    @model_validator(mode="after")
    def _selectors_fit(self) -> Self:
        if self.source is not None and self.source.version != self.destination.version:
            raise ValueError(
                f"source {self.source} and destination {self.destination} must be both IPv4 or IPv6"
            )
        if (self.source_port or self.destination_port) and not self.protocol:
            raise ValueError("ports need a protocol, e.g. protocol = 17 for UDP")
        return self

    @model_validator(mode="after")
    def _suite_fits(self) -> Self:
        if self.proposal is not None and self.ah_proposal is not None:
            raise ValueError("give proposal for ESP or ah_proposal for AH, one of the two")
        if self._suite.counter_mode and not self._one_source:
            raise ValueError(
                f"{self.proposal} needs source = one sender's address and a [[group.tek]] per"
                " sender: senders must not share a counter-mode key (RFC 6407 section 3.5)"
            )
        return self

    @model_validator(mode="after")
    def _direction_fits(self) -> Self:
        if self.direction == "per-member" and not self._one_source:
            raise ValueError(
                'direction = "per-member" needs source = one sender\'s address: an SA of several'
                " senders is symmetric (RFC 6407 section 5.5.1.1.2)"
            )
        if self.address_preservation is not None and self.mode != "tunnel":
            raise ValueError('address_preservation is for mode = "tunnel"')
        return self

    def tek(self) -> TekConfig:
        flow = Flow(
            self.source,
            self.destination,
            self.protocol,
            self.source_port,
            self.destination_port,
        )
        listening = self.direction == "receiver-only"
        preservation = self.address_preservation or "source-and-destination"
        return TekConfig(
            flow,
            self._suite,
            self.lifetime,
            EncapsulationMode[self.mode.upper()],
            lifetime_kilobytes=self.lifetime_kilobytes,
            direction=SaDirection.RECEIVER_ONLY if listening else SaDirection.SYMMETRIC,
            per_member=self.direction == "per-member",
            preservation=AddressPreservation[preservation.replace("-", "_").upper()],
        )


def _oid(value: str) -> str:
    if ":" in value:
        raise ValueError(f"{value!r} is no OID; a payload has a key of its own, payload")
    Oid.parse(value)
    return value


def _payload(value: str) -> str:
    if not re.fullmatch(r"([0-9a-fA-F]{2})+", value):
        raise ValueError("must be hexadecimal, the DER of what RFC 8052 calls OID-specific payload")
    return value


class Iec61850Entry(Section):
    """Keys for an application, RFC 8052."""

    oid: Annotated[str, AfterValidator(_oid)]
    payload: Annotated[str, AfterValidator(_payload)] | None = None
    auth: Annotated[str, _one_of(AUTHENTICATIONS)] = "hmac-sha256-128"
    conf: Annotated[str, _one_of(CONFIDENTIALITIES)] = "none"
    lifetime: Annotated[Seconds, span(30, 365 * 86400)] = 86400
    sa_atd: Annotated[Seconds, span(1, 30 * 86400)] | None = None
    sa_kda: Annotated[int, number_range(0, MAX_SA_KDA)] | None = None

    @property
    def _selector(self) -> Oid:
        return Oid.parse(self.oid if self.payload is None else f"{self.oid}:{self.payload}")

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        self._suite.check()
        self._selector  # noqa: B018  (raises ValueError for a payload that is too long)
        return self

    @property
    def _suite(self) -> IecSuite:
        return IecSuite(AUTHENTICATIONS[self.auth], CONFIDENTIALITIES[self.conf])

    def tek(self) -> IecTekConfig:
        return IecTekConfig(self._selector, self._suite, self.lifetime, self.sa_atd, self.sa_kda)

    def check_delays(self, deactivation: int) -> None:
        """Raises ValueError where a key would end before it is of use."""
        delay = (self.sa_atd or 0) + deactivation
        if 2 * delay > self.lifetime:
            raise ValueError(
                f"sa_atd and deactivation_delay, {delay} s, are more than half of the lifetime"
                f" {self.lifetime} s of a key for {self.oid}"
            )


class DataSas(SenderIdOptions):
    """What a group's members protect, and how."""

    tek: list[TekEntry] = []
    iec61850: list[Iec61850Entry] = []

    @model_validator(mode="after")
    def _some_and_not_too_many(self) -> Self:
        count = len(self.tek) + len(self.iec61850)
        if not 1 <= count <= MAX_TEKS:
            raise ValueError(
                f"{count} of [[group.tek]] and [[group.iec61850]], must be 1 to {MAX_TEKS}"
            )
        return self

    @model_validator(mode="after")
    def _sender_ids_fit(self) -> Self:
        self.check_room(self.tek)
        return self
