"""One story, told once: a registration and rekeys, with both engines as they were at each moment.

All moments share their keys, so that every message of the story is a good one somewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from gdoi_plugin.protocol.actions import Action, ApplyKernel, Peer, Send
from gdoi_plugin.protocol.agent import Agent
from gdoi_plugin.protocol.group import Group
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.key_server import KeyServer
from gdoi_plugin.protocol.member import GroupMember
from gdoi_plugin.protocol.nat import Path
from gdoi_plugin.protocol.policy import GroupPolicy
from tests.fuzz.invariants import check_actions
from tests.support.clone import clone
from tests.support.simnet import FakeKernel
from tests.support.snapshot import UNPROVED, snapshot
from tests.support.worlds import SERVER, group_config, member_peer, wired

REGISTRATION = 10  # messages: main mode 1 to 6, GROUPKEY-PULL 1 to 4


@dataclass(slots=True)
class MemberSide:
    """A member's engine with its kernel, which refuses the next transaction if told so."""

    engine: GroupMember
    kernel: FakeKernel

    def receive(self, datagram: bytes, source: Peer, arrived: Peer, now: float) -> list[Action]:
        agent = Agent({self.engine.config.name: self.engine})
        _, actions = agent.receive(datagram, source, arrived, now)
        return self.carry_out(actions, now)

    def carry_out(self, actions: list[Action], now: float) -> list[Action]:
        """All that comes of ``actions`` once the kernel has answered; checked on the way."""
        done: list[Action] = []
        while actions:
            check_actions(actions)
            done += actions
            asked = [action for action in actions if isinstance(action, ApplyKernel)]
            assert len(asked) <= 1, "two kernel transactions at once"
            actions = []
            for action in asked:
                error = self.kernel.apply(action, now)
                if error is None:
                    actions += self.engine.kernel_done(action.transaction, now)
                else:
                    actions += self.engine.kernel_refused(action.transaction, error, now)
        return done


@dataclass(frozen=True, slots=True)
class Moment:
    """The two engines; not to be used, but to be cloned."""

    name: str
    server: KeyServer
    member: MemberSide
    now: float

    @property
    def group(self) -> Group:
        return self.server.groups[next(iter(self.server.groups))]

    @property
    def offer(self) -> GroupPolicy:
        """What the first member would be told if it registered now."""
        peer = member_peer(0)
        return self.group.offer(Identity.of_address(peer.host), Path(SERVER, peer), self.now)


@dataclass(frozen=True, slots=True)
class Story:
    moments: tuple[Moment, ...]
    messages: tuple[Send, ...]

    def at(self, name: str) -> Moment:
        return next(moment for moment in self.moments if moment.name == name)

    @property
    def registered(self) -> Moment:
        return self.moments[REGISTRATION]


@cache
def story() -> Story:
    """Moments: before each of the ten messages of a registration, after it, after two rekeys."""
    wire, world = wired(2, group=group_config(2), member_changes={"ack_jitter": 0.0})
    moments: list[Moment] = []

    def now_is(name: str) -> None:
        side = MemberSide(clone(world.member.group), clone(world.member.kernel))
        moments.append(Moment(name, clone(world.server.engine), side, world.now))

    world.server.start()
    now_is("before anything")
    world.member.start()
    for number in range(1, REGISTRATION + 1):
        wire.pass_on()
        now_is(f"after message {number}")
    for name, kek in (("rekeyed", False), ("new KEK", True)):
        world.rekey(kek=kek)
        now_is(f"{name}, not heard")
        wire.settle()
        now_is(name)
    world.rekey()
    wire.settle()
    world.member.do(world.member.group.stop())
    wire.settle()
    return Story(tuple(moments), tuple(send for _, send in wire.sent))


class Witness:
    """An engine at which nothing changes, whatever it hears; looked at after every few inputs."""

    every: ClassVar[int] = 16
    all: ClassVar[list[Witness]] = []

    def __init__(self, original: object) -> None:
        self.all.append(self)
        self._original = original
        self._state = snapshot(original, UNPROVED)
        self._engine = clone(original)
        self._heard: list[tuple[bytes, Callable[[object], list[Action]]]] = []

    def hears(self, data: bytes, tell: Callable[[object], list[Action]]) -> list[Action]:
        actions = tell(self._engine)
        self._heard.append((data, tell))
        if len(self._heard) >= self.every:
            self.look()
        return actions

    @classmethod
    def look_at_all(cls) -> None:
        for witness in cls.all:
            witness.look()

    def look(self) -> None:
        """Raises AssertionError that names the input, where one has changed something."""
        if snapshot(self._engine, UNPROVED) == self._state:
            self._heard.clear()
            return
        for data, tell in self._heard:
            engine = clone(self._original)
            tell(engine)
            assert snapshot(engine, UNPROVED) == self._state, f"state changed by {data.hex()}"
        raise AssertionError(f"state changed by {[data.hex() for data, _ in self._heard]} together")
