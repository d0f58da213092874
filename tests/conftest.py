"""What holds for all tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from tests.lab.steps import KERNEL

# How long an example takes is the machine's business, which may do other things meanwhile.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where the lab uses this host's kernel nobody sets its clock or unloads its modules."""
    if os.environ.get(KERNEL) == "uml":
        return
    left_out = [item for item in items if item.get_closest_marker("own_kernel")]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
