"""A member that is put out of its group hears no more; with a key tree the others lose nothing.

::

    gcks -- new keys --> gm1, gm2     gm3 has neither KEK nor TEKs: by a key tree (LKH), or
                                      because gm1 and gm2 alone are let in when all register again
"""

from __future__ import annotations

from pathlib import Path

import pytest
from gdoi_lab.group import GroupOptions, LabGroup
from gdoi_lab.traffic import Delivery
from gdoi_lab.waiting import wait_until

from tests.lab.variants.groups import FLAT, LIMIT, MEMBERS, TREE
from tests.lab.watch import Watch, let_pass, sas, sending, wait_agreed, watched

pytestmark = pytest.mark.uml


def test_evicted_with_a_key_tree(lab: LabGroup, tmp_path: Path) -> None:
    """gcks -- new KEK by LKH, for gm1 and gm2 --> all; TEKs under it --> all; gm3 has neither."""
    watch = evict(lab, tmp_path, TREE, "evicted by a key tree")
    assert [pair.gaps for pair in remaining(watch)] == [[], []]
    lab.members["gm3"].wait_event("rekey-for-others", LIMIT)
    missing = [e["member"] for e in lab.gcks.events("ack-missing") if e["group"] == TREE.name]
    assert missing == []


def test_evicted_without_a_key_tree(lab: LabGroup, tmp_path: Path) -> None:
    """gcks -- register again --> gm1, gm2, who are let in and told new keys; gm3 is not."""
    watch = evict(lab, tmp_path, FLAT, "evicted without a key tree")
    # They have new keys one after the other, and may not hear each other in between.
    for pair in remaining(watch):
        assert all(gap.before is not None for gap in pair.gaps)


def evict(lab: LabGroup, folder: Path, group: GroupOptions, scenario: str) -> Watch:
    """gm3 is put out under traffic, past DTD, and admitted again afterwards."""
    gone = lab.network["gm3"]
    with watched(lab, folder, group, names=MEMBERS, scenario=scenario) as watch:
        watch.note = "gm3 is neither heard nor hears"
        let_pass(0.5)
        first = sending(gone, group.data_group)
        answer = lab.command(lab.gcks, "evict", group=group.name, identities=[gone.address4])
        assert answer["registered"] == "1"
        for name in MEMBERS[:2]:  # past DTD
            wait_until(
                lambda n=name: first[0] not in sas(lab.network[n], group.data_group),  # type: ignore[misc]
                LIMIT,
                f"{name} to let go of the old SA",
                interval=0.2,
            )
        used = wait_agreed(lab, MEMBERS[:2], group)
        assert used not in sas(gone, group.data_group)
        let_pass(1.0)
    watch.assert_nothing_clear()
    for pair in watch.pairs:
        if pair not in remaining(watch):
            assert pair.gaps[-1].before is None, "not heard again"
    lab.command(lab.gcks, "admit", group=group.name, identities=[gone.address4])
    wait_agreed(lab, MEMBERS, group)
    return watch


def remaining(watch: Watch) -> list[Delivery]:
    """Between those who stay."""
    return [pair for pair in watch.pairs if "gm3" not in (pair.sender, pair.receiver)]
