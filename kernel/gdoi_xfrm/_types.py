"""Security associations, policies and what they are made of: plain values, checked when made.

Whatever the kernel's structs cannot hold raises ValueError here; whether the kernel can serve it
(key lengths, algorithms, modes) only the kernel knows, and says with a KernelError.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from gdoi_xfrm._algorithms import Algorithm

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

ESP: Final = 50
AH: Final = 51

# XFRMA_REPLAY_ESN_MAX: what the kernel's longest replay bitmap holds.
MAX_REPLAY_WINDOW: Final = 4096
MAX_MARK: Final = 2**32 - 1
# Sequence numbers that an SA can use in a second: 10 Gbit/s of the smallest frames are 14.9
# million, and one SA gives out its numbers one at a time.
MAX_PACKETS_PER_SECOND: Final = 1 << 24
# XFRM_MAX_DEPTH
MAX_TEMPLATES: Final = 6

_PROTOCOL_NAMES: Final = {ESP: "esp", AH: "ah", 108: "comp"}


class Mode(IntEnum):
    """XFRM_MODE_*. Only the first two are used here, the others may be found in a kernel."""

    TRANSPORT = 0
    TUNNEL = 1
    ROUTEOPTIMIZATION = 2
    IN_TRIGGER = 3
    BEET = 4
    IPTFS = 5


class Direction(IntEnum):
    """XFRM_POLICY_IN, _OUT, _FWD."""

    IN = 0
    OUT = 1
    FWD = 2


class PolicyAction(IntEnum):
    """XFRM_POLICY_ALLOW, _BLOCK."""

    ALLOW = 0
    BLOCK = 1


def protocol_name(protocol: int) -> str:
    return _PROTOCOL_NAMES.get(protocol, f"protocol {protocol}")


def _check_range(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{what} {value} is not between {low} and {high}")


def _check_family(what: str, first: Address | Network, second: Address | Network) -> None:
    if first.version != second.version:
        raise ValueError(f"{what}: {first} and {second} are of different families")


@dataclass(frozen=True, slots=True)
class Selector:
    """The packets meant, struct xfrm_selector. 0 as protocol or port: any.

    For ICMP the kernel compares source_port with the type and destination_port with the code.
    interface: the index of the one that packets leave by, which only ``out`` policies can ask for
    (to an ``in`` policy all packets come from the loopback interface); 0 is any.
    """

    source: Network
    destination: Network
    protocol: int = 0
    source_port: int = 0
    destination_port: int = 0
    interface: int = 0

    def __post_init__(self) -> None:
        _check_family("selector", self.source, self.destination)
        _check_range("protocol", self.protocol, 0, 0xFF)
        _check_range("source port", self.source_port, 0, 0xFFFF)
        _check_range("destination port", self.destination_port, 0, 0xFFFF)
        _check_range("interface", self.interface, 0, 2**31 - 1)

    def __hash__(self) -> int:
        # A network's own hash takes longer than all the rest of a table's work.
        ends = int(self.source.network_address), int(self.destination.network_address)
        return hash((ends, self.protocol, self.source_port, self.destination_port))

    @property
    def matches_all(self) -> bool:
        any_address = not self.source.prefixlen and not self.destination.prefixlen
        ports = self.source_port or self.destination_port
        return any_address and not (self.protocol or ports or self.interface)

    def __str__(self) -> str:
        text = f"{self.source} -> {self.destination}"
        if self.protocol:
            text += f" protocol {self.protocol}"
        if self.source_port or self.destination_port:
            text += f" ports {self.source_port} -> {self.destination_port}"
        if self.interface:
            text += f" interface {self.interface}"
        return text


@dataclass(frozen=True, slots=True)
class Lifetime:
    """struct xfrm_lifetime_cfg: None is no limit. Seconds count from the SA's installation."""

    soft_seconds: int | None = None
    hard_seconds: int | None = None
    soft_bytes: int | None = None
    hard_bytes: int | None = None
    soft_packets: int | None = None
    hard_packets: int | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None:
                # 0 seconds would mean "no limit" to the kernel, 0 octets "expired at once".
                _check_range(name, value, 1, 2**64 - 2)


NO_LIMIT: Final = Lifetime()


@dataclass(frozen=True, slots=True)
class Usage:
    """struct xfrm_lifetime_cur: what lifetimes are measured by.

    Times are seconds since the epoch; used_time 0: never used.
    """

    bytes: int
    packets: int
    added_time: int
    used_time: int

    def __post_init__(self) -> None:
        for name in self.__slots__:
            _check_range(name, getattr(self, name), 0, 2**64 - 1)


@dataclass(frozen=True, slots=True)
class Mark:
    """struct xfrm_mark: meant are packets whose mark, masked, is the value."""

    value: int
    mask: int = MAX_MARK

    def __post_init__(self) -> None:
        _check_range("mark", self.value, 0, MAX_MARK)
        _check_range("mask of a mark", self.mask, 0, MAX_MARK)

    def __str__(self) -> str:
        return f"{self.value:#x}/{self.mask:#x}"


@dataclass(frozen=True, slots=True)
class Sa:
    """A security association as it is to be installed, found by (destination, SPI, protocol, mark).

    source 0.0.0.0 or :: serves any sender (inbound, or outbound in transport mode). selector: the
    inner packets it may carry; this, and not the source, is what pins a sender.
    replay_window: in packets; 0 is none, which several senders on one SA need.
    esn: extended sequence numbers (RFC 4303 section 2.2.1); the kernel wants a replay window then.
    mark: of the packets it serves; output_mark: what protected packets are marked with;
    if_id: of the XFRM interface it belongs to, 0 is none.

    For an SA that is put back, and no part of a comparison: output_sequence, the number sent last;
    input_sequence, the highest received (all before it count as received, so that nothing is
    accepted twice); usage, what it has used up of its lifetime.
    """

    source: Address
    destination: Address
    spi: int
    mode: Mode | int
    reqid: int
    algorithm: Algorithm
    protocol: int = ESP
    replay_window: int = 0
    lifetime: Lifetime = NO_LIMIT
    selector: Selector | None = None
    esn: bool = False
    mark: Mark | None = None
    if_id: int = 0
    output_mark: Mark | None = None
    output_sequence: int = field(default=0, compare=False)
    input_sequence: int = field(default=0, compare=False)
    usage: Usage | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _check_family("SA", self.source, self.destination)
        # RFC 4303 section 2.1: SPI zero never goes on the wire. The kernel itself uses it for SAs
        # that have no SPI yet, so it may be read.
        _check_range("SPI", self.spi, 0, 2**32 - 1)
        _check_range("mode", self.mode, 0, 0xFF)
        _check_range("reqid", self.reqid, 0, 2**32 - 1)
        _check_range("protocol", self.protocol, 0, 0xFF)
        _check_range("replay window", self.replay_window, 0, MAX_REPLAY_WINDOW)
        _check_range("if_id", self.if_id, 0, 2**32 - 1)
        _check_range("output sequence number", self.output_sequence, 0, self.last_number)
        _check_range("input sequence number", self.input_sequence, 0, self.last_number)

    @property
    def key(self) -> SaKey:
        return SaKey(self.destination, self.spi, self.protocol, self.mark)

    @property
    def last_number(self) -> int:
        """The highest sequence number that it can ever send."""
        return (1 << (64 if self.esn else 32)) - 1

    def unseen(self, seconds: float) -> Sa:
        """With the highest sequence number that it can have used after so long."""
        sent = self.output_sequence + math.ceil(max(0.0, seconds) * MAX_PACKETS_PER_SECOND)
        return replace(self, output_sequence=min(sent, self.last_number))


@dataclass(frozen=True, slots=True)
class SaKey:
    """What the kernel finds an SA by. One that has no mark answers to every mark."""

    destination: Address
    spi: int
    protocol: int = ESP
    mark: Mark | None = None

    def __str__(self) -> str:
        text = f"{self.destination!s} spi {self.spi:#010x} {protocol_name(self.protocol)}"
        return text if self.mark is None else f"{text} mark {self.mark}"


@dataclass(frozen=True, slots=True)
class SaState:
    """An SA as the kernel holds it. Times are seconds since the epoch; used_time 0: never used."""

    sa: Sa
    larval: bool  # XFRM_STATE_ACQ: made by the kernel for a packet, waiting for keys
    output_sequence: int  # the sequence number sent last
    input_sequence: int  # the highest received, where a replay window is kept
    bytes: int
    packets: int
    added_time: int
    used_time: int

    @property
    def usage(self) -> Usage:
        return Usage(self.bytes, self.packets, self.added_time, self.used_time)

    def resumed(self) -> Sa:
        """The SA to install in its place that goes on where this one stopped.

        Its sequence numbers go on, and what it used up of its lifetime is not given again.
        """
        return replace(
            self.sa,
            output_sequence=self.output_sequence,
            input_sequence=self.input_sequence,
            usage=self.usage,
        )


@dataclass(frozen=True, slots=True)
class Template:
    """struct xfrm_user_tmpl: the SA a policy asks for.

    Addresses 0.0.0.0 / :: are any (transport mode). A spi pins output to that SA and drops packets
    while it is missing; 0 takes the SA added last. reqid must be the SA's, or 0.
    optional: "level use", clear packets pass too.
    """

    source: Address
    destination: Address
    mode: Mode | int
    reqid: int
    protocol: int = ESP
    spi: int = 0
    optional: bool = False

    def __post_init__(self) -> None:
        _check_family("template", self.source, self.destination)
        _check_range("SPI", self.spi, 0, 2**32 - 1)
        _check_range("mode", self.mode, 0, 0xFF)
        _check_range("reqid", self.reqid, 0, 2**32 - 1)
        _check_range("protocol", self.protocol, 0, 0xFF)


@dataclass(frozen=True, slots=True)
class PolicyKey:
    """What the kernel finds a policy by."""

    selector: Selector
    direction: Direction
    mark: Mark | None = None
    if_id: int = 0

    def __str__(self) -> str:
        text = f"{self.direction.name.lower()} {self.selector}"
        if self.mark is not None:
            text += f" mark {self.mark}"
        return text if not self.if_id else f"{text} if_id {self.if_id:#x}"


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy, found by (selector, direction, mark, if_id). The lowest priority wins.

    A packet that matches needs every template; ALLOW without templates lets it pass in clear.
    With a mark it is for packets with that mark, with an if_id for those of that XFRM interface.
    """

    selector: Selector
    direction: Direction
    priority: int
    action: PolicyAction = PolicyAction.ALLOW
    templates: tuple[Template, ...] = ()
    mark: Mark | None = None
    if_id: int = 0

    def __post_init__(self) -> None:
        _check_range("priority", self.priority, 0, 2**32 - 1)
        _check_range("if_id", self.if_id, 0, 2**32 - 1)
        _check_range("number of templates", len(self.templates), 0, MAX_TEMPLATES)

    @property
    def key(self) -> PolicyKey:
        return PolicyKey(self.selector, self.direction, self.mark, self.if_id)


@dataclass(frozen=True, slots=True)
class DefaultPolicy:
    """struct xfrm_userpolicy_default: what happens to packets that no policy matches."""

    inbound: PolicyAction = PolicyAction.ALLOW
    forwarded: PolicyAction = PolicyAction.ALLOW
    outbound: PolicyAction = PolicyAction.ALLOW


def sa_differences(wanted: Sa, found: Sa, *, lifetimes: bool = True) -> tuple[str, ...]:
    """The names of the fields that differ, never their values (an algorithm holds keys)."""
    names = ["source", "mode", "reqid", "algorithm", "replay_window"]
    names += ["esn", "if_id", "output_mark"]
    if lifetimes:
        names.append("lifetime")
    differing = [name for name in names if getattr(wanted, name) != getattr(found, name)]
    if wanted.key != found.key:
        differing.insert(0, "key")
    # The kernel turns "no selector" into one that matches everything.
    selectors = [
        None if sa.selector is None or sa.selector.matches_all else sa.selector
        for sa in (wanted, found)
    ]
    if selectors[0] != selectors[1]:
        differing.append("selector")
    return tuple(differing)


def policy_differences(wanted: Policy, found: Policy) -> tuple[str, ...]:
    """The names of the fields that differ."""
    names = ("selector", "direction", "mark", "if_id", "priority", "action", "templates")
    return tuple(name for name in names if getattr(wanted, name) != getattr(found, name))
