"""``gdoi-gcks`` as one of several key servers for its groups."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path

from ..protocol.ack_check import Claim
from ..protocol.actions import Event, Peer, Persist, Send
from ..protocol.follow import adopt
from ..protocol.key_server import SavedGroup
from ..wire.registry import ExchangeType
from .control import CommandFailed, Handler, Message, to_message
from .errors import DaemonError, StoreError, UnsettledError
from .gcks import KeyServerDaemon
from .reload import Proposal, propose
from .sending import BATCH
from .shared.lease import since_boot
from .shared.servers import LOOK_EVERY, Servers
from .shared.store import Begun
from .store.postgres import PostgresServer

# Where an ISAKMP header (RFC 2408 section 3.1) has its cookies and its exchange.
_COOKIES, _EXCHANGE = slice(0, 16), 18
# How often a file is read again that was wrong, or could not be read (seconds).
READ_EVERY = 5.0


class SharedKeyServerDaemon(KeyServerDaemon):
    """What may hand out keys or change anything is a step, in an order with the others' steps.

    Where the database is gone nothing of that happens, and nobody is answered: members keep what
    they have, and who wants to register asks again, here or at another key server.
    """

    # Each step is fenced by itself: what one of them loses is none of another's.
    SAVES_TURNS = False

    def _open_state(self) -> None:
        settings = self._config.settings
        place = settings.place(self._config.path)
        if not isinstance(place, PostgresServer):
            raise TypeError("a file is not shared")
        self._servers = Servers(
            place,
            self._key,
            settings.name or socket.gethostname(),
            settings.lease,
            str(self._config.local),
            lambda: self._config.policies,
            self,
        )
        self._servers.open()
        self.clock = self._servers.clock
        self._retry_at = 0.0
        # The file as it was last read by itself, when it is read again though it is the same, and
        # what was wrong with it.
        self._tried, self._try_at = _changed(self._config.path), inf
        self._why_not = ""

    def _load(self) -> Mapping[int, SavedGroup]:
        return self._servers.store.load()

    def _close_state(self) -> None:
        self._servers.stop()

    def _start_engine(self) -> None:
        # Each batch is a step with the others' steps in one order, so no thread saves it later.
        self.engine.ledger.deferred = False
        self.engine.lead(False, self.clock.now())
        # Members' IKE_SAs are with the key server that they have registered with.
        self.engine.ike.alone = False
        with self._servers.step():
            pass  # it begins with everything that there is
        self._servers.start()

    # -- what the others do ----------------------------------------------------------------------

    def taken_up(self, begun: Begun) -> None:
        try:
            if begun.whole:
                self._carry_out(self.engine.join(begun.groups, self.clock.now()))
            else:
                self.engine.follow(begun.groups)
        except (KeyError, ValueError, TypeError) as error:
            raise StoreError(f"a saved group cannot be read: {error!r}") from error
        if begun.groups:
            self._wake.set()  # there may be something to do for a leader

    def leads(self, whether: bool, /) -> None:
        self._carry_out(self.engine.lead(whether, self.clock.now()))
        self._wake.set()

    def suspend(self, groups: Iterable[str], /) -> None:
        named = set(groups)
        self.engine.suspended = {
            config.group_id.key for config in self._config.groups if config.name in named
        }

    def catch_up(self) -> None:
        """Read once for each change of the file, and now and then while that is refused: what
        stands in the way may be mended elsewhere."""
        changed, now = _changed(self._config.path), since_boot()
        if changed == self._tried and now < self._try_at:
            return
        self._tried, self._try_at = changed, inf
        try:
            proposal = propose(self._config, self.engine, self.clock.now())
            if self._servers.agrees(proposal.config.policies):
                with self._servers.step():
                    self._adopt(proposal)
        except StoreError:
            self._try_at = now  # it is read once more
        except DaemonError as error:
            self._try_at = now + READ_EVERY
            if str(error) != self._why_not:
                self._why_not = str(error)
                self._tell(Event("config-refused", {"error": self._why_not}, "error"))
        else:
            self._why_not = ""

    def _adopt(self, proposal: Proposal) -> None:
        """In a step, of who does not lead."""
        now = self.clock.now()
        with self._changing_blocks(proposal.config):
            try:
                actions = adopt(self.engine, proposal.config.groups, self._load(), now)
            except (KeyError, ValueError, TypeError) as error:
                raise self._unreadable(error) from error
            self._take(proposal)
        self._servers.serve()
        self._carry_out([proposal.told(), *actions])

    def tell(self, event: Event) -> None:
        self._tell(event)

    def met(self, error: Exception) -> None:
        self._failure = self._bug(error)
        self._stop.set()

    # -- steps -----------------------------------------------------------------------------------

    def receive(self, datagram: bytes, source: Peer, arrived: Peer) -> None:
        if not self._may_change(datagram):
            super().receive(datagram, source, arrived)
            return
        self._step(lambda: super(SharedKeyServerDaemon, self).receive(datagram, source, arrived))

    def take_acks(
        self,
        datagrams: Sequence[bytes],
        endpoints: Sequence[bytes],
        arrived: Peer,
        claims: Sequence[Claim] = (),
    ) -> None:
        take = super().take_acks
        if any(map(self._may_change, datagrams)):
            self._step(lambda: take(datagrams, endpoints, arrived, claims))
        else:
            take(datagrams, endpoints, arrived, claims)

    def _may_change(self, datagram: bytes) -> bool:
        """Of a phase-1 SA or a KEK that there is: nobody else makes us ask the database."""
        if len(datagram) <= _EXCHANGE:
            return False
        kind, cookies = datagram[_EXCHANGE], datagram[_COOKIES]
        if kind in (ExchangeType.GROUPKEY_PULL, ExchangeType.INFORMATIONAL):
            return cookies in self.engine.isakmp.sessions
        return kind == ExchangeType.GROUPKEY_PUSH_ACK and any(
            group.kek_of(cookies) is not None for group in self.engine.groups.values()
        )

    def status(self) -> str:
        if self._servers.failure is not None:
            return f"without its database: {self._servers.failure}"
        role = "leads" if self._servers.may_push() else "follows"
        return f"{role}, {super().status()}"

    def deadline(self) -> float | None:
        times = [self.engine.phase1_deadline]
        if self._servers.may_push():
            times.append(self.engine.group_deadline)
        due = min((time for time in times if time is not None), default=None)
        return None if due is None else max(due, self._retry_at)

    def tick(self, now: float) -> None:
        self._retry_at = now + LOOK_EVERY
        if any(joining.due <= now for joining in self.engine.joining.values()):
            # Newcomers that have waited for one another get their keys.
            self._step(lambda: self._carry_out(self.engine.tick_phase1(now)))
        else:
            self._carry_out(self.engine.tick_phase1(now))
        due = self.engine.group_deadline
        if self._servers.may_push() and due is not None and due <= now:
            self._step(lambda: self._tick_groups(now))
        if self._servers.failure is None:
            self._retry_at = now

    def _tick_groups(self, now: float) -> None:
        """It may have turned out only now that another one leads."""
        if self.engine.leads:
            self._carry_out(self.engine.tick_groups(now))

    def _step(self, what: Callable[[], None]) -> None:
        try:
            with self._servers.step():
                what()
        except StoreError:
            self.log.drops["no-database"] += 1  # why has been told once

    def _save(self, records: Sequence[Persist]) -> bool:
        """Nothing is kept for later: who steps again begins with what the database has."""
        self.persist(records)
        return True

    def persist(self, records: Sequence[Persist]) -> None:
        self._servers.save(records)

    def _send(self, sends: list[Send]) -> None:
        """The lease may be over since the step was saved: this process may have been stopped. So
        it is looked at before each system call."""
        for begin in range(0, len(sends), BATCH):
            batch = sends[begin : begin + BATCH]
            if not self._servers.may_push() and any(map(_is_push, batch)):
                fields = {"leader": self._servers.leader or "nobody"}
                self.log.limited("warning", "rekey-held-back", "push", fields, self.clock.now())
                batch = [send for send in batch if not _is_push(send)]
            super()._send(batch)

    def reload(self, *, dry_run: bool = False, replace_old: bool = False) -> Proposal:
        """By who leads, as any other step; the others read their files again by themselves, and
        here where they were not to be had then. Raises as there, and UnsettledError."""
        proposal = propose(self._config, self.engine, self.clock.now())
        with self._servers.step():
            if self._servers.may_push():
                if not dry_run:
                    self._lead_to(proposal, replace_old=replace_old)
                return proposal
            differing = self._servers.policies.differing(proposal.config.policies)
            steps = [(group, f"not served here: {self._ask()}") for group in sorted(differing)]
            proposal = replace(proposal, steps=steps)
            if not dry_run:
                self._adopt(proposal)
                self._servers.policies.file_was_read()
            return proposal

    def _lead_to(self, proposal: Proposal, *, replace_old: bool) -> None:
        try:
            self._change(proposal, replace_old=replace_old)
            self._servers.declare()
        except StoreError as error:
            if self._config is not proposal.config:
                raise
            raise UnsettledError(
                f"nobody knows whether it was saved ({error}); where not, it is taken up when this"
                " server leads with its database back"
            ) from error

    @property
    def trouble(self) -> str | None:
        return self._servers.failure

    @property
    def role(self) -> tuple[bool, int]:
        leads = self._servers.may_push()
        return leads, self._servers.lease.fence if leads else 0

    # -- commands --------------------------------------------------------------------------------

    def _handlers(self) -> dict[str, Handler]:
        plain = {
            name: self._by_the_leader(handler) for name, handler in self.commands.plain.items()
        }
        # A follower reads its file again, too.
        own = {"stats": self._stats, "reload": self.commands.reload}
        return {**plain, **self.commands.reading, **own}

    def _by_the_leader(self, handler: Handler) -> Handler:
        def run(request: Message) -> Message:
            try:
                with self._servers.step():
                    if not self._servers.may_push():
                        raise CommandFailed(f"{self._servers.lease.name} follows: {self._ask()}")
                    answer = handler(request)
                    if not isinstance(answer, dict):
                        raise TypeError("a command that waits is no step")
                    return answer
            except StoreError as error:
                raise CommandFailed(f"nothing was done: {error}") from error

        return run

    def _ask(self) -> str:
        leader = self._servers.leader
        where = next((o.address for o in self._servers.others if o.name == leader), "")
        return f"ask the leader, {leader} at {where}" if leader else "there is no leader now"

    def _stats(self, request: Message) -> Message:
        servers = self._servers
        facts = {
            "name": servers.lease.name,
            "role": "leader" if servers.may_push() else "follower",
            "leader": servers.leader or "none",
            "fence": servers.lease.fence if servers.may_push() else None,
            "database": servers.failure or "ok",
            "others": {
                other.name: {"address": other.address, "silent": round(other.silent, 1)}
                for other in servers.others
            },
        }
        return {**self.commands.stats(request), **to_message({"servers": facts})}


def _changed(path: Path) -> tuple[int, int] | None:
    """Something else whenever the file has been written, or put in place of another."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def _is_push(send: Send) -> bool:
    return send.datagram[_EXCHANGE : _EXCHANGE + 1] == bytes([ExchangeType.GROUPKEY_PUSH])
