"""A daemon's network namespace: entered by name or path, or refused in one sentence."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gdoi_plugin.daemon import netns
from gdoi_plugin.daemon.config_gcks import KeyServerDaemonConfig
from gdoi_plugin.daemon.config_member import MemberDaemonConfig
from gdoi_plugin.daemon.errors import AbsentError, ConfigError
from gdoi_plugin.daemon.netns import enter
from tests.daemon.configs import GCKS, GM, gm, refused, write
from tests.kernel.namespaces import Namespace, ip

CONFIG = Path("gm.toml")


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of named namespaces; ``blue`` has an interface that nobody else has."""
    monkeypatch.setattr(netns, "NAMED", tmp_path)
    with Namespace() as fresh:
        with fresh.entered():
            ip("link add only-in-blue type veth peer name other")
            ip("addr add 192.0.2.1/24 dev only-in-blue")
        (tmp_path / "blue").symlink_to(f"/proc/{os.getpid()}/fd/{fresh._fd}")
        yield tmp_path


def in_a_thread(work: Callable[[], None]) -> None:
    """Threads have a namespace each: what one enters is left with its end."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  (for the test to raise)
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for error in raised:
        raise error


def test_by_name_and_by_path(names: Path) -> None:
    before = {name for _, name in socket.if_nameindex()}
    for chosen in ("blue", str(names / "blue")):
        found: set[str] = set()

        def work(chosen: str = chosen, found: set[str] = found) -> None:
            enter(CONFIG, "member.netns", chosen)
            found.update(name for _, name in socket.if_nameindex())

        in_a_thread(work)
        assert "only-in-blue" in found
    assert {name for _, name in socket.if_nameindex()} == before


def test_a_member_looks_for_its_address_in_there(names: Path, tmp_path: Path) -> None:
    text = gm('address = "127.0.0.1"', f'interface = "only-in-blue"\nnetns = "{names}/blue"')
    config = MemberDaemonConfig(write(tmp_path, text))
    assert str(config.absent) == f"{config.path}: member.netns: has yet to be entered"
    with pytest.raises(AbsentError, match="no interface only-in-blue"):
        config.here()
    found: list[str] = []

    def work() -> None:
        enter(config.path, "member.netns", config.settings.netns or "")
        found.append(str(config.here().local))

    in_a_thread(work)
    assert found == ["192.0.2.1:848"]


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ("red", "no network namespace red; this host has blue, file"),
        ("{names}/red", "{names}/red: No such file or directory"),
        ("file", "{names}/file is no network namespace"),
        ("/proc/self/ns/mnt", "/proc/self/ns/mnt is no network namespace"),
    ],
)
def test_what_cannot_be_entered(names: Path, chosen: str, said: str) -> None:
    (names / "file").touch()
    with pytest.raises(ConfigError) as caught:
        enter(CONFIG, "member.netns", chosen.format(names=names))
    assert str(caught.value) == f"gm.toml: member.netns: {said.format(names=names)}"


def test_without_the_capability(names: Path) -> None:
    """In a child that is nobody, with a descriptor that it may open."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setuid(65534)
            enter(CONFIG, "member.netns", "/proc/self/ns/net")
        except ConfigError as error:
            code = 0 if str(error).endswith("network namespace needs CAP_SYS_ADMIN") else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert names.is_dir()


@pytest.mark.parametrize("chosen", ["a/b", "", ".", "..", "a\\u0000b"])
def test_what_is_no_name(tmp_path: Path, chosen: str) -> None:
    said = "netns: must be a network namespace's name, or a path that begins with /"
    line = f'netns = "{chosen}"\n'
    path = write(tmp_path, GM.replace("[member]\n", f"[member]\n{line}"))
    assert str(refused(MemberDaemonConfig, path)) == f"{path}: member.{said}"
    path = write(tmp_path, GCKS.replace("[key_server]\n", f"[key_server]\n{line}"))
    assert str(refused(KeyServerDaemonConfig, path)) == f"{path}: key_server.{said}"
