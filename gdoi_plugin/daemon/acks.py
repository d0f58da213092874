"""The way of acknowledgements through the key server: read many at a time, judged, saved by a
thread of its own every few milliseconds, and only then told of.

What was heard and not saved when a process ends is asked for again by the next retransmission, so
nothing that was told is ever taken back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TYPE_CHECKING

from ..protocol.ack_check import Claim
from ..protocol.actions import Action, Event, Peer, Persist
from ..protocol.key_server import KeyServer
from ..protocol.roster import peer_of
from .ack_worker import PORTION
from .errors import StoreError

if TYPE_CHECKING:
    from .ack_workers import AckWorkers
    from .shell import Shell

# An ACK waits so long for others that are saved with it (seconds): a commit costs milliseconds.
GATHER = 0.005
# And so long for the store where that has failed.
RETRY = 1.0
# ACKs that are computed in one go before they come, about a millisecond's.
PREPARED = 500
# While ACKs come in, time is better spent on those: seconds until it is looked at again.
PAUSE = 0.02
# What one ACK takes of a receive buffer: 832 octets where it comes over the loopback interface,
# drivers that give each packet a few hundred more included.
ROOM = 1024
# Enough for small groups, and for whatever else may lie there.
SMALLEST_BUFFER = 8 << 20
Save = Callable[[Sequence[Persist]], None]


class Acks:
    """``save`` is called in a thread, one call at a time. Raises StoreError."""

    def __init__(
        self,
        shell: Shell,
        engine: KeyServer,
        save: Save,
        carry_out: Callable[[Sequence[Action]], None],
    ) -> None:
        self._shell = shell
        self._engine = engine
        self._save = save
        self._carry_out = carry_out
        self._thread = ThreadPoolExecutor(1, "acks")
        self._saving: tuple[list[Persist], Future[None]] | None = None
        self._failed: list[Persist] = []
        self._timer: asyncio.TimerHandle | None = None
        self._preparing: asyncio.Handle | None = None
        self._busy = False
        self._room = 0
        self._dropped = 0
        # Where other processes read them.
        self.workers: AckWorkers | None = None
        # Why they cannot be saved, while that is so.
        self.failure: str | None = None
        engine.ledger.deferred = True

    # -- datagrams -------------------------------------------------------------------------------

    def take(
        self,
        datagrams: Sequence[bytes],
        endpoints: Sequence[bytes],
        local: Peer,
        claims: Sequence[Claim] = (),
    ) -> None:
        """From a socket. A bug costs the datagram that met it, as everywhere."""
        try:
            self._judge(datagrams, endpoints, local, claims)
        except StoreError:  # of a daemon that saves them at once
            raise
        except Exception as error:  # noqa: BLE001  (see Shell.received)
            self._shell.met_bug(local, error)
            for datagram, endpoint in zip(datagrams, endpoints, strict=True):
                self._shell.received(datagram, peer_of(endpoint), local)

    def _judge(
        self,
        datagrams: Sequence[bytes],
        endpoints: Sequence[bytes],
        local: Peer,
        claims: Sequence[Claim],
    ) -> None:
        now, self._busy = self._shell.clock.now(), True
        refused, actions = self._engine.acks(datagrams, endpoints, local, now, claims)
        for reason, places in refused.items():
            self._shell.log.dropped_many(
                reason,
                ((peer_of(endpoints[n]), _what(datagrams[n])) for n in places),
                len(places),
                now,
            )
        if actions:
            self._carry_out(actions)
        self.save_soon()

    # -- saving ----------------------------------------------------------------------------------

    def save_soon(self) -> None:
        """After a step that may have counted some."""
        if self.workers is not None:
            for place in self._engine.ledger.gate.over():
                self.workers.forget(place)
        if self._timer is None and self._saving is None and self._engine.ledger.has_unsaved:
            self._timer = asyncio.get_running_loop().call_later(GATHER, self._begin)

    def _begin(self) -> None:
        self._timer = None
        records = self._failed + self._engine.ledger.unsaved()
        if self._saving is not None or not records:
            return
        future = self._thread.submit(self._save, records)
        self._saving = records, future
        loop = asyncio.get_running_loop()

        def wake(_: Future[None]) -> None:
            with suppress(RuntimeError):  # the loop is closed: it has waited for this itself
                loop.call_soon_threadsafe(self._finish, future)

        future.add_done_callback(wake)

    def _finish(self, future: Future[None]) -> None:
        """What the thread had to save is saved, or not."""
        if self._saving is None or self._saving[1] is not future:
            return  # flushed meanwhile
        records, self._saving, self._failed = self._saving[0], None, []
        try:
            future.result()
        except StoreError as error:
            self._failed = records
            if self.failure is None:
                fields = {"error": str(error), "what": "acknowledgements"}
                self._shell.log.event("error", "store-failed", fields)
            self.failure = str(error)
            self._timer = asyncio.get_running_loop().call_later(RETRY, self._begin)
            return
        if self.failure is not None:
            self.failure = None
            self._shell.log.event("info", "store-recovered", {"what": "acknowledgements"})
        each = self._shell.control.listened("rekey-acked")
        self._carry_out(self._engine.ledger.saved(records, self._shell.clock.now(), each=each))
        self.look_for_drops()
        self.save_soon()

    def flush(self) -> None:
        """Before anything that asks who has acknowledged: what has been heard is saved and counted,
        unless the store fails."""
        while self.failure is None:
            if self._saving is None:
                if self._timer is not None:
                    self._timer.cancel()
                self._begin()
            if self._saving is None:
                return
            future = self._saving[1]
            wait((future,))
            self._finish(future)

    def close(self) -> None:
        """Also where nothing was begun."""
        for handle in (self._timer, self._preparing):
            if handle is not None:
                handle.cancel()
        self._thread.shutdown()
        if self.workers is not None:
            self.workers.close()

    # -- before they come ------------------------------------------------------------------------

    def expect(self, actions: Sequence[Action]) -> None:
        """Before a step that sends a rekey: there is room for its ACKs, and what they must be is
        computed while nothing else is to be done."""
        if not any(isinstance(act, Event) and act.name == "rekey-sent" for act in actions):
            return
        self._make_room()
        if self._preparing is None:
            self._preparing = asyncio.get_running_loop().call_soon(self._prepare)

    def _prepare(self) -> None:
        self._preparing = None
        if self.workers is not None:
            self._hand_out(self.workers)
            return
        loop = asyncio.get_running_loop()
        if self._busy:
            self._busy = False
            self._preparing = loop.call_later(PAUSE, self._prepare)
        elif self._engine.ledger.gate.prepare(PREPARED):
            # In the loop's next turn: datagrams that wait come first.
            self._preparing = loop.call_soon(self._prepare)

    def _hand_out(self, workers: AckWorkers) -> None:
        """To others, who compute them when they come."""
        portion = self._engine.ledger.gate.hand_out(PORTION)
        if portion is not None:
            workers.expect(portion)
            self._preparing = asyncio.get_running_loop().call_soon(self._prepare)

    def _make_room(self) -> None:
        largest = max((len(g.members) for g in self._engine.groups.values()), default=0)
        wanted = max(SMALLEST_BUFFER, ROOM * largest)
        if wanted <= self._room:
            return
        self._room = wanted + wanted // 4  # not for each member that registers
        granted = self._shell.sockets.make_ack_room(self._room)
        if granted is not None and granted < wanted:
            fields = {"wanted": wanted, "granted": granted, "holds": granted // ROOM}
            hint = "CAP_NET_ADMIN, or a larger net.core.rmem_max"
            self._shell.perform([Event("ack-buffer-small", {**fields, "hint": hint}, "warning")])

    def look_for_drops(self) -> None:
        """The kernel tells nobody; who asks for its count learns of them."""
        total = self._shell.sockets.acks_dropped()
        if total > self._dropped:
            fields = {"count": total - self._dropped, "total": total}
            self._shell.perform([Event("acks-dropped", fields, "warning")])
        self._dropped = total

    def facts(self) -> dict[str, int]:
        """For operators."""
        self.look_for_drops()
        return {"buffer": self._room, "dropped": self._dropped}


def _what(datagram: bytes) -> str:
    """Of one that was refused, for the log."""
    return f"{len(datagram)} octets, SPI {datagram[:16].hex()}, after HASH {datagram[-20:].hex()}"
