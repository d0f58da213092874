"""Groups as most scenarios want them: registered at the start, and stopped cleanly at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gdoi_lab.group import GroupOptions, LabGroup
from gdoi_lab.net import Network


@contextmanager
def stopped(lab: LabGroup) -> Iterator[LabGroup]:
    """At the end every daemon stops, and is content."""
    yield lab
    daemons = [*lab.members.values(), lab.gcks]
    assert [daemon.stop() for daemon in daemons] == [0] * len(daemons)


@contextmanager
def running(folder: Path, members: Sequence[str], options: GroupOptions) -> Iterator[LabGroup]:
    """A key server and these members on a network of their own, registered."""
    with (
        Network(["gcks", *members], folder / "work") as network,
        stopped(LabGroup(network, folder / "work", folder, options)) as lab,
    ):
        lab.start()
        yield lab
