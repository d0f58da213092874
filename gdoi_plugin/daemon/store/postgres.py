"""A PostgreSQL server: several key servers share what they know."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError

from ..errors import StoreError

# Seconds until a server that does not answer counts as gone: the daemon waits meanwhile.
CONNECT_TIMEOUT = 5
STATEMENT_TIMEOUT = 30
# What two key servers do at once to an empty database, or one of an older version.
_SCHEMA_LOCK = 0x67646F69


class PostgresServer:
    """One database, by its URL; libpq's environment and PGPASSFILE count as ever."""

    def __init__(self, url: str, password_file: Path | None = None) -> None:
        """Raises ValueError for the URL, StoreError for the file."""
        self._url = read_url(url)
        # Without a user: this is in every error.
        host = self._url.query.get("host", self._url.host or "local")
        self.name = f"postgresql database {self._url.database or ''} at {host}"
        self._password = None if password_file is None else _password(password_file)

    @property
    def url(self) -> URL:
        """With the password. Raises StoreError where the driver is not installed."""
        if find_spec("psycopg") is None:
            what = "needs psycopg: pip install 'gdoi-plugin[postgresql]'"
            raise StoreError(f"{self.name}: {what}")
        return self._url if self._password is None else self._url.set(password=self._password)

    def engine(self) -> Engine:
        settings = f"-c synchronous_commit=on -c statement_timeout={STATEMENT_TIMEOUT}s"
        return create_engine(
            self.url,
            hide_parameters=True,
            # A server that was restarted is found again without a failure.
            pool_pre_ping=True,
            pool_size=2,
            max_overflow=2,
            pool_timeout=CONNECT_TIMEOUT,
            connect_args={
                "connect_timeout": CONNECT_TIMEOUT,
                "tcp_user_timeout": 1000 * CONNECT_TIMEOUT,
                "application_name": "gdoi-gcks",
                "options": settings,
            },
        )

    def prepare(self, connection: Connection) -> None:
        """One key server at a time makes or changes tables."""
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_SCHEMA_LOCK})")

    def check(self) -> None:
        """The server itself says where it cannot."""

    def clean(self, engine: Engine) -> None:
        """The tables get new files: dead rows would lie in the old ones. The server's write-ahead
        log, and its backups, are the administrator's affair."""
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM FULL groups, members, pages")

    def close(self) -> None:
        """The engine has the connections."""


def read_url(text: str) -> URL:
    """Raises ValueError, in words that show no password."""
    try:
        url = make_url(text)
    except ArgumentError:
        raise ValueError("must be postgresql://USER@HOST:PORT/NAME") from None
    if url.drivername not in ("postgresql", "postgres"):
        raise ValueError(f"{url.drivername}://; must be postgresql://USER@HOST:PORT/NAME")
    if url.password is not None or "password" in url.query:
        raise ValueError("a password in it: give database_password, or PGPASSFILE")
    return url.set(drivername="postgresql+psycopg")


def _password(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise StoreError(f"password file {path}: {what}") from error
    if mode & 0o077:
        raise StoreError(f"password file {path}: others may read it; its mode must be 0600")
    if not text:
        raise StoreError(f"password file {path}: empty")
    return text
