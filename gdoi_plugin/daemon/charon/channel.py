"""The IKEv2 CHILD_SA that carries UDP 848 to a key server: charon makes it, this looks after it.

It is enough to look now and then, and whenever charon tells of a change: whatever has become of
charon, of its connection or of the SAs in the meantime, one look says what is missing, and one step
after the other puts it there. `swanctl --load-all` unloads what was loaded by vici without a word;
`initiate` fails where the CHILD_SA is up already, and leaves an IKE_SA that goes on trying where
nobody answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import uniform
from typing import TypeAlias

from gdoi_plugin.daemon.charon.client import BUSY, CharonClient
from gdoi_plugin.daemon.charon.errors import CharonError, CharonLost, CharonRefused
from gdoi_plugin.daemon.charon.events import Happened, Up, charon_events
from gdoi_plugin.daemon.tasks import ended
from gdoi_plugin.daemon.vici_message import Message
from gdoi_plugin.protocol.actions import Event, Peer, Send
from gdoi_plugin.wire.registry import ExchangeType

Request: TypeAlias = tuple[str, Message]
"""A vici command with its message."""

Which: TypeAlias = tuple[str, str]
"""``ike_id`` or ``child_id``, and the unique ID."""

EVENTS = ("ike-updown", "child-updown")

LOOK = 5.0
"""Seconds between two looks where nothing happens: the unloading of connections is no event."""

INITIATE = 20.0
"""Seconds that charon has for bringing the channel up; alone it would try for 165 s."""

FIRST_RETRY, LAST_RETRY = 1.0, 30.0
"""Seconds until the next attempt: doubled each time, and up to a fifth less, at random."""

TERMINATE = 3.0
"""Seconds that charon has for ending what nobody answers any more."""

FIRST_DOUBT, LAST_DOUBT = 45.0, 720.0
"""Seconds that an answer is due until a channel is made anew: the other side may have forgotten it,
which IKE's own retransmissions take minutes to find out. Doubled while that does not help: then it
is the key server that does not answer."""

SETTLE = 0.2
"""Seconds from an event to the look that follows it: several come together."""

ANSWERED = frozenset({ExchangeType.MAIN_MODE, ExchangeType.GROUPKEY_PULL})
"""The exchanges in which a member's every message gets an answer: an acknowledgement gets none."""
_EXCHANGE = 18  # where the header has it, RFC 2408 section 3.1

CARRYING = frozenset({"INSTALLED", "UPDATING", "REKEYING", "REKEYED"})
"""The states of a CHILD_SA whose SAs are in the kernel."""


@dataclass(frozen=True, slots=True)
class ChannelOptions:
    """``connection`` and ``child`` are charon's names; ``loading``: what loads them, in order, and
    nothing where they are swanctl.conf's."""

    remote: Peer
    local: Peer
    connection: str
    child: str
    loading: tuple[Request, ...] = field(default=(), repr=False)  # has secrets


@dataclass(slots=True)
class Seen:
    """What charon has of a channel, and what there is to end: IKE_SAs with the CHILD_SA, or that
    alone where they have others besides; IKE_SAs not yet established; and without any CHILD_SA."""

    ike: str = "none"
    child: str = "none"
    packets_in: int = 0
    carrying: list[Which] = field(default_factory=list)
    trying: list[Which] = field(default_factory=list)
    idle: list[Which] = field(default_factory=list)


class Channel:
    """One key server's. ``up`` is None until charon has been asked."""

    def __init__(
        self, options: ChannelOptions, client: CharonClient, *, doubt: float = FIRST_DOUBT
    ) -> None:
        self.options = options
        self.seen = Seen()
        self.up: bool | None = None
        self.reachable = False
        # Whether packets may get through: SAs work on in the kernel when charon does not answer.
        self.carries = False
        self.error = ""
        self.wake = asyncio.Event()
        self.moved = False
        # The packets that had come in by the last look, and since when an answer has been due.
        self._heard = 0
        self._asked_at: float | None = None
        self._first_doubt = self._doubt = doubt
        self._client = client
        # What charon has by this name may be of a former life, with another configuration.
        self._loaded = False
        self._key_ids: set[str] = set()

    async def mend(self) -> bool:
        """Until it is up; True if it had to be brought up. Raises CharonError."""
        await self._load_if_missing()
        await self._look()
        if self.moved or self._deaf():
            await self._end([*self.seen.carrying, *self.seen.trying, *self.seen.idle])
            await self._look()
        self.moved = False
        if self.seen.carrying:
            return False
        await self._end(self.seen.trying)
        options = self.options
        try:
            await self._client.initiate(options.connection, options.child, limit=INITIATE)
        except CharonRefused as refused:
            await self._look()
            if not self.seen.carrying:  # charon's other side may have made it meanwhile
                await self._end([*self.seen.trying, *self.seen.idle])
                raise CharonRefused(refused.asked, _reason(refused), refused.log) from None
        await self._look()
        if not self.seen.carrying:
            raise CharonRefused("initiate", "the CHILD_SA is not there")
        return True

    def ask(self) -> None:
        """Something leaves that gets an answer."""
        if self._asked_at is None:
            self._asked_at = time.monotonic()

    def _deaf(self) -> bool:
        """Whether an answer has been due for so long, and nothing has come."""
        seen, now = self.seen, time.monotonic()
        if not seen.carrying or seen.packets_in != self._heard:
            if seen.packets_in:
                self._doubt = self._first_doubt
            self._heard, self._asked_at = seen.packets_in, None
        if self._asked_at is None or now - self._asked_at < self._doubt:
            return False
        self._doubt, self._asked_at = min(2 * self._doubt, LAST_DOUBT), None
        return True

    async def _load_if_missing(self) -> None:
        options = self.options
        there = options.connection in await self._names()
        if not options.loading:
            if not there:
                why = f"no connection {options.connection}: is it in swanctl.conf, and loaded?"
                raise CharonRefused("get-conns", why)
            return
        if self._loaded and there and not self.moved and await self._credentials_there():
            return
        self._loaded, self._key_ids = False, set()
        for command, message in options.loading:
            answer = await self._client.request(command, message)
            if command == "load-key":
                self._key_ids.add(str(answer.get("id", "")))
        self._loaded = True

    async def _names(self) -> Sequence[str]:
        conns = (await self._client.request("get-conns")).get("conns", [])
        return conns if isinstance(conns, list) else []

    async def _credentials_there(self) -> bool:
        """The secret and the key that were loaded; `swanctl --load-creds` unloads them alone."""
        for command, message in self.options.loading:
            if command == "load-shared":
                keys = (await self._client.request("get-shared")).get("keys", [])
                if message["id"] not in keys:
                    return False
            elif command == "load-key":
                keys = (await self._client.request("get-keys")).get("keys", [])
                if not self._key_ids or not self._key_ids <= set(keys):
                    return False
        return True

    async def _look(self) -> None:
        options, seen = self.options, Seen()
        listing = self._client.list_sas(silence=BUSY, ike=options.connection)
        try:
            found = [message async for message in listing]
        except CharonLost:
            await self._client.request("version")
            if not self.seen.carrying:
                raise
            return  # it is there, and an IKE_SA is busy: no more is known than before
        for message in found:
            sa = message.get(options.connection)
            if isinstance(sa, dict):
                self._note(sa, seen)
        self.seen = seen

    def _note(self, sa: Message, seen: Seen) -> None:
        """Raises CharonRefused for a connection to somebody else."""
        remote, number = str(sa.get("remote-host", "")), str(sa.get("uniqueid", ""))
        wanted = str(self.options.remote.host)
        if remote not in ("%any", wanted):
            why = f"connection {self.options.connection} is with {remote}, not with {wanted}"
            raise CharonRefused("list-sas", why)
        children = sa.get("child-sas", {})
        found = [
            child
            for child in (children.values() if isinstance(children, dict) else ())
            if isinstance(child, dict) and child.get("name") == self.options.child
        ]
        carrying = [child for child in found if child.get("state") in CARRYING]
        if carrying or not seen.carrying:
            seen.ike = str(sa.get("state", "none"))
            seen.child = str((carrying or found or [{}])[-1].get("state", "none"))
        if carrying:
            alone = len(found) == len(children)
            ours = [("child_id", str(child.get("uniqueid", ""))) for child in carrying]
            seen.carrying += [("ike_id", number)] if alone else ours
            seen.packets_in = max(_number(child, "packets-in") for child in carrying)
        elif sa.get("state") == "CONNECTING":
            seen.trying.append(("ike_id", number))
        elif not children:
            seen.idle.append(("ike_id", number))

    async def _end(self, ended: Sequence[Which]) -> None:
        """Without waiting for who may not answer."""
        for kind, number in ended:
            with suppress(CharonRefused):  # it ended by itself
                await self._client.terminate(**{kind: number}, force=True, limit=TERMINATE)


def _number(of: Message, key: str) -> int:
    text = of.get(key)
    return int(text) if isinstance(text, str) and text.isdecimal() else 0


def _reason(refused: CharonRefused) -> str:
    """What charon says at the end, and the last thing it logged that explains it."""
    telling = [line for line in refused.log if any(word in line for word in _TELLING)]
    return refused.why if not telling else f"{refused.why} ({telling[-1]})"


_TELLING = ("fail", "no ", "not ", "error", "revoked", "expired", "giving up", "unable")


class Channels:
    """All channels of a daemon. ``tell`` gets events; ``came`` is called for a channel that had to
    be brought up, so that what was missed can be caught up with."""

    def __init__(
        self,
        path: Path,
        options: Sequence[ChannelOptions],
        tell: Callable[[Sequence[Event]], object],
        came: Callable[[Channel], object],
    ) -> None:
        self._path, self._tell, self._came = path, tell, came
        client = CharonClient(path)
        self.channels = [Channel(one, client) for one in options]
        self._tasks: list[asyncio.Task[None]] = []

    def follow(self, options: Sequence[ChannelOptions]) -> None:
        """From the address that the host has now; the first time they are brought up."""
        for channel, new in zip(self.channels, options, strict=True):
            if channel.options != new:
                channel.options, channel.moved = new, True
                channel.wake.set()
        if self.channels and not self._tasks:
            running = [self._follow(), *map(self._keep, self.channels)]
            self._tasks = [asyncio.create_task(one) for one in running]
            for task in self._tasks:
                task.add_done_callback(ended)

    def passing(self, sends: Sequence[Send]) -> list[Send]:
        """Those that can get there: of the others the channel is not up."""
        return [send for send in sends if all(self._passes(send, one) for one in self.channels)]

    @staticmethod
    def _passes(send: Send, channel: Channel) -> bool:
        if send.destination != channel.options.remote:
            return True
        if channel.carries and send.datagram[_EXCHANGE] in ANSWERED:
            channel.ask()
        return channel.carries

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()

    async def _follow(self) -> None:
        async for news in charon_events(self._path, EVENTS):
            for channel in self.channels:
                if self._concerns(channel, news):
                    channel.wake.set()

    @staticmethod
    def _concerns(channel: Channel, news: object) -> bool:
        """While a channel is down its own failures are events, too, and no reason to hurry."""
        if not isinstance(news, Happened):
            return channel.up is not False or isinstance(news, Up)
        came = "up" in news.message
        return channel.options.connection in news.message and came is not bool(channel.up)

    async def _keep(self, channel: Channel) -> None:
        retry = FIRST_RETRY
        while True:
            channel.wake.clear()
            try:
                made = await channel.mend()
            except CharonError as error:
                self._lost(channel, error)
                wait = retry * uniform(0.8, 1.0)  # noqa: S311 -- no secret
                retry = min(2 * retry, LAST_RETRY)
            else:
                self._found(channel, made=made)
                wait, retry = LOOK, FIRST_RETRY
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await channel.wake.wait()
                await asyncio.sleep(SETTLE)

    def _lost(self, channel: Channel, error: CharonError) -> None:
        channel.reachable = not isinstance(error, CharonLost)
        if channel.reachable:
            channel.carries = False
        elif channel.up is None:  # of a former run, perhaps: the kernel decides
            channel.carries = True
        channel.error = str(error)
        if channel.up is not False:
            channel.up = False
            fields = {**_names(channel), "error": str(error)}
            self._tell([Event("ike-lost", fields, "warning")])

    def _found(self, channel: Channel, *, made: bool) -> None:
        channel.reachable, channel.carries, channel.error = True, True, ""
        if not channel.up:
            channel.up = True
            self._tell([Event("ike-up", _names(channel))])
        if made:
            self._came(channel)

    def facts(self) -> dict[str, object]:
        """Of every channel, by key server."""
        return {
            str(channel.options.remote): {
                "state": {None: "unknown", True: "up", False: "down"}[channel.up],
                "connection": channel.options.connection,
                "charon": "reachable" if channel.reachable else "unreachable",
                "ike-sa": channel.seen.ike.lower(),
                "child-sa": channel.seen.child.lower(),
                "error": channel.error or None,
            }
            for channel in self.channels
        }


def _names(channel: Channel) -> dict[str, str]:
    return {
        "key-server": str(channel.options.remote),
        "connection": channel.options.connection,
    }
