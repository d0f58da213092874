"""Daemons and traffic start by a fork: in the lab kernel importing takes them seconds."""

from collections.abc import Iterator

import pytest
from gdoi_lab.net import Namespace
from gdoi_lab.prefork import Prefork


@pytest.fixture(scope="session", autouse=True)
def prefork() -> Iterator[Prefork]:
    """For every network of these tests; it starts with the first program."""
    with Prefork() as forking:
        Namespace.prefork = forking
        yield forking
        Namespace.prefork = None
