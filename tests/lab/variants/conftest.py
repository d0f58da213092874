"""The networks that the variants share, and their groups' run under traffic.

::

    gcks ----+---- gm1, gm2, gm3     several groups at once, an address each
             +---- badpsk            configured with another pre-shared key
             +---- unlisted          no member by the key server's list
             +---- outsider          no daemon at all
          capture
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gdoi_lab.group import PSK, LabGroup
from gdoi_lab.net import Network
from gdoi_lab.pki import Authority

from tests.lab.running import stopped
from tests.lab.variants.groups import (
    AH,
    DELETED,
    ECDSA,
    FLAT,
    GCM,
    GCM_6,
    MEMBERS,
    PLAIN,
    PLAIN_6,
    SSM,
    TREE,
    TUNNEL,
    UNICAST,
    run_together,
)
from tests.lab.watch import Watch, reconfigure


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabGroup]:
    """Every IPv4 group, registered. badpsk tries from the start: giving up takes it 31 s."""
    folder = tmp_path_factory.mktemp("variants")
    hosts = ["gcks", *MEMBERS, "badpsk", "unlisted", "outsider"]
    with Network(hosts, folder / "work") as network:
        more = (GCM, UNICAST, ECDSA, TUNNEL, DELETED, TREE, FLAT, SSM, AH)
        group = LabGroup(
            network, folder / "work", folder, PLAIN, more=more, outsiders=("outsider",)
        )
        unlisted = f', "{network["unlisted"].address4}"'
        reconfigure(group.gcks, unlisted, "")
        reconfigure(group.members["badpsk"], PSK, "another key")
        group.start(*MEMBERS)
        group.members["badpsk"].start()
        yield group
        daemons = [group.members[name] for name in MEMBERS]
        assert [daemon.stop() for daemon in [*daemons, group.gcks]] == [0, 0, 0, 0]


@pytest.fixture(scope="package")
def lab6(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabGroup]:
    """The IPv6 groups: registration, rekeys, acknowledgements and data, all over IPv6, and phase 1
    with certificates."""
    folder = tmp_path_factory.mktemp("variants6")
    authority = Authority(folder / "pki")
    with Network(["gcks", *MEMBERS], folder / "work") as network:
        group = LabGroup(
            network, folder / "work", folder, PLAIN_6, more=(GCM_6,), authority=authority
        )
        with stopped(group):
            group.start()
            yield group


@pytest.fixture(scope="package")
def ran(lab: LabGroup, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Watch]:
    """The IPv4 variants, all at the same time."""
    folder = tmp_path_factory.mktemp("ran")
    return run_together(lab, MEMBERS, [GCM, UNICAST, ECDSA, TUNNEL, SSM, AH], folder)
