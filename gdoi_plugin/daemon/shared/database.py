"""Connections to PostgreSQL that give up in time: a daemon waits for its database in between."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Engine, create_engine

from ..store.postgres import PostgresServer


def connect(server: PostgresServer, name: str, lease: float) -> Engine:
    """One connection, made when it is needed and again when it is broken.

    A statement may wait for a lock or an answer for half a lease. Who holds a lock and says nothing
    more, because its process is stopped or its network gone, loses it with its connection when a
    whole one is over; what it had not committed is undone.
    """
    milliseconds = int(lease * 1000)
    settings = {
        "synchronous_commit": "on",
        "statement_timeout": milliseconds // 2,
        "lock_timeout": milliseconds // 2,
        "idle_in_transaction_session_timeout": milliseconds,
    }
    seconds = max(2, int(lease / 2))
    arguments: dict[str, Any] = {
        "connect_timeout": seconds,
        "application_name": f"gdoi-gcks {name}",
        "options": " ".join(f"-c {key}={value}" for key, value in settings.items()),
        # Where the network swallows what is sent, and not even a reset comes back.
        "tcp_user_timeout": seconds * 1000,
        "keepalives_idle": seconds,
        "keepalives_interval": 1,
        "keepalives_count": 3,
    }
    # An error's text would show the parameters, and they hold keys.
    return create_engine(
        server.url, connect_args=arguments, hide_parameters=True, pool_size=1, max_overflow=0
    )


@contextlib.contextmanager
def bounded(connection: Connection, seconds: float) -> Iterator[None]:
    """What is asked in here has an answer by then, or fails.

    The server's own limits do not help where nothing of it comes back, and TCP's not where whatever
    stands in between takes everything and says nothing. So the connection is cut.
    """
    raw = connection.connection.dbapi_connection
    number = raw.fileno() if raw is not None else -1
    timer = threading.Timer(seconds, _cut, (number,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _cut(number: int) -> None:
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as mine:
        mine.shutdown(socket.SHUT_RDWR)
