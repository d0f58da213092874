"""The key server written from the RFCs on a real UDP socket, and our member's engine facing it.

Everything happens in the test's own thread: `until` passes datagrams and time until a condition
holds. The kernel's answer to the engine is the test's: None for yes, a text for no.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address

from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.daemon.config_common import DEFAULT_PROPOSALS
from gdoi_plugin.protocol.actions import Action, ApplyKernel, Dropped, Event, Peer, Send
from gdoi_plugin.protocol.agent import Agent as Groups
from gdoi_plugin.protocol.application_keys import HeldKey
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.isakmp import SUITES
from gdoi_plugin.protocol.member import GroupMember
from gdoi_plugin.protocol.member_config import MemberConfig
from gdoi_plugin.protocol.phase1 import Phase1Config, PreSharedKey
from gdoi_plugin.protocol.phase1_proposal import parse_suites
from gdoi_plugin.protocol.registration import KeyServerEntry

from .rfc_crypto import SigningKey
from .rfc_key_server import KeyServer, Quirks
from .rfc_octets import ID_IPV4, Selector, address

PATIENCE = 90.0
PORT = 5849
PSK = b"a pre-shared key of two readings"


def open_socket(local: tuple[str, int], *, shared: bool = False) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(shared))
    opened.bind(local)
    opened.setblocking(False)
    return opened


class Agent:
    """What gdoi-gm is around its engine, without a kernel."""

    def __init__(self, engine: GroupMember) -> None:
        self.engine = engine
        self.members = Groups({engine.config.name: engine})
        self.local = engine.config.local
        self.socket = open_socket((str(self.local.host), self.local.port))
        self.kernel: Callable[[ApplyKernel], str | None] = lambda _: None
        self.skew = 0.0  # seconds this member's clock is ahead
        self.held: dict[bytes, bytes] = {}  # SPI: key, of the SAs the kernel took
        self.exported: tuple[HeldKey, ...] = ()
        self.events: list[Event] = []
        self.dropped: list[Dropped] = []

    def now(self) -> float:
        return time.time() + self.skew

    def start(self) -> None:
        self.perform(self.engine.start(self.now()))

    def arrived(self) -> None:
        datagram, (host, port) = self.socket.recvfrom(65535)
        source = Peer(ip_address(host), port)
        _, actions = self.members.receive(datagram, source, self.local, self.now())
        self.perform(actions)

    def tick(self) -> None:
        deadline = self.engine.deadline
        if deadline is not None and deadline <= self.now():
            self.perform(self.engine.tick(self.now()))

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                assert action.source == self.local
                target = (str(action.destination.host), action.destination.port)
                self.socket.sendto(action.datagram, target)
            elif isinstance(action, ApplyKernel):
                refusal = self.kernel(action)
                if refusal is not None:
                    more = self.engine.kernel_refused(action.transaction, refusal, self.now())
                else:
                    for tek in action.add:
                        self.held[tek.spi] = tek.encryption_key.reveal()
                    for tek in action.remove:
                        self.held.pop(tek.spi, None)
                    self.exported = self.exported if action.keys is None else action.keys
                    more = self.engine.kernel_done(action.transaction, self.now())
                self.perform(more)
            elif isinstance(action, Event):
                self.events.append(action)
            elif isinstance(action, Dropped):
                self.dropped.append(action)

    def names(self) -> list[str]:
        return [event.name for event in self.events]


class Serving:
    """The key server at a socket, and one member somewhere."""

    def __init__(self, server: KeyServer, opened: socket.socket, here: tuple[str, int]) -> None:
        """`here` is where the member is, and sends its ACKs from."""
        self.server, self.socket, self.here = server, opened, here
        self.server.rekey_to = Selector(ID_IPV4, here[1], address(here[0]))
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.socket, selectors.EVENT_READ, self._serve)
        # What happens to each datagram the key server got, before it answers.
        self.received: list[bytes] = []
        self.before_answer: Callable[[bytes], None] = lambda _: None
        self.lose: Callable[[bytes], bool] = lambda _: False

    def close(self) -> None:
        self.selector.close()
        self.socket.close()

    def tick(self) -> None:
        """What is due besides datagrams."""

    def told(self) -> str:
        """What the member said last, for a test that waited in vain."""
        return ""

    def _serve(self) -> None:
        datagram, source = self.socket.recvfrom(65535)
        if self.lose(datagram):
            return
        self.received.append(datagram)
        self.before_answer(datagram)
        answer = self.server.handle(datagram, source)
        if answer is not None:
            self.socket.sendto(answer, source)

    def send(self, datagram: bytes, destination: tuple[str, int] | None = None) -> None:
        """From the key server, to the member unless told otherwise."""
        self.socket.sendto(datagram, destination or self.here)

    def until(self, condition: Callable[[], object], what: str, limit: float = PATIENCE) -> None:
        deadline = time.monotonic() + limit
        while not condition():
            assert time.monotonic() < deadline, f"waited {limit:g} s for {what}: {self.told()}"
            for key, _ in self.selector.select(0.02):
                key.data()
            self.tick()

    def settle(self, quiet: float = 0.05) -> None:
        """Until nothing has come for `quiet` seconds: loopback delivers at once."""
        while ready := self.selector.select(quiet):
            for key, _ in ready:
                key.data()
        self.tick()

    def acked(self, datagram: bytes, destination: tuple[str, int] | None = None) -> None:
        """Sends a PUSH and waits for its ACK."""
        before = len(self.server.acks)
        self.send(datagram, destination)
        self.until(lambda: len(self.server.acks) > before, "an ACK")
        (ack,) = self.server.acks[before:]
        assert ack.seq == self.server.pushed[datagram]
        assert ack.address == address(self.here[0])
        assert ack.source == self.here
        assert self.server.ack_spis[-1] == datagram[:16]

    def silent(self, datagram: bytes) -> None:
        """Sends a PUSH that must not be acknowledged."""
        before = len(self.server.acks)
        self.send(datagram)
        self.settle()
        assert len(self.server.acks) == before


class World(Serving):
    """Key server and one agent in this process, the datagrams between them on loopback."""

    def __init__(
        self,
        signer: SigningKey,
        *,
        bits: int = 256,
        ack: int = 1,
        sig_hash: int = 3,
        quirks: Quirks | None = None,
        proposals: Sequence[str] = DEFAULT_PROPOSALS,
        sender_ids: int = 0,
    ) -> None:
        net = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}"
        local, here = (f"{net}.1", PORT), (f"{net}.2", PORT)
        server = KeyServer(local, PSK, signer, bits=bits, ack=ack, sig_hash=sig_hash, quirks=quirks)
        super().__init__(server, open_socket(local), here)
        me, other = (Peer(ip_address(host), port) for host, port in (here, local))
        mine, its = (Identity.parse(str(peer.host)) for peer in (me, other))
        phase1 = Phase1Config(
            (PreSharedKey(mine, its, Secret(PSK)),), parse_suites(proposals, SUITES)
        )
        servers = (KeyServerEntry(other, phase1),)
        config = MemberConfig(
            "video",
            GroupId.of_number(server.group),
            me,
            servers,
            recovery_delay=1.0,
            sender_ids=sender_ids,
            exports=True,
        )
        self.agent = Agent(GroupMember(config, os.urandom))
        self.selector.register(self.agent.socket, selectors.EVENT_READ, self.agent.arrived)

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.agent.socket.close()
        self.close()

    def tick(self) -> None:
        self.agent.tick()

    def told(self) -> str:
        return f"{self.agent.names()} {self.agent.events[-3:]} {self.agent.dropped}"

    def register(self) -> None:
        self.agent.start()
        self.until(lambda: "registered" in self.agent.names(), "the member to register")
