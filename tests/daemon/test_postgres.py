"""The tests' own PostgreSQL keeps what it has committed, as a key server's has to."""

from __future__ import annotations

import signal

import psycopg
import pytest

from tests.support.postgres import Postgres


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
def test_a_commit_outlives_the_server(postgres: Postgres, how: signal.Signals) -> None:
    conninfo = postgres.conninfo(postgres.create_database())
    with psycopg.connect(conninfo, autocommit=True) as connection:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert connection.execute(f"SHOW {setting}".encode()).fetchone() == ("on",)
        connection.execute("CREATE TABLE t (n integer)")
        connection.execute("INSERT INTO t VALUES (848)")
        postgres.restart(how)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT n FROM t")
    with psycopg.connect(conninfo) as connection:
        assert connection.execute("SELECT n FROM t").fetchone() == (848,)
