"""One group, its key server and members, ready to run on a simulated network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from ipaddress import IPv4Address, ip_address
from itertools import count
from random import Random
from typing import Any

from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.crypto.signature import SCHEMES, Scheme, SigningKey, generate, load_private
from gdoi_plugin.protocol.actions import Action, IPAddress, Peer, Send
from gdoi_plugin.protocol.group import Group, GroupConfig
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.iec_tek import IecTek
from gdoi_plugin.protocol.isakmp import SUITES, Suite
from gdoi_plugin.protocol.key_server import KeyServer
from gdoi_plugin.protocol.limits import Limits
from gdoi_plugin.protocol.member import GroupMember
from gdoi_plugin.protocol.member_config import MemberConfig
from gdoi_plugin.protocol.phase1 import Phase1Config, PreSharedKey
from gdoi_plugin.protocol.policy import TEK_SUITES, AnyTek, Flow
from gdoi_plugin.protocol.registration import KeyServerEntry
from gdoi_plugin.protocol.tek_policy import TekConfig
from gdoi_plugin.wire.encapsulation import decapsulate
from gdoi_plugin.wire.header import pull_header
from gdoi_plugin.wire.registry import NAT_PORT, ExchangeType, SigAlgorithm
from tests.support.simnet import Host, KeyServerHost, Link, MemberHost, Network, Wire

SERVER = Peer(ip_address("10.0.0.1"), 848)
REKEY = Peer(ip_address("239.192.0.1"), 848)
STRANGER = Peer(ip_address("192.0.2.66"), 848)
GROUP_ID = 0x01020304
FLOW = Flow(None, ip_address("239.192.1.1"))
PSK = Secret(b"a secret that both sides know")
# Small and fast: what most tests need of phase 1.
SUITE = SUITES["aes128-sha256-ecp256"]
ECDSA, RSA = SCHEMES["ecdsa256"], SCHEMES["rsa2048-sha256"]


def member_peer(index: int) -> Peer:
    return Peer(IPv4Address("10.0.0.2") + index, 848)


@cache
def _key(algorithm: SigAlgorithm, length: int, number: int) -> SigningKey:  # noqa: ARG001
    """A key for each number, whatever the hash: long ones take a second to make."""
    fits = (s for s in SCHEMES.values() if (s.algorithm, s.key_length) == (algorithm, length))
    return generate(next(fits))


@cache
def _signer(scheme: Scheme, number: int) -> SigningKey:
    key = _key(scheme.algorithm, scheme.key_length, number)
    return load_private(scheme, key.private_der())


def signers() -> Callable[[Scheme], SigningKey]:
    """For a KeyServer: three keys of each scheme in turn, made once for the whole suite."""
    turn = count()
    return lambda scheme: _signer(scheme, next(turn) % 3)


def signer(scheme: Scheme, number: int = 0) -> SigningKey:
    return _signer(scheme, number)


def group_config(members: int = 1, **changes: Any) -> GroupConfig:
    """Multicast rekeys, ECDSA, ACKs asked for."""
    config = GroupConfig(
        name="g",
        group_id=GroupId.of_number(GROUP_ID),
        members=frozenset(Identity.of_address(member_peer(i).host) for i in range(members)),
        teks=(TekConfig(FLOW, TEK_SUITES["aes256-sha256"]),),
        source=SERVER,
        rekey_address=REKEY.host,
        scheme=ECDSA,
    )
    return replace(config, **changes)


def _phase1(local: Peer, remote: Peer, changes: dict[str, Any]) -> Phase1Config:
    """A pre-shared key; ``changes`` of it or of the rest."""
    key = PreSharedKey(Identity.of_address(local.host), Identity.of_address(remote.host), PSK)
    names = {field.name for field in fields(PreSharedKey)}
    key = replace(key, **{name: changes[name] for name in names & set(changes)})
    rest = {name: value for name, value in changes.items() if name not in names}
    return replace(Phase1Config((key,), (SUITE,)), **rest)


def server_phase1(peer: Peer, **changes: Any) -> Phase1Config:
    return _phase1(SERVER, peer, changes)


def member_phase1(local: Peer, **changes: Any) -> Phase1Config:
    return _phase1(local, SERVER, changes)


def member_config(index: int = 0, phase1: Phase1Config | None = None, **changes: Any) -> Any:
    local = member_peer(index)
    entry = KeyServerEntry(SERVER, phase1 or member_phase1(local))
    return replace(MemberConfig("g", GroupId.of_number(GROUP_ID), local, (entry,)), **changes)


@dataclass
class World:
    """One key server, its members and the network between them."""

    network: Network
    server: KeyServerHost
    members: list[MemberHost] = field(default_factory=list)

    @property
    def hosts(self) -> Iterator[Host]:
        yield self.server
        yield from self.members

    @property
    def group(self) -> Group:
        return self.server.engine.groups[GROUP_ID]

    @property
    def member(self) -> MemberHost:
        return self.members[0]

    @property
    def now(self) -> float:
        return self.network.now

    def start(self) -> None:
        for host in self.hosts:
            host.start()

    def rekey(self, *, kek: bool = False, replace_old: bool = False) -> None:
        engine = self.server.engine
        self.server.do(
            engine.rekey(GROUP_ID, self.now, "operator", kek=kek, replace_old=replace_old)
        )

    def converged(self) -> bool:
        """Every member has the key server's KEK and TEKs, in its table and in its kernel."""
        return self.server.alive and all(self.in_step(member) for member in self.members)

    def in_step(self, member: MemberHost) -> bool:
        known = self.group.members.get(Identity.of_address(member.address.host))
        kek, held = self.group.sas[known.sa if known else 0].kek.kek, member.group.kek
        if not member.alive or held is None or (held.kek.spi, held.kek.key) != (kek.spi, kek.key):
            return False
        return all(self._has(member, t.tek) for t in self.group.teks if t.retire_at is None)

    @staticmethod
    def _has(member: MemberHost, tek: AnyTek) -> bool:
        """In its table and in its kernel, or, but for an SA_ATD, with its applications."""
        if isinstance(tek, IecTek):
            exported = [key.tek.spi for key in member.kernel.exported]
            waits = tek.sa_atd is not None and tek.spi in member.group.applications.held
            return waits or tek.spi in exported
        return (
            tek.spi in member.group.rollover.held
            and member.kernel.sas[tek.spi].encryption_key == tek.encryption_key
        )

    def check_ledger(self) -> None:
        """What memory, store and the events on the way say about acknowledgements is the same."""
        rows = {row["epoch"]: row for row in self.server.store.rows("rekey", GROUP_ID)}
        for epoch, rekey in self.group.ledger.items():
            saved = self.server.store.acknowledged(GROUP_ID, epoch)
            assert saved == {bytes((i.id_type,)) + i.data for i in rekey.acknowledged}
            assert rows[epoch]["seqs"] == rekey.seqs
            assert len(set(rekey.seqs)) == len(rekey.seqs)
            assert rows[epoch]["closed"] == rekey.closed
            if rekey.closed:
                # By number: some may have left since.
                missing = set(rekey.missing.numbers)
                assert set(rekey.silent.numbers) <= missing <= set(rekey.expected.numbers)
        said = [(rekey.kek_spi, seq) for rekey in self.group.ledger.values() for seq in rekey.seqs]
        assert len(set(said)) == len(said)

    def datagrams(self, exchange: ExchangeType) -> list[Send]:
        return [s for _, s in self.network.sent if exchange_of(s) == exchange]


def exchange_of(send: Send) -> int:
    """Zero for a keepalive."""
    framed = send.source.port == NAT_PORT or send.destination.port == NAT_PORT
    message = decapsulate(send.datagram) if framed else send.datagram
    return 0 if message is None else pull_header(message).exchange_type


def build(
    network: Network,
    members: int = 1,
    *,
    group: GroupConfig | None = None,
    suites: Sequence[Suite] = (SUITE,),
    phase1_for: Callable[[Peer], Phase1Config | None] | None = None,
    member_changes: dict[str, Any] | None = None,
    phase1: Phase1Config | None = None,
    limits: Limits | None = None,
) -> World:
    """Hosts that are not started yet. Everything random comes from the network's seed."""
    seeds = Random(network.rng.random())
    config = group or group_config(members)
    known = {member_peer(i).host for i in range(members)}

    def policy(peer: Peer) -> Phase1Config | None:
        if peer.host not in known:
            return None
        return server_phase1(peer, suites=tuple(suites))

    make_signer = signers()

    def make_server() -> KeyServer:
        random = Random(seeds.random()).randbytes
        return KeyServer([config], phase1_for or policy, random, make_signer, limits or Limits())

    def make_member(index: int) -> GroupMember:
        own = phase1 or member_phase1(member_peer(index), suites=tuple(suites))
        settings = member_config(index, own, **(member_changes or {}))
        return GroupMember(settings, Random(seeds.random()).randbytes)

    world = World(network, KeyServerHost(network, SERVER, make_server))
    joined: list[IPAddress] = [] if config.rekey_address is None else [config.rekey_address]
    for index in range(members):
        make = partial(make_member, index)
        world.members.append(MemberHost(network, member_peer(index), make, joined))
    return world


def wired(members: int = 1, **options: Any) -> tuple[Wire, World]:
    """A world whose datagrams the test delivers one by one; nothing started."""
    wire = Wire()
    return wire, build(wire, members, **options)


def registered(members: int = 1, **options: Any) -> tuple[Wire, World]:
    """The same with everybody registered and nothing under way."""
    wire, world = wired(members, **options)
    world.start()
    wire.settle()
    assert world.converged()
    return wire, world


def bad_network(seed: int) -> Network:
    """Up to 30 % loss, 20 % duplicates and 3 s of jitter: much is overtaken."""
    rng = Random(seed)
    link = Link(
        drop=rng.uniform(0, 0.3),
        duplicate=rng.uniform(0, 0.2),
        delay=rng.uniform(0.001, 0.2),
        jitter=rng.choice((0.0, 0.1, 1.0, 3.0)),
    )
    return Network(seed, link)


def sends(actions: Sequence[Action]) -> list[Send]:
    return [action for action in actions if isinstance(action, Send)]
