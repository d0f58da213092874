"""gdoictl rekey and its kind: what they say while ACKs come in, and how they exit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import sys
from pathlib import Path

import pytest

from gdoi_plugin.cli.rekey_progress import RekeyProgress
from tests.cli.test_gdoictl import PATIENCE, PROGRAM, Daemon, one, run


def acked(member: str, seq: int = 13) -> tuple[str, dict[str, object]]:
    return "rekey-acked", {"group": 7, "epoch": 5, "member": member, "seq": seq}


def silent(member: str) -> tuple[str, dict[str, object]]:
    return "ack-missing", {"group": 7, "epoch": 5, "member": member, "seq": 13}


SENT: tuple[str, dict[str, object]] = (
    "rekey-sent",
    {"group": 7, "epoch": 5, "seq": 13, "expected": 3},
)


def test_rekey_acknowledged_by_all(tmp_path: Path) -> None:
    other: tuple[str, dict[str, object]] = ("rekey-acked", {"group": 8, "member": "x"})
    daemon = Daemon(after_rekey=[SENT, acked("gm1"), other, acked("gm2"), acked("gm3", 14)])
    result = one(tmp_path, "rekey", "--group", "7", "--kek", gcks=daemon)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        "group 7: rekey sent, epoch 5, SEQ 13, 3 to acknowledge",
        "gm1 acknowledged (1 of 3)",
        "gm2 acknowledged (2 of 3)",
        "gm3 acknowledged (3 of 3)",
        "group 7: 3 of 3 acknowledged",
    ]
    assert daemon.asked == [("rekey", {"group": "7", "kek": "yes"})]


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["rekey", "--replace"], {"group": "7", "kek": "no", "replace": "yes"}),
        (["delete-tek", "--spi", "0x1a2b3c4d"], {"group": "7", "spi": "0x1a2b3c4d"}),
        (["delete-group"], {"group": "7"}),
    ],
)
def test_deletes(tmp_path: Path, arguments: list[str], asked: dict[str, str]) -> None:
    """Followed like a rekey: they are acknowledged like one."""
    daemon = Daemon(after_rekey=[SENT, acked("gm1"), acked("gm2"), acked("gm3")])
    result = one(tmp_path, *arguments, "--group", "7", gcks=daemon)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[-1] == "group 7: 3 of 3 acknowledged"
    assert daemon.asked == [(arguments[0], asked)]


def test_rekey_with_one_missing(tmp_path: Path) -> None:
    daemon = Daemon(after_rekey=[SENT, acked("gm1"), silent("gm2"), acked("gm3")])
    result = one(tmp_path, "rekey", "--group", "7", gcks=daemon)
    assert result.code == 3
    assert result.out.splitlines()[2] == "gm2 did not acknowledge"
    assert result.out.splitlines()[-1] == "group 7: 2 of 3 acknowledged; missing: gm2"
    result = one(tmp_path, "rekey", "--group", "7", "--json", gcks=daemon)
    assert result.code == 3
    assert result.json == [
        {
            "group": "7",
            "epoch": "5",
            "seq": "13",
            "expected": "3",
            "acknowledged": "2",
            "missing": ["gm2"],
        }
    ]


def test_rekey_window_closes_without_a_word(tmp_path: Path) -> None:
    daemon = Daemon(after_rekey=[SENT, acked("gm1")])
    daemon.answer["window"] = 0.2
    result = one(tmp_path, "rekey", "--group", "7", gcks=daemon)
    assert result.code == 3
    assert result.out.splitlines()[-1] == "group 7: 1 of 3 acknowledged; missing: gm2, gm3"


def test_the_ledger_has_the_last_word_where_events_were_lost(tmp_path: Path) -> None:
    daemon = Daemon(after_rekey=[SENT, acked("gm1")], ledger=[{"acknowledged": 3}])
    daemon.answer["window"] = 0.2
    result = one(tmp_path, "rekey", "--group", "7", gcks=daemon)
    assert result.code == 0
    assert result.out.splitlines()[-1] == "group 7: 3 of 3 acknowledged"
    result = one(tmp_path, "--json", "rekey", "--group", "7", gcks=daemon)
    assert result.code == 0
    assert (result.json[0]["acknowledged"], result.json[0]["missing"]) == ("3", [])


@pytest.mark.parametrize(
    ("last", "code", "told"),
    [
        ({"acknowledged": 3, "attempts": 2}, 0, "3 of 3 acknowledged"),
        (
            {"acknowledged": 2, "attempts": 2, "missing": ["gm3"], "closed": True},
            3,
            "2 of 3 acknowledged; missing: gm3",
        ),
    ],
)
def test_who_is_cut_off_follows_the_ledger(
    tmp_path: Path, last: dict[str, object], code: int, told: str
) -> None:
    """Too slow for the events, say: the key server closes such connections."""
    first = {"acknowledged": 1, "attempts": 1, "missing": ["gm2", "gm3"], "closed": False}
    daemon = Daemon(after_rekey=[SENT, acked("gm1")], closes=True, ledger=[first, last])
    result = one(tmp_path, "rekey", "--group", "7", gcks=daemon)
    assert (result.code, result.err) == (code, "")
    assert result.out.splitlines()[-1] == f"group 7: {told}"


def test_members_of_a_large_group_have_no_line_each(tmp_path: Path) -> None:
    large = {"expected": 100}
    daemon = Daemon(after_rekey=[("rekey-sent", {**SENT[1], **large})])
    daemon.answer |= large
    daemon.after_rekey += [acked(f"gm{number}") for number in range(99)] + [silent("gm99")]
    daemon.ledger = [{**large, "acknowledged": 99, "missing": ["gm99"]}]
    result = one(tmp_path, "rekey", "--group", "7", gcks=daemon)
    assert result.code == 3
    assert result.out.splitlines() == [
        "group 7: rekey sent, epoch 5, SEQ 13, 100 to acknowledge",
        "gm99 did not acknowledge",
        "group 7: 99 of 100 acknowledged; missing: gm99",
    ]


@pytest.mark.parametrize("registered", [0, 1])
def test_revoke_tells_whom_it_met(tmp_path: Path, registered: int) -> None:
    """A mistyped name is denied, too."""
    met = {"revoked": 1, "registered": registered, "denied": ["gm7"]}
    daemon = Daemon(after_rekey=[SENT, acked("gm1"), acked("gm2"), acked("gm3")])
    daemon.answer |= met
    result = one(tmp_path, "revoke", "7", "gm7", gcks=daemon)
    said = f"7: 1 revoked, of whom {registered} were registered; kept out: gm7"
    assert result.code == 0
    assert said in result.out.splitlines()
    assert ("none of them was registered" in result.err) is (registered == 0)
    result = one(tmp_path, "--json", "revoke", "7", "gm7", gcks=daemon)
    assert result.json[0].items() >= {"registered": str(registered), "denied": ["gm7"]}.items()


def test_rekey_of_an_empty_group_and_one_of_unknown_size(tmp_path: Path) -> None:
    result = one(tmp_path, "rekey", "--group", "7", gcks=Daemon(answer={"expected": 0}))
    assert (result.code, result.out) == (0, "group 7: 0 of 0 acknowledged\n")
    result = one(tmp_path, "rekey", "--group", "7", gcks=Daemon(answer={"window": 0.1}))
    assert result.code == 1
    assert "did not say how many members" in result.err


def test_rekey_on_a_terminal(tmp_path: Path) -> None:
    """The bar, on a pseudo terminal."""
    daemon = Daemon(after_rekey=[SENT, acked("gm1"), silent("gm2"), acked("gm3")])
    seen = bytearray()

    async def scenario() -> None:
        main, terminal = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, str(tmp_path), "rekey", "--group", "7"),
            stdout=terminal,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
        )
        os.close(terminal)
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while data := await asyncio.to_thread(os.read, main, 4096):
                seen.extend(data)
        os.close(main)
        assert await asyncio.wait_for(process.wait(), PATIENCE) == 3

    run(tmp_path, scenario, gcks=daemon)
    assert b"2/3" in seen
    assert b"gm2 did not acknowledge" in seen
    assert b"2 of 3 acknowledged; missing: gm2" in seen


def test_progress_counts_over_all_trees_of_a_group() -> None:
    answer = {"group": "7", "epoch": "6", "epochs": ["5", "6"], "seq": "1", "expected": "3"}
    progress = RekeyProgress.of_answer("7", {**answer, "window": "20"})
    progress.feed("rekey-sent", {"group": "7", "epoch": "5", "seq": "2", "expected": "2"})
    for epoch, member in (("5", "a"), ("6", "b"), ("4", "c")):
        progress.feed("rekey-acked", {"group": "7", "epoch": epoch, "member": member})
    assert not progress.done
    progress.feed("ack-missing", {"group": "7", "epoch": "5", "member": "d"})
    assert progress.done
    assert progress.summary() == "group 7: 2 of 3 acknowledged; missing: d"


def test_thousands_of_missing_members_are_counted() -> None:
    answer = {"group": "7", "epoch": "5", "seq": "1", "expected": "1000", "window": "20"}
    progress = RekeyProgress.of_answer("7", answer)
    for number in range(64):
        progress.feed("ack-missing", {"group": "7", "epoch": "5", "member": f"gm{number}"})
    assert not progress.done
    told = progress.feed("ack-missing-more", {"group": "7", "epoch": "5", "count": "936"})
    assert told == "936 more did not acknowledge"
    assert progress.done
    assert progress.summary().endswith(", gm63, 936 not named")


def test_progress_counts_by_epoch() -> None:
    progress = RekeyProgress.of_answer("7", {})
    assert progress.feed("rekey-acked", {"group": "7", "epoch": "4", "member": "old"}) is None
    sent = {"group": "7", "epoch": "5", "seq": "13", "expected": "2", "window": "1"}
    assert progress.feed("rekey-sent", sent) is not None
    assert progress.window == 1
    assert progress.feed("rekey-acked", {"group": "7", "epoch": "4", "member": "old"}) is None
    assert progress.feed("rekey-acked", {"group": "7", "epoch": "5", "member": "a"}) is not None
    # Repeated with the next SEQ, the same epoch: what was counted stays counted.
    progress.feed("rekey-sent", {**sent, "seq": "14"})
    assert (progress.seq, list(progress.acked), progress.done) == ("14", ["a"], False)
    progress.feed("ack-missing", {"group": "7", "epoch": "5", "member": "b"})
    assert progress.done
    assert not progress.complete
    # A late one takes its place among those that did; nobody is both.
    progress.feed("rekey-acked", {"group": "7", "epoch": "5", "member": "b"})
    progress.feed("ack-missing", {"group": "7", "epoch": "5", "member": "a"})
    assert progress.complete
    assert progress.missing == {}
