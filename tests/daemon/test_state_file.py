"""The member's memory: replaced in one step, never half written, its owner's only."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from gdoi_plugin.daemon.errors import StoreError
from gdoi_plugin.daemon.state_file import StateDirectory
from tests.daemon.children import NOBODY, finished, python, running
from tests.support.simnet import Network
from tests.support.worlds import build

RECORD = {"group": 1, "keks": [{"seq": 4}], "text": "ä\n"}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_saved_and_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    state = StateDirectory(folder)
    assert state.load("video") is None
    state.save("video", {"old": True})
    state.save("video", RECORD)
    state.save("audio", {})
    assert state.load("video") == RECORD
    assert StateDirectory(folder).load("audio") == {}
    assert sorted(path.name for path in folder.iterdir()) == ["audio.json", "video.json"]


@pytest.mark.parametrize("former", [None, {"former": True}])
def test_a_file_that_is_new_with_something_else_or_not_at_all(
    tmp_path: Path, former: dict[str, bool] | None
) -> None:
    state = StateDirectory(tmp_path)
    if former is not None:
        state.save("video", former)

    def fails() -> None:
        with state.replaced("video", RECORD):
            assert state.load("video") == RECORD
            raise StoreError("something else")

    with pytest.raises(StoreError, match="something else"):
        fails()
    assert state.load("video") == former
    assert not (tmp_path / "video.new").exists()
    with state.replaced("video", RECORD):
        pass
    assert state.load("video") == RECORD


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "gm"
    mask = os.umask(0)
    try:
        state = StateDirectory(folder)
        left = folder / "video.new"  # by a crash, and somebody changed its mode
        left.touch(0o666)
        state.save("video", RECORD)
    finally:
        os.umask(mask)
    assert (mode(folder), mode(folder / "video.json")) == (0o700, 0o600)


def test_a_members_own_record_comes_back(tmp_path: Path) -> None:
    """What the engine wrote is what it takes up."""
    network = Network(3)
    world = build(network)
    world.start()
    network.run(30)
    world.rekey(kek=True)
    network.run(5)
    record = world.member.record
    state = StateDirectory(tmp_path)
    state.save("g", record)
    assert state.load("g") == record
    before = world.member.group
    world.member.saved = json.dumps(state.load("g"))
    world.member.restart()
    after = world.member.group
    assert after is not before
    assert after.kek is not None
    assert before.kek is not None
    assert (after.kek.kek, after.kek.seq) == (before.kek.kek, before.kek.seq)
    assert after.previous.keys() == before.previous.keys()
    assert {spi: held.tek.encryption_key for spi, held in after.rollover.held.items()} == {
        spi: held.tek.encryption_key for spi, held in before.rollover.held.items()
    }


SAVING = """
import os, sys
from pathlib import Path
from gdoi_plugin.daemon.state_file import StateDirectory
state = StateDirectory(Path(sys.argv[1]))
number = (state.load("video") or {"number": 0})["number"]
while True:
    number += 1
    state.save("video", {"number": number, "fill": [number] * 5000})
    os.write(1, b"%d\\n" % number)
"""


def test_never_half_of_it_after_kill_9(tmp_path: Path) -> None:
    for lines in (1, 10, 33):
        with running(python(SAVING, tmp_path)) as child:
            assert child.stdout is not None
            said = [child.stdout.readline() for _ in range(lines)]
            child.kill()
            said += child.stdout.readlines()
        record = StateDirectory(tmp_path).load("video")
        assert record is not None
        assert int(said[-1]) <= record["number"] <= int(said[-1]) + 1
        assert record["fill"] == [record["number"]] * 5000


# -- what cannot be read or written --------------------------------------------------------------


@pytest.mark.parametrize(
    ("octets", "said"),
    [
        (b"", "not JSON; remove it to register afresh"),
        (b'{"keks": [', "not JSON; remove it to register afresh"),
        (b"\xff\xfe", "not JSON; remove it to register afresh"),
        (b"[" * 100_000, "not JSON; remove it to register afresh"),
        (b"[]", "not a JSON object; remove it to register afresh"),
        (b"null", "not a JSON object; remove it to register afresh"),
    ],
)
def test_damaged(tmp_path: Path, octets: bytes, said: str) -> None:
    path = tmp_path / "video.json"
    path.write_bytes(octets)
    with pytest.raises(StoreError) as caught:
        StateDirectory(tmp_path).load("video")
    assert str(caught.value) == f"{path}: {said}"


def test_a_directory_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "video.json"
    path.mkdir()
    state = StateDirectory(tmp_path)
    with pytest.raises(StoreError) as caught:
        state.load("video")
    assert str(caught.value) == f"{path}: Is a directory"
    with pytest.raises(StoreError) as caught:
        state.save("video", RECORD)
    assert str(caught.value) == f"{path}: Is a directory"


def test_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError) as caught:
        StateDirectory(tmp_path / "file")
    assert str(caught.value) == f"{tmp_path / 'file'}: File exists"


FAILING = """
import resource, signal, sys
from pathlib import Path
from gdoi_plugin.daemon.errors import StoreError
from gdoi_plugin.daemon.state_file import StateDirectory
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    state = StateDirectory(Path(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
    state.save("video", {"fill": "x" * 1000})
    state.save("video", {"fill": "x" * 10000})
except StoreError as error:
    print(error)
print(len(state.load("video")["fill"]) if "state" in dir() else "-")
"""


def test_a_full_disk(tmp_path: Path) -> None:
    done = finished(python(FAILING, tmp_path))
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"{tmp_path}/video.json: File too large", "1000"]


def test_no_permission(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    done = finished([*NOBODY, *python(FAILING, tmp_path / "gm")])
    assert done.stdout.splitlines() == [f"{tmp_path}/gm: Permission denied", "-"]
    StateDirectory(tmp_path).save("video", {"fill": "x" * 7})
    done = finished([*NOBODY, *python(FAILING, tmp_path)])
    assert done.stdout.splitlines()[0] == f"{tmp_path}/video.json: Permission denied"
