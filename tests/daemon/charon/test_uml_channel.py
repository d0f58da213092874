"""A channel between two real charons, of which the key server's forgets it or nobody answers in it.

::

    key server  v0 ---- veth ---- v1  member
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path

import pytest

from gdoi_plugin.daemon.charon.channel import Channel
from gdoi_plugin.daemon.charon.client import CharonClient, CharonError, CharonRefused
from gdoi_plugin.daemon.config_channel import IkeSection, channel_options
from gdoi_plugin.protocol.actions import Peer
from tests.daemon.ends import HOSTS, End, Pair, two_ends
from tests.interop.charon import Charon, charon
from tests.kernel.namespaces import ip

pytestmark = pytest.mark.uml

PSK = "of both"
PORT = 848
DOUBT = 1.0
LIMIT = 150.0
# Nobody finds out by asking whether the other is there.
SECTION = IkeSection.model_validate(
    {"psk": PSK, "esp_proposals": ["aes128gcm16"], "dpd_delay": "0s"}
)


def children(*names: str) -> dict[str, object]:
    return {
        name: {
            "mode": "transport",
            "local_ts": [f"dynamic[udp/{PORT + number}]"],
            "remote_ts": [f"dynamic[udp/{PORT + number}]"],
            "esp_proposals": ["aes128gcm16"],
        }
        for number, name in enumerate(names)
    }


FAMILY = pytest.mark.parametrize("lab", [4], indirect=True, scope="module")
"""What is no matter of the IP version."""


class Lab:
    def __init__(self, ends: Pair, folder: Path, version: int) -> None:
        self.server, self.member = ends
        self.folder, self.version = folder, version
        self.hosts = HOSTS[version]
        self.stack = ExitStack()
        self._of_server = ExitStack()
        self.members = self._start(self.member, self.stack)
        self.client = CharonClient(folder / self.member.name / "vici")
        self._load()
        self.channel = self.made(SECTION)
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        for end in ends:
            with end.namespace.entered():
                sock = self.stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            sock.bind((str(self.hosts[end.place]), PORT))
            sock.setblocking(False)
            end.sockets[PORT] = sock

    def made(self, section: IkeSection) -> Channel:
        remote, local = (Peer(host, PORT) for host in self.hosts)
        options = channel_options(section, self.folder / "config", "ike", local, remote)
        return Channel(options, self.client, doubt=DOUBT)

    def _start(self, end: End, stack: ExitStack) -> Charon:
        with end.namespace.entered():
            return stack.enter_context(charon(self.folder / end.name))

    def restart(self) -> None:
        """The key server's charon is killed, and has no SA when it is there again."""
        self._ike.process.kill()
        self._of_server.close()
        with self.server.namespace.entered():
            ip("xfrm state flush")
            ip("xfrm policy flush")
        self._load()

    def _load(self) -> None:
        self._ike = self._start(self.server, self._of_server)
        here, there = map(str, self.hosts)
        self._ike.load_psk(PSK.encode(), here, there)
        self._ike.load(
            "gdoi",
            version="2",
            mobike="no",
            local_addrs=[here],
            remote_addrs=[there],
            local={"auth": "psk", "id": here},
            remote={"auth": "psk"},
            children=children("gdoi", "other"),
        )

    def close(self) -> None:
        self._of_server.close()
        self.stack.close()

    def say(self, end: End) -> None:
        other = self.hosts[1 - end.place]
        end.sockets[PORT].sendto(b"inside", (str(other), PORT))

    def heard(self, end: End) -> int:
        found = 0
        with suppress(BlockingIOError):
            while end.sockets[PORT].recv(100):
                found += 1
        return found

    async def until(self, condition: Callable[[], object], *, ask: bool) -> bool:
        """The channel is looked after meanwhile, as every few seconds; True if it was remade."""
        deadline, remade = time.monotonic() + LIMIT, False
        while not condition():
            assert time.monotonic() < deadline
            if ask and self.channel.seen.carrying:
                self.channel.ask()
                self.say(self.member)
            with suppress(CharonError):
                if await self.channel.mend():
                    remade = True
            await asyncio.sleep(0.05)
        return remade

    async def answered(self) -> bool:
        """Until the key server hears the member, and the member it."""
        remade = await self.until(lambda: self.heard(self.server), ask=True)

        def back() -> bool:
            self.say(self.server)
            return bool(self.heard(self.member)) and self.channel._asked_at is None

        await self.until(back, ask=False)
        return remade


@pytest.fixture(scope="module", params=[4, 6])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with two_ends() as ends:
        made = Lab(ends, tmp_path_factory.mktemp(f"ipv{request.param}"), request.param)
        try:
            yield made
        finally:
            made.close()


def test_a_channel_that_the_key_servers_charon_has_forgotten_is_made_anew(lab: Lab) -> None:
    """Only what the member says, and nobody answers, tells."""

    async def scenario() -> None:
        assert await lab.channel.mend()
        assert not await lab.answered()
        first = lab.channel.seen.carrying
        lab.restart()
        assert not await lab.channel.mend()
        assert lab.channel.seen.carrying == first
        assert await lab.answered()
        assert set(lab.channel.seen.carrying).isdisjoint(first)

    asyncio.run(scenario())


@FAMILY
def test_one_that_nobody_answers_in_is_remade_ever_more_seldom(lab: Lab) -> None:
    """Until somebody does."""

    async def remade() -> float:
        """When; something has left, and has been seen, since the call."""
        (before,) = lab.channel.seen.carrying
        await lab.until(lambda: lab.channel.seen.carrying not in ([before], []), ask=True)
        return time.monotonic()

    async def scenario() -> None:
        await lab.answered()
        times = [time.monotonic(), *[await remade() for _ in range(2)]]
        waited = [after - before for before, after in pairwise(times)]
        assert [each >= DOUBT * 2**n for n, each in enumerate(waited)] == [True] * 2
        await lab.answered()
        assert not await lab.channel.mend()
        assert lab.channel._doubt == DOUBT

    asyncio.run(scenario())


@FAMILY
def test_what_gets_no_answer_is_no_reason(lab: Lab) -> None:
    """As acknowledgements, however many."""

    async def scenario() -> None:
        await lab.answered()
        before, end = lab.channel.seen.carrying, time.monotonic() + 2 * DOUBT

        def said() -> bool:
            lab.say(lab.member)
            return time.monotonic() > end

        assert not await lab.until(said, ask=False)
        assert lab.heard(lab.server) > 1
        assert lab.channel.seen.carrying == before

    asyncio.run(scenario())


@FAMILY
def test_other_children_of_a_connection_stay(lab: Lab) -> None:
    """Where it is swanctl.conf's."""
    here, there = (str(lab.hosts[end.place]) for end in (lab.member, lab.server))
    lab.members.load(
        "vpn",
        version="2",
        mobike="no",
        local_addrs=[here],
        remote_addrs=[there],
        local={"auth": "psk", "id": here},
        remote={"auth": "psk"},
        children=children("gdoi", "other"),
    )

    async def scenario() -> None:
        await lab.until(lambda: lab.channel.seen.carrying, ask=False)
        lab.members.terminate(lab.channel.options.connection)
        lab.channel = lab.made(IkeSection.model_validate({"connection": "vpn"}))
        assert await lab.channel.mend()
        await asyncio.to_thread(lab.members.initiate, "vpn", "other")
        assert not await lab.answered()
        ours, other = spis(lab.members)
        assert await lab.until(lambda: spis(lab.members)[0] != ours, ask=True)
        assert spis(lab.members)[1] == other

    asyncio.run(scenario())


def spis(ike: Charon) -> tuple[str | None, str | None]:
    """Of the channel, and of the other CHILD_SA."""
    found = {child["name"]: child["spi-in"] for child in ike.children("vpn")}
    return found.get("gdoi"), found.get("other")


@FAMILY
def test_what_an_agent_was_told_meanwhile_reaches_charon(lab: Lab) -> None:
    """It finds connection and secret of its former life there, with other contents."""

    async def scenario() -> None:
        await lab.answered()
        name = lab.channel.options.connection
        await lab.client.terminate(ike=name, force=True, limit=3)
        mistyped = SECTION.model_copy(update={"psk": "of neither"})
        with pytest.raises(CharonRefused, match=r"(?i)auth"):
            await lab.made(mistyped).mend()
        assert await lab.made(SECTION).mend()
        assert not await lab.made(SECTION).mend(), "which is up stays up"

    asyncio.run(scenario())
