"""What a process that lacks something itself says of charon."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gdoi_plugin.daemon.charon.client import CharonClient
from gdoi_plugin.daemon.charon.errors import CharonLost


@contextmanager
def no_more_files() -> Iterator[None]:
    """Every descriptor that this process may have is in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(highest + 1)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for number in held:
            os.close(number)


def test_without_a_file_descriptor_charon_cannot_be_asked(tmp_path: Path) -> None:
    """Whoever depends on charon takes that for a charon that is away, and goes on."""

    async def ask() -> None:
        with no_more_files():
            await CharonClient(tmp_path / "vici").request("version")

    with pytest.raises(CharonLost, match="version: Too many open files"):
        asyncio.run(ask())
