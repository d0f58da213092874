"""TOML configuration of both daemons, validated; an error names file, key and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    model_validator,
)

from ..crypto.certificate import Revocation
from ..crypto.lkh import MAX_ARITY, capacity_of
from ..crypto.secret import Secret
from ..crypto.signature import SCHEMES
from ..protocol.ack import MAX_JITTER, MIN_WAIT
from ..protocol.actions import IPAddress, Peer
from ..protocol.dpd import DpdConfig
from ..protocol.forest import DEFAULT_ARITY, DEFAULT_MEMBERS, LkhPolicy
from ..protocol.group import GroupConfig
from ..protocol.group_id import GroupId
from ..protocol.identity import Identity
from ..protocol.identity_pattern import EVERYBODY, IdentityList, IdentityPattern
from ..protocol.isakmp import SUITES
from ..protocol.limits import Limits
from ..protocol.member import MemberConfig
from ..protocol.nat import KEEPALIVE_INTERVAL, Traversal
from ..protocol.phase1 import (
    Authentication,
    Phase1Config,
    PreSharedKey,
    SendCertificate,
)
from ..protocol.phase1_proposal import parse_suites
from ..protocol.push import DEFAULT_PUSH_LIMIT
from ..protocol.registration import KeyServerEntry
from ..protocol.sender_ids import MAX_SIDS
from ..wire.header import MAX_SENT
from ..wire.registry import GDOI_PORT, NAT_PORT, AckType, Doi, IdType
from .config_addresses import find_address, interfaces_with
from .config_reading import read_file, unique
from .config_tek import DataSas
from .config_values import (
    DpdTimeout,
    Duration,
    FileName,
    GroupName,
    IdentityText,
    Multicast,
    Name,
    Network,
    PatternText,
    Phase1Lifetime,
    Port,
    Prefix,
    Proposals,
    Seconds,
    Section,
    Unicast,
    number_range,
    span,
)
from .credentials import CredentialFiles, Credentials
from .errors import ConfigError
from .reqid import reqid_of

# ECP groups first: finite-field groups are on their way out of the crypto library.
DEFAULT_PROPOSALS = (
    "aes256-sha256-ecp256",
    "aes256-sha384-ecp384",
    "aes128-sha256-ecp256",
    "aes256-sha256-modp3072",
    "aes256-sha256-modp2048",
    "aes128-sha256-modp2048",
)
# RFC 6407 section 2.1: phase 1 has GDOI's own number. IKE daemons know IPsec's only.
_DOIS = {"gdoi": (Doi.GDOI,), "ipsec": (Doi.IPSEC,), "any": (Doi.GDOI, Doi.IPSEC)}


def _signature(value: str) -> str:
    if value not in SCHEMES:
        raise ValueError(f"must be one of {', '.join(SCHEMES)}")
    return value


class _Authenticated(Section):
    """How a peer authenticates in phase 1: ``psk`` or ``psk_file`` for one, neither for pubkey."""

    auth: Literal["psk", "pubkey"] = "psk"
    psk: str | None = Field(default=None, repr=False, min_length=1)
    psk_file: FileName | None = None
    identity: PatternText | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        given = (self.psk is not None) + (self.psk_file is not None)
        if self.auth == "pubkey" and given:
            raise ValueError("auth pubkey is by certificate: take psk and psk_file out")
        if self.auth == "psk" and given != 1:
            raise ValueError("give psk or psk_file, one of the two, or auth = 'pubkey'")
        wild = self.identity is not None and IdentityPattern.parse(self.identity).exact is None
        if self.auth == "psk" and wild:
            raise ValueError("a pre-shared key is one peer's: identity must be without wildcards")
        return self

    def secret(self, config: Path, key: str) -> Secret:
        """Relative files are looked for beside the configuration. Raises ConfigError."""
        if self.psk is not None:
            return Secret(self.psk.encode())
        path = config.parent / str(self.psk_file)
        try:
            octets = path.read_bytes().strip()
        except OSError as error:
            raise ConfigError(config, f"{key}.psk_file", f"{path}: {error.strerror}") from error
        if not octets:
            raise ConfigError(config, f"{key}.psk_file", f"{path} is empty")
        return Secret(octets)


class _Credentials(Section):
    """What ``auth = "pubkey"`` takes; names are swanctl's."""

    certificate: FileName | None = None
    private_key: FileName | None = None
    cacerts: list[FileName] = []
    crls: list[FileName] = []
    revocation: Literal["strict", "ifuri", "relaxed"] = "relaxed"
    send_cert: Literal["always", "ifasked", "never"] = "ifasked"
    send_certreq: bool = True

    @model_validator(mode="after")
    def _all_or_none(self) -> Self:
        given = (self.certificate is not None, self.private_key is not None, bool(self.cacerts))
        if any(given) and not all(given):
            raise ValueError("certificate, private_key and cacerts go together")
        return self

    def credentials(self, config: Path, key: str) -> Credentials | None:
        """Raises ConfigError."""
        if self.certificate is None or self.private_key is None:
            return None
        revocation = Revocation(self.revocation)
        files = CredentialFiles(
            config, key, self.certificate, self.private_key, self.cacerts, self.crls, revocation
        )
        return Credentials(files, SendCertificate(self.send_cert), send_certreq=self.send_certreq)


def _needed(credentials: Credentials | None, path: Path, key: str, section: str) -> Credentials:
    if credentials is None:
        what = f"pubkey needs certificate, private_key and cacerts in [{section}]"
        raise ConfigError(path, f"{key}.auth", what)
    return credentials


# -- member --------------------------------------------------------------------------------------


class _Ports(Section):
    """Our own. RFC 3947: there is a second one, where messages go that a NAT has translated."""

    port: Port = GDOI_PORT
    nat_traversal: bool = True
    nat_port: Port = NAT_PORT

    @model_validator(mode="after")
    def _two_of_them(self) -> Self:
        if self.nat_traversal and self.nat_port == self.port:
            raise ValueError(f"nat_port and port are both {self.port}")
        return self

    def nat_local(self, host: IPAddress) -> Peer | None:
        """Our endpoint for NAT traversal, None where that is off."""
        return Peer(host, self.nat_port) if self.nat_traversal else None

    def traversal(self, *, encap: bool, bound: bool = True) -> Traversal:
        if not (self.nat_traversal and bound):
            return Traversal.OFF
        return Traversal.FORCED if encap else Traversal.ON


class _MemberSection(_Credentials, _Ports):
    address: Unicast | None = None
    interface: str | None = None
    keep_alive: Annotated[Duration, span(0, 3600)] = KEEPALIVE_INTERVAL
    state: FileName = Path("/var/lib/gdoi/gm")
    export: FileName | None = None
    control: FileName = Path("/run/gdoi/gm.vici")
    control_group: str | None = "gdoi"
    log: FileName | None = None

    @model_validator(mode="after")
    def _some_address(self) -> Self:
        if self.address is None and self.interface is None:
            raise ValueError("give address, or interface to take its first IPv4 address, or both")
        return self


class _KeyServerEntry(_Authenticated):
    address: Unicast
    port: Port = GDOI_PORT
    phase1_doi: Literal["gdoi", "ipsec"] = "gdoi"
    phase1_lifetime: Phase1Lifetime = 86400
    dpd_delay: Duration = 0.0
    dpd_timeout: DpdTimeout = 30.0
    initial_contact: bool = True
    encap: bool = False
    nat_port: Port = NAT_PORT


class _MemberGroup(Section):
    name: Name
    id: GroupName
    identity: IdentityText | None = None
    proposals: Proposals = list(DEFAULT_PROPOSALS)
    ack_jitter: Annotated[Duration, span(0, MAX_JITTER)] = 2.0
    ack_id: Literal["address", "oid"] = "address"
    recovery_delay: Annotated[Duration, span(0, 3600)] = 2.0
    sender_ids: Annotated[int, number_range(0, MAX_SIDS)] = 0
    key_server: Annotated[list[_KeyServerEntry], Field(min_length=1)]

    @model_validator(mode="after")
    def _oid_to_name(self) -> Self:
        if self.ack_id == "oid" and self.id.id_type != IdType.ID_OID:
            raise ValueError(f"ack_id oid needs an id that is one, as oid:1.2.3, and not {self.id}")
        return self


class _MemberFile(Section):
    member: _MemberSection
    group: Annotated[list[_MemberGroup], Field(min_length=1)]


class MemberDaemonConfig:
    """``gdoi-gm``'s configuration: ``settings`` as written, ``groups`` for the engine."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError."""
        document = read_file(path, _MemberFile)
        self.path = path
        self.settings = document.member
        self.interface, address = find_address(
            path, document.member.interface, document.member.address
        )
        self.local = Peer(address, document.member.port)
        self.nat_local = document.member.nat_local(address)
        self.credentials = document.member.credentials(path, "member")
        unique(path, "group.name", [group.name for group in document.group])
        unique(path, "group.id", [group.id for group in document.group])
        self._check_reqids(document.group)
        self.groups = tuple(self._group(group, index) for index, group in enumerate(document.group))

    def _check_reqids(self, groups: list[_MemberGroup]) -> None:
        """Two groups under one number in the kernel could send with each other's SAs."""
        taken: dict[int, GroupId] = {}
        for index, group in enumerate(groups):
            other = taken.setdefault(reqid_of(group.id), group.id)
            if other != group.id:
                what = f"{group.id} and {other} share a reqid in the kernel; they need two agents"
                raise ConfigError(self.path, f"group.{index}.id", what)

    def _group(self, group: _MemberGroup, index: int) -> MemberConfig:
        suites = parse_suites(group.proposals, SUITES)
        servers = []
        for number, server in enumerate(group.key_server):
            key = f"group.{index}.key_server.{number}"
            if server.address.version != self.local.host.version:
                what = f"{server.address} cannot be reached from {self.local.host}"
                raise ConfigError(self.path, f"{key}.address", what)
            way = self._authentication(group, server, f"group.{index}", key)
            doi = _DOIS[server.phase1_doi]
            nat = self.settings.traversal(encap=server.encap)
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
        )

    def _authentication(
        self, group: _MemberGroup, server: _KeyServerEntry, at: str, key: str
    ) -> Authentication:
        if server.auth == "psk":
            local = _identity_or(group.identity, self.local.host)
            remote = _identity_or(server.identity, server.address)
            return PreSharedKey(local, remote, server.secret(self.path, key))
        own = None if group.identity is None else Identity.parse(group.identity)
        credentials = _needed(self.credentials, self.path, key, "member")
        names = IdentityPattern.parse(server.identity or str(server.address))
        return credentials.towards(names, own, f"{at}.identity")


# -- key server ----------------------------------------------------------------------------------


_LIMITS = Limits()


class _KeyServerSection(_Credentials, _Ports):
    address: Unicast
    identity: IdentityText | None = None
    proposals: Proposals = list(DEFAULT_PROPOSALS)
    phase1_lifetime: Phase1Lifetime = 86400
    dpd_delay: Duration = 0.0
    dpd_timeout: DpdTimeout = 30.0
    init_limit_half_open: Annotated[int, number_range(16, 1_000_000)] = _LIMITS.half_open
    block_threshold: Annotated[int, number_range(1, 10_000)] = _LIMITS.half_open_per_source
    half_open_timeout: Annotated[Duration, span(5, 600)] = _LIMITS.half_open_lifetime
    work_per_source: Annotated[int, number_range(2, 100_000)] = _LIMITS.work_per_source
    new_offers: Annotated[int, number_range(1, 10_000)] = _LIMITS.offers
    state: FileName = Path("/var/lib/gdoi/gcks.sqlite")
    control: FileName = Path("/run/gdoi/gcks.vici")
    control_group: str | None = "gdoi"
    log: FileName | None = None

    @property
    def limits(self) -> Limits:
        """What peers that have not authenticated may cost."""
        return Limits(
            half_open=self.init_limit_half_open,
            half_open_per_source=self.block_threshold,
            half_open_lifetime=self.half_open_timeout,
            work_per_source=self.work_per_source,
            offers=self.new_offers,
        )


class _PeerEntry(_Authenticated):
    address: Prefix
    more_identities: list[IdentityText] = []
    phase1_doi: Literal["gdoi", "ipsec", "any"] = "gdoi"
    encap: bool = False

    @model_validator(mode="after")
    def _one_identity(self) -> Self:
        one = self.address.prefixlen == self.address.max_prefixlen
        if self.auth == "psk" and self.identity is not None and not one:
            raise ValueError(
                "identity needs one address: main mode finds a pre-shared key by address alone"
            )
        if self.more_identities and (self.auth != "psk" or not one):
            raise ValueError("more_identities is for a pre-shared key and one address, a NAT's")
        return self


_ACK_TYPES = {
    "kek-sha256": AckType.REKEY_ACK_KEK_SHA256,
    "lkh-sha256": AckType.REKEY_ACK_LKH_SHA256,
    "kek-sha512": AckType.REKEY_ACK_KEK_SHA512,
    "lkh-sha512": AckType.REKEY_ACK_LKH_SHA512,
    "none": None,
}


class _RekeySection(Section):
    address: Multicast | None = None
    port: Port = GDOI_PORT
    kek: Literal["aes128", "aes192", "aes256"] = "aes256"
    kek_lifetime: Annotated[Seconds, span(60, 365 * 86400)] = 86400
    signature: Annotated[str, AfterValidator(_signature)] = "rsa2048-sha256"
    ack: Literal["kek-sha256", "kek-sha512", "lkh-sha256", "lkh-sha512", "none"] = "kek-sha256"
    ack_l: Annotated[list[Annotated[int, number_range(1, 0xFFFF)]], Field(max_length=8)] = []
    ack_exempt: list[PatternText] = []
    ack_wait: Annotated[Duration, span(MIN_WAIT, 3600)] = MIN_WAIT
    retransmissions: Annotated[int, number_range(0, 60)] = 2
    push_limit: Annotated[int, number_range(512, MAX_SENT)] = DEFAULT_PUSH_LIMIT
    activation_delay: Annotated[Seconds, span(0, 3600)] = 10
    deactivation_delay: Annotated[Seconds, span(0, 7200)] = 30
    kek_management: Literal["none", "lkh"] = "none"
    lkh_arity: Annotated[int, number_range(2, MAX_ARITY)] | None = None
    lkh_members: Annotated[int, number_range(1, capacity_of(MAX_ARITY))] | None = None
    rekey_on_join: bool = False

    @model_validator(mode="after")
    def _keys_are_in_a_tree(self) -> Self:
        if self.kek_management == "lkh":
            if self.kek == "aes192":
                raise ValueError(
                    "kek aes192 cannot be in a tree, IV and key are not whole blocks of AES;"
                    " must be aes128 or aes256"
                )
            most = capacity_of(self.lkh_arity or DEFAULT_ARITY)
            if self.lkh_members is not None and self.lkh_members > most:
                raise ValueError(
                    f"lkh_members {self.lkh_members} is more than a tree of arity"
                    f" {self.lkh_arity or DEFAULT_ARITY} can hold, LKH IDs have 16 bits:"
                    f" must be 1 to {most}; more members get more trees"
                )
            return self
        if self.ack.startswith("lkh-"):
            raise ValueError(
                f"ack {self.ack} is keyed by each member's own key of an LKH, which this group has"
                ' not; must be kek-sha256, kek-sha512 or none, or kek_management "lkh"'
            )
        if self.lkh_arity is not None or self.lkh_members is not None or self.rekey_on_join:
            raise ValueError('lkh_arity, lkh_members and rekey_on_join need kek_management = "lkh"')
        return self

    def lkh(self) -> LkhPolicy | None:
        if self.kek_management == "none":
            return None
        return LkhPolicy(
            self.lkh_arity or DEFAULT_ARITY,
            self.lkh_members or DEFAULT_MEMBERS,
            self.rekey_on_join,
        )

    @model_validator(mode="after")
    def _old_outlives_new(self) -> Self:
        if self.deactivation_delay <= self.activation_delay and self.activation_delay:
            raise ValueError(
                "deactivation_delay must be longer than activation_delay, or packets are lost"
                " (RFC 6407 section 5.4.1)"
            )
        return self


class _ServerGroup(DataSas):
    name: Name
    id: GroupName
    members: Annotated[list[PatternText], Field(min_length=1)]
    rekey: _RekeySection = _RekeySection()

    @model_validator(mode="after")
    def _delays_fit(self) -> Self:
        for entry in self.iec61850:
            entry.check_delays(self.rekey.deactivation_delay)
        for tek in self.tek:
            if 2 * self.rekey.deactivation_delay > tek.lifetime:
                raise ValueError(
                    f"deactivation_delay {self.rekey.deactivation_delay} s is more than half of"
                    f" the TEK lifetime {tek.lifetime} s"
                )
        return self


class _ServerFile(Section):
    key_server: _KeyServerSection
    peer: Annotated[list[_PeerEntry], Field(min_length=1)]
    group: Annotated[list[_ServerGroup], Field(min_length=1)]


class _Peers:
    """The phase-1 policy of the most specific network that an address is in.

    Asked for every datagram that anybody sends, so as many look-ups as there are prefix lengths.
    """

    def __init__(self, entries: Iterable[tuple[Network, Phase1Config]]) -> None:
        self._by_length: dict[tuple[int, int], dict[int, Phase1Config]] = {}
        for network, phase1 in entries:
            shift = network.max_prefixlen - network.prefixlen
            found = self._by_length.setdefault((network.version, shift), {})
            found[int(network.network_address) >> shift] = phase1
        self._lengths = {
            version: sorted(shift for v, shift in self._by_length if v == version)
            for version in (4, 6)
        }

    def find(self, host: IPAddress) -> Phase1Config | None:
        number, version = int(host), host.version
        for shift in self._lengths[version]:
            phase1 = self._by_length[version, shift].get(number >> shift)
            if phase1 is not None:
                return phase1
        return None


class KeyServerDaemonConfig:
    """``gdoi-gcks``'s configuration; ``phase1_for`` finds the pre-shared key of an address."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError."""
        document = read_file(path, _ServerFile)
        self.path = path
        self.settings = document.key_server
        self.local = Peer(document.key_server.address, document.key_server.port)
        self.nat_local = document.key_server.nat_local(self.local.host)
        self.dpd = DpdConfig(document.key_server.dpd_delay, document.key_server.dpd_timeout)
        # None where no interface has the address: binding the port will say so.
        self.interface = next(interfaces_with(self.local.host), None)
        self.credentials = document.key_server.credentials(path, "key_server")
        self._nat_bound = True
        self._identity = _identity_or(document.key_server.identity, self.local.host)
        self._suites = parse_suites(document.key_server.proposals, SUITES)
        self._ways = [
            (peer, self._authentication(peer, f"peer.{index}"))
            for index, peer in enumerate(document.peer)
        ]
        self._peers = self._index()
        unique(path, "peer.address", [peer.address for peer in document.peer])
        unique(path, "group.name", [group.name for group in document.group])
        unique(path, "group.id", [group.id for group in document.group])
        self.groups = tuple(self._group(group, index) for index, group in enumerate(document.group))

    def _phase1(self, peer: _PeerEntry, way: Authentication) -> Phase1Config:
        return Phase1Config(
            (way,),
            self._suites,
            self.settings.phase1_lifetime,
            _DOIS[peer.phase1_doi],
            self.settings.traversal(encap=peer.encap, bound=self._nat_bound),
        )

    def _authentication(self, peer: _PeerEntry, key: str) -> Authentication:
        """A pre-shared key is for whoever has the address, a certificate for its own names."""
        if peer.auth == "psk":
            named = None if peer.identity is None else Identity.parse(peer.identity)
            also = frozenset(Identity.parse(text) for text in peer.more_identities)
            return PreSharedKey(self._identity, named, peer.secret(self.path, key), also)
        own = self.settings.identity
        return _needed(self.credentials, self.path, key, "key_server").towards(
            IdentityPattern.parse(peer.identity or EVERYBODY),
            None if own is None else Identity.parse(own),
            "key_server.identity",
        )

    def _index(self) -> _Peers:
        return _Peers((entry.address, self._phase1(entry, way)) for entry, way in self._ways)

    def give_up_nat_traversal(self) -> None:
        """Its port is not to be had: nobody is told to come there."""
        self._nat_bound = False
        self._peers = self._index()

    def phase1_for(self, peer: Peer) -> Phase1Config | None:
        return self._peers.find(peer.host)

    def _group(self, group: _ServerGroup, index: int) -> GroupConfig:
        rekey = group.rekey
        if rekey.address is not None and rekey.address.version != self.local.host.version:
            key = f"group.{index}.rekey.address"
            raise ConfigError(self.path, key, f"{rekey.address} cannot be sent from {self.local}")
        teks = tuple(tek.tek() for tek in group.tek)
        unique(self.path, f"group.{index}.tek", [str(tek.flow) for tek in teks])
        keys = tuple(entry.tek() for entry in group.iec61850)
        unique(self.path, f"group.{index}.iec61850", [str(tek.selector) for tek in keys])
        return GroupConfig(
            name=group.name,
            group_id=group.id,
            members=IdentityList.parse(group.members),
            teks=(*teks, *keys),
            source=self.local,
            rekey_address=rekey.address,
            rekey_port=rekey.port,
            kek_bits=int(rekey.kek.removeprefix("aes")),
            kek_lifetime=rekey.kek_lifetime,
            scheme=SCHEMES[rekey.signature],
            ack=_ACK_TYPES[rekey.ack],
            ack_l=tuple(rekey.ack_l),
            ack_exempt=IdentityList.parse(rekey.ack_exempt),
            push_limit=rekey.push_limit,
            ack_wait=rekey.ack_wait,
            lkh=rekey.lkh(),
            sid_bits=group.sid_bits,
            sender_ids_limit=group.sender_ids_limit,
            retransmissions=rekey.retransmissions,
            activation_delay=rekey.activation_delay,
            deactivation_delay=rekey.deactivation_delay,
        )


def _identity_or(text: str | None, address: IPAddress) -> Identity:
    return Identity.of_address(address) if text is None else Identity.parse(text)
