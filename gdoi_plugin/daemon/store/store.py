"""The database of a key server: a durable transaction for each of its steps."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from ...protocol.actions import Persist
from ...protocol.key_server import SavedGroup
from ..errors import StaleError, StoreError
from .reading import load
from .sealed_rows import check_seal, note_cleaned, seal_again, to_be_cleaned
from .sealing import MasterKey, Seal
from .sqlite import SqliteFile
from .upgrade import bring_up_to_date
from .writing import Writer

T = TypeVar("T")
# Transactions in a row of which it is not known whether they were committed: the shell repeats one
# step until it is saved, so any more are of no use.
MAX_DOUBTFUL = 64


class Database(Protocol):
    """What SQLite and PostgreSQL do not have in common. ``name`` begins every error."""

    name: str

    def engine(self) -> Engine: ...

    def prepare(self, connection: Connection) -> None:
        """Before tables are looked at."""

    def check(self) -> None:
        """Before each step. Raises StoreError."""

    def clean(self, engine: Engine) -> None:
        """After rows got another seal: nothing of what they held before is to be left.

        Raises StoreError or SQLAlchemyError."""

    def close(self) -> None: ...


class Store:
    """SQLAlchemy Core over SQLite or PostgreSQL: one code path."""

    def __init__(
        self, database: Database | Path, key: MasterKey | None = None, *, clear: bool = False
    ) -> None:
        """A path is a SQLite file's. ``clear``: rows may be there that ``key`` is to seal now.

        Raises StoreError naming the database."""
        self.database = SqliteFile(database) if isinstance(database, Path) else database
        self._seal, self._may_be_clear = Seal(key), clear
        self.sealed = 0  # rows that were in clear before
        # Of each group, as this process saw or wrote it last; and steps that may be in it or not.
        self._revisions: dict[int, int] = {}
        self._doubtful: list[str] = []
        self._engine = self.database.engine()
        try:
            if self._transaction(self._open):
                self._clean()
        except SQLAlchemyError as error:
            self.close()
            raise self._broken(error) from None
        except StoreError:
            self.close()
            raise

    def _open(self, connection: Connection) -> bool:
        """True where free pages may hold what rows did before they were sealed."""
        self.database.prepare(connection)
        bring_up_to_date(connection)
        if check_seal(connection, self._seal.key, clear=self._may_be_clear):
            self.sealed = seal_again(connection, Seal(None), self._seal)
        return to_be_cleaned(connection)

    def _clean(self) -> None:
        self.database.clean(self._engine)
        self._transaction(note_cleaned)

    def save(self, records: Iterable[Persist]) -> None:
        """All in one durable transaction, or nothing. Raises StoreError; StaleError where another
        key server has changed one of these groups since this one has read or written it."""
        self.database.check()
        step = secrets.token_hex(8)
        made: list[Writer] = []

        def write(connection: Connection) -> None:
            writer = Writer(connection, self._seal, self._revisions, step, self._doubtful)
            made.append(writer)
            writer.write(records)

        # Until the commit has returned: a connection may end before it says what became of it.
        doubtful = [*self._doubtful, step][-MAX_DOUBTFUL:]
        try:
            self._transaction(write)
        except StaleError:
            raise
        except StoreError:
            self._doubtful = doubtful
            raise
        self._doubtful = []
        self._revisions.update(made[0].revisions)

    def load(self) -> dict[int, SavedGroup]:
        """By group ID. Raises StoreError, naming table and row where one is damaged."""
        saved, self._revisions = self._transaction(lambda c: load(c, self._seal))
        self._doubtful = []
        return saved

    def rotate(self, key: MasterKey) -> int:
        """Every key is sealed with another master key, in one transaction; how many rows were."""
        count = self._transaction(lambda c: seal_again(c, self._seal, Seal(key)))
        self._seal = Seal(key)
        self._revisions = {group: before + 1 for group, before in self._revisions.items()}
        self._clean()
        return count

    def close(self) -> None:
        """Also twice."""
        self._engine.dispose()
        self.database.close()

    def _transaction(self, work: Callable[[Connection], T]) -> T:
        """Commits what ``work`` did, or rolls it back. Raises StoreError.

        Nothing of the database's own error goes further than its first sentence: it may quote rows.
        """
        failure: StoreError
        try:
            with self._engine.begin() as connection:
                return work(connection)
        except StaleError as error:
            failure = error.named(self.database.name)
        except StoreError as error:
            failure = StoreError(f"{self.database.name}: {error}")
        except (SQLAlchemyError, ValueError) as error:
            failure = self._broken(error)
        raise failure

    def _broken(self, error: Exception) -> StoreError:
        cause = getattr(error, "orig", None) or error
        # PostgreSQL's DETAIL is the row.
        primary = getattr(getattr(cause, "diag", None), "message_primary", None)
        return StoreError(f"{self.database.name}: {primary or str(cause).splitlines()[0]}")
