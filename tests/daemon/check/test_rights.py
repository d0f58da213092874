"""Modes, folders, disks and capabilities, each wrong and then as the finding wants it."""

from __future__ import annotations

import grp
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gdoi_plugin.daemon.check.rights import (
    check_capabilities,
    check_config,
    check_control,
    check_folder,
    check_secret,
)
from tests.daemon.children import NOBODY, finished, python

from .mending import FAIL, OK, WARN, as_nobody, mended, verdicts


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "lan.psk"
    path.write_text("k")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    ("mode", "group", "verdict", "said"),
    [
        (0o644, 0, FAIL, "everybody on this host may read it"),
        (0o602, 0, FAIL, "everybody on this host may read it"),
        (0o640, 12345, WARN, "group 12345 may read it"),
    ],
)
def test_files_with_keys(secret: Path, mode: int, group: int, verdict: str, said: str) -> None:
    secret.chmod(mode)
    os.chown(secret, -1, group)
    mended(lambda: [check_secret(secret, "psk_file")], "psk_file", verdict, said)  # type: ignore[arg-type]


@pytest.fixture
def for_all() -> Iterator[Path]:
    """A folder that everybody may enter, as pytest's are not."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_files_of_daemons_that_are_not_root(for_all: Path) -> None:
    """``chmod 600`` of root's file would keep their unit from starting."""
    secret = for_all / "lan.psk"
    secret.touch(mode=0o600)
    said = "nobody, whose the daemon is, cannot read it"
    mended(lambda: [check_secret(secret, "psk_file", "nobody")], "psk_file", FAIL, said)
    assert secret.stat().st_uid == 65534
    secret.chmod(0o644)
    mended(lambda: [check_secret(secret, "psk_file", "nobody")], "psk_file", FAIL, "everybody")
    config = for_all / "gm.toml"
    config.touch(mode=0o600)
    finding = check_config(config, "nobody", secret=False)
    assert (finding.verdict, said in finding.found) == (FAIL, True)
    config.chmod(0o644)
    assert check_config(config, "nobody", secret=False).verdict is OK


def test_folders_of_daemons_that_are_not_root(for_all: Path) -> None:
    (for_all / "gm").mkdir(mode=0o700)
    said = "nobody, whose the daemon is, cannot write it"
    mended(lambda: [check_folder(for_all / "gm", "state", "nobody")], "state", FAIL, said)


def test_a_file_with_keys_that_is_gone(secret: Path) -> None:
    secret.unlink()
    found = check_secret(secret, "psk_file")
    assert (found.verdict, found.found) == (FAIL, "No such file or directory")


def test_configurations(secret: Path) -> None:
    secret.chmod(0o644)
    assert check_config(secret, secret=False).verdict is OK
    mended(lambda: [check_config(secret, secret=True)], "configuration", FAIL, "everybody")
    secret.chmod(0o622)
    tests = lambda: [check_config(secret, secret=False)]  # noqa: E731
    mended(tests, "configuration", FAIL, "others may change it")


def test_folders(tmp_path: Path) -> None:
    folder = tmp_path / "gm"
    assert check_folder(folder, "state").found == f"can be made in {tmp_path}"
    folder.mkdir(mode=0o755)
    mended(lambda: [check_folder(folder, "state", private=True)], "state", WARN, "others may look")
    assert not list(folder.iterdir())
    file = tmp_path / "file"
    file.touch()
    mended(lambda: [check_folder(file / "gm", "state")], "state", FAIL, "is no folder")


def mounted(options: str, fill: str = "true") -> str:
    """What is found of a file system of its own with these options."""
    script = (
        "from pathlib import Path; from gdoi_plugin.daemon.check.rights import check_folder;"
        "print(check_folder(Path('/mnt/gm'), 'state'))"
    )
    shell = f'mount -t tmpfs -o {options} none /mnt && {fill} && exec "$@"'
    return finished(["unshare", "--mount", "sh", "-ec", shell, "sh", *python(script)]).stdout


def test_disks() -> None:
    assert "'ok'" in mounted("size=100M")
    assert "cannot be written: Read-only file system" in mounted("ro")
    assert "mount -o remount,rw /mnt" in mounted("ro")
    assert "6 MiB are left on its file system" in mounted("size=6M")
    full = mounted("size=1M", "head -c 1M /dev/zero > /mnt/full")
    assert "cannot be written: No space left on device" in full


def test_a_folder_of_somebody_else() -> None:
    said = as_nobody(lambda: check_folder(Path("/root/gm"), "state"))
    assert "'warn'" in said  # it says nothing of the daemon
    assert "Permission denied" in said
    assert "sudo gdoictl check" in said


def test_the_control_socket(tmp_path: Path) -> None:
    there = grp.getgrgid(os.getgid()).gr_name
    assert check_control(tmp_path / "gm.vici", there).verdict is OK
    assert check_control(tmp_path / "gm.vici", None).verdict is OK
    found = check_control(tmp_path / "gm.vici", "no-such-group")
    assert (found.verdict, found.mend) == (WARN, "groupadd --system no-such-group")


def test_capabilities() -> None:
    wanted = ("CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE")
    assert verdicts(check_capabilities(wanted)) == dict.fromkeys(wanted, OK)
    script = (
        "from gdoi_plugin.daemon.check.rights import check_capabilities;"
        "[print(one) for one in check_capabilities(['CAP_NET_ADMIN'])]"
    )
    said = finished([*NOBODY, *python(script)]).stdout
    assert "a container without it" in said
    assert "--cap-add NET_ADMIN" in said
    said = as_nobody(lambda: list(check_capabilities(wanted)))
    assert "'warn'" in said
    assert "sudo gdoictl check" in said
