"""What a member's group says of the kernel, and what is wrong with bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from gdoi_xfrm import Mark

from gdoi_plugin.daemon.config_member import MemberDaemonConfig
from gdoi_plugin.daemon.kernel_options import KernelOptions, Scope
from tests.daemon.configs import GM, gm, refused, write

ID = "id = 1"
RANGE = "must be 370516 to 389999"


def options(folder: Path, *lines: str) -> KernelOptions:
    path = write(folder, gm(ID, "\n".join([ID, *lines])))
    return MemberDaemonConfig(path).kernel_options["video"]


def test_nothing_said(tmp_path: Path) -> None:
    config = MemberDaemonConfig(write(tmp_path, GM))
    assert config.kernel_options == {"video": KernelOptions(380000, 32)}
    assert not config.groups[0].accept_private_algs


def test_everything_said(tmp_path: Path) -> None:
    found = options(
        tmp_path,
        "priority = 389999",
        "replay_window = 4096",
        'mark_in = "0x10/0xff"',
        'mark_out = "16/255"',
        "mark_in_sa = true",
        "if_id = 5",
    )
    mark = Mark(0x10, 0xFF)
    assert found == KernelOptions(389999, 4096, Scope(mark, mark, 5), mark_in_sa=True)


def test_mark_without_a_mask_is_all_of_it(tmp_path: Path) -> None:
    assert options(tmp_path, 'mark_out = "0xA"').scope.mark_out == Mark(10, 0xFFFFFFFF)


def test_private_algorithms_by_option(tmp_path: Path) -> None:
    path = write(tmp_path, gm(ID, f"{ID}\naccept_private_algs = true"))
    assert MemberDaemonConfig(path).groups[0].accept_private_algs


@pytest.mark.parametrize(
    ("line", "said"),
    [
        # Before what always has to pass, or behind what blocks.
        ("priority = 370515", f"priority: {RANGE}"),
        ("priority = 390000", f"priority: {RANGE}"),
        ("replay_window = 4097", "replay_window: must be 0 to 4096"),
        ("if_id = -1", "if_id: must be 0 to 4294967295"),
        ("mark_in_sa = true", "SA"),
        ('mark_in = "1"\nmark_in_sa = true', "SA"),
        ('mark_in = "1"\nmark_out = "2"\nmark_in_sa = true', "SA"),
    ],
)
def test_bad_line(tmp_path: Path, line: str, said: str) -> None:
    sa = ": mark_in_sa needs mark_in, and the same mark_out: a group's SA receives and sends"
    path = write(tmp_path, gm(ID, f"{ID}\n{line}"))
    expected = f"group.0{sa}" if said == "SA" else f"group.0.{said}"
    assert str(refused(MemberDaemonConfig, path)) == f"{path}: {expected}"


@pytest.mark.parametrize(
    "mark", ['"x"', '"-1"', '"0x100/0xff"', '"1/0"', '"0x1ffffffff"', '"9999999999"', '""', "16"]
)
def test_bad_mark(tmp_path: Path, mark: str) -> None:
    path = write(tmp_path, gm(ID, f"{ID}\nmark_in = {mark}"))
    sentence = str(refused(MemberDaemonConfig, path))
    assert sentence.startswith(f"{path}: group.0.mark_in: ")
    assert "is no mark" in sentence
