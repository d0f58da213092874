"""A random life of one group over a bad network: what operators, crashes and losses do to it.

Everything follows from one seed. While it runs, a :class:`Soak` notes every key that the group ever
had and every key that a member ever held, and compares key server, store and members at each step.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from gdoi_plugin.crypto import cipher
from gdoi_plugin.protocol.actions import ApplyKernel, Persist, Send
from gdoi_plugin.protocol.dpd import OFF, DpdConfig
from gdoi_plugin.protocol.forest import LkhPolicy
from gdoi_plugin.protocol.group import GroupConfig
from gdoi_plugin.protocol.group_record import group_record, member_record
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.policy import TEK_SUITES, Flow
from gdoi_plugin.protocol.registration import KeyServerEntry
from gdoi_plugin.protocol.tek_policy import TekConfig
from gdoi_plugin.wire.buffer import Buffer, DecodeError
from gdoi_plugin.wire.group_sa import GroupSecurityAssociation
from gdoi_plugin.wire.header import HEADER_LENGTH, pull_header
from gdoi_plugin.wire.key_download import KeyDownload
from gdoi_plugin.wire.lkh import LkhUpdateArray
from gdoi_plugin.wire.message import pull_decrypted
from gdoi_plugin.wire.registry import (
    AckType,
    ExchangeType,
    KeyPacketType,
    LkhKeyAttribute,
    PayloadType,
)
from tests.support.simnet import Link, MemberHost
from tests.support.worlds import (
    GROUP_ID,
    REKEY,
    SERVER,
    World,
    bad_network,
    build,
    group_config,
    member_peer,
    member_phase1,
)

# By then every member has its keys again. Who has missed the end of its group knows of it when its
# TEKs do; a registration's longest pause is a few minutes.
HEALED_WITHIN = 1300.0


def identity(index: int) -> Identity:
    return Identity.of_address(member_peer(index).host)


def random_group(rng: Random, members: int) -> GroupConfig:
    """Any combination of what a configuration may say."""
    lkh = None
    if rng.random() < 0.7:
        size = rng.choice((2, 3, 16))
        lkh = LkhPolicy(rng.randint(2, 4), size, rekey_on_join=rng.random() < 0.3)
    types: list[AckType | None] = [AckType.REKEY_ACK_KEK_SHA256, AckType.REKEY_ACK_KEK_SHA512, None]
    if lkh is not None:
        types += [AckType.REKEY_ACK_LKH_SHA256, AckType.REKEY_ACK_LKH_SHA512]
    lifetime = rng.choice((300, 900))
    teks = tuple(
        TekConfig(Flow(None, REKEY.host + 256 + n), TEK_SUITES["aes256-sha256"], lifetime=lifetime)
        for n in range(rng.choice((1, 2, 5)))
    )
    exempt = frozenset(identity(i) for i in range(members) if rng.random() < 0.15)
    return group_config(
        members,
        lkh=lkh,
        teks=teks,
        ack=rng.choice(types),
        ack_exempt=exempt if rng.random() < 0.5 else frozenset(),
        rekey_address=rng.choice((REKEY.host, None)),
        kek_lifetime=rng.choice((400, 86400)),
        push_limit=rng.choice((8000, 600, 900)),
        retransmissions=rng.randint(0, 3),
        activation_delay=rng.choice((0, 3, 10)),
        deactivation_delay=rng.choice((10, 30)),
    )


@dataclass(slots=True)
class Spy:
    """Somebody who has been put out and keeps every key and datagram. ``known`` to the group, when
    it was put out, were the keys that it may have had."""

    index: int
    keys: set[bytes]
    known: frozenset[bytes]
    teks: set[bytes] = field(default_factory=set)

    def listen(self, pushes: Sequence[Send], right: set[bytes]) -> None:
        """Handles and LKH IDs are not believed; what is opened counts where it is a key of the
        group (``right``). Until nothing opens any more."""
        before = -1
        while len(self.keys) != before:
            before = len(self.keys)
            for push in pushes:
                self.keys |= self._open(push.datagram) & right

    def _open(self, datagram: bytes) -> set[bytes]:
        found: set[bytes] = set()
        for kek in self.keys:
            try:
                plain = cipher.decrypt(kek[16:], kek[:16], datagram[HEADER_LENGTH:])
                message = pull_decrypted(pull_header(datagram), plain, cipher.BLOCK)
                kds = [p.parse(KeyDownload) for p in message.all(PayloadType.KD)]
                for payload in message.all(PayloadType.SA):
                    payload.parse(GroupSecurityAssociation)
            except DecodeError:
                continue
            for packet in (packet for kd in kds for packet in kd.packets):
                for attribute in packet.attributes:
                    if attribute.type == LkhKeyAttribute.LKH_UPDATE_ARRAY and (
                        packet.kd_type == KeyPacketType.LKH
                    ):
                        keys = LkhUpdateArray.pull(Buffer(attribute.octets())).keys
                        found |= {
                            cipher.decrypt(key[16:], key[:16], wrapped.key_data)
                            for key in self.keys
                            for wrapped in keys
                        }
                    else:
                        found.add(attribute.octets())
                        self.teks.add(attribute.octets())
        return found


class Soak:
    """``members`` hosts, some of which join later; :meth:`live` and then :meth:`heal`."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(f"soak {seed}")
        self.network = bad_network(seed)
        self.count = self.rng.randint(3, 6)
        self.config = random_group(self.rng, self.count)
        self.world = self._build()
        self.out: dict[int, Spy] = {}
        self.started: set[int] = set()
        # Every KEK, key of a tree and TEK that was ever saved; and what members ever held.
        self.keys: set[bytes] = set()
        self.teks: set[bytes] = set()
        self.held: list[set[bytes]] = [set() for _ in range(self.count)]
        self.installed: list[set[bytes]] = [set() for _ in range(self.count)]
        self.said: dict[int, list[frozenset[bytes]]] = defaultdict(list)
        self.counted: set[tuple[int, Identity]] = set()
        self.steps: list[str] = []
        self._watch_server()
        for index in range(self.count):
            self._watch_member(index)

    def _build(self) -> World:
        rng = self.rng
        dpd = DpdConfig(delay=20.0, timeout=15.0) if rng.random() < 0.4 else OFF
        world = build(self.network, self.count, group=self.config)
        for index, host in enumerate(world.members):
            entry = KeyServerEntry(SERVER, member_phase1(member_peer(index)), dpd)
            self._reconfigured(host, key_servers=(entry,), ack_jitter=rng.choice((0.0, 2.0)))
        make = world.server._make

        def with_dpd() -> Any:
            engine = make()
            engine.dpd = engine.isakmp.dpd = engine.isakmp.sessions.dpd = dpd
            return engine

        world.server._make = with_dpd
        return world

    @staticmethod
    def _reconfigured(host: MemberHost, **changes: Any) -> None:
        make = host._make

        def made() -> Any:
            group = make()
            return type(group)(replace(group.config, **changes), group.random)

        host._make = made

    # -- what happens is noted -------------------------------------------------------------------

    def _watch_server(self) -> None:
        server = self.world.server
        save = server.save

        def saving(records: Sequence[Persist]) -> None:
            save(records)
            self._note_keys()
            for persist in records:
                if persist.kind == "ack":
                    self._check_ack(persist.record)
                if persist.kind == "rekey":
                    self._note_said(int(str(persist.record["epoch"])))

        server.save = saving  # type: ignore[method-assign]

    def _note_keys(self) -> None:
        group = self.world.group
        self.teks |= {t.tek.encryption_key.reveal() for t in group.teks}
        for sa in group.sas:
            self.keys.add(sa.kek.kek.iv + sa.kek.kek.key.reveal())
            if sa.tree is not None:
                nodes = range(1, len(sa.tree._used))
                self.keys |= {sa.tree._material(node) for node in nodes}
        self.keys.discard(bytes(len(next(iter(self.keys)))))

    def _note_said(self, epoch: int) -> None:
        group, rekey = self.world.group, self.world.group.ledger[epoch]
        bare = rekey.update is not None or rekey.brings or rekey.bare
        current = [t.tek.spi for t in group.teks if t.retire_at is None]
        self.said[epoch].append(frozenset([] if bare else current))

    def _check_ack(self, record: Any) -> None:
        """Whose ACK counts has had in its kernel what that rekey said, one of the times."""
        kind, _, data = record["identity"].partition(":")
        who = Identity(int(kind), bytes.fromhex(data))
        index = next(i for i in range(self.count) if identity(i) == who)
        self.counted.add((record["epoch"], who))
        assert any(said <= self.installed[index] for said in self.said[record["epoch"]])

    def _watch_member(self, index: int) -> None:
        host = self.world.members[index]
        apply, save = host.kernel.apply, host.save

        def applying(action: ApplyKernel, now: float) -> str | None:
            error = apply(action, now)
            self.installed[index] |= set(host.kernel.sas)
            return error

        def saving(records: Sequence[Persist]) -> None:
            save(records)
            for held in host.group.rekey_sas.held:
                self.held[index].add(held.kek.iv + held.kek.key.reveal())
                self.held[index] |= {node.material for node in held.kek.path}

        host.kernel.apply = applying  # type: ignore[method-assign]
        host.save = saving  # type: ignore[method-assign]

    # -- what may happen -------------------------------------------------------------------------

    def live(self, steps: int) -> None:
        world, rng = self.world, self.rng
        world.server.start()
        for index in range(self.count):
            if rng.random() < 0.7:
                self._start(index)
        self.network.run(rng.uniform(0, 30))
        happenings: list[Callable[[], None]] = [
            self._rekey,
            self._rekey,
            self._delete_tek,
            self._delete_group,
            self._evict,
            self._evict,
            self._admit,
            self._join,
            self._join,
            self._crash_server,
            self._crash_member,
            self._crash_member,
            self._refuse,
            self._register,
            self._weather,
            self._revive,
            self._revive,
        ]
        for _ in range(steps):
            rng.choice(happenings)()
            self.check()
            self.network.run(rng.choice((0.0, 0.05, 1.0, 5.0, 12.0, 40.0)) * rng.random())
            self.check()

    def _note(self, what: str) -> None:
        self.steps.append(f"{self.network.now - 1.8e9:8.2f} {what}")

    def _start(self, index: int) -> None:
        self.started.add(index)
        self.world.members[index].start()

    def _rekey(self) -> None:
        if self.world.server.alive:
            kek, all_new = self.rng.random() < 0.3, self.rng.random() < 0.2
            self._note(f"rekey kek={kek} replace={all_new}")
            self.world.rekey(kek=kek, replace_old=all_new)

    def _delete_tek(self) -> None:
        if self.world.server.alive:
            spi = self.rng.choice(self.world.group.teks).tek.spi
            self._note("delete-tek")
            actions = self.world.server.engine.delete_tek(GROUP_ID, spi, self.network.now)
            assert actions is not None
            self.world.server.do(actions)

    def _delete_group(self) -> None:
        if self.world.server.alive:
            self._note("delete-group")
            self.world.server.do(self.world.server.engine.delete_group(GROUP_ID, self.network.now))

    def _evict(self) -> None:
        server = self.world.server
        inside = [i for i in range(self.count) if i not in self.out]
        chosen = self.rng.sample(inside, min(len(inside) - 1, self.rng.randint(1, 3)))
        if not server.alive or not chosen:
            return
        self._note(f"evict {chosen}")
        known = frozenset(self.keys | self.teks)
        fuse, server.fuse = server.fuse, None
        server.do(server.engine.evict(GROUP_ID, [identity(i) for i in chosen], self.network.now))
        server.fuse = fuse
        for index in chosen:
            self.out[index] = Spy(index, set(self.held[index]), known)

    def _admit(self) -> None:
        server = self.world.server
        if server.alive and self.out:
            index = self.rng.choice(list(self.out))
            self._note(f"admit {index}")
            self._question(self.out.pop(index))
            fuse, server.fuse = server.fuse, None
            server.do(server.engine.admit(GROUP_ID, [identity(index)]))
            server.fuse = fuse

    def _join(self) -> None:
        later = [i for i in range(self.count) if i not in self.started]
        if later:
            self._note(f"join {later[0]}")
            self._start(later[0])

    def _crash_server(self) -> None:
        server = self.world.server
        if server.alive:
            server.fuse = self.rng.randrange(8)
            self._note(f"gcks fuse {server.fuse}")
            self._rekey() if self.rng.random() < 0.5 else None

    def _crash_member(self) -> None:
        index = self.rng.choice(sorted(self.started) or [0])
        host = self.world.members[index]
        if host.alive:
            host.fuse = self.rng.randrange(8)
            self._note(f"gm {index} fuse {host.fuse}")

    def _revive(self) -> None:
        for host in (self.world.server, *(self.world.members[i] for i in sorted(self.started))):
            if not host.alive:
                self._note(f"restart {host.address.host}")
                host.restart()

    def _refuse(self) -> None:
        self._note("refuse")
        self.rng.choice(self.world.members).kernel.refuse_next()

    def _register(self) -> None:
        host = self.rng.choice(self.world.members)
        if host.alive:
            self._note(f"register {host.address.host}")
            host.do(host.group.register(self.network.now))

    def _weather(self) -> None:
        self.network.link = bad_network(self.rng.randrange(1000)).link

    # -- what must hold --------------------------------------------------------------------------

    def check(self) -> None:
        """Between any two steps: memory is the store, nothing counted is lost, tables are small."""
        server, group = self.world.server, self.world.group
        if not server.alive:
            return
        self.world.check_ledger()
        (saved,) = server.store.rows("group", GROUP_ID)
        # A registration takes a number without another record than the member's.
        alike = {"next_number": group.roster.next_number}
        assert json.loads(json.dumps(group_record(group))) == saved | alike
        rows = {row["identity"]: row for row in server.store.members(GROUP_ID)}
        records = [member_record(group, member) for member in group.members.values()]
        assert {record["identity"] for record in records} == rows.keys()
        for record in records:
            assert record == rows[record["identity"]]
        trees = {n: sa.tree for n, sa in enumerate(group.sas) if sa.tree is not None}
        pages = {(row["tree"], row["page"]) for row in server.store.rows("page", GROUP_ID)}
        assert pages == {(n, page) for n, tree in trees.items() for page in range(tree.pages)}
        for epoch, who in self.counted:
            assert who in group.ledger[epoch].acknowledged
        assert not {identity(i) for i in self.out} & group.members.keys()
        for member in group.members.values():
            assert member.sa < len(group.sas)
            tree = group.sas[member.sa].tree
            assert tree is None or not member.leaf or tree.holds(member.leaf)
        leaves = [(m.sa, m.leaf) for m in group.members.values() if m.leaf]
        assert len(set(leaves)) == len(leaves) == sum(tree.members for tree in trees.values())

    def heal(self) -> None:
        """Everybody comes back, nothing is lost any more: soon all have the same keys."""
        self._note("heal")
        self.network.link = Link()
        for index in range(self.count):
            self.started.add(index)
        for host in self.world.hosts:
            host.fuse = None
            if isinstance(host, MemberHost):
                host.kernel.refusals.clear()
            if not host.alive:
                host.restart()
        inside = [m for i, m in enumerate(self.world.members) if i not in self.out]
        self.network.run_until(lambda: all(self.world.in_step(m) for m in inside), HEALED_WITHIN)
        self.check()
        for spy in self.out.values():
            self._question(spy)
        self._settle(inside)

    def _settle(self, inside: Sequence[MemberHost]) -> None:
        """And stays so; the next rekey reaches all, and what was only for a while is gone."""
        self.network.run(200)
        self.network.run_until(lambda: all(self.world.in_step(m) for m in inside), HEALED_WITHIN)
        self.world.rekey()
        epoch = self.world.group.epoch
        self.network.run(60)
        self.check()
        group = self.world.group
        for n in group.served():
            pages = [r for r in group.ledger.values() if r.sa == n and not r.bare]
            assert pages[-1].closed
            assert not pages[-1].missing, (epoch, n)
        assert len(group.old_keks) <= len(group.sas)
        assert len(group.teks) <= 3 * len(self.config.teks)
        for member in inside:
            assert len(member.group.rollover.held) <= 3 * len(self.config.teks)
            assert len(member.group.previous) <= 2

    def _question(self, spy: Spy) -> None:
        pushes = self.world.datagrams(ExchangeType.GROUPKEY_PUSH)
        spy.listen(pushes, self.keys)
        assert not (spy.keys & self.keys) - spy.known, "an evicted member has a later KEK"
        assert not (spy.teks & self.teks) - spy.known, "an evicted member has a later TEK"
