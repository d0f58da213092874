"""gdoictl reload and revoke: what they ask, what they show, how they exit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_gdoictl import Daemon, one
from tests.cli.test_gdoictl_rekey import SENT, acked, silent

DIFFERENT: dict[str, object] = {
    "changes": {
        "0": {"key": "group[video].rekey.kek_lifetime", "before": "1d", "after": "1h"},
        "1": {"key": "group[video].members", "before": "", "after": "gm4\x1b[2J"},
    },
    "steps": {"0": {"group": "video", "step": "rekey: new KEK and TEKs"}},
}


@pytest.mark.parametrize(
    ("words", "asked", "last", "code"),
    [
        ([], ("no", "no"), "video: rekey: new KEK and TEKs", 0),
        (["--replace"], ("no", "yes"), "video: rekey: new KEK and TEKs", 0),
        (["--dry-run"], ("yes", "no"), "nothing was changed: dry run", 4),
    ],
)
def test_reload(
    tmp_path: Path, words: list[str], asked: tuple[str, str], last: str, code: int
) -> None:
    daemon = Daemon(differences=DIFFERENT)
    result = one(tmp_path, "reload", *words, gcks=daemon)
    assert (result.code, result.err) == (code, "")
    lines = result.out.splitlines()
    assert lines[0].split() == ["key", "before", "after"]
    assert lines[1].split() == ["group[video].rekey.kek_lifetime", "1d", "1h"]
    assert lines[2].split() == ["group[video].members", "-", "gm4\\x1b[2J"]
    assert lines[-1] == last
    replace = {"replace": "yes"} if asked[1] == "yes" else {}
    assert daemon.asked == [("reload", {"dry-run": asked[0]} | replace)]
    result = one(tmp_path, "reload", *words, "--json", gcks=daemon)
    assert result.code == code
    (document,) = result.json
    assert document["done"] == ("no" if code else "yes")
    assert document["changes"][0]["before"] == "1d"
    assert document["steps"] == [{"group": "video", "step": "rekey: new KEK and TEKs"}]


def test_reload_without_differences(tmp_path: Path) -> None:
    for words in ([], ["--dry-run"]):
        result = one(tmp_path, "reload", *words, gcks=Daemon())
        assert (result.code, result.out, result.err) == (0, "no differences\n", "")


@pytest.mark.parametrize("group", [["7"], ["--group", "7"]])
def test_revoke_is_followed_like_a_rekey(tmp_path: Path, group: list[str]) -> None:
    daemon = Daemon(after_rekey=[SENT, acked("gm1"), silent("gm2"), acked("gm3")])
    result = one(tmp_path, "revoke", *group, "gm4", "gm5", gcks=daemon)
    assert (result.code, result.err) == (3, "")
    assert result.out.splitlines()[-1] == "group 7: 2 of 3 acknowledged; missing: gm2"
    assert daemon.asked == [("revoke", {"group": "7", "identities": ["gm4", "gm5"]})]
