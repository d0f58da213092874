"""One agent for a group in a network namespace, and one for a state directory."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gdoi_plugin.daemon.claims import Claims
from gdoi_plugin.daemon.errors import StartError, StoreError
from gdoi_plugin.daemon.state_file import StateDirectory
from tests.kernel.namespaces import Namespace

REQID = 0x40000007


@pytest.fixture(autouse=True)
def own_host() -> Iterator[None]:
    with Namespace() as fresh, fresh.entered():
        yield


def test_a_group_has_one_agent() -> None:
    with closing(Claims()) as first, closing(Claims()) as second:
        first.take(REQID, "video")
        second.take(REQID + 1, "audio")
        with pytest.raises(StartError) as caught:
            second.take(REQID, "video")
        said = f"group video: process {os.getpid()} is this group's agent in this network namespace"
        assert str(caught.value) == f"{said}; it takes one for each"
        first.close()
        second.take(REQID, "video")


def test_another_namespace_is_another_host() -> None:
    with closing(Claims()) as first, closing(Claims()) as second:
        first.take(REQID, "video")
        with Namespace() as other, other.entered():
            second.take(REQID, "video")


def test_other_users_keep_nobody_from_it() -> None:
    """Anybody may take the name; whoever may not touch SAs is no agent."""
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setuid(65534)
            squatter = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            squatter.bind(f"\0gdoi-gm {REQID:#x}")
            squatter.listen(1)
            os.write(ready[1], b".")
            os.read(done[0], 1)
        finally:
            os._exit(0)
    try:
        assert os.read(ready[0], 1) == b"."
        with closing(Claims()) as claims:
            claims.take(REQID, "video")
    finally:
        os.write(done[1], b".")
        os.waitpid(child, 0)
        for descriptor in (*ready, *done):
            os.close(descriptor)


def test_a_name_that_nobody_listens_under() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf:
        deaf.bind(f"\0gdoi-gm {REQID:#x}")
        with closing(Claims()) as claims:
            claims.take(REQID, "video")


def test_a_state_directory_has_one_agent(tmp_path: Path) -> None:
    first, second = StateDirectory(tmp_path), StateDirectory(tmp_path)
    first.claim()
    with pytest.raises(StoreError) as caught:
        second.claim()
    assert str(caught.value) == f"{tmp_path}: another agent is using it"
    first.close()
    first.close()
    second.claim()
    second.close()


def test_a_state_directory_that_is_gone(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    (tmp_path / "state").rmdir()
    with pytest.raises(StoreError, match=r"state: No such file or directory"):
        state.claim()
