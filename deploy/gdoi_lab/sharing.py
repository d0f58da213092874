"""A pytest plugin: several pytest processes share one list of tests, a module at a time.

``-p gdoi_lab.sharing`` with GDOI_SHARE_CLAIMS, a folder that all of them can write. Each takes a
module (with tests/lab's scenarios: a folder, whose tests share their network) by making a folder
named after it; whoever comes second leaves the module out. One goes through the list from its
front, another, with GDOI_SHARE_BACKWARDS set, from its end: they meet where both are done.
"""

import os
from itertools import groupby
from pathlib import Path

import pytest

CLAIMS = "GDOI_SHARE_CLAIMS"
BACKWARDS = "GDOI_SHARE_BACKWARDS"


def unit_of(nodeid: str) -> str:
    """What a test is taken with: ``tests/lab/tunnel`` or ``tests/kernel/test_tables.py``."""
    path = Path(nodeid.partition("::")[0])
    scenario = path.parts[:2] == ("tests", "lab") and len(path.parts) > 3
    return str(Path(*path.parts[:3])) if scenario else str(path)


class Sharing:
    """Runs a test only if its unit is ours."""

    def __init__(self, claims: Path, *, backwards: bool) -> None:
        self._claims, self._backwards = claims, backwards
        self._ours: dict[str, bool] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self._backwards:  # the units, not the tests of each
            units = [list(tests) for _, tests in groupby(items, lambda i: unit_of(i.nodeid))]
            items[:] = [item for unit in reversed(units) for item in unit]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        unit = unit_of(item.nodeid)
        if unit not in self._ours:
            self._ours[unit] = self._claim(unit)
        return None if self._ours[unit] else True  # True: dealt with

    def _claim(self, unit: str) -> bool:
        try:
            (self._claims / unit.replace("/", ":")).mkdir(parents=True)
        except FileExistsError:
            return False
        return True


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Modules without a test for the lab kernel: importing all of them takes it half a minute."""
    module = collection_path.match("test_*.py") and collection_path.is_file()
    if not module:
        return None
    return None if b"mark.uml" in collection_path.read_bytes() else True


def pytest_configure(config: pytest.Config) -> None:
    if claims := os.environ.get(CLAIMS):
        sharing = Sharing(Path(claims), backwards=BACKWARDS in os.environ)
        config.pluginmanager.register(sharing)
