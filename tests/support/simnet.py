"""Key server and members on a simulated network with a virtual clock.

Nothing here waits: time jumps to the next event. A link drops, duplicates, delays and thereby
reorders datagrams, all from one seeded generator. A host carries out its engine's actions in the
order that ``protocol.actions`` promises, survives ``crash`` only by its store (and a member's
kernel), and checks on the way what must hold at every moment: no SEQ is said twice, nothing is
acknowledged that is not in the store, nothing is in the store that the kernel does not hold.
"""

from __future__ import annotations

import heapq
import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

from gdoi_plugin.crypto import cipher
from gdoi_plugin.protocol.actions import (
    Action,
    ApplyKernel,
    Drop,
    Dropped,
    Event,
    IPAddress,
    Peer,
    Persist,
    Send,
)
from gdoi_plugin.protocol.agent import Agent
from gdoi_plugin.protocol.application_keys import HeldKey
from gdoi_plugin.protocol.group_record import MEMBER_COLUMNS
from gdoi_plugin.protocol.key_server import KeyServer, SavedGroup
from gdoi_plugin.protocol.member import GroupMember
from gdoi_plugin.protocol.policy import Flow, Tek
from gdoi_plugin.wire.buffer import DecodeError
from gdoi_plugin.wire.encapsulation import KEEPALIVE, decapsulate, encapsulate
from gdoi_plugin.wire.header import HEADER_LENGTH, pull_header
from gdoi_plugin.wire.registry import NAT_PORT, EncapsulationMode, ExchangeType, TekProtocol

if TYPE_CHECKING:
    from tests.support.simnat import Nat

START = 1_800_000_000.0
# A tick must move the deadline; as many at one moment and the engine spins.
MAX_TICKS_AT_ONCE = 20


@dataclass(frozen=True, slots=True)
class Link:
    """Probabilities per datagram and receiver; delays in seconds."""

    drop: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.001
    jitter: float = 0.0

    def deliveries(self, rng: Random) -> list[float]:
        """The delays after which copies of one datagram arrive."""
        copies = 0 if rng.random() < self.drop else 1
        if rng.random() < self.duplicate:
            copies += 1
        return [self.delay + rng.random() * self.jitter for _ in range(copies)]


class Receiver(Protocol):
    """What a datagram can be delivered to: a host, or the NAT before it."""

    def deliver(self, send: Send) -> None: ...


class Network:
    """Hosts, the clock, and what is under way."""

    def __init__(self, seed: int = 0, link: Link | None = None) -> None:
        self.rng = Random(seed)
        self.link = link or Link()
        self.now = START
        self.hosts: dict[IPAddress, Receiver] = {}
        self.joined: dict[IPAddress, list[Receiver]] = defaultdict(list)
        self.sent: list[tuple[float, Send]] = []
        self.pushes: dict[tuple[bytes, int], bytes] = {}
        self.reasons: set[Drop] = set()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0

    def at(self, when: float, what: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (max(when, self.now), self._order, what))

    def send(self, send: Send) -> None:
        self.sent.append((self.now, send))
        for host in self.receivers(send.destination.host):
            for delay in self.link.deliveries(self.rng):
                self.at(self.now + delay, lambda h=host: h.deliver(send))  # type: ignore[misc]

    def receivers(self, address: IPAddress) -> list[Receiver]:
        if address.is_multicast:
            return list(self.joined[address])
        return [self.hosts[address]] if address in self.hosts else []

    def run(self, seconds: float) -> None:
        """Everything that happens in the next ``seconds``."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self._step()
        self.now = end

    def run_until(self, reached: Callable[[], bool], limit: float) -> None:
        """Raises AssertionError where ``reached`` is not true within ``limit`` seconds."""
        end = self.now + limit
        while not reached():
            assert self._events, "nothing left to happen"
            assert self._events[0][0] <= end, f"not reached within {limit} s"
            self._step()

    def _step(self) -> None:
        when, _, what = heapq.heappop(self._events)
        self.now = max(self.now, when)
        what()


class Wire(Network):
    """A network whose datagrams wait until the test delivers them: for tests of single messages."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.waiting: list[Send] = []

    def send(self, send: Send) -> None:
        self.sent.append((self.now, send))
        self.waiting.append(send)

    def take(self) -> Send:
        """The oldest datagram under way, no longer under way."""
        return self.waiting.pop(0)

    def pass_on(self, count: int = 1) -> None:
        """Delivers the next ``count`` datagrams."""
        for _ in range(count):
            send = self.take()
            for host in self.receivers(send.destination.host):
                host.deliver(send)

    def settle(self) -> None:
        """Delivers until nobody has anything more to say."""
        while self.waiting:
            self.pass_on()


class _Crash(Exception):
    """The host has just died; nothing more of this step is carried out."""


class Host(ABC):
    """A shell around one engine. ``fuse``: how many effects it carries out before it dies."""

    def __init__(self, network: Network, address: Peer, nat: Nat | None = None) -> None:
        self.network = network
        self.nat = nat
        self.address = address
        self.nat_address = Peer(address.host, NAT_PORT)
        self.alive = False
        self.fuse: int | None = None
        self.effects = 0
        self.actions: list[Action] = []
        self._wake = 0
        self._ticks = (0.0, 0)
        if nat is None:
            network.hosts[address.host] = self
        else:
            nat.hosts[address.host] = self

    # -- what a kind of host supplies ------------------------------------------------------------

    @abstractmethod
    def boot(self) -> None: ...

    @abstractmethod
    def receive(self, datagram: bytes, source: Peer, arrived: Peer) -> None: ...

    @abstractmethod
    def tick(self) -> None: ...

    @property
    @abstractmethod
    def deadline(self) -> float | None: ...

    @abstractmethod
    def save(self, records: Sequence[Persist]) -> None: ...

    @abstractmethod
    def check_send(self, send: Send) -> None: ...

    def left(self, send: Send) -> None:  # noqa: B027 -- a key server does not count
        """It is on its way."""

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        self.alive = True
        self._guard(self.boot)

    def crash(self) -> None:
        """The engine is gone; store and kernel stay."""
        self.alive = False

    def restart(self) -> None:
        self.crash()
        self.fuse = None
        self.start()

    def deliver(self, send: Send) -> None:
        if self.alive:
            self._guard(lambda: self._arrived(send.datagram, send.source, send.destination))

    def _arrived(self, datagram: bytes, source: Peer, arrived: Peer) -> None:
        """As the daemons' sockets have it, the marker of port 4500 is none of the engine's."""
        if arrived == self.nat_address:
            try:
                message = decapsulate(datagram)
            except DecodeError as error:
                self.carry_out([Dropped(Drop.NOT_ISAKMP, source, str(error))])
                return
            if message is None:
                return
            datagram = message
        self.receive(datagram, source, arrived)

    def hear(self, datagram: bytes, source: Peer, arrived: Peer | None = None) -> list[Action]:
        """Delivers one datagram here and now; what the host did about it."""
        before = len(self.actions)
        self.deliver(Send(datagram, arrived or self.address, source))
        return self.actions[before:]

    def events(self, name: str) -> list[Event]:
        return [a for a in self.actions if isinstance(a, Event) and a.name == name]

    def dropped(self) -> list[Drop]:
        return [a.reason for a in self.actions if isinstance(a, Dropped)]

    # -- actions ---------------------------------------------------------------------------------

    def do(self, actions: Sequence[Action]) -> None:
        """One step in the contract's order: all records in one transaction, then the rest."""
        self._guard(lambda: self.carry_out(actions))

    def carry_out(self, actions: Sequence[Action]) -> list[ApplyKernel]:
        self.actions += actions
        records = [action for action in actions if isinstance(action, Persist)]
        if records:
            self._effect()
            self.save(records)
        kernel: list[ApplyKernel] = []
        for action in actions:
            if isinstance(action, Send):
                self._effect()
                self._emit(action)
            elif isinstance(action, Dropped):
                self.network.reasons.add(action.reason)
            elif isinstance(action, ApplyKernel):
                kernel.append(action)
        return kernel

    def _emit(self, send: Send) -> None:
        if send.datagram != KEEPALIVE:
            self.check_send(send)
        if send.source == self.nat_address:
            send = replace(send, datagram=encapsulate(send.datagram))
        (self.nat or self.network).send(send)
        self.left(send)

    def _effect(self) -> None:
        """What the world outside can see of a host, and so where a crash makes a difference."""
        if self.fuse == 0:
            raise _Crash
        if self.fuse is not None:
            self.fuse -= 1
        self.effects += 1

    def _guard(self, step: Callable[[], object]) -> None:
        try:
            step()
        except _Crash:
            self.crash()
            return
        self._schedule()

    def _schedule(self) -> None:
        self._wake += 1
        deadline = self.deadline
        if deadline is not None:
            wake = self._wake
            self.network.at(deadline, lambda: self._woken(wake))

    def _woken(self, wake: int) -> None:
        if not self.alive or wake != self._wake:
            return
        at, count = self._ticks
        self._ticks = (self.network.now, count + 1 if at == self.network.now else 1)
        assert self._ticks[1] <= MAX_TICKS_AT_ONCE, "the deadline does not move: the engine spins"
        self._guard(self.tick)


# -- the key server ------------------------------------------------------------------------------


class ServerStore:
    """What a key server's database holds, as text and octets: nothing else survives a real one."""

    def __init__(self) -> None:
        self._documents: dict[tuple[str, int, str], str] = {}
        self._batches = 0

    def save(self, records: Sequence[Persist]) -> None:
        for persist in records:
            text = json.dumps(persist.record, default=_octets_as_text)
            record = _read(text)
            if persist.kind == "pages-removed":
                for row in self.rows("page", record["group"]):
                    del self._documents["page", record["group"], _page_key(row)]
                continue
            key = {
                "group": "",
                "page": _page_key(record),
                "member": f"{record.get('number', 0):08}",
                "member-removed": f"{record.get('number', 0):08}",
                "rekey": f"{record.get('epoch', 0):08}",
                "acks": f"{self._batches:08}",
                "standing": f"{record.get('sa', 0):04}",
            }[persist.kind]
            self._batches += persist.kind == "acks"
            self._documents[persist.kind.removesuffix("-removed"), record["group"], key] = text

    def rows(self, kind: str, group: int) -> list[dict[str, Any]]:
        found = sorted(place for place in self._documents if place[:2] == (kind, group))
        return [_read(self._documents[place]) for place in found]

    def members(self, group: int) -> list[dict[str, Any]]:
        """Those that have not left."""
        return [row for row in self.rows("member", group) if row["removed"] is None]

    def acknowledged(self, group: int, epoch: int) -> set[bytes]:
        """Who has acknowledged it, by identity as the store writes it."""
        names = {row["number"]: row["identity"] for row in self.rows("member", group)}
        batches = [row["entries"] for row in self.rows("acks", group) if row["epoch"] == epoch]
        return {names[number] for entries in batches for number, _, _ in entries}

    def load(self) -> dict[int, SavedGroup]:
        saved = {}
        for group in sorted({group for kind, group, _ in self._documents if kind == "group"}):
            (record,) = self.rows("group", group)
            saved[group] = SavedGroup(
                record,
                [[row[name] for name in MEMBER_COLUMNS] for row in self.rows("member", group)],
                self.rows("rekey", group),
                [(row["epoch"], row["entries"]) for row in self.rows("acks", group)],
                self.rows("page", group),
                self.rows("standing", group),
            )
        return saved


def _octets_as_text(value: Any) -> Any:
    """Raises TypeError for anything but octets."""
    return {"octets": bytes.hex(value)}


def _read(text: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(text, object_hook=_octets_of)
    return record


def _octets_of(found: dict[str, Any]) -> Any:
    return bytes.fromhex(found["octets"]) if found.keys() == {"octets"} else found


def _page_key(record: Mapping[str, Any]) -> str:
    return f"{record.get('tree', 0):04} {record.get('page', 0):04}"


class KeyServerHost(Host):
    """A key server; ``make`` builds its engine anew at every start."""

    def __init__(self, network: Network, address: Peer, make: Callable[[], KeyServer]) -> None:
        super().__init__(network, address)
        self._make = make
        self.store = ServerStore()
        self.engine = make()

    def boot(self) -> None:
        self.engine = self._make()
        self.carry_out(self.engine.start(self.network.now, self.store.load()))

    def receive(self, datagram: bytes, source: Peer, arrived: Peer) -> None:
        self.carry_out(self.engine.receive(datagram, source, arrived, self.network.now))

    def tick(self) -> None:
        self.carry_out(self.engine.tick(self.network.now))

    def carry_out(self, actions: Sequence[Action]) -> list[ApplyKernel]:
        """And tells the engine that its datagrams have left."""
        waiting = super().carry_out(actions)
        self.engine.sent(self.network.now)
        return waiting

    @property
    def deadline(self) -> float | None:
        return self.engine.deadline

    def save(self, records: Sequence[Persist]) -> None:
        self.store.save(records)

    def check_send(self, send: Send) -> None:
        """No SEQ of a KEK is ever used for two messages, and none before the store knows it."""
        header = pull_header(send.datagram)
        if header.exchange_type != ExchangeType.GROUPKEY_PUSH:
            return
        for group in self.engine.groups.values():
            under = group.kek_of(header.spi)
            if under is not None:
                plain = cipher.decrypt(
                    under.kek.key.reveal(), under.kek.iv, send.datagram[HEADER_LENGTH:]
                )
                seq = int.from_bytes(plain[4:8], "big")
                first = self.network.pushes.setdefault((header.spi, seq), send.datagram)
                assert first == send.datagram, f"SEQ {seq} used for two messages"
                (record,) = self.store.rows("group", group.config.group_id.key)
                saved = {kek["kek"]["spi"]: kek["seq"] for kek in record["keks"]}
                assert saved[header.spi.hex()] >= seq, f"SEQ {seq} sent before it was saved"


# -- a member ------------------------------------------------------------------------------------


class FakeKernel:
    """The SAD and the outbound template of one host. Raises nothing: it refuses, as a kernel does.

    What no engine may ever ask for (an outbound policy without its SA) is an AssertionError.
    """

    def __init__(self) -> None:
        self.sas: dict[bytes, Tek] = {}
        self.pinned: dict[Flow, bytes] = {}
        self.accepts: dict[Flow, tuple[EncapsulationMode, TekProtocol]] = {}
        self.history: list[tuple[float, Flow, bytes]] = []
        self.refusals: list[str] = []
        self.exported: tuple[HeldKey, ...] = ()
        self.applied = 0

    def refuse_next(self, error: str = "ENOBUFS: add SA: No buffer space available") -> None:
        self.refusals.append(error)

    def apply(self, action: ApplyKernel, now: float) -> str | None:
        """All of it and None, or nothing of it and why."""
        if self.refusals:
            return self.refusals.pop(0)
        sas = dict(self.sas)
        for tek in action.add:
            there = sas.get(tek.spi)
            if there is not None and _keys(there) != _keys(tek):
                return f"EEXIST: add SA {tek.name}: another key is there"
            sas[tek.spi] = tek
        for tek in action.outbound:
            assert tek.spi in sas, f"outbound policy pinned to {tek.name}, which is not installed"
        for tek in action.remove:
            sas.pop(tek.spi, None)
        for tek in action.outbound:
            assert tek.spi in sas, f"outbound policy pinned to {tek.name}, removed at once"
            if self.pinned.get(tek.flow) != tek.spi:
                self.history.append((now, tek.flow, tek.spi))
            self.pinned[tek.flow] = tek.spi
        for tek in (*action.released, *action.silenced):
            self.pinned.pop(tek.flow, None)
        for tek in action.add if action.inbound is None else action.inbound:
            self.accepts[tek.flow] = (tek.mode, tek.protocol)
        self.sas = sas
        if action.keys is not None:
            self.exported = action.keys
        self.applied += 1
        return None

    def sending(self, flow: Flow) -> Tek | None:
        """The SA a packet of ``flow`` leaves with now; None: blocked."""
        return self.sas.get(self.pinned.get(flow, b""))


def _keys(tek: Tek) -> tuple[object, ...]:
    return tek.encryption_key, tek.integrity_key


class MemberHost(Host):
    """A member of one group. ``make`` builds its engine anew at every start."""

    def __init__(
        self,
        network: Network,
        address: Peer,
        make: Callable[[], GroupMember],
        groups: Sequence[IPAddress] = (),
        nat: Nat | None = None,
    ) -> None:
        super().__init__(network, address, nat)
        self._make = make
        self.kernel = FakeKernel()
        self.saved: str | None = None
        self.group = make()
        self.engine = Agent({self.group.config.name: self.group})
        for address_ in groups:
            receiver = nat or self
            if receiver not in network.joined[address_]:
                network.joined[address_].append(receiver)

    def boot(self) -> None:
        self.group = self._make()
        self.engine = Agent({self.group.config.name: self.group})
        record = None if self.saved is None else json.loads(self.saved)
        self.carry_out(self.group.start(self.network.now, record))

    def receive(self, datagram: bytes, source: Peer, arrived: Peer) -> None:
        _, actions = self.engine.receive(datagram, source, arrived, self.network.now)
        self.carry_out(actions)

    def tick(self) -> None:
        self.carry_out(self.group.tick(self.network.now))

    @property
    def deadline(self) -> float | None:
        return self.group.deadline

    def carry_out(self, actions: Sequence[Action]) -> list[ApplyKernel]:
        """Also answers for the kernel, after the rest and until nothing is left."""
        waiting = super().carry_out(actions)
        while waiting:
            action = waiting.pop(0)
            assert not waiting, "two kernel transactions at once"
            self._effect()
            error = self.kernel.apply(action, self.network.now)
            if error is None:
                answer = self.group.kernel_done(action.transaction, self.network.now)
            else:
                answer = self.group.kernel_refused(action.transaction, error, self.network.now)
            waiting += super().carry_out(answer)
        return []

    def save(self, records: Sequence[Persist]) -> None:
        for persist in records:
            self.saved = json.dumps(persist.record)
            for entry in self.record["teks"]:
                held = self.kernel.sas.get(bytes.fromhex(entry["tek"]["spi"]))
                assert held is not None, "saved a TEK that the kernel does not hold"
                key = held.encryption_key.reveal().hex()
                assert key == entry["tek"]["encryption_key"]
            told = self.group.applications.exported
            assert not told or told == self.kernel.exported, "applications have other keys"

    @property
    def record(self) -> Mapping[str, Any]:
        return {} if self.saved is None else dict(json.loads(self.saved))

    def left(self, send: Send) -> None:
        self.group.left(send)

    def check_send(self, send: Send) -> None:
        """An ACK's SEQ is in the store, unless the KEK it came under has been deleted since."""
        header = pull_header(send.datagram)
        if header.exchange_type == ExchangeType.GROUPKEY_PUSH_ACK:
            seq = ack_seq(send.datagram)
            saved = {entry["kek"]["spi"]: entry["seq"] for entry in self.record["keks"]}
            assert saved.get(header.spi.hex(), seq) >= seq, f"ACK of SEQ {seq} before it was saved"


def ack_seq(ack: bytes) -> int:
    """SEQ of an ACK, by its place: HDR 28, HASH as long as its header says, SEQ 4 + 4."""
    at = 28 + int.from_bytes(ack[30:32], "big")
    return int.from_bytes(ack[at + 4 : at + 8], "big")
