"""What the daemons' tests have in common."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With an empty pre-shared key and a folder, for configurations that name them."""
    (tmp_path / "empty.psk").write_text(" \n")
    (tmp_path / "folder").mkdir()
    return tmp_path
