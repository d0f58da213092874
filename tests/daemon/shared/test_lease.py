"""The lease on a real PostgreSQL, with clocks that the test sets."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, update
from sqlalchemy.exc import OperationalError

from gdoi_plugin.daemon.shared.database import connect
from gdoi_plugin.daemon.shared.lease import Lease, Standing, look, prepare
from gdoi_plugin.daemon.shared.schema import lease, metadata
from gdoi_plugin.daemon.store.postgres import PostgresServer
from tests.support.postgres import Postgres

LENGTH = 10.0


class Contender:
    """A key server's lease, with a connection and a host's clock of its own."""

    def __init__(self, name: str, url: str, clock: float = 0.0) -> None:
        self.clock = clock
        self.engine: Engine = connect(PostgresServer(url), name, LENGTH)
        self.lease = Lease(name, LENGTH, lambda: self.clock)

    def attend(self, seconds: float = 0.0) -> Standing:
        self.clock += seconds
        with self.engine.connect() as connection:
            return self.lease.attend(connection, lambda: 1e9 + self.clock)

    def now(self) -> Standing:
        with self.engine.begin() as connection:
            return look(connection)


@pytest.fixture
def contenders(database: str) -> Iterator[tuple[Contender, Contender]]:
    """Their clocks are years apart."""
    first, second = Contender("a", database, 7.0), Contender("b", database, 1e8)
    with first.engine.begin() as connection:
        metadata.create_all(connection)
        prepare(connection)
    yield first, second
    first.engine.dispose()
    second.engine.dispose()


def test_one_of_two(contenders: tuple[Contender, Contender]) -> None:
    first, second = contenders
    first.attend()
    second.attend()
    assert (first.lease.held(), second.lease.held()) == (True, False)
    for _ in range(30):
        first.attend(LENGTH / 4)
        second.attend(LENGTH / 4)
    assert (first.lease.held(), second.lease.held()) == (True, False)
    standing = second.now()
    assert (standing.holder, standing.fence) == ("a", 1)
    assert standing.beat >= 30


def test_a_paused_holder_is_over_before_the_next_begins(
    contenders: tuple[Contender, Contender],
) -> None:
    first, second = contenders
    first.attend()
    second.attend()  # the wait begins
    elapsed = 0.0
    while not second.lease.held():
        assert first.lease.held() == (elapsed < 0.9 * LENGTH)
        second.attend(1.0)
        first.clock += 1.0
        elapsed += 1.0
    assert elapsed == LENGTH
    assert not first.lease.held()
    assert (second.lease.fence, second.now().holder) == (2, "b")
    first.attend()
    assert not first.lease.held()
    # And does not take it back while the other one beats.
    for _ in range(30):
        second.attend(LENGTH / 4)
        first.attend(LENGTH / 4)
        assert (first.lease.held(), second.lease.held()) == (False, True)


def test_a_late_holder_goes_on_where_nobody_has_come(
    contenders: tuple[Contender, Contender],
) -> None:
    """The database was away for long: the same fence, so nobody has led in between."""
    first, _ = contenders
    first.attend()
    first.clock += 50 * LENGTH
    assert not first.lease.held()
    first.attend()
    assert first.lease.held()
    assert first.lease.fence == 1


def test_a_fence_that_a_step_has_read(contenders: tuple[Contender, Contender]) -> None:
    first, _ = contenders
    first.attend()
    first.lease.check("a", 1)
    assert first.lease.held()
    first.lease.check("b", 2)
    assert not first.lease.held()


def test_who_comes_back_under_its_name_does_not_wait(
    contenders: tuple[Contender, Contender], database: str
) -> None:
    first, second = contenders
    first.attend()
    second.attend()
    again = Contender("a", database, 3.0)
    again.attend()
    assert (again.lease.held(), again.lease.fence) == (True, 2)
    first.attend()  # the former run, which was only paused
    assert not first.lease.held()
    again.engine.dispose()


def test_a_lease_that_is_given_back_is_free(contenders: tuple[Contender, Contender]) -> None:
    first, second = contenders
    first.attend()
    second.attend()
    with first.engine.connect() as connection:
        first.lease.release(connection)
    assert not first.lease.held()
    second.attend()
    assert (second.lease.held(), second.lease.fence) == (True, 2)


def test_of_many_that_want_it_one_gets_it(database: str) -> None:
    many = [Contender(f"s{number}", database) for number in range(8)]
    with many[0].engine.begin() as connection:
        metadata.create_all(connection)
        prepare(connection)
    with ThreadPoolExecutor(len(many)) as pool:
        list(pool.map(Contender.attend, many))
        assert sum(contender.lease.held() for contender in many) == 1
        for contender in many:
            if not contender.lease.held():
                contender.attend()
        waiting = [contender for contender in many if not contender.lease.held()]
        list(pool.map(lambda contender: contender.attend(LENGTH), waiting))
    assert sum(contender.lease.held() for contender in waiting) == 1
    assert many[0].now().fence == 2
    for contender in many:
        contender.engine.dispose()


def test_the_groups_time_is_the_leaders(contenders: tuple[Contender, Contender]) -> None:
    """Others learn it through the database's clock, wherever that stands."""
    first, second = contenders
    first.attend()
    first.attend(LENGTH / 2)
    standing = second.now()
    assert abs(standing.time - (1e9 + first.clock)) < 5
    with first.engine.begin() as connection:  # the database's clock is set back by a day
        connection.execute(update(lease).values(ahead=lease.c.ahead - 86400))
    assert second.now().time < 1e9 - 80000
    first.attend(LENGTH / 2)
    assert abs(second.now().time - (1e9 + first.clock)) < 5


def test_a_database_that_is_gone(
    contenders: tuple[Contender, Contender], postgres: Postgres
) -> None:
    first, second = contenders
    first.attend()
    second.attend()
    postgres.stop()
    try:
        with pytest.raises(OperationalError):
            first.attend(LENGTH / 2)
        assert first.lease.held(), "until its time is over"
        first.clock += LENGTH / 2
        assert not first.lease.held()
    finally:
        postgres.start()
    first.attend()
    assert (first.lease.held(), first.lease.fence) == (True, 1)
