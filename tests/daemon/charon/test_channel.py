"""When a channel is taken for one that the other side has forgotten; with real charons that is in
test_uml_channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from gdoi_plugin.daemon.charon import channel as module
from gdoi_plugin.daemon.charon.channel import Channel, ChannelOptions, Channels, Seen
from gdoi_plugin.daemon.charon.client import CharonClient, CharonLost
from gdoi_plugin.daemon.vici_message import (
    Message,
    Packet,
    PacketType,
    decode_packet,
    encode_segment,
)
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


# -- an IKE_SA that is at work ---------------------------------------------------------------------

UP: Message = {
    "gcks": {
        "uniqueid": "1",
        "state": "ESTABLISHED",
        "remote-host": str(THERE.host),
        "child-sas": {"gdoi-1": {"name": "gdoi", "uniqueid": "1", "state": "INSTALLED"}},
    }
}


class Busy:
    """charon's socket: ``list-sas`` waits for an IKE_SA while ``at_work``; else all is answered,
    unless it ``hangs``."""

    def __init__(self) -> None:
        self.at_work = self.hangs = False
        self._clients: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def running(self, path: Path) -> AsyncGenerator[None]:
        async with await asyncio.start_unix_server(self._serve, path):
            yield
            for client in self._clients:
                client.close()
                await client.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.append(writer)
        with suppress(asyncio.IncompleteReadError):
            while True:
                length = int.from_bytes(await reader.readexactly(4), "big")
                asked = decode_packet(await reader.readexactly(length))
                for answer in self._answers(asked):
                    writer.write(encode_segment(answer))

    def _answers(self, asked: Packet) -> list[Packet]:
        response = Packet(PacketType.CMD_RESPONSE, "", {"conns": ["gcks"]})
        if asked.type is PacketType.EVENT_REGISTER:
            return [Packet(PacketType.EVENT_CONFIRM)]
        if self.hangs or (self.at_work and asked.name == "list-sas"):
            return []
        told = [Packet(PacketType.EVENT, "list-sa", UP)] if asked.name == "list-sas" else []
        return [*told, response]


def test_a_charon_in_which_an_ike_sa_is_at_work_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was up is up; what has never been seen is asked for again."""
    monkeypatch.setattr(module, "BUSY", 0.1)

    async def scenario() -> None:
        there, path = Busy(), tmp_path / "vici"
        seen, unseen = (Channel(OPTIONS, CharonClient(path, time_limit=60)) for _ in range(2))
        async with there.running(path):
            assert not await seen.mend()
            there.at_work = True
            assert not await seen.mend()
            assert seen.seen.carrying == [("ike_id", "1")]
            with pytest.raises(CharonLost, match="list-sas"):
                await unseen.mend()
            there.hangs = True
            with pytest.raises(CharonLost):
                await Channel(OPTIONS, CharonClient(path, time_limit=0.1)).mend()

    asyncio.run(scenario())
