"""When dead peer detection asks, what it counts as an answer, and when it gives up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gdoi_plugin.protocol.dpd import SEQ_OCTETS, Dpd, DpdConfig
from gdoi_plugin.wire.notification import Notification
from gdoi_plugin.wire.registry import Doi, NotifyType, Protocol

CONFIG = DpdConfig(delay=60.0, timeout=30.0)
START = 1000.0
RANDOM = bytes.fromhex("fffffff0")
FIRST = 0x7FFFFFF9  # half of it and one more


def dpd(config: DpdConfig = CONFIG, *, peer_knows: bool = True) -> Dpd:
    return Dpd.start(config, lambda _: RANDOM, START, peer_knows=peer_knows)


def notification(seq: int, kind: NotifyType, octets: int = SEQ_OCTETS) -> Notification:
    data = seq.to_bytes(octets, "big")
    return Notification(Doi.IPSEC, Protocol.PROTO_ISAKMP, b"", kind, data)


def ack(seq: int) -> Notification:
    return notification(seq, NotifyType.R_U_THERE_ACK)


def question(seq: int) -> Notification:
    return notification(seq, NotifyType.R_U_THERE)


def ticks(engine: Dpd, until: float) -> Iterator[tuple[float, int]]:
    """When it asks, and with which number."""
    while (at := engine.deadline) is not None and at <= until and not engine.dead(at):
        data = engine.ask(at)
        assert data is not None
        yield at - START, int.from_bytes(data, "big")


def test_the_first_number_is_random_with_its_high_bit_clear() -> None:
    """RFC 3706 section 6.2."""
    assert list(ticks(dpd(), START + 60)) == [(60.0, FIRST)]


def test_unanswered_questions_are_repeated_with_their_number_until_the_timeout() -> None:
    engine = dpd()
    asked = list(ticks(engine, START + 1000))
    assert asked == [(at, FIRST) for at in (60.0, 61.0, 63.0, 67.0, 75.0)]
    assert not engine.dead(START + 89.9)
    assert engine.deadline == START + 90.0
    assert engine.dead(START + 90.0)
    assert engine.ask(START + 90.0) is None


def test_an_answer_ends_the_questions_until_the_next_silence() -> None:
    engine = dpd()
    assert engine.ask(START + 60) is not None
    assert engine.answered(ack(FIRST), START + 62)
    assert engine.deadline == START + 122
    assert list(ticks(engine, START + 122)) == [(122.0, FIRST + 1)], "incremented by one"


@pytest.mark.parametrize("seq", [FIRST - 1, FIRST + 1, 0])
def test_an_ack_with_another_number_is_no_answer(seq: int) -> None:
    """RFC 3706 section 6.1."""
    engine = dpd()
    engine.ask(START + 60)
    assert not engine.answered(ack(seq), START + 61)
    assert engine.dead(START + 90)


def test_an_ack_that_nobody_asked_for_is_no_proof_of_life() -> None:
    engine = dpd()
    engine.ask(START + 60)
    assert engine.answered(ack(FIRST), START + 61)
    assert not engine.answered(ack(FIRST), START + 100), "a replayed one"
    assert engine.deadline == START + 121


def test_any_proof_of_life_puts_the_question_off() -> None:
    """RFC 3706 section 5.4: traffic is proof, and no exchange is begun."""
    engine = dpd()
    engine.heard(START + 59)
    assert engine.ask(START + 60) is None
    assert engine.deadline == START + 119
    engine.ask(START + 119)
    engine.heard(START + 120)
    assert not engine.dead(START + 1000)


@pytest.mark.parametrize(
    ("config", "peer_knows"), [(DpdConfig(), True), (CONFIG, False)], ids=["off", "unknown to peer"]
)
def test_it_asks_nothing_where_it_is_off_or_the_peer_has_not_announced_it(
    config: DpdConfig, peer_knows: bool
) -> None:
    engine = dpd(config, peer_knows=peer_knows)
    assert engine.deadline is None
    assert engine.ask(START + 10_000) is None
    assert not engine.dead(START + 10_000)
    assert engine.question(question(5), START + 1) == question(5).data, "but answers: section 5.2"


def test_numbers_of_the_peers_questions() -> None:
    """Section 6.2: old ones are replays. The last one again: our ACK was lost."""
    engine = dpd()
    assert engine.question(question(7), START + 1) == question(7).data
    assert engine.heard_at == START + 1
    assert engine.question(question(7), START + 2) == question(7).data
    assert engine.heard_at == START + 1, "a repeated message proves nothing new"
    assert engine.question(question(6), START + 3) is None
    assert engine.question(question(9), START + 4) == question(9).data, "8 was lost on its way"
    assert engine.question(question(8), START + 5) is None
    assert engine.heard_at == START + 4


@pytest.mark.parametrize("octets", [0, 3, 5])
def test_a_number_of_another_length(octets: int) -> None:
    engine = dpd()
    asked = notification(0, NotifyType.R_U_THERE, octets)
    assert engine.question(asked, START + 1) is None
    engine.ask(START + 60)
    assert not engine.answered(notification(0, NotifyType.R_U_THERE_ACK, octets), START + 61)


def test_another_protocol_id_is_not_isakmp() -> None:
    """Section 5.3: MUST be set to the protocol ID for ISAKMP."""
    asked = Notification(Doi.IPSEC, 3, b"", NotifyType.R_U_THERE, bytes(4))
    assert dpd().question(asked, START + 1) is None
