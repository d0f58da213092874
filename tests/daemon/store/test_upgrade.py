"""A database of version 1 becomes one of ours, with all that was in it.

``version_1.sql`` is what a key server of that version had saved: five members in a key tree, one
evicted, one silent for a rekey and in the middle of another.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from gdoi_plugin.daemon.errors import StoreError
from gdoi_plugin.daemon.store import Store
from gdoi_plugin.daemon.store.schema import metadata
from gdoi_plugin.daemon.store.upgrade import _MIGRATIONS, VERSION
from gdoi_plugin.protocol.group import Group
from gdoi_plugin.protocol.keeper import restore
from gdoi_plugin.protocol.key_server import KeyServer
from tests.protocol.test_lkh import BINARY
from tests.support.simnet import START
from tests.support.worlds import GROUP_ID, group_config, member_peer, server_phase1, signers

NOW = START + 158
SILENT = "10.0.0.6"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "gcks.sqlite"
    with closing(sqlite3.connect(made)) as database:
        database.executescript((Path(__file__).parent / "version_1.sql").read_text())
    return made


def taken_up(path: Path) -> Group:
    engine = KeyServer([group_config(5, lkh=BINARY)], server_phase1, os.urandom, signers())
    group = engine.groups[GROUP_ID]
    with closing(Store(path)) as store:
        restore(group, store.load()[GROUP_ID])
    return group


def test_what_was_counted_is_there(path: Path) -> None:
    group = taken_up(path)
    pages = {
        epoch: (page.reason, len(page.expected), len(page.acknowledged), page.closed)
        for epoch, page in group.ledger.items()
    }
    assert pages == {
        2: ("operator", 5, 5, True),
        3: ("evict", 4, 4, True),
        4: ("evict", 4, 4, True),
        5: ("operator", 4, 3, True),
        6: ("operator", 4, 3, False),
    }
    assert [str(i) for i in group.ledger[5].missing] == [SILENT]
    assert [str(i) for i in group.ledger[6].silent] == [SILENT]
    evicted = group.ledger[2].expected - set(group.members)
    assert [str(i) for i in evicted] == ["10.0.0.5"], "known by name, though it has left"
    times = {str(i): at - START for i, at in group.ledger[6].acknowledged.items()}
    assert times["10.0.0.4"] == pytest.approx(156.703967, abs=1e-5)


def test_members_and_keys_are_there(path: Path) -> None:
    group = taken_up(path)
    assert {
        str(m.identity): (m.acknowledged, m.missed, m.leaf) for m in group.members.values()
    } == {
        "10.0.0.2": (5, 0, 32),
        "10.0.0.3": (5, 0, 33),
        "10.0.0.4": (5, 0, 34),
        SILENT: (3, 1, 36),
    }
    silent = next(m for m in group.members.values() if str(m.identity) == SILENT)
    assert silent.last_ack == pytest.approx(START + 55.5207283)
    assert (group.epoch, group.current_kek().seq, group.roster.next_number) == (6, 5, 6)
    assert [str(i) for i in group.denied] == [str(member_peer(3).host)]
    assert group.sas[0].tree is not None
    assert group.sas[0].tree.members == 4


def test_it_goes_on_where_the_former_version_stopped(path: Path) -> None:
    """SEQ 5 was the last: the rekey that was under way is said again with the next one."""
    engine = KeyServer([group_config(5, lkh=BINARY)], server_phase1, os.urandom, signers())
    with closing(Store(path)) as store:
        engine.start(NOW, store.load())
    rekey = engine.groups[GROUP_ID].ledger[6]
    assert (rekey.seqs, rekey.attempts) == ([5, 6], 2)
    assert [str(i) for i in rekey.silent] == [SILENT]


def test_it_has_the_tables_of_a_new_one(path: Path, tmp_path: Path) -> None:
    for place in (path, tmp_path / "new.sqlite"):
        with closing(Store(place)) as store, store._engine.connect() as connection:
            context = MigrationContext.configure(connection)
            assert compare_metadata(context, metadata) == []
            assert context.get_current_revision() == VERSION


def test_migrations_lead_to_the_version_of_this_program() -> None:
    assert ScriptDirectory(str(_MIGRATIONS)).get_heads() == [VERSION]


def test_an_upgrade_that_fails_changes_nothing(path: Path) -> None:
    before = content(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE rekeys SET record = '[]' WHERE epoch = 5")
        database.commit()
    with pytest.raises(
        StoreError, match=r"gcks\.sqlite: version 1 .* cannot be brought up to date"
    ):
        Store(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE rekeys SET record = json_object() WHERE epoch = 5")
        database.commit()
    assert [line for line in content(path) if "rekeys" not in line] == [
        line for line in before if "rekeys" not in line
    ]


def content(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        return sorted(database.iterdump())
