"""The processes that read acknowledgements beside the key server: started, told, heard, started
again. What one has read and not handed on when it dies is asked for again by the next repetition;
what waits at its socket is read by its successor, for the key server holds that open.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

from ..protocol.ack_check import Claim, Portion
from ..protocol.actions import Peer
from .ack_worker import MAX_PACKET, decode_taken, encode_end, encode_portion
from .udp import TURN

if TYPE_CHECKING:
    from .shell import Shell

# Seconds between two beginnings of the same one.
RESTART = 1.0
# And until one that is to end is ended.
PATIENCE = 5.0
# Orders that one has not taken: it has stopped, and what others have taken already are kept for it.
MAX_ORDERS = 65536
Receive = Callable[[Sequence[bytes], Sequence[bytes], Peer, Sequence[Claim]], None]


class AckWorkers:
    """One for each of ``sockets``, which are bound to ``local``."""

    def __init__(
        self, shell: Shell, sockets: Sequence[socket.socket], local: Peer, receive: Receive
    ) -> None:
        self._shell = shell
        # What is said now, by its place, and to be said again to those that begin later.
        self._said: dict[int, list[bytes]] = {}
        self._workers = [
            _Worker(number, sock, self._ended, lambda packet: self._heard(packet, local, receive))
            for number, sock in enumerate(sockets, 1)
        ]
        for worker in self._workers:
            self._start(worker)

    def __len__(self) -> int:
        return len(self._workers)

    @property
    def pids(self) -> list[int]:
        return [worker.process.pid for worker in self._workers if worker.process is not None]

    def expect(self, portion: Portion) -> None:
        order = encode_portion(portion)
        self._said.setdefault(portion.place, []).append(order)
        self._tell(order)

    def forget(self, place: int) -> None:
        self._said.pop(place, None)
        self._tell(encode_end(place))

    def close(self) -> None:
        for worker in self._workers:
            worker.hang_up()
        for worker in self._workers:
            worker.wait(PATIENCE)

    def _tell(self, order: bytes) -> None:
        for worker in self._workers:
            worker.tell([order])

    def _start(self, worker: _Worker) -> None:
        try:
            worker.start()
        except OSError as error:  # no memory, no processes left
            self._ended(worker, str(error))
            return
        worker.tell([order for orders in self._said.values() for order in orders])

    def _ended(self, worker: _Worker, why: str) -> None:
        fields = {"number": worker.number, "why": why}
        now = self._shell.clock.now()
        self._shell.log.limited("warning", "ack-process-ended", "ack-process", fields, now)
        wait = max(0.0, worker.begun + RESTART - monotonic())
        worker.later = asyncio.get_running_loop().call_later(wait, self._start, worker)

    @staticmethod
    def _heard(packet: bytes, local: Peer, receive: Receive) -> None:
        """Raises ValueError."""
        taken = list(decode_taken(packet))
        claims, datagrams, endpoints = zip(*taken, strict=True)
        receive(datagrams, endpoints, local, claims)


class _Worker:
    def __init__(
        self,
        number: int,
        sock: socket.socket,
        ended: Callable[[_Worker, str], None],
        heard: Callable[[bytes], None],
    ) -> None:
        self.number = number
        self.process: subprocess.Popen[bytes] | None = None
        self.begun = 0.0
        self.later: asyncio.TimerHandle | None = None
        self._sock = sock
        self._ended, self._heard = ended, heard
        self._end: socket.socket | None = None
        self._orders: deque[bytes] = deque()

    def start(self) -> None:
        """Raises OSError."""
        self.later, self.begun = None, monotonic()
        own, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            for end in (own, its):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_PACKET)
            fds = self._sock.fileno(), its.fileno()
            command = [sys.executable, "-P", "-m", f"{__package__}.ack_worker", *map(str, fds)]
            try:
                # In a session of its own: what a terminal says is for the key server.
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=fds,
                    start_new_session=True,
                )
            except OSError:
                own.close()
                raise
        own.setblocking(False)
        self._end = own
        asyncio.get_running_loop().add_reader(own, self._readable)

    def tell(self, orders: Sequence[bytes]) -> None:
        """Where there is none it is told all when it begins."""
        if self._end is None:
            return
        if len(self._orders) + len(orders) > MAX_ORDERS:
            self._over("takes no orders")
            return
        if not self._orders:
            asyncio.get_running_loop().add_writer(self._end, self._writable)
        self._orders.extend(orders)

    def _writable(self) -> None:
        if self._end is None:
            return
        try:
            while self._orders:
                self._end.send(self._orders[0])
                self._orders.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._over("is gone")
            return
        asyncio.get_running_loop().remove_writer(self._end)

    def _readable(self) -> None:
        until = monotonic() + TURN
        while self._end is not None and monotonic() < until:
            try:
                packet = self._end.recv(MAX_PACKET)
                if not packet:
                    self._over("is gone")
                else:
                    self._heard(packet)
            except BlockingIOError:
                return
            except (OSError, ValueError) as error:
                self._over(str(error))

    def _over(self, why: str) -> None:
        process = self.process
        self.hang_up()
        self.wait(0.1)
        status = "" if process is None else f", exit status {process.returncode}"
        self._ended(self, why + status)

    def hang_up(self) -> None:
        """It ends then, and does not begin again by itself."""
        if self.later is not None:
            self.later.cancel()
        end, self._end = self._end, None
        self._orders.clear()
        if end is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(end)
            loop.remove_writer(end)
            end.close()

    def wait(self, patience: float) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        process.kill()  # nothing, where it has ended
        process.wait()
