"""Where a key server keeps its state, and what seals the keys in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, model_validator

from .config_values import FileName, Section
from .store.postgres import PostgresServer, read_url
from .store.sealing import MasterKey, credential_of, read_master_key
from .store.store import Database


def _url(text: str) -> str:
    read_url(text)
    return text


class StoreSection(Section):
    """``database`` None: the SQLite file ``state``, beside which the clock is kept in any case."""

    state: FileName = Path("/var/lib/gdoi/gcks.sqlite")
    database: Annotated[str, AfterValidator(_url)] | None = None
    database_password: FileName | None = None
    master_key: FileName | None = None

    @model_validator(mode="after")
    def _password_of_a_database(self) -> Self:
        if self.database_password is not None and self.database is None:
            raise ValueError("database_password is for a PostgreSQL database; set database too")
        return self

    def place(self, config: Path) -> Database | Path:
        """Relative files are looked for beside the configuration. Raises StoreError."""
        if self.database is None:
            return self.state
        password = self.database_password
        return PostgresServer(self.database, None if password is None else config.parent / password)

    def key(self, config: Path, environment: Mapping[str, str]) -> MasterKey | None:
        """The file that is named here, or systemd's credential. Raises StoreError."""
        if self.master_key is not None:
            return read_master_key(config.parent / self.master_key)
        credential = credential_of(environment)
        # systemd has seen to who may read it, by access control lists that a mode does not show.
        return None if credential is None else read_master_key(credential, check_mode=False)
