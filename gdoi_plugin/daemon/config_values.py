"""Values of the configuration files, as pydantic checks them; words are an operator's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
)
from pydantic.fields import FieldInfo

from ..protocol.actions import Peer
from ..protocol.endpoints import is_link_control
from ..protocol.group_id import GroupId
from ..protocol.identity import Identity
from ..protocol.identity_pattern import EVERYBODY, IdentityPattern
from ..protocol.isakmp import SUITES
from ..protocol.phase1_proposal import parse_suites
from ..wire.registry import IdType

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd])")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
# The last label has a letter: 192.0.2.300 is no name.
_DOMAIN = re.compile(r"(?:[A-Za-z0-9_-]+\.)*(?=[0-9_-]*[A-Za-z])[A-Za-z0-9_-]+\.?")
MAX_CONNECTION_NAME = 100  # octets of a connection's or child's
# Where systemd puts what LoadCredential= names.
_CREDENTIAL = "$CREDENTIALS_DIRECTORY/"
Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def parse_duration(value: object) -> float:
    """Seconds of ``30s``, ``1.5s``, ``10m``, ``1h``, ``2d``. Raises ValueError."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is no time; write it as 30s, 10m, 1h or 2d")
    return float(match[1]) * _UNITS[match[2]]


def _whole_seconds(value: object) -> int:
    seconds = parse_duration(value)
    if not seconds.is_integer():
        raise ValueError(f"{value!r} is not a whole number of seconds")
    return int(seconds)


def written(seconds: float) -> str:
    """As :func:`parse_duration` reads it."""
    unit = next(u for u in reversed(_UNITS) if not seconds % _UNITS[u])
    return f"{seconds / _UNITS[unit]:g}{unit}" if seconds else "0s"


def is_time(field: FieldInfo) -> bool:
    """Whether a section's field is written as :func:`written` does."""
    checks = (getattr(check, "func", None) for check in field.metadata)
    return any(check in (parse_duration, _whole_seconds) for check in checks)


@dataclass(frozen=True, slots=True)
class Between:
    """Of numbers, or of seconds that are written as times."""

    low: float
    high: float
    times: bool = False

    def __call__(self, value: float) -> float:
        if not self.low <= value <= self.high:
            raise ValueError(f"must be {self}")
        return value

    def __str__(self) -> str:
        if self.times:
            return f"{written(self.low)} to {written(self.high)}"
        return f"{self.low} to {self.high}"


@dataclass(frozen=True, slots=True)
class OneOf:
    """Of keywords."""

    known: tuple[str, ...]

    def __call__(self, value: str) -> str:
        if value not in self.known:
            raise ValueError(f"must be {self}")
        return value

    def __str__(self) -> str:
        return f"one of {', '.join(self.known)}"


def one_of(known: Iterable[str]) -> AfterValidator:
    return AfterValidator(OneOf(tuple(known)))


def span(low: float, high: float) -> AfterValidator:
    return AfterValidator(Between(low, high, times=True))


def number_range(low: int, high: int) -> AfterValidator:
    return AfterValidator(Between(low, high))


def _address(value: object) -> Address:
    """Only text: ``ip_address`` would take a number too. No zone: sockets here do not keep it."""
    try:
        if isinstance(value, str) and "%" not in value:
            return ip_address(value)
    except ValueError:
        pass
    raise ValueError(f"{value!r} is no IPv4 or IPv6 address")


def _loopback(value: object) -> Peer:
    """Only for who is on this host: there is no authentication behind it."""
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = _address(bare)
        number = int(port) if port.isascii() and port.isdecimal() else 0
    except ValueError:
        address, number = None, 0
    if address is None or (address.version == 6) == (bare is host) or not 1 <= number <= 65535:
        raise ValueError(f"{value!r} is no address and port, write it as 127.0.0.1:9848")
    if not address.is_loopback:
        raise ValueError(f"{value} is not loopback; must be of 127.0.0.0/8 or [::1]")
    return Peer(address, number)


def _readable_at(value: object) -> Path | Peer:
    """A Unix socket's name has a slash."""
    if isinstance(value, str) and "/" in value:
        return _file(value)
    return _loopback(value)


def _network(value: object) -> Network:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no network, write it as 192.0.2.0/24 or 2001:db8::/64")
    return ip_network(value)


def _file(value: object) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("must be the name of a file")
    if not value.startswith(_CREDENTIAL):
        return Path(value)
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise ValueError(f"{value}: systemd gave no credentials; LoadCredential= in the unit does")
    return Path(directory) / value.removeprefix(_CREDENTIAL)


def _log_place(value: object) -> Path | Literal["journal"]:
    return "journal" if value == "journal" else _file(value)


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("must be lower-case letters, digits, - and _, at most 32, e.g. 'video'")
    return value


def _connection(value: str) -> str:
    if not value or len(value.encode()) > MAX_CONNECTION_NAME:
        raise ValueError(f"a name in swanctl.conf has 1 to {MAX_CONNECTION_NAME} octets")
    return value


def _interface(value: str) -> str:
    """linux/if.h and dev_valid_name() of the kernel: 15 octets, no slash, colon or space."""
    octets = len(value.encode())
    if not 1 <= octets <= 15 or value in (".", "..") or re.search(r"[/:\s\0]", value):
        raise ValueError(f"{value!r} is no name of an interface")
    return value


def _netns(value: str) -> str:
    name = value.startswith("/") or ("/" not in value and value not in ("", ".", ".."))
    if not name or "\0" in value:
        raise ValueError("must be a network namespace's name, or a path that begins with /")
    return value


def _lan(value: str) -> str:
    """It becomes a word of netfilter's rules."""
    if not re.fullmatch(r"[A-Za-z0-9_.@-]+", value) or value.startswith("-"):
        raise ValueError(f"{value!r} is no name that iptables takes for one interface")
    return value


def _joins(value: object) -> bool | tuple[str, ...]:
    if isinstance(value, bool):
        return value
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return tuple(_interface(name) for name in value)
    raise ValueError("must be true, false or names of interfaces, e.g. ['eth0', 'eth1']")


def _identity(value: str) -> str:
    """Stricter than the wire: a mistyped address must not pass for a domain name."""
    try:
        identity = Identity.parse(value)
        if identity.id_type in (IdType.ID_FQDN, IdType.ID_USER_FQDN):
            user, at, domain = value.rpartition("@")
            good = bool(_DOMAIN.fullmatch(domain)) and bool(user) == bool(at)
        else:
            good = bool(identity.data)
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"{value!r} is no address, FQDN, user@FQDN, DN or keyid:HEX")
    return value


def _pattern(value: str) -> str:
    """An identity as above, or what stands for several."""
    wild = value == EVERYBODY or "*" in value or ("/" in value and "=" not in value)
    if not wild:
        return _identity(value)
    IdentityPattern.parse(value)
    return value


def _multicast(value: Address) -> Address:
    if not value.is_multicast:
        raise ValueError(f"{value} is not multicast; must be in 224.0.0.0/4 or ff00::/8")
    return value


def _protected(value: Address) -> Address:
    if is_link_control(value):
        raise ValueError(f"{value} is for the link's control (IGMP, neighbours): never encrypted")
    return _multicast(value)


def _unicast(value: Address) -> Address:
    if value.is_multicast or value.is_unspecified:
        raise ValueError(f"{value} is no address of a host")
    return value


def _senders(value: object) -> tuple[Address, ...] | Literal["members"]:
    if value == "members":
        return "members"
    if not isinstance(value, list) or not value:
        raise ValueError('must be an array of addresses, or "members"')
    return tuple(_unicast(_address(host)) for host in value)


def _group_id(value: object) -> GroupId:
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value <= 0xFFFFFFFF:
            raise ValueError("must be 0 to 4294967295")
        return GroupId.of_number(value)
    if not isinstance(value, str):
        raise ValueError("must be a number or a string")
    return GroupId.parse(value)


def _suites(values: list[str]) -> list[str]:
    parse_suites(values, SUITES)
    return values


Duration = Annotated[float, BeforeValidator(parse_duration)]
Seconds = Annotated[int, BeforeValidator(_whole_seconds)]
Name = Annotated[str, AfterValidator(_name)]
ConnectionName = Annotated[str, AfterValidator(_connection)]
Interface = Annotated[str, AfterValidator(_interface)]
Netns = Annotated[str, AfterValidator(_netns)]
Lan = Annotated[Interface, AfterValidator(_lan)]
Joins = Annotated[bool | tuple[str, ...], PlainValidator(_joins)]
IdentityText = Annotated[str, AfterValidator(_identity)]
PatternText = Annotated[str, AfterValidator(_pattern)]
Port = Annotated[int, number_range(1, 65535)]
Selector = Annotated[int, number_range(0, 65535)]
Multicast = Annotated[Address, AfterValidator(_multicast), BeforeValidator(_address)]
Protected = Annotated[Address, AfterValidator(_protected), BeforeValidator(_address)]
Unicast = Annotated[Address, AfterValidator(_unicast), BeforeValidator(_address)]
Prefix = Annotated[Network, BeforeValidator(_network)]
Senders = Annotated[tuple[Address, ...] | Literal["members"], PlainValidator(_senders)]
FileName = Annotated[Path, BeforeValidator(_file)]
LogPlace = Annotated[Path | Literal["journal"], PlainValidator(_log_place)]
Proposals = Annotated[list[str], Field(min_length=1), AfterValidator(_suites)]
GroupName = Annotated[GroupId, BeforeValidator(_group_id)]
Loopback = Annotated[Peer, PlainValidator(_loopback)]
ReadableAt = Annotated[Path | Peer, PlainValidator(_readable_at)]


Phase1Lifetime = Annotated[Seconds, span(60, 365 * 86400)]
# At least three questions: 0, 1 and 3 s after the silence is noticed.
DpdTimeout = Annotated[Duration, span(5, 3600)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, strict=True)
