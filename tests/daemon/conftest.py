"""What the daemons' tests have in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.postgres import Postgres, running_postgres


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With an empty pre-shared key and a folder, for configurations that name them."""
    (tmp_path / "empty.psk").write_text(" \n")
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL. Who stops it starts it again."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def database(postgres: Postgres) -> str:
    """The URL of a new, empty database."""
    return postgres.url(postgres.create_database())
