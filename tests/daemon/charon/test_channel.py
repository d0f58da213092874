"""When a channel is taken for one that the other side has forgotten; with real charons that is in
test_uml_channel."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from gdoi_plugin.daemon.charon import channel as module
from gdoi_plugin.daemon.charon.channel import Channel, ChannelOptions, Channels, Seen
from gdoi_plugin.protocol.actions import Peer, Send
from gdoi_plugin.wire.header import Header
from gdoi_plugin.wire.registry import ExchangeType, PayloadType

HERE, THERE, ELSEWHERE = (Peer(ip_address(f"192.0.2.{n}"), 848) for n in (1, 2, 3))
OPTIONS = ChannelOptions(THERE, HERE, "gcks", "gdoi")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


@pytest.fixture
def channels() -> Channels:
    made = Channels(Path("/nonexistent"), [OPTIONS], lambda _: None, lambda _: None)
    made.channels[0].carries = True
    return made


def send(exchange: ExchangeType, to: Peer = THERE) -> Send:
    header = Header(b"I" * 8, b"R" * 8, PayloadType.HASH, exchange)
    return Send(header.encode(), to, HERE)


def deaf(channel: Channel, packets_in: int = 6) -> bool:
    """At a look at it."""
    channel.seen = Seen(packets_in=packets_in, carrying=[("ike_id", "1")])
    return channel._deaf()


@pytest.mark.parametrize("exchange", [ExchangeType.MAIN_MODE, ExchangeType.GROUPKEY_PULL])
def test_an_answer_is_due_for_so_long(
    channels: Channels, clock: Clock, exchange: ExchangeType
) -> None:
    """Counted from the first that has none, however long ago the last packet came."""
    (channel,) = channels.channels
    assert not deaf(channel)
    clock.now += 3600
    for _ in range(5):
        channels.passing([send(exchange)])
        assert not deaf(channel)
        clock.now += 8.9
    assert not deaf(channel)
    clock.now += 0.6
    assert deaf(channel)
    channels.passing([send(exchange)])
    clock.now += 89
    assert not deaf(channel)
    clock.now += 2
    assert deaf(channel)


@pytest.mark.parametrize(
    "exchange", [ExchangeType.GROUPKEY_PUSH_ACK, ExchangeType.INFORMATIONAL], ids=str
)
def test_none_is_due(channels: Channels, clock: Clock, exchange: ExchangeType) -> None:
    (channel,) = channels.channels
    assert not deaf(channel)
    for _ in range(100):
        channels.passing([send(exchange), send(ExchangeType.GROUPKEY_PULL, ELSEWHERE)])
        clock.now += 60
        assert not deaf(channel)


def test_an_answer_begins_it_anew(channels: Channels, clock: Clock) -> None:
    (channel,) = channels.channels
    for packets in range(1, 20):
        channels.passing([send(ExchangeType.GROUPKEY_PULL)])
        clock.now += 40
        assert not deaf(channel, packets)


def test_nothing_leaves_where_there_is_no_channel(channels: Channels) -> None:
    """Nor is an answer due."""
    (channel,) = channels.channels
    channel.carries = False
    inside, past = send(ExchangeType.MAIN_MODE), send(ExchangeType.MAIN_MODE, ELSEWHERE)
    assert channels.passing([inside, past]) == [past]
    assert channel._asked_at is None
    channel.carries = True
    assert channels.passing([inside, past]) == [inside, past]
    assert channel._asked_at is not None
