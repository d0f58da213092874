"""A key server's ``[[group.tek]]`` and ``[[group.iec61850]]``: data-security SAs of a policy."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from ..protocol.forwarding import why_not_forwarded
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
from .config_values import (
    Address,
    Network,
    PatternText,
    Prefix,
    Protected,
    Seconds,
    Section,
    Selector,
    Senders,
    number_range,
    one_of,
    span,
)

DEFAULT_PROPOSAL = "aes256-sha256"
# What a member that registers is told, outgoing ones included, is to fit one message.
MAX_TEKS = 64
# SA Life Duration has four octets.
MAX_KILOBYTES = 0xFFFFFFFF


class SenderIdOptions(Section):
    """Of a group: how long Sender-IDs are, and how many a member gets that asks for several."""

    sid_bits: Literal[8, 12, 16] = DEFAULT_SID_BITS
    sender_ids_limit: Annotated[int, number_range(1, MAX_SIDS)] = DEFAULT_SIDS_LIMIT

    def check_room(self, teks: Iterable[TekConfig]) -> None:
        """If all senders could not have theirs at once, the group would be made anew for ever."""
        senders = len({tek.flow.source for tek in teks if tek.suite.counter_mode})
        if senders * self.sender_ids_limit > 1 << self.sid_bits:
            raise ValueError(
                f"{senders} senders with up to sender_ids_limit = {self.sender_ids_limit}"
                f" Sender-IDs each are more than sid_bits = {self.sid_bits} can tell apart"
            )


class TekEntry(Section):
    destination: Protected
    source: Prefix | None = None
    senders: Senders | None = None
    protocol: Annotated[int, number_range(0, 255)] = 0
    source_port: Selector = 0
    destination_port: Selector = 0
    proposal: Annotated[str, one_of(ESP_SUITES)] | None = None
    ah_proposal: Annotated[str, one_of(AH_SUITES)] | None = None
    lifetime: Annotated[Seconds, span(30, 30 * 86400)] = 3600
    lifetime_kilobytes: Annotated[int, number_range(1, MAX_KILOBYTES)] | None = None
    mode: Literal["transport", "tunnel"] = "transport"
    esn: bool = False
    direction: Literal["symmetric", "per-member", "receiver-only"] = "symmetric"
    address_preservation: Literal["source-and-destination", "destination-only"] | None = None

    @property
    def _sender_each(self) -> bool:
        """Whether each SA that comes of it has one sender."""
        one = self.source is not None and self.source.prefixlen == self.source.max_prefixlen
        return one or self.senders is not None

    @property
    def _suite(self) -> TekSuite:
        if self.ah_proposal is not None:
            return AH_SUITES[self.ah_proposal]
        return ESP_SUITES[self.proposal or DEFAULT_PROPOSAL]

    @model_validator(mode="after")
    def _selectors_fit(self) -> Self:
        if self.source is not None and self.senders is not None:
            raise ValueError("give source, or senders for an SA of each of them, not both")
        named = () if self.senders is None or self.senders == "members" else self.senders
        self._check_families([ip_network(sender) for sender in named])
        self._check_families([] if self.source is None else [self.source])
        if (self.source_port or self.destination_port) and not self.protocol:
            raise ValueError("ports need a protocol, e.g. protocol = 17 for UDP")
        return self

    def _check_families(self, sources: Iterable[Network]) -> None:
        for source in sources:
            if source.version != self.destination.version:
                raise ValueError(
                    f"source {source} and destination {self.destination} must be both IPv4 or IPv6"
                )

    @model_validator(mode="after")
    def _suite_fits(self) -> Self:
        if self.proposal is not None and self.ah_proposal is not None:
            raise ValueError("give proposal for ESP or ah_proposal for AH, one of the two")
        if self._suite.counter_mode and not self._sender_each:
            raise ValueError(
                f'{self.proposal} needs senders = [their addresses], or "members", for a key of'
                " each, or source = one sender's address: senders must not share a counter-mode key"
                " (RFC 6407 section 3.5)"
            )
        if self.esn and not self._sender_each:
            raise ValueError(
                "esn needs senders, or source = one sender's address: several senders count each"
                " for itself, and an SA has one count (RFC 4303 section 2.2)"
            )
        return self

    @model_validator(mode="after")
    def _direction_fits(self) -> Self:
        if self.direction == "per-member" and not self._sender_each:
            raise ValueError(
                'direction = "per-member" needs source = one sender\'s address, or senders: an SA'
                " of several is symmetric (RFC 6407 section 5.5.1.1.2)"
            )
        if self.address_preservation is not None and self.mode != "tunnel":
            raise ValueError('address_preservation is for mode = "tunnel"')
        return self

    def teks(self, members: Iterable[str]) -> list[TekConfig]:
        """One, or one for each of its senders. Raises ValueError."""
        if self.senders is None:
            return [self._tek(self.source)]
        if self.senders != "members":
            return [self._tek(ip_network(sender)) for sender in dict.fromkeys(self.senders)]
        addresses = [ip_network(_address_of(member)) for member in members]
        self._check_families(addresses)
        return [self._tek(address) for address in addresses]

    def _tek(self, source: Network | None) -> TekConfig:
        flow = Flow(
            source,
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
            esn=self.esn,
            preservation=AddressPreservation[preservation.replace("-", "_").upper()],
        )


def _address_of(member: str) -> Address:
    try:
        return ip_address(member)
    except ValueError:
        raise ValueError(
            f'senders = "members" needs members that are addresses, and {member!r} is none'
        ) from None


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
    auth: Annotated[str, one_of(AUTHENTICATIONS)] = "hmac-sha256-128"
    conf: Annotated[str, one_of(CONFIDENTIALITIES)] = "none"
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

    members: Annotated[list[PatternText], Field(min_length=1)]
    tek: list[TekEntry] = []
    iec61850: list[Iec61850Entry] = []
    # Members are routers that forward the group's packets in and out of LANs.
    forwarding: bool = False

    def teks(self) -> list[TekConfig]:
        """Those of every sender."""
        return [tek for entry in self.tek for tek in entry.teks(self.members)]

    @model_validator(mode="after")
    def _some_and_not_too_many(self) -> Self:
        teks = self.teks()
        count = len(teks) + len(self.iec61850)
        if not 1 <= count <= MAX_TEKS:
            what = "[[group.tek]] and [[group.iec61850]]"
            if len(teks) > len(self.tek):
                what += ", counting each of the senders"
            raise ValueError(f"{count} of {what}, must be 1 to {MAX_TEKS}")
        self.check_room(teks)
        return self

    @model_validator(mode="after")
    def _of_use_to_routers(self) -> Self:
        for tek in self.teks() if self.forwarding else ():
            why = why_not_forwarded(tek, sends=tek.direction is not SaDirection.RECEIVER_ONLY)
            if why is not None:
                raise ValueError(
                    f"forwarding = true, but a router has no use for {tek.flow}: {why}"
                )
        return self
