"""Any datagram, in every state: actions and no exception, and no state for what proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gdoi_plugin.protocol.actions import Action, Peer, Send
from gdoi_plugin.wire.header import HEADER_LENGTH
from gdoi_plugin.wire.registry import ExchangeType
from tests.support.forge import push
from tests.support.simnet import Host, Wire
from tests.support.snapshot import UNPROVED, snapshot
from tests.support.worlds import (
    REKEY,
    SERVER,
    STRANGER,
    World,
    group_config,
    member_peer,
    wired,
)

EXAMPLES = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
MESSAGES = 10
STATES = {
    "before": 0,
    "half open, message 1": 1,
    "half open, message 2": 2,
    "half open, message 3": 3,
    "half open, message 4": 4,
    "authenticating": 5,
    "established": 6,
    "GROUPKEY-PULL 1": 7,
    "GROUPKEY-PULL 2": 8,
    "GROUPKEY-PULL 3": 9,
    "registered": 10,
}


def world_after(messages: int) -> World:
    wire, world = wired(2, group=group_config(2), member_changes={"ack_jitter": 0.0})
    world.server.start()
    world.member.start()
    wire.pass_on(messages)
    return world


@cache
def shared(messages: int) -> World:
    """For what must not change it: one world for all examples."""
    return world_after(messages)


@cache
def real_messages() -> tuple[Send, ...]:
    """One of each kind, from another registration and rekeys; no shared world has heard them."""
    world = world_after(MESSAGES)
    wire = world.network
    assert isinstance(wire, Wire)
    world.rekey(kek=True)
    wire.settle()
    world.rekey()
    wire.settle()
    world.member.do(world.member.group.stop())
    return tuple(send for _, send in wire.sent)


def own_messages(messages: int) -> tuple[Send, ...]:
    """What was said in a shared world, and a rekey, with its own keys."""
    world = shared(messages)
    sent = [send for _, send in world.network.sent]
    if messages == MESSAGES:
        sent.append(own_push())
    return tuple(sent)


@cache
def own_push() -> Send:
    """Made once: ECDSA signs it otherwise each time, and both would be authentic."""
    world = shared(MESSAGES)
    return Send(push(world, seq=world.group.current_kek().seq + 1), REKEY, SERVER)


# -- datagrams -----------------------------------------------------------------------------------

peers = st.sampled_from([SERVER, STRANGER, member_peer(0), member_peer(1)])
arrivals = st.sampled_from([SERVER, REKEY, member_peer(0)])


@st.composite
def headed(draw: st.DrawFn, cookies: bytes) -> bytes:
    """A header that gets past the first checks, around anything."""
    spi = draw(st.sampled_from([cookies, cookies[:8] + bytes(8), b"\1" * 16]))
    body = draw(st.binary(max_size=200))
    if draw(st.booleans()):
        body = body[: len(body) // 16 * 16]
    return b"".join(
        (
            spi,
            bytes((draw(st.integers(0, 24)), 0x10)),
            bytes((draw(st.sampled_from([2, 4, 5, 32, 33, 34, 35, 99])),)),
            bytes((draw(st.sampled_from([0, 1])),)),
            draw(st.sampled_from([bytes(4), b"\0\0\0\7"])),
            (HEADER_LENGTH + len(body)).to_bytes(4, "big"),
            body,
        )
    )


@st.composite
def mutated(draw: st.DrawFn, messages: tuple[Send, ...]) -> bytes:
    """A real message with octets changed, cut out, put in or cut off; Length set right or not."""
    octets = bytearray(draw(st.sampled_from(messages)).datagram)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(octets) - 1)))
        kind = draw(st.sampled_from(["change", "delete", "insert", "truncate", "length"]))
        if kind == "change" and octets:
            octets[at] = draw(st.integers(0, 255))
        elif kind == "delete":
            del octets[at : at + draw(st.integers(1, 20))]
        elif kind == "insert":
            octets[at:at] = draw(st.binary(min_size=1, max_size=20))
        elif kind == "truncate":
            del octets[at:]
        elif len(octets) >= at + 2:
            octets[at : at + 2] = draw(st.integers(0, 65535)).to_bytes(2, "big")
    if draw(st.booleans()) and len(octets) >= HEADER_LENGTH:
        octets[24:28] = len(octets).to_bytes(4, "big")
    return bytes(octets)


def anything(messages: int) -> st.SearchStrategy[bytes]:
    """Built when the first example is drawn, not when the module is read."""

    def build_it() -> st.SearchStrategy[bytes]:
        sent = shared(messages).network.sent
        cookies = sent[-1][1].datagram[:16] if sent else b"\2" * 16
        known = real_messages() + own_messages(messages)
        return st.one_of(st.binary(max_size=300), headed(cookies), mutated(known))

    return st.deferred(build_it)


# -- what must hold ------------------------------------------------------------------------------


def is_authentic(datagram: bytes) -> bool:
    """A mutation may put a message back together, or leave it as it was."""
    known = {send.datagram for state in STATES.values() for send in own_messages(state)}
    return datagram in known


def hear(host: Host, datagram: bytes, source: Peer, arrived: Peer) -> list[Action]:
    """The host's own ``hear``, with the world's wire emptied of what is answered."""
    actions = host.hear(datagram, source, arrived)
    assert isinstance(actions, list)
    return actions


def unchanged(host: Host, datagram: bytes, source: Peer, arrived: Peer) -> None:
    engine = host.engine  # type: ignore[attr-defined]
    before = snapshot(engine, UNPROVED)
    hear(host, datagram, source, arrived)
    assert snapshot(engine, UNPROVED) == before


def is_main_mode(datagram: bytes) -> bool:
    return len(datagram) > 18 and datagram[18] == ExchangeType.MAIN_MODE


def check_server(messages: int) -> Callable[[], None]:
    @EXAMPLES
    @given(anything(messages), peers, arrivals)
    def check(datagram: bytes, source: Peer, arrived: Peer) -> None:
        world = shared(messages)
        if not is_authentic(datagram):
            unchanged(world.server, datagram, source, arrived)

    return check


def check_member(messages: int) -> Callable[[], None]:
    @EXAMPLES
    @given(anything(messages), peers, arrivals)
    def check(datagram: bytes, source: Peer, arrived: Peer) -> None:
        world = shared(messages)
        if is_authentic(datagram):
            return
        if is_main_mode(datagram) and messages < 6:
            # Messages 2 and 4 are believed for now: a fresh world for each.
            hear(world_after(messages).member, datagram, source, arrived)
        else:
            unchanged(world.member, datagram, source, arrived)

    return check


test_key_server_before_anything = check_server(STATES["before"])
test_key_server_after_message_1 = check_server(STATES["half open, message 1"])
test_key_server_after_message_3 = check_server(STATES["half open, message 3"])
test_key_server_established = check_server(STATES["established"])
test_key_server_after_pull_1 = check_server(STATES["GROUPKEY-PULL 1"])
test_key_server_with_a_member = check_server(STATES["registered"])

test_member_before_anything = check_member(STATES["before"])
test_member_after_message_2 = check_member(STATES["half open, message 2"])
test_member_after_message_4 = check_member(STATES["half open, message 4"])
test_member_established = check_member(STATES["established"])
test_member_after_pull_2 = check_member(STATES["GROUPKEY-PULL 2"])
test_member_registered = check_member(STATES["registered"])


def test_every_real_message_in_every_state_of_both() -> None:
    """Messages at the wrong moment and at the wrong end: the state meets every input."""
    fresh = world_after(MESSAGES)
    fresh.rekey()
    for messages in range(MESSAGES + 1):
        for number in range(len(fresh.network.sent)):
            world = world_after(messages)
            rest = world_after(MESSAGES)
            rest.rekey()
            sent = [send for _, send in rest.network.sent]
            send = sent[number]
            for host in (world.server, world.member):
                hear(host, send.datagram, send.source, send.destination)


def test_fuzzed_worlds_still_work() -> None:
    """After all of the above in this process: the messages that were under way are accepted."""
    for messages in (6, 8, 10):
        world = shared(messages)
        wire = world.network
        assert isinstance(wire, Wire)
        wire.waiting = [send for send in wire.waiting if send.source in (SERVER, member_peer(0))]
        world.member.restart()
        wire.settle()
        assert world.in_step(world.member)
    shared.cache_clear()
