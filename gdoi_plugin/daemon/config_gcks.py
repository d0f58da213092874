"""``gdoi-gcks``'s TOML configuration, validated; an error names file, key and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from ..crypto.lkh import MAX_ARITY, capacity_of
from ..crypto.signature import SCHEMES
from ..protocol.ack import MIN_WAIT
from ..protocol.actions import IPAddress, Peer
from ..protocol.dpd import DpdConfig
from ..protocol.forest import DEFAULT_ARITY, DEFAULT_MEMBERS, LkhPolicy
from ..protocol.group import DEFAULT_PACE, LEDGER_LENGTH, MAX_BATCH, GroupConfig
from ..protocol.identity import Identity
from ..protocol.identity_pattern import EVERYBODY, IdentityList, IdentityPattern
from ..protocol.ike_sas import DEFAULT_GRACE, IkePolicy, OnIkeDown
from ..protocol.isakmp import SUITES
from ..protocol.limits import Limits
from ..protocol.phase1 import Authentication, Phase1Config, PreSharedKey
from ..protocol.phase1_proposal import parse_suites
from ..protocol.push import DEFAULT_PUSH_LIMIT
from ..protocol.silence import DEFAULT_SILENCE, SilencePolicy
from ..wire.header import MAX_SENT
from ..wire.registry import GDOI_PORT, AckType
from .config_addresses import interfaces_with
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
from .config_reading import read_file, unique
from .config_store import StoreSection
from .config_tek import DataSas
from .config_values import (
    ConnectionName,
    DpdTimeout,
    Duration,
    FileName,
    GroupName,
    IdentityText,
    LogPlace,
    Loopback,
    Multicast,
    Name,
    Netns,
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
    one_of,
    span,
)
from .errors import ConfigError

if TYPE_CHECKING:
    from gdoi_xfrm import Policy

_LIMITS = Limits()
# That read acknowledgements beside the key server; one for each processor is enough.
MAX_ACK_PROCESSES = 16
# Of charon's, each with members of its own kind.
MAX_CONNECTIONS = 100


class _KeyServerSection(CredentialsSection, Ports, Served, StoreSection):
    address: Unicast
    ike_connections: Annotated[list[ConnectionName], Field(max_length=MAX_CONNECTIONS)] = []
    netns: Netns | None = None
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
    ack_processes: Annotated[int, number_range(0, MAX_ACK_PROCESSES)] = 0
    # Where there is a ``database``: this key server's name among the others, default the host's.
    name: Name | None = None
    lease: Annotated[Duration, span(2, 300)] = 10.0
    control: FileName = Path("/run/gdoi/gcks.vici")
    status_page: Loopback | None = None
    log: LogPlace | None = None

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


class _PeerEntry(Authenticated):
    address: Prefix
    more_identities: list[IdentityText] = []
    phase1_doi: Literal["gdoi", "ipsec", "any"] = "gdoi"
    encap: bool = False
    channel: Literal["clear", "ike"] = "clear"

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.encap and self.channel == "ike":
            raise ValueError("encap does not go with channel = 'ike': charon sees to NATs")
        return self

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
    signature: Annotated[str, one_of(SCHEMES)] = "rsa2048-sha256"
    ack: Literal["kek-sha256", "kek-sha512", "lkh-sha256", "lkh-sha512", "none"] = "kek-sha256"
    ack_l: Annotated[list[Annotated[int, number_range(1, 0xFFFF)]], Field(max_length=8)] = []
    ack_exempt: list[PatternText] = []
    ack_wait: Annotated[Duration, span(MIN_WAIT, 3600)] = MIN_WAIT
    retransmissions: Annotated[int, number_range(0, 60)] = 2
    pace: Annotated[int, number_range(10, 1_000_000)] = DEFAULT_PACE
    push_limit: Annotated[int, number_range(512, MAX_SENT)] = DEFAULT_PUSH_LIMIT
    activation_delay: Annotated[Seconds, span(0, 3600)] = 10
    deactivation_delay: Annotated[Seconds, span(0, 7200)] = 30
    kek_management: Literal["none", "lkh"] = "none"
    lkh_arity: Annotated[int, number_range(2, MAX_ARITY)] | None = None
    lkh_members: Annotated[int, number_range(1, capacity_of(MAX_ARITY))] | None = None
    rekey_on_join: bool = False
    batch: Annotated[Duration, span(0, MAX_BATCH)] = 0.0

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


Missed = Annotated[int, number_range(0, LEDGER_LENGTH)]


class _SilenceSection(Section):
    """From how many missed rekeys on; 0 for never."""

    log: Missed = DEFAULT_SILENCE.log
    alert: Missed = DEFAULT_SILENCE.alert
    reminder: Missed = DEFAULT_SILENCE.reminder
    evict: Missed = DEFAULT_SILENCE.evict

    def policy(self) -> SilencePolicy:
        return SilencePolicy(self.log, self.alert, self.reminder, self.evict)


class _ServerGroup(DataSas):
    name: Name
    id: GroupName
    authorise: Literal["phase1", "ike"] = "phase1"
    on_ike_down: Literal["mark", "evict"] | None = None
    ike_grace: Annotated[Duration, span(1, 86400)] | None = None
    rekey: _RekeySection = _RekeySection()
    silence: _SilenceSection = _SilenceSection()

    @model_validator(mode="after")
    def _ike_has_a_say(self) -> Self:
        if self.authorise != "ike" and (self.on_ike_down or self.ike_grace is not None):
            raise ValueError('on_ike_down and ike_grace need authorise = "ike"')
        return self

    def ike(self) -> IkePolicy | None:
        if self.authorise != "ike":
            return None
        grace = DEFAULT_GRACE if self.ike_grace is None else self.ike_grace
        return IkePolicy(OnIkeDown(self.on_ike_down or "mark"), grace)

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
        self.document = document
        self.settings = document.key_server
        self.local = Peer(document.key_server.address, document.key_server.port)
        self.nat_local = document.key_server.nat_local(self.local.host)
        self.dpd = DpdConfig(document.key_server.dpd_delay, document.key_server.dpd_timeout)
        self.credentials = document.key_server.credentials(path, "key_server")
        self.nat_bound = True
        self._identity = identity_or(document.key_server.identity, self.local.host)
        self._suites = parse_suites(document.key_server.proposals, SUITES)
        self.ways = [
            (peer, self._authentication(peer, f"peer.{index}"))
            for index, peer in enumerate(document.peer)
        ]
        self._peers = self._index()
        unique(path, "peer.address", [peer.address for peer in document.peer])
        unique(path, "group.name", [group.name for group in document.group])
        unique(path, "group.id", [group.id for group in document.group])
        # What each group is to be, for several key servers to compare.
        self.policies = {
            group.name: sha256(repr(group).encode()).hexdigest()[:16] for group in document.group
        }
        self.groups = tuple(self._group(group, index) for index, group in enumerate(document.group))

    @property
    def interface(self) -> str | None:
        """What has the address now. None where nothing has it: binding the port will say so."""
        return next(interfaces_with(self.local.host), None)

    def _phase1(self, peer: _PeerEntry, way: Authentication) -> Phase1Config:
        return Phase1Config(
            (way,),
            self._suites,
            self.settings.phase1_lifetime,
            DOIS[peer.phase1_doi],
            self.settings.traversal(
                encap=peer.encap, bound=self.nat_bound and peer.channel == "clear"
            ),
        )

    def blocks(self) -> tuple[Policy, ...]:
        """Against UDP 848 in clear with those that are to come inside ESP."""
        peers = {entry.address: entry.channel == "ike" for entry, _ in self.ways}
        if True not in peers.values():
            return ()
        from .charon.blocks import blocks_for  # gdoi_xfrm, which others need not read

        nat = () if self.nat_local is None else (self.nat_local.port,)
        return blocks_for(peers, (self.local.port, *nat))

    def _authentication(self, peer: _PeerEntry, key: str) -> Authentication:
        """A pre-shared key is for whoever has the address, a certificate for its own names."""
        if peer.auth == "psk":
            named = None if peer.identity is None else Identity.parse(peer.identity)
            also = frozenset(Identity.parse(text) for text in peer.more_identities)
            return PreSharedKey(self._identity, named, peer.secret(self.path, key), also)
        own = self.settings.identity
        return needed(self.credentials, self.path, key, "key_server").towards(
            IdentityPattern.parse(peer.identity or EVERYBODY),
            None if own is None else Identity.parse(own),
            "key_server.identity",
        )

    def _index(self) -> _Peers:
        return _Peers((entry.address, self._phase1(entry, way)) for entry, way in self.ways)

    def give_up_nat_traversal(self) -> None:
        """Its port is not to be had: nobody is told to come there."""
        self.nat_bound = False
        self._peers = self._index()

    def phase1_for(self, peer: Peer) -> Phase1Config | None:
        return self._peers.find(peer.host)

    def _group(self, group: _ServerGroup, index: int) -> GroupConfig:
        rekey = group.rekey
        if rekey.address is not None and rekey.address.version != self.local.host.version:
            key = f"group.{index}.rekey.address"
            raise ConfigError(self.path, key, f"{rekey.address} cannot be sent from {self.local}")
        if group.authorise == "ike" and not self.settings.ike_connections:
            what = (
                f'group {group.name} has authorise = "ike": name the connections in swanctl.conf'
                " whose peers are members; those of others may call themselves what they like"
            )
            raise ConfigError(self.path, "key_server.ike_connections", what)
        if group.on_ike_down == "evict" and self.settings.database is not None:
            key = f"group.{index}.on_ike_down"
            what = (
                "evict is for one key server alone: of several each asks its own charon, and a"
                " member's IKE_SA may be with another one; must be mark"
            )
            raise ConfigError(self.path, key, what)
        teks = tuple(group.teks())
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
            ike=group.ike(),
            sid_bits=group.sid_bits,
            sender_ids_limit=group.sender_ids_limit,
            retransmissions=rekey.retransmissions,
            silence=group.silence.policy(),
            batch=rekey.batch,
            pace=rekey.pace,
            activation_delay=rekey.activation_delay,
            deactivation_delay=rekey.deactivation_delay,
        )
