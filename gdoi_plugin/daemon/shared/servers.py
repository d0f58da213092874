"""One of several key servers: it steps with the others, follows, beats and takes over."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from ...protocol.actions import Event, Persist
from ..errors import StoreError
from ..store import Store
from ..store.postgres import PostgresServer
from ..store.sealing import MasterKey
from .clock import SharedClock
from .database import bounded, connect
from .lease import NOBODY, Lease, Standing, look, note_server, since_boot
from .policies import InForce, Policies, read_policies
from .schema import servers
from .store import Begun, SharedStore, broken

# How often each looks what the others have done, and whether the leader beats (seconds).
LOOK_EVERY = 0.25
# How often each says that it is there.
NOTED_EVERY = 2.0
# How long two servers may be told different things before it is an error.
DIFFERS_AFTER = 2.0
DIFFERENT = "nothing of this group is handed out here until the leader is told the same"
OUTDATED = (
    "nothing of this group is handed out here, and this server does not lead: its policy has been"
    " replaced since the file was read; bring the file up to date, or have it read again (reload)"
)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Other:
    """A key server as the database knows it, ``silent`` for so many seconds."""

    name: str
    address: str
    silent: float
    policies: Mapping[str, str]


class Host(Protocol):
    """What the daemon does when it is told."""

    def taken_up(self, begun: Begun) -> None:
        """The engine's memory is to be as the database is."""

    def leads(self, whether: bool, /) -> None:
        """From here on this server leads, or no longer does; where it does, within a step."""

    def suspend(self, groups: Iterable[str], /) -> None:
        """Nothing of these groups is handed out here, of any other everything."""

    def catch_up(self) -> None:
        """The policy in force is another one than this server was told when it read its file:
        perhaps the file says the same by now."""

    def tell(self, event: Event) -> None: ...

    def met(self, error: Exception) -> None:
        """A bug of ours: the daemon ends."""


class Servers:
    """``name`` tells this server from the others, ``policies`` what it wants, by group."""

    def __init__(
        self,
        server: PostgresServer,
        key: MasterKey | None,
        name: str,
        length: float,
        address: str,
        policies: Callable[[], Mapping[str, str]],
        host: Host,
    ) -> None:
        """Raises StoreError."""
        self._host = host
        self.lease = Lease(name, length)
        self.clock = SharedClock(length)
        self.others: list[Other] = []
        self.leader = NOBODY
        self._address, self._own = address, policies
        self._server, self._key = server, key
        self._beats: Engine = connect(server, name, length)
        self.store = SharedStore(connect(server, name, length), server.name, key, length / 2)
        self._thread = ThreadPoolExecutor(1, "lease")
        self._noted_at = float("-inf")
        self._noted: Mapping[str, str] = {}
        # Why the database cannot be used, as long as that is so.
        self.failure: str | None = None
        # Whether the engine has been told that it leads.
        self.acting = False
        self.policies = Policies()
        # Servers and groups that are not as they are to be, since when, and what has been told.
        self._differing: dict[tuple[str, str], float] = {}
        self._told: set[tuple[str, str]] = set()
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Tables, and the time. Raises StoreError."""
        Store(self._server, self._key).close()
        self.store.create()
        try:
            with self._beats.connect() as connection:
                standing = look(connection)
                self.policies.learn(read_policies(connection))
        except SQLAlchemyError as error:
            raise broken(self._server.name, error) from None
        self.policies.file_was_read()
        self.clock.follow(standing.time, standing.at)

    def start(self) -> None:
        self._heed()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """Gives the lease back, so that the next one need not wait."""
        if self._task is not None:
            self._task.cancel()
        self._thread.shutdown(wait=True)
        with contextlib.suppress(SQLAlchemyError), self._beats.connect() as connection:
            self.lease.release(connection)
        self._beats.dispose()
        self.store.close()

    # -- steps -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Everything in it is done with what the others did before, and before what they do next.

        Raises StoreError where that cannot be had. What is in memory when the step fails is read
        anew by the next one.
        """
        if self.failure is not None:
            # The beats find out when it is back; datagrams must not wait for that.
            raise StoreError(self.failure)
        with self._stepping():
            yield

    @contextlib.contextmanager
    def _stepping(self) -> Iterator[None]:
        try:
            self._take_up()
            if not self.store.in_step:
                self._take_up()  # taking up was a step of its own
            yield
        except BaseException:
            self.store.forget()
            raise
        finally:
            self.store.end()

    def _take_up(self) -> None:
        begun = self._guarded(self.store.begin)
        self.lease.check(begun.holder, begun.fence)
        self.leader = begun.holder
        self._mind_the_lease()
        self.policies.learn(begun.policies)
        self.serve()
        self._guarded(lambda: self._host.taken_up(begun))

    def save(self, records: Sequence[Persist]) -> None:
        """Raises StoreError: nothing of this step is to leave this host."""
        declared = self.policies.to_declare(self._own()) if self.acting else {}
        self._guarded(lambda: self.store.save(records, declared))
        self.policies.learn(declared)

    def declare(self) -> None:
        """What this server was told is in force from here on, where no change has said so already.
        For who leads, in a step. Raises StoreError."""
        if self.policies.to_declare(self._own()):
            self.save(())

    def agrees(self, policies: Mapping[str, str]) -> bool:
        """With those in force."""
        return not self.policies.differing(policies)

    def may_push(self) -> bool:
        """At this moment, after whatever this process may have slept through."""
        return self.acting and self.lease.held()

    def _guarded(self, what: Callable[[], T]) -> T:
        try:
            return what()
        except StoreError as error:
            self._fail(error)
            raise

    def _fail(self, error: StoreError) -> None:
        if self.failure is None:
            self._host.tell(Event("store-failed", {"error": str(error)}, "error"))
        self.failure = str(error)

    # -- beats -----------------------------------------------------------------------------------

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                standing, in_force = await loop.run_in_executor(self._thread, self._attend)
                if self.failure is not None:
                    self._come_back()
                self.policies.learn(in_force)
                self._heed()
                self._took(standing)
            except StoreError as error:
                self._fail(error)
                self._mind_the_lease()
            except Exception as error:  # noqa: BLE001  (the end of the daemon, which says so)
                self._host.met(error)
                return
            await asyncio.sleep(LOOK_EVERY)

    def _come_back(self) -> None:
        """The database answers, and takes what is written."""
        self.store.reconnect()
        with self._stepping():
            if self.acting:
                self.declare()  # a change whose commit failed may rekey nothing
        self.failure = None
        self._host.tell(Event("store-recovered", {}))

    def _attend(self) -> tuple[Standing, Mapping[str, InForce]]:
        """In a thread of its own: it may wait for an answer, datagrams must not."""
        try:
            with (
                self._beats.connect() as connection,
                bounded(connection, self.lease.length / 2),
            ):
                standing = self.lease.attend(connection, self.clock.now)
                own, late = self._own(), since_boot() - self._noted_at > NOTED_EVERY
                if late or self.failure or own != self._noted:
                    note_server(connection, self.lease.name, self._address, own)
                    self.others = look_around(connection, self.lease.name)
                    self._noted_at, self._noted = since_boot(), own
                with connection.begin():
                    return standing, read_policies(connection)
        except SQLAlchemyError as error:
            raise broken(self._server.name, error) from None

    def _took(self, standing: Standing) -> None:
        """What was seen and done meanwhile, in the loop again."""
        if not self.lease.held():
            self.leader = standing.holder
            self.clock.follow(standing.time, standing.at)
        begins = self.lease.held() and not self.acting
        if begins or standing.revision != self.store.revision:
            with self.step():
                if begins and self.lease.held() and self._may_lead():
                    self.acting = True
                    self.serve()
                    self._host.tell(Event("leading", {"fence": self.lease.fence}))
                    self._host.leads(True)
                    self.declare()
        self._mind_the_lease()
        self._compare()

    def _may_lead(self) -> bool:
        """Under the lock, for whoever led before may have declared a policy last of all."""
        if self.policies.outdated(self._own()):
            self.lease.lost()
        return self.lease.held()

    def _heed(self) -> None:
        if not self.acting and self.policies.outdated(self._own()):
            self._host.catch_up()
        self.serve()

    def serve(self) -> None:
        """Each server does as it was told, where that is what is in force: to be said again
        whenever either may be another one, before anything is handed out."""
        differing = set() if self.acting else self.policies.differing(self._own())
        self._host.suspend(differing)
        self.lease.willing = not self.policies.outdated(self._own())

    def _mind_the_lease(self) -> None:
        if self.acting and not self.lease.held():
            self.acting = False
            self._host.leads(False)
            fields: dict[str, str | int] = {"leader": self.leader or "nobody"}
            fields["fence"] = self.lease.fence
            self._host.tell(Event("following", fields, "warning"))

    def _compare(self) -> None:
        """Who leads tells of servers that were told something else, they of the policy in force:
        for somebody to mend."""
        own = self._own()
        if self.acting:
            differing = {
                (other.name, group)
                for other in self.others
                if other.silent < self.lease.length
                for group in own.keys() | other.policies.keys()
                if own.get(group) != other.policies.get(group)
            }
        else:
            differing = {("", group) for group in self.policies.differing(own)}
        now = since_boot()
        self._differing = {pair: self._differing.get(pair, now) for pair in differing}
        # Not of servers that are about to read their files again.
        lasting = {pair for pair, since in self._differing.items() if now - since > DIFFERS_AFTER}
        for name, group in sorted(lasting - self._told):
            fields: dict[str, str] = {"group": group, "server": name or self.leader}
            fields["leader"] = self.leader
            if not self.acting:
                fields["hint"] = OUTDATED if not self.lease.willing else DIFFERENT
            self._host.tell(Event("policy-differs", fields, "error"))
        self._told = lasting


def look_around(connection: Connection, own: str) -> list[Other]:
    """The other servers that this database has ever heard of."""
    silent = func.extract("epoch", func.clock_timestamp() - servers.c.seen)
    columns = (servers.c.name, servers.c.address, silent, servers.c.policies)
    with connection.begin():
        rows = connection.execute(select(*columns).where(servers.c.name != own)).all()
    return [Other(name, address, float(since), told) for name, address, since, told in rows]
