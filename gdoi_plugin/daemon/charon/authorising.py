"""The key server's table of IKE_SAs, kept by asking charon for all of them and by its events.

Nothing here waits in the daemon's loop: each question has a time limit and a connection of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import aclosing
from pathlib import Path

from gdoi_plugin.daemon.charon.client import BUSY, CharonClient
from gdoi_plugin.daemon.charon.errors import CharonError, CharonRefused
from gdoi_plugin.daemon.charon.events import Down, Happened, Up, charon_events
from gdoi_plugin.daemon.charon.ike_sas import EVENTS, Change, changes, listed
from gdoi_plugin.daemon.tasks import ended
from gdoi_plugin.protocol.actions import Action, Event
from gdoi_plugin.protocol.authorising import NOT_ASKED, IkeAuthority
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.ike_sas import IkeSa

PROBE = 5.0
"""Seconds without an event until charon is asked whether it still answers."""

REFRESH = 60.0
"""Seconds until all IKE_SAs are asked for again, whatever events have said."""

PAUSE, SHARE = 1.0, 10
"""Seconds between two such questions at least, and so many times what the last one took: members
that are refused can cause them."""

END_LIMIT = 5.0
"""Seconds that charon waits for the peer's answer to a Delete, before it forgets the IKE_SA."""

AT_ONCE = 16
"""IKE_SAs that are ended at the same time."""

CarryOut = Callable[[Sequence[Action]], None]
Clock = Callable[[], float]


class IkeWatch:
    """Tells ``authority`` what charon has of some ``connections``, and has IKE_SAs ended.

    charon may have others, with peers that may call themselves what they like.
    """

    def __init__(
        self,
        path: Path,
        connections: Collection[str],
        authority: IkeAuthority,
        clock: Clock,
        carry_out: CarryOut,
    ) -> None:
        self._path, self._authority = path, authority
        self._connections = frozenset(connections)
        self._clock, self._carry_out = clock, carry_out
        self._client = CharonClient(path)
        self._wanted, self._to_end = asyncio.Event(), asyncio.Event()
        self._there = False
        # Events since charon was last asked for everything, while it has not answered.
        self._since: list[Change] | None = None
        self._ending: dict[Identity, None] = {}
        self._lost = ""
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        for work in (self._listen, self._look, self._end):
            task = loop.create_task(work())
            task.add_done_callback(ended)
            self._tasks.append(task)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()

    def ask(self) -> None:
        """For everything, soon."""
        self._wanted.set()

    def believe(self, connections: Collection[str]) -> None:
        """These from now on; until charon has been asked anew nobody is vouched for."""
        if self._connections != frozenset(connections):
            self._connections = frozenset(connections)
            self._since = None
            self._authority.lose(self._lost or NOT_ASKED)
            self.ask()

    def end(self, identities: Iterable[Identity]) -> None:
        """Their IKE_SAs, when charon can be asked to, unless they are to stay by then."""
        self._ending.update(dict.fromkeys(identities))
        self._to_end.set()

    def keep(self, identities: Iterable[Identity]) -> None:
        """Of these no IKE_SA is ended any more."""
        for identity in identities:
            self._ending.pop(identity, None)

    # -- what charon says ------------------------------------------------------------------------

    async def _listen(self) -> None:
        async with aclosing(charon_events(self._path, EVENTS, probe=PROBE)) as news:
            async for one in news:
                if isinstance(one, Up):
                    self._there = True
                    self._wanted.set()
                elif isinstance(one, Down):
                    self._there = False
                    self._lose(one.error)
                elif isinstance(one, Happened):
                    self._changed(changes(one.event, one.message, self._connections))

    def _changed(self, found: Sequence[Change]) -> None:
        if self._since is not None:
            self._since += found
        if self._authority.unknown is not None:
            return  # what there is by then will be asked for
        actions: list[Action] = []
        for change in found:
            if isinstance(change, str):
                actions += self._authority.down(change, self._clock())
            else:
                actions += self._authority.up(change)
        self._carry_out(actions)

    def _lose(self, error: CharonError) -> None:
        self._authority.lose(str(error))
        self._since = None
        if not self._lost:
            hint = "registrations are refused until it answers; members keep what they have"
            self._carry_out([Event("charon-lost", {"error": str(error), "hint": hint}, "error")])
        self._lost = str(error)

    async def _look(self) -> None:
        """Asks for everything: when charon is there again, when told to, and now and then."""
        while True:
            try:
                async with asyncio.timeout(REFRESH):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            if self._there:
                begun = self._clock()
                told = await self._ask()
                took = self._clock() - begun if told else 0.0
                await asyncio.sleep(min(max(PAUSE, SHARE * took), REFRESH))

    async def _ask(self) -> bool:
        """Whether charon has told everything."""
        asked, self._since, connections = self._clock(), [], self._connections
        found: dict[str, IkeSa] = {}
        try:
            async with aclosing(self._client.list_sas(silence=BUSY)) as listing:
                async for message in listing:
                    found.update((sa.number, sa) for sa in listed(message, connections))
        except CharonError as error:
            if self._authority.unknown is not None or not await self._answers():
                self._lose(error)
            # Otherwise one IKE_SA is busy, and events tell what becomes of the others.
            self._wanted.set()
            return False
        since, self._since = self._since, None
        if since is None:
            return False  # lost meanwhile
        for change in since:
            if isinstance(change, str):
                found.pop(change, None)
            else:
                found[change.number] = change
        actions = self._authority.take(found.values(), asked, self._clock())
        if self._lost:
            actions = [Event("charon-found", {"ike-sas": len(found)}), *actions]
            self._lost = ""
        self._carry_out(actions)
        if self._ending:
            self._to_end.set()
        return True

    async def _answers(self) -> bool:
        try:
            await self._client.request("version")
        except CharonError:
            return False
        return True

    # -- what charon is to do --------------------------------------------------------------------

    async def _end(self) -> None:
        """Who cannot be ended now is ended when charon is there again."""
        while True:
            await self._to_end.wait()
            self._to_end.clear()
            if self._authority.unknown is not None:
                continue
            work = [sa for identity in self._ending for sa in self._authority.sas.of(identity)]
            for begin in range(0, len(work), AT_ONCE):
                await asyncio.gather(*map(self._end_one, work[begin : begin + AT_ONCE]))
            done = [i for i in self._ending if not self._authority.sas.of(i)]
            if self._authority.unknown is None:
                self.keep(done)

    async def _end_one(self, sa: IkeSa) -> None:
        if sa.identity not in self._ending:
            return  # readmitted while others were ended
        fields = {"identity": str(sa.identity), "address": str(sa.host), "ike-sa": sa.number}
        try:
            await self._client.terminate(ike_id=sa.number, force="yes", limit=END_LIMIT)
        except CharonRefused:
            return  # it has gone by itself
        except CharonError as error:
            fields |= {"error": str(error)}
            self._carry_out([Event("ike-not-terminated", fields, "warning")])
            self.ask()
            return
        self._carry_out([Event("ike-terminated", fields)])
        self._changed([sa.number])
