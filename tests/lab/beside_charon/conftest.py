"""The hosts that every file here goes on with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from gdoi_lab.group import LabGroup
from gdoi_lab.net import Network

from tests.interop.charon import charon
from tests.lab.running import stopped
from tests.lab.watch import reconfigure

from .lab import MEMBERS, OPTIONS, PEERS, SETTINGS, Lab, load


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """charon runs everywhere and knows its connections; no daemon of the group does."""
    folder = tmp_path_factory.mktemp("beside_charon")
    with Network(["gcks", *MEMBERS], folder / "work") as network, ExitStack() as stack:
        lab = LabGroup(network, folder / "work", folder, OPTIONS, settings=SETTINGS)
        ike = {
            name: stack.enter_context(
                charon(folder / name, before=tuple(network[name].command([])))
            )
            for name in network.hosts
        }
        # Nobody listens there, but packets are to come.
        reconfigure(lab.members["gm2"], "recovery_delay", "join = true\nrecovery_delay")
        for name, other in PEERS.items():
            load(ike[name], network[name], network[other])
        for name, other in (("gcks", "gm1"), ("gm1", "gcks")):
            load(ike[name], network[name], network[other])
        with stopped(lab):
            yield Lab(lab, ike)
        for daemon in (*lab.members.values(), lab.gcks):
            assert list(daemon.events("bug")) == []
