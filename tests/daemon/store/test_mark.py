"""An older database that was put back, as the mark beside it shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gdoi_plugin.daemon.errors import StoreError
from gdoi_plugin.daemon.state_file import StateDirectory
from gdoi_plugin.daemon.store.mark import Mark
from gdoi_plugin.protocol.actions import Persist
from gdoi_plugin.protocol.key_server import SavedGroup
from tests.support.worlds import GROUP_ID, World, registered

NAME = "gcks-reached"


@pytest.fixture
def world() -> World:
    """A rekey that is said a second time: one epoch, two SEQs."""
    wire, made = registered(2)
    made.server.do(made.server.engine.rekey(GROUP_ID, made.now, "operator"))
    wire.waiting.clear()
    wire.run(11)
    assert made.group.current_kek().seq == 2
    return made


def steps(world: World) -> list[Persist]:
    return [action for action in world.server.actions if isinstance(action, Persist)]


def group_records(world: World) -> list[Mapping[str, Any]]:
    return [step.record for step in steps(world) if step.kind == "group"]


def marked(folder: Path, world: World) -> Mark:
    mark = Mark(StateDirectory(folder), NAME)
    for step in steps(world):
        mark.note([step])
    return Mark(StateDirectory(folder), NAME)


def test_every_state_but_the_last_is_an_older_one(tmp_path: Path, world: World) -> None:
    mark, records = marked(tmp_path, world), group_records(world)
    mark.check({GROUP_ID: SavedGroup(records[-1])})
    (last,) = {record["epoch"] for record in records[-1:]}
    seen = set()
    for record in records:
        seq = record["keks"][-1]["seq"]
        seen.add((record["epoch"], seq))
        if (record["epoch"], seq) == (last, 2):
            mark.check({GROUP_ID: SavedGroup(record)})
            continue
        with pytest.raises(StoreError) as caught:
            mark.check({GROUP_ID: SavedGroup(record)})
        assert f"group {GROUP_ID} is older than {NAME}.json" in str(caught.value)
        assert f"which knows epoch {last}, SEQ 2: a backup" in str(caught.value)
    assert {(last - 1, 0), (last, 1), (last, 2)} <= seen


def test_a_repetition_of_a_rekey_that_is_not_the_newest(tmp_path: Path) -> None:
    """Under one KEK its SEQ is the highest; and another Rekey SA has a KEK of its own."""

    def record(epoch: int, **seqs: int) -> dict[str, Any]:
        keks = [{"kek": {"spi": spi}, "seq": seq} for spi, seq in seqs.items()]
        return {"group": GROUP_ID, "epoch": epoch, "keks": keks}

    mark = Mark(StateDirectory(tmp_path), NAME)
    records = [record(8, a=4, b=1), record(9, a=5, b=1), record(9, a=6, b=1), record(9, a=6, b=2)]
    for older, newer in pairwise(records):
        mark.note([Persist("group", newer)])
        for read in (mark, Mark(StateDirectory(tmp_path), NAME)):
            read.check({GROUP_ID: SavedGroup(newer)})
            with pytest.raises(StoreError, match=r"epoch 9, SEQ [56]: a backup"):
                read.check({GROUP_ID: SavedGroup(older)})
    mark.note([Persist("group", record(10, b=2, c=0))])
    assert json.loads((tmp_path / f"{NAME}.json").read_text()) == {str(GROUP_ID): [10, {"b": 2}]}


def test_a_mark_as_former_versions_wrote_it(tmp_path: Path, world: World) -> None:
    last = group_records(world)[-1]
    (kek,) = last["keks"]
    for seq, older in ((kek["seq"], False), (kek["seq"] + 1, True)):
        entry = [last["epoch"], seq, kek["kek"]["spi"]]
        (tmp_path / f"{NAME}.json").write_text(json.dumps({str(GROUP_ID): entry}))
        with pytest.raises(StoreError) if older else nullcontext():
            Mark(StateDirectory(tmp_path), NAME).check({GROUP_ID: SavedGroup(last)})


def test_without_the_group_or_the_mark_all_is_well(tmp_path: Path, world: World) -> None:
    mark = marked(tmp_path, world)
    mark.check({})
    mark.forget_others({})
    again = Mark(StateDirectory(tmp_path), NAME)
    again.check({GROUP_ID: SavedGroup(group_records(world)[0])})  # a new one
    again.note(steps(world))
    (tmp_path / f"{NAME}.json").unlink()
    Mark(StateDirectory(tmp_path), NAME).check({GROUP_ID: SavedGroup(group_records(world)[0])})


def test_it_is_written_for_rekeys_alone(tmp_path: Path, world: World) -> None:
    mark = Mark(StateDirectory(tmp_path), NAME)
    first = next(n for n, step in enumerate(steps(world)) if step.kind == "rekey")
    mark.note(steps(world)[: first - 1])
    assert list(tmp_path.iterdir()) == []
    mark.note(steps(world))
    assert list(json.loads((tmp_path / f"{NAME}.json").read_text())) == [str(GROUP_ID)]


@pytest.mark.parametrize(
    "entry", [None, [1], ["1", 2, "ab"], [1, 2, 3], [1, {"ab": None}], {"epoch": 1}]
)
def test_an_entry_that_is_none_says_nothing(tmp_path: Path, world: World, entry: object) -> None:
    (tmp_path / f"{NAME}.json").write_text(json.dumps({str(GROUP_ID): entry, "x": [1, 2, "ab"]}))
    Mark(StateDirectory(tmp_path), NAME).check({GROUP_ID: SavedGroup(group_records(world)[0])})
