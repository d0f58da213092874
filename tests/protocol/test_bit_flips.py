"""Every bit of every authenticated message turned over: refused, and the state is as before."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gdoi_plugin.crypto.signature import SCHEMES, Scheme
from gdoi_plugin.protocol.actions import Dropped, Send
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.isakmp import IsakmpSa, seal_delete
from gdoi_plugin.protocol.limits import Limits
from gdoi_plugin.wire.registry import AckType
from tests.support.forge import flip, flips, is_clear_notify, only_drop, resend
from tests.support.simnet import Host
from tests.support.snapshot import snapshot
from tests.support.worlds import (
    ECDSA,
    REKEY,
    RSA,
    SERVER,
    World,
    group_config,
    member_peer,
    registered,
    wired,
)

Case = tuple[Host, Send]

# Every flipped message 5 is to be looked at.
NO_LIMITS = Limits(work_per_source=1_000_000)


def registration_message(number: int, world: World | None = None) -> Case:
    """Message ``number`` of a registration: main mode has 1 to 6, GROUPKEY-PULL 7 to 10."""
    if world is None:
        _, world = wired(limits=NO_LIMITS)
    wire = world.network
    world.start()
    wire.pass_on(number - 1)  # type: ignore[attr-defined]
    return (world.server if number % 2 else world.member), wire.waiting[0]  # type: ignore[attr-defined]


def notify_from_server() -> Case:
    """INVALID-ID-INFORMATION: the member asks for a group that is not there."""
    _, world = wired(member_changes={"group_id": GroupId.of_number(99)})
    return registration_message(8, world)


def delete_from_member() -> Case:
    wire, world = registered()
    world.member.do(world.member.group.stop())
    return world.server, wire.take()


def delete_from_server() -> Case:
    _, world = registered()
    (session,) = world.server.engine.isakmp.sessions.values()
    return world.member, Send(seal_delete(session.sa, 7), member_peer(0), SERVER)


def rekey(scheme: Scheme, *, kek: bool, unicast: bool = False) -> Case:
    address = None if unicast else REKEY.host
    wire, world = registered(group=group_config(scheme=scheme, rekey_address=address))
    world.rekey(kek=kek)
    return world.member, wire.take()


def acknowledgement(ack: AckType = AckType.REKEY_ACK_KEK_SHA256, l_bits: int = 0) -> Case:
    config = group_config(ack=ack, ack_l=(l_bits,) if l_bits else ())
    wire, world = registered(group=config, member_changes={"ack_jitter": 0.0})
    world.rekey()
    wire.pass_on()
    return world.server, wire.take()


CASES: dict[str, Callable[[], Case]] = {
    "main mode 5": lambda: registration_message(5),
    "main mode 6": lambda: registration_message(6),
    "GROUPKEY-PULL 1": lambda: registration_message(7),
    "GROUPKEY-PULL 2": lambda: registration_message(8),
    "GROUPKEY-PULL 3": lambda: registration_message(9),
    "GROUPKEY-PULL 4": lambda: registration_message(10),
    "Informational notify": notify_from_server,
    "Informational delete, from the member": delete_from_member,
    "Informational delete, from the key server": delete_from_server,
    "GROUPKEY-PUSH, RSA": lambda: rekey(RSA, kek=False),
    "GROUPKEY-PUSH, ECDSA": lambda: rekey(ECDSA, kek=False),
    "GROUPKEY-PUSH, RSA, new KEK": lambda: rekey(RSA, kek=True),
    "GROUPKEY-PUSH, ECDSA, new KEK, unicast": lambda: rekey(ECDSA, kek=True, unicast=True),
    "GROUPKEY-PUSH, ECDSA-521": lambda: rekey(SCHEMES["ecdsa521"], kek=False, unicast=True),
    "GROUPKEY-PUSH-ACK": acknowledgement,
    "GROUPKEY-PUSH-ACK, SHA-512": lambda: acknowledgement(AckType.REKEY_ACK_KEK_SHA512),
    "GROUPKEY-PUSH-ACK, two readings of L": lambda: acknowledgement(l_bits=256),
}


@pytest.mark.parametrize("name", CASES)
def test_flipped_message_is_refused_and_changes_nothing(name: str) -> None:
    host, send = CASES[name]()
    before = state(host)
    checked = 0
    for offset, altered in flips(send.datagram):
        only_drop(host.hear(altered, send.source, send.destination))
        if offset != checked:  # once an octet: a change by any of its bits would stay
            assert state(host) == before, f"octet {checked} or {offset}"
            checked = offset
    assert state(host) == before

    accepted = resend(host, send)
    assert not any(isinstance(action, Dropped) for action in accepted)
    assert state(host) != before


def state(host: Host) -> object:
    engine = host.engine  # type: ignore[attr-defined]
    said = sum(is_clear_notify(action) for action in host.actions)
    return snapshot(engine), host.effects - said


# -- main mode 1 to 4: not authenticated when they come, but in the end --------------------------


def end_of_phase_1(number: int, alter: Callable[[bytes], bytes]) -> tuple[IsakmpSa | None, ...]:
    """The SA of each side after a phase 1 whose message ``number`` was changed on its way."""
    wire, world = wired()
    world.start()
    wire.pass_on(number - 1)
    send = wire.take()
    receiver = world.server if number % 2 else world.member
    receiver.hear(alter(send.datagram), send.source, send.destination)
    while wire.waiting and len(wire.sent) < 7:
        wire.pass_on()
    registration = world.member.group.registrar.attempt
    assert registration is not None
    sessions = [session.sa for session in world.server.engine.isakmp.sessions.values()]
    return registration.sa, (sessions[0] if sessions else None)


def test_unaltered_phase_1_ends_with_the_same_values_on_both_sides() -> None:
    mine, theirs = end_of_phase_1(1, bytes)
    assert values(mine) == values(theirs)


def vendor_ids(datagram: bytes) -> set[int]:
    """The octets of message 1 or 2 that no HASH covers and nobody compares: the vendor IDs.

    Transform number, proposal number and situation, and what stands in headers, are checked.
    """
    end_of_sa = 28 + int.from_bytes(datagram[30:32], "big")
    return {28, *range(end_of_sa, len(datagram))}


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_flipped_early_message_never_ends_in_different_sas(number: int) -> None:
    captured: list[bytes] = []
    end_of_phase_1(number, lambda datagram: captured.append(datagram) or datagram)  # type: ignore[func-returns-value]
    completed = set()
    for offset in range(len(captured[0])):
        for bit in range(8):
            mine, theirs = end_of_phase_1(number, lambda d, o=offset, b=bit: flip(d, o, b))  # type: ignore[misc]
            if mine is not None and theirs is not None:
                completed.add(offset)
                assert values(mine) == values(theirs), f"octet {offset} bit {bit}"
    assert completed <= (vendor_ids(captured[0]) if number < 3 else set())


def values(sa: IsakmpSa | None) -> tuple[object, ...]:
    assert sa is not None
    return sa.cookies, sa.suite, sa.keys, sa.last_block, sa.expires
