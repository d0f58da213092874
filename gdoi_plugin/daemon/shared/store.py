"""The steps of several key servers, one after the other, in one database."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import psycopg
from sqlalchemy import Connection, Engine, Transaction, delete, func, insert, select, text, update
from sqlalchemy.exc import SQLAlchemyError

from ...protocol.actions import Persist
from ...protocol.key_server import SavedGroup
from ..errors import StaleError, StoreError
from ..store.reading import load
from ..store.sealing import MasterKey, Seal
from ..store.touched import Touched
from ..store.writing import Writer
from . import schema
from .database import bounded
from .lease import prepare
from .policies import InForce, read_policies, write_policies

# Steps whose changes are listed: who has missed more reads everything anew.
LISTED = 1000
# Rows that are read piece by piece at most.
PIECES = 5000
# Any number that nobody else takes locks with: tables are made by one server at a time.
MAKING_TABLES = 0x47444F49


@dataclass(frozen=True, slots=True)
class Begun:
    """What a step begins with: who leads, and what others have changed since the last one.

    ``whole``: ``groups`` are all that there are, completely; else what has changed of some, with
    an empty record where that has not. ``policies``: those in force, where anything has changed.
    """

    holder: str
    fence: int
    whole: bool
    groups: Mapping[int, SavedGroup]
    policies: Mapping[str, InForce]


class SharedStore:
    """A step at a time: ``begin``, then ``save`` where there is something to save, and ``end``."""

    def __init__(self, engine: Engine, where: str, key: MasterKey | None, patience: float) -> None:
        """``where`` names the database in messages, which may take ``patience`` seconds for an
        answer."""
        self._engine = engine
        self._seal = Seal(key)
        self._patience = patience
        self._where = where
        self._connection: Connection | None = None
        self._transaction: Transaction | None = None
        # Up to where memory and database are the same; None: not at all.
        self.revision: int | None = None
        self._reached = 0  # the last that this process has seen or written
        self._revisions: dict[int, int] = {}
        self._serial = 0

    def create(self) -> None:
        """The tables beside the store's, where there are none yet. Raises StoreError."""
        with self._errors(), self._engine.begin() as connection:
            connection.execute(select(func.pg_advisory_xact_lock(MAKING_TABLES)))
            schema.metadata.create_all(connection)
            prepare(connection)

    def begin(self) -> Begun:
        """Waits until no other server is within a step. Raises StoreError."""
        self.end()
        with self._errors():
            self._connection = self._engine.connect()
        with self._errors(), bounded(self._connection, self._patience):
            self._transaction = self._connection.begin()
            locked = select(schema.head.c.revision).with_for_update()
            revision: int = self._connection.execute(locked).scalar_one()
            self._check_age(revision)
            # Of its own, for what it reads is as of when it begins: after the wait for the lock.
            lease = self._connection.execute(select(schema.lease.c.holder, schema.lease.c.fence))
            holder, fence = lease.one()
            touched = self._touched_since(revision)
            groups: Mapping[int, SavedGroup] = {}
            policies: Mapping[str, InForce] = {}
            if revision != self.revision:
                policies = read_policies(self._connection)
            if touched is None:
                groups, self._revisions = load(self._connection, self._seal)
            elif revision != self.revision:
                groups = self._load_touched(self._connection, touched)
            if touched is None or touched.acks:
                self._note_serial()
            self.revision = self._reached = revision
        return Begun(holder, fence, touched is None, groups, policies)

    def _check_age(self, revision: int) -> None:
        if revision < self._reached:
            raise StoreError(
                f"older than it was, at step {revision} after {self._reached}: a backup that was"
                " put back, or a standby that had not all of it? Its sequence numbers have been"
                " used. Put the newer one back; or, if it is lost, start all key servers again,"
                " and have members register again"
            )

    def _load_touched(self, connection: Connection, touched: Touched) -> Mapping[int, SavedGroup]:
        groups, revisions = load(connection, self._seal, touched)
        for group in revisions.keys() & self._revisions.keys():
            if revisions[group] == self._revisions[group]:
                groups[group] = replace(groups[group], group={})
        self._revisions |= revisions
        return groups

    def _touched_since(self, revision: int) -> Touched | None:
        """None where that is no longer known, or is too much to be read piece by piece."""
        if self.revision is None or self._connection is None:
            return None
        if revision == self.revision:
            return Touched(self._serial)
        rows = self._connection.execute(
            select(schema.changes.c.touched)
            .where(schema.changes.c.revision > self.revision)
            .order_by(schema.changes.c.revision)
        ).all()
        if len(rows) != revision - self.revision:
            return None
        slots = [(kind, *key) for (listed,) in rows for kind, *key in listed]
        return Touched.of(slots, self._serial) if len(slots) <= PIECES else None

    def load(self) -> Mapping[int, SavedGroup]:
        """All groups there are, within a step. Raises StoreError."""
        if self._connection is None:
            raise StoreError(f"{self._where}: read between two steps")
        with self._errors(), bounded(self._connection, self._patience):
            groups, revisions = load(self._connection, self._seal)
        self._revisions = revisions
        return groups

    def save(
        self, records: Iterable[Persist], declared: Mapping[str, InForce] | None = None
    ) -> None:
        """All of it, durable, and the end of the step; ``declared``: policies that are in force
        from here on. Raises StoreError: nothing of it is saved, or nobody knows."""
        steps = list(records)
        if self._connection is None or self._transaction is None or self.revision is None:
            self.forget()
            raise StoreError(f"{self._where}: nothing can be saved between two steps")
        with self._errors(), bounded(self._connection, self._patience):
            writer = Writer(self._connection, self._seal, self._revisions, secrets.token_hex(8), ())
            writer.write(steps)
            write_policies(self._connection, declared or {})
            revision = self.revision + 1
            _list_changes(self._connection, revision, steps)
            if any(persist.kind == "acks" for persist in steps):
                self._note_serial()
            self._transaction.commit()
            self._transaction = None
        self._revisions.update(writer.revisions)
        self.revision = self._reached = revision

    def end(self) -> None:
        """Lets the others go on. What was not saved is as if it had not been."""
        connection, self._connection, self._transaction = self._connection, None, None
        if connection is not None:
            # Where the connection is broken the server has done it.
            with contextlib.suppress(SQLAlchemyError):
                connection.close()

    def forget(self) -> None:
        """What is in memory is not what is in the database: the next step reads everything."""
        self.revision = None

    def reconnect(self) -> None:
        """The database was gone, and with it whatever connection there was."""
        self._engine.dispose()

    @property
    def in_step(self) -> bool:
        """Whether there is one that has saved nothing yet."""
        return self._transaction is not None

    def close(self) -> None:
        self.end()
        self._engine.dispose()

    def _note_serial(self) -> None:
        if self._connection is not None:
            last = self._connection.execute(text("SELECT max(serial) FROM ack_batches")).scalar()
            self._serial = max(self._serial, last or 0)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Whatever goes wrong, memory is read anew before it is used again."""
        try:
            yield
        except (SQLAlchemyError, psycopg.Error) as error:
            self.forget()
            self.end()
            raise broken(self._where, error) from None
        except StaleError as error:
            self.forget()
            self.end()
            raise error.named(self._where) from None
        except (StoreError, ValueError) as error:
            self.forget()
            self.end()
            raise StoreError(f"{self._where}: {error}") from None


def _list_changes(connection: Connection, revision: int, steps: Iterable[Persist]) -> None:
    """For the others, under the lock of the head."""
    touched = list(dict.fromkeys(_touch(persist) for persist in steps))
    connection.execute(insert(schema.changes).values(revision=revision, touched=touched))
    if revision % 100 == 0:
        old = schema.changes.c.revision <= revision - LISTED
        connection.execute(delete(schema.changes).where(old))
    connection.execute(update(schema.head).values(revision=revision))


def broken(where: str, error: Exception) -> StoreError:
    """PostgreSQL's first sentence; what follows may quote the row."""
    cause = getattr(error, "orig", None) or error
    primary = getattr(getattr(cause, "diag", None), "message_primary", None)
    return StoreError(f"{where}: {primary or str(cause).strip().partition(chr(10))[0]}")


def _touch(persist: Persist) -> tuple[object, ...]:
    if persist.kind == "acks":
        return ("acks", persist.record["group"], persist.record["epoch"])
    slot = persist.slot
    return slot if isinstance(slot, tuple) else (slot,)
