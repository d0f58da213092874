"""The database of a key server: a durable transaction for each of its steps."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from ...protocol.actions import Persist
from ...protocol.key_server import SavedGroup
from ..errors import StaleError, StoreError
from .reading import load
from .sqlite import SqliteFile
from .upgrade import bring_up_to_date
from .writing import Writer


class Store:
    """SQLAlchemy Core over one SQLite file."""

    def __init__(self, path: Path) -> None:
        """Raises StoreError naming the file."""
        self._database = SqliteFile(path)
        self._engine = self._database.engine()
        # Of each group, as this process saw or wrote it last.
        self._revisions: dict[int, int] = {}
        try:
            with self._engine.begin() as connection:
                bring_up_to_date(connection)
        except SQLAlchemyError as error:
            self.close()
            raise self._broken(error) from error
        except StoreError as error:
            self.close()
            raise self._named(error) from error

    def save(self, records: Iterable[Persist]) -> None:
        """All in one durable transaction, or nothing. Raises StoreError; StaleError where another
        key server has changed one of these groups since this one has read or written it."""
        self._database.check()
        try:
            with self._engine.begin() as connection:
                writer = Writer(connection, self._revisions)
                writer.write(records)
        except SQLAlchemyError as error:
            raise self._broken(error) from error
        except StaleError as error:
            raise error.named(self._database.name) from error
        self._revisions.update(writer.revisions)

    def load(self) -> dict[int, SavedGroup]:
        """By group ID. Raises StoreError."""
        try:
            with self._engine.begin() as connection:
                saved, self._revisions = load(connection)
        except (SQLAlchemyError, ValueError) as error:
            raise self._broken(error) from error
        except StoreError as error:
            raise self._named(error) from error
        return saved

    def close(self) -> None:
        """Also twice."""
        self._engine.dispose()
        self._database.close()

    def _named(self, error: StoreError) -> StoreError:
        return StoreError(f"{self._database.name}: {error}")

    def _broken(self, error: Exception) -> StoreError:
        cause = getattr(error, "orig", None) or error
        return StoreError(f"{self._database.name}: {cause}")
