"""A key server that signs anything: what a member takes, what it refuses, and what it may cost."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

import pytest

from gdoi_plugin.protocol import acknowledger as acknowledger_module
from gdoi_plugin.protocol import rollover
from gdoi_plugin.protocol.actions import Drop, Send
from gdoi_plugin.protocol.policy import GroupPolicy, Kek, encode_kd, encode_sa
from gdoi_plugin.protocol.rekey_sas import MAX_PREVIOUS
from gdoi_plugin.wire.delete import Delete
from gdoi_plugin.wire.group_sa import MAX_SATS, GroupSecurityAssociation, SaTek
from gdoi_plugin.wire.header import MAX_MESSAGE
from gdoi_plugin.wire.payload import Body
from gdoi_plugin.wire.registry import Doi, TekProtocol
from gdoi_plugin.wire.sequence import SequenceNumber
from tests.protocol.test_push import new_kek, new_tek, ready
from tests.support.forge import multicast, push, push_policy, seal_push
from tests.support.worlds import ECDSA, World, signer

ESP = TekProtocol.GDOI_PROTO_IPSEC_ESP


def teks(count: int, first: int = 0x1000) -> GroupPolicy:
    return GroupPolicy(None, tuple(new_tek(first + n) for n in range(count)), 0xFFFF, 0xFFFF)


def refused(world: World, datagram: bytes, why: str) -> None:
    """Loudly, without an ACK, and with the SAs as they were."""
    before = dict(world.member.kernel.sas)
    actions = multicast(world, datagram)
    assert world.member.dropped()[-1] is Drop.UNACCEPTABLE_POLICY
    assert why in str(world.member.events("rekey-refused")[-1].fields["error"])
    assert not any(isinstance(action, Send) for action in actions)
    assert world.member.kernel.sas == before


def test_a_thousand_sats_are_refused() -> None:
    _, world = ready()
    sats = tuple(sat for _ in range(4) for sat in encode_sa(teks(MAX_SATS)).sats)[:1000]
    refused(
        world, push(world, GroupSecurityAssociation(None, None, sats), encode_kd(teks(1))), "SATs"
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"lifetime": 0}, "lifetime of 0"), ({"spi": bytes(4)}, "reserved")],
    ids=["lifetime 0", "SPI 0"],
)
def test_impossible_values_are_refused(changes: dict[str, object], why: str) -> None:
    _, world = ready()
    policy = GroupPolicy(None, (replace(new_tek(), **changes),))  # type: ignore[arg-type]
    refused(world, push_policy(world, policy), why)


def test_the_same_spi_twice_is_refused() -> None:
    _, world = ready()
    refused(world, push_policy(world, GroupPolicy(None, (new_tek(), new_tek()))), "same SPI")


def test_a_cipher_of_yesterday_is_refused() -> None:
    _, world = ready()
    policy = GroupPolicy(None, (new_tek(),))
    (sat,) = encode_sa(policy).sats
    for transform in (2, 3, 11):  # ESP_DES, ESP_3DES, ESP_NULL
        weak = SaTek(sat.protocol_id, replace(sat.tek, transform_id=transform))  # type: ignore[type-var]
        sa = GroupSecurityAssociation(None, None, (weak,))
        refused(world, push(world, sa, encode_kd(policy)), "transform")


def test_deletes_by_the_thousand_delete_what_they_name_once() -> None:
    _, world = ready()
    (held,) = world.member.kernel.sas
    many = tuple(number.to_bytes(4, "big") for number in range(0x2000, 0x2000 + 1023))
    deletes: list[Body] = [Delete(Doi.GDOI, ESP, (*many, held))] * 8
    multicast(world, push(world, deletes=deletes))
    assert world.member.kernel.sas == {}


def test_ever_new_teks_fill_no_more_than_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rollover.MAX_HELD >= 4 * MAX_SATS, "room for what overlaps"
    monkeypatch.setattr(rollover, "MAX_HELD", 200)
    _, world = ready()
    for number in range(3):
        multicast(world, push_policy(world, teks(64, 0x1000 + number * 64)))
    assert len(world.member.kernel.sas) == 3 * 64 + 1
    refused(world, push_policy(world, teks(64, 0x900000)), "too many")


def test_ever_new_keks_push_out_the_oldest() -> None:
    _, world = ready()
    under, signing = world.group.current_kek().kek, world.group.current_kek().signer
    for number in range(1, 3 * MAX_PREVIOUS):
        kek: Kek = new_kek(spi=number.to_bytes(8, "big") * 2)
        policy = GroupPolicy(kek, (new_tek(0x1000 + number),), 0, 0)
        payloads: list[Body] = [SequenceNumber(1), encode_sa(policy), encode_kd(policy)]
        multicast(world, seal_push(under, signing, payloads))
        assert world.member.group.kek is not None
        assert world.member.group.kek.kek.spi == kek.spi
        under, signing = kek, signer(ECDSA, 7)
    assert len(world.member.group.previous) == MAX_PREVIOUS


def test_a_flood_of_rekeys_owes_a_bounded_number_of_acks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acknowledger_module, "MAX_WAITING", 8)
    _, world = ready()
    acknowledger = world.member.group.acknowledger
    acknowledger.jitter = 5.0
    for _ in range(30):
        multicast(world, push_policy(world, GroupPolicy(None, (new_tek(),), 0, 0)))
    assert 0 < len(acknowledger.deadlines) <= 8


# -- what one datagram may cost ------------------------------------------------------------------


def calls_of(work: Callable[[], object]) -> int:
    """Functions called: a clock that no busy machine disturbs."""
    count = 0

    def profile(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def cost(count: int) -> tuple[int, int]:
    """Calls and octets of memory that a PUSH with ``count`` SATs costs a member."""
    _, world = ready()
    datagram = push_policy(world, teks(count))
    assert len(datagram) <= MAX_MESSAGE
    calls = calls_of(lambda: multicast(world, datagram))
    assert len(world.member.kernel.sas) == count + 1
    _, world = ready()
    datagram = push_policy(world, teks(count))
    tracemalloc.start()
    multicast(world, datagram)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return calls, peak


def test_work_and_memory_grow_with_the_size_of_a_push_and_not_with_its_square() -> None:
    half, whole = cost(MAX_SATS // 2), cost(MAX_SATS)
    assert whole[0] < 2.5 * half[0], "calls"
    assert whole[1] < 2.5 * half[1], "memory"
    assert whole[1] < 16 << 20
