"""``gdoi-gm``'s TOML configuration, validated; an error names file, key and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Annotated, Literal, Self

from gdoi_xfrm import Direction, Selector
from pydantic import Field, model_validator

from ..crypto.secret import Secret
from ..protocol.ack import MAX_JITTER
from ..protocol.actions import IPAddress, Peer
from ..protocol.dpd import DpdConfig
from ..protocol.group_id import GroupId
from ..protocol.identity import Identity
from ..protocol.identity_pattern import IdentityPattern
from ..protocol.isakmp import SUITES
from ..protocol.member_config import MemberConfig
from ..protocol.nat import KEEPALIVE_INTERVAL, Traversal
from ..protocol.phase1 import Authentication, Phase1Config, PreSharedKey
from ..protocol.phase1_proposal import parse_suites
from ..protocol.registration import KeyServerEntry
from ..protocol.sender_ids import MAX_SIDS
from ..wire.registry import GDOI_PORT, NAT_PORT, IdType
from .config_addresses import find_address
from .config_channel import IkeSection, channel_options
from .config_common import (
    DEFAULT_PROPOSALS,
    DOIS,
    Authenticated,
    CredentialsSection,
    Ports,
    Served,
    identity_or,
    needed,
)
from .config_guard import GuardOptions
from .config_kernel import KernelSection
from .config_reading import read_file, unique
from .config_values import (
    DpdTimeout,
    Duration,
    FileName,
    GroupName,
    IdentityText,
    Interface,
    Joins,
    Lan,
    LogPlace,
    Name,
    Netns,
    Phase1Lifetime,
    Port,
    Proposals,
    Section,
    Unicast,
    number_range,
    span,
)
from .errors import AbsentError, ConfigError
from .guard import channel_selectors
from .kernel_options import ALL
from .reqid import reqid_of


class _MemberSection(CredentialsSection, Ports, Served, GuardOptions):
    address: Unicast | None = None
    interface: Interface | None = None
    netns: Netns | None = None
    keep_alive: Annotated[Duration, span(0, 3600)] = KEEPALIVE_INTERVAL
    firewall: Literal["iptables", "iptables-legacy", "iptables-nft", "none"] = "iptables"
    state: FileName = Path("/var/lib/gdoi/gm")
    export: FileName | None = None
    control: FileName = Path("/run/gdoi/gm.vici")
    log: LogPlace | None = None

    @model_validator(mode="after")
    def _some_address(self) -> Self:
        if self.address is None and self.interface is None:
            raise ValueError("give address, or interface to take its first IPv4 address, or both")
        return self


class _KeyServerEntry(Authenticated):
    address: Unicast
    port: Port = GDOI_PORT
    phase1_doi: Literal["gdoi", "ipsec"] = "gdoi"
    phase1_lifetime: Phase1Lifetime = 86400
    dpd_delay: Duration = 0.0
    dpd_timeout: DpdTimeout = 30.0
    initial_contact: bool = True
    encap: bool = False
    nat_port: Port = NAT_PORT
    ike: IkeSection | None = None


class _MemberGroup(KernelSection):
    name: Name
    id: GroupName
    identity: IdentityText | None = None
    proposals: Proposals = list(DEFAULT_PROPOSALS)
    ack_jitter: Annotated[Duration, span(0, MAX_JITTER)] = 2.0
    ack_id: Literal["address", "oid"] = "address"
    recovery_delay: Annotated[Duration, span(0, 3600)] = 2.0
    sender_ids: Annotated[int, number_range(0, MAX_SIDS)] = 0
    accept_private_algs: bool = False
    join: Joins = False
    lan: list[Lan] = []
    channel: Literal["clear", "ike"] = "clear"
    key_server: Annotated[list[_KeyServerEntry], Field(min_length=1)]

    @model_validator(mode="after")
    def _inside_or_not(self) -> Self:
        for server in self.key_server:
            if server.ike is not None and self.channel != "ike":
                raise ValueError(f"key server {server.address} has [ike]: set channel = 'ike'")
            if server.encap and self.channel == "ike":
                raise ValueError("encap does not go with channel = 'ike': charon sees to NATs")
        return self

    @model_validator(mode="after")
    def _oid_to_name(self) -> Self:
        if self.ack_id == "oid" and self.id.id_type != IdType.ID_OID:
            raise ValueError(f"ack_id oid needs an id that is one, as oid:1.2.3, and not {self.id}")
        return self


class _MemberFile(Section):
    member: _MemberSection
    group: Annotated[list[_MemberGroup], Field(min_length=1)]


class MemberDaemonConfig:
    """``gdoi-gm``'s configuration: ``settings`` as written, the rest for where the member is.

    ``absent`` is what this host lacks for that, an interface or address, and None where it lacks
    nothing; then ``interface``, ``local``, ``nat_local`` and ``groups`` are of use.
    """

    def __init__(self, path: Path) -> None:
        """Raises ConfigError for what is wrong with the file."""
        document = read_file(path, _MemberFile)
        self.path = path
        self.document = document
        self.settings = document.member
        self._document = document.group
        servers = self._channelled()
        self.fence = replace(document.member.fence(), channels=self._blocked(servers))
        self._secrets: dict[str, Secret] = {}
        self.credentials = document.member.credentials(path, "member")
        unique(path, "group.name", [group.name for group in document.group])
        unique(path, "group.id", [group.id for group in document.group])
        self._check_reqids(document.group)
        self.kernel_options = {group.name: group.kernel_options() for group in document.group}
        self.absent: AbsentError | None = None
        place = document.member.interface or "", document.member.address or IPv4Address(0)
        try:
            if document.member.netns is not None:
                raise AbsentError(path, "member.netns", "has yet to be entered")
            place = find_address(path, document.member.interface, document.member.address)
        except AbsentError as error:
            self.absent = error
        self._settle(*place)

    def here(self) -> MemberDaemonConfig:
        """The same for where the member is now. Raises AbsentError."""
        former, wanted = None if self.absent else self.local.host, self.settings
        place = find_address(self.path, wanted.interface, wanted.address, former)
        if self.absent is None and place == (self.interface, self.local.host):
            return self
        moved = copy(self)
        moved.absent = None
        moved._settle(*place)
        return moved

    def placed_as(self, running: MemberDaemonConfig) -> MemberDaemonConfig:
        """This file for the place of a member that runs already. Raises ConfigError where it does
        not fit that."""
        placed = copy(self)
        placed.absent = running.absent
        placed._settle(running.interface, running.local.host)
        return placed

    def secret_of(self, group: int, server: int) -> Secret | None:
        """The pre-shared key for one of its key servers, None where there is none."""
        return self._secrets.get(f"group.{group}.key_server.{server}")

    def _settle(self, interface: str, address: IPAddress) -> None:
        self.interface = interface
        self.local = Peer(address, self.settings.port)
        self.nat_local = self.settings.nat_local(address)
        self.groups = tuple(self._group(group, index) for index, group in enumerate(self._document))
        self.channels = tuple(
            channel_options(section, self.path, f"{key}.ike", self.local, remote)
            for remote, (key, section) in self._channelled().items()
        )
        # The interfaces on which the data of each group is joined.
        self.joins = {group.name: self._joined(group) for group in self._document}
        # Those on which it is in clear, at a router.
        self.lans = {group.name: tuple(group.lan) for group in self._document}

    def _channelled(self) -> dict[Peer, tuple[str, IkeSection]]:
        """The key servers that are reached inside ESP, with the section that says how."""
        found: dict[Peer, tuple[str, IkeSection]] = {}
        open_hosts: dict[IPAddress, str] = {}
        wanted: dict[Peer, str] = {}
        for index, group in enumerate(self._document):
            for number, server in enumerate(group.key_server):
                key, remote = (
                    f"group.{index}.key_server.{number}",
                    Peer(server.address, server.port),
                )
                if group.channel != "ike":
                    open_hosts[server.address] = key
                    continue
                wanted.setdefault(remote, key)
                if server.ike is not None:
                    (_, first) = found.setdefault(remote, (key, server.ike))
                    if first != server.ike:
                        what = f"{remote} has another [ike] already, in {found[remote][0]}"
                        raise ConfigError(self.path, f"{key}.ike", what)
        for remote, key in wanted.items():
            if remote not in found:
                what = f"channel = 'ike' needs [group.key_server.ike] for {remote}"
                raise ConfigError(self.path, f"{key}.ike", what)
            if remote.host in open_hosts:
                what = f"{remote.host} has channel = 'ike' in another group: it must be in both"
                raise ConfigError(self.path, open_hosts[remote.host], what)
        return found

    def _blocked(self, servers: Iterable[Peer]) -> tuple[tuple[Selector, Direction], ...]:
        """Also from the port for NATs: what comes there is no part of a channel."""
        ports = [self.settings.port]
        if self.settings.nat_traversal:
            ports.append(self.settings.nat_port)
        found = [
            chosen
            for server in servers
            for chosen in channel_selectors(ip_network(server.host), ports, server.port)
        ]
        return tuple(dict.fromkeys(found))

    def _joined(self, group: _MemberGroup) -> tuple[str, ...]:
        """A router decrypts what it has joined; without that it forwards the ESP packets alone."""
        if isinstance(group.join, bool):
            return (self.interface,) if group.join or group.lan else ()
        return group.join

    def _check_lan(self, group: _MemberGroup, key: str) -> None:
        if group.lan and self.local.host.version != 4:
            what = f"only IPv4 multicast is forwarded, and this member is {self.local.host}"
            raise ConfigError(self.path, key, what)
        if group.lan and self.kernel_options[group.name].scope != ALL:
            what = "packets that are forwarded have no mark and no if_id: take those out"
            raise ConfigError(self.path, key, what)
        if self.interface in group.lan:
            what = f"{self.interface} is [member]'s interface, where the group's packets are in ESP"
            raise ConfigError(self.path, key, what)

    def _check_reqids(self, groups: list[_MemberGroup]) -> None:
        """Two groups under one number in the kernel could send with each other's SAs."""
        taken: dict[int, GroupId] = {}
        for index, group in enumerate(groups):
            other = taken.setdefault(reqid_of(group.id), group.id)
            if other != group.id:
                what = f"{group.id} and {other} share a reqid in the kernel; they need two agents"
                raise ConfigError(self.path, f"group.{index}.id", what)

    def _group(self, group: _MemberGroup, index: int) -> MemberConfig:
        self._check_lan(group, f"group.{index}.lan")
        suites = parse_suites(group.proposals, SUITES)
        servers = []
        for number, server in enumerate(group.key_server):
            key = f"group.{index}.key_server.{number}"
            if server.address.version != self.local.host.version:
                what = f"{server.address} cannot be reached from {self._where}"
                raise ConfigError(self.path, f"{key}.address", what)
            way = self._authentication(group, server, f"group.{index}", key)
            doi = DOIS[server.phase1_doi]
            nat = self.settings.traversal(encap=server.encap)
            if group.channel == "ike":
                nat = Traversal.OFF
            phase1 = Phase1Config((way,), suites, server.phase1_lifetime, doi, nat)
            servers.append(
                KeyServerEntry(
                    Peer(server.address, server.port),
                    phase1,
                    DpdConfig(server.dpd_delay, server.dpd_timeout),
                    server.initial_contact,
                    server.nat_port,
                )
            )
        return MemberConfig(
            name=group.name,
            group_id=group.id,
            local=self.local,
            key_servers=tuple(servers),
            ack_jitter=group.ack_jitter,
            ack_with_oid=group.ack_id == "oid",
            exports=self.settings.export is not None,
            recovery_delay=group.recovery_delay,
            nat_local=self.nat_local,
            keep_alive=self.settings.keep_alive,
            sender_ids=group.sender_ids,
            accept_private_algs=group.accept_private_algs,
            forwards=bool(group.lan),
            channel=group.channel == "ike",
        )

    @property
    def _where(self) -> str:
        host = self.local.host
        return f"an IPv{host.version} address" if host.is_unspecified else str(host)

    def _authentication(
        self, group: _MemberGroup, server: _KeyServerEntry, at: str, key: str
    ) -> Authentication:
        if server.auth == "psk":
            local = identity_or(group.identity, self.local.host)
            remote = identity_or(server.identity, server.address)
            if key not in self._secrets:  # read once: the file may be gone when the member moves
                self._secrets[key] = server.secret(self.path, key)
            return PreSharedKey(local, remote, self._secrets[key])
        own = None if group.identity is None else Identity.parse(group.identity)
        credentials = needed(self.credentials, self.path, key, "member")
        names = IdentityPattern.parse(server.identity or str(server.address))
        return credentials.towards(names, own, f"{at}.identity")
